"""A web server without ranges gives no image the bytes of another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from builders.archives import archive_of, write_files
from builders.plans import fetch_all
from builders.servers import InPieces, WholeFiles, serving
from crackbatch.errors import SourceError
from crackbatch.images.formats import EXTENSIONS
from crackbatch.sources.plan import make_plan


@pytest.mark.parametrize("size", [100_000, 1_000_000])
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "parquet"])
def test_a_web_server_without_ranges_gives_no_image_the_pixels_of_another(kind: str, size: int, tmp_path: Path) -> None:
    refusal = "the server sends whole files only, not ranges; download the file and give the path of the copy"
    images = {f"{number}.bmp": os.urandom(size) for number in range(12)}
    folder = write_files(tmp_path / "www", {f"a.{kind}": archive_of(kind, images, tmp_path)})
    rows: list[dict[str, object]] = []
    with serving(folder, WholeFiles) as base:
        try:
            plan = make_plan([f"{base}/a.{kind}"], EXTENSIONS, scratch=str(tmp_path / "scratch"))
            problems, rows = plan.listing.problems, fetch_all(plan)  # of what the beginning of the archive says
        except SourceError as error:
            problems = [str(error)]
    assert len(rows) == len(images) or problems[0].endswith(refusal)
    for number, row in enumerate(rows):
        assert row["bytes"] == (images[f"{number}.bmp"] if row["status"] is None else None)
        assert row["status"] is None or str(row["error"]).endswith(refusal)


@pytest.mark.parametrize("size", [1_000, 1_000_000])
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "parquet"])
def test_an_archive_that_can_only_be_read_through_is_unpacked_or_refused_in_one_line(
    kind: str, size: int, tmp_path: Path
) -> None:
    images = {f"{number}.bmp": os.urandom(size) for number in range(12)}
    folder = write_files(tmp_path / "www", {f"a.{kind}": archive_of(kind, images, tmp_path)})
    with serving(folder, InPieces) as base:
        if kind == "tar.gz":
            plan = make_plan([f"{base}/a.{kind}"], EXTENSIONS, scratch=str(tmp_path / "scratch"))
            assert [row["bytes"] for row in fetch_all(plan)] == list(images.values())
        else:
            with pytest.raises(
                SourceError, match=rf"/a\.{kind}: .*sends whole files only, not ranges; download the file"
            ):
                make_plan([f"{base}/a.{kind}"], EXTENSIONS)
