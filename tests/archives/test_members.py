"""Files are told by their names: images, archives and manifests, and what is neither is counted."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders.archives import archive_of, write_files, zip_with
from builders.plans import contents, fetch_all, plan_of_archive
from builders.servers import Ranges, serving
from crackbatch.images.formats import EXTENSIONS
from crackbatch.sources.plan import make_plan


def test_what_is_no_image_in_an_archive_is_counted(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    extra = {"__MACOSX/._a.jpg": b"x", "._b.jpg": b"x", ".hidden/c.jpg": b"x", "notes.txt": b"x", "inner.zip": b"x"}
    (tmp_path / "a.zip").write_bytes(zip_with(zipfile.ZIP_STORED, {**tiles, **extra}))
    plan = plan_of_archive(tmp_path / "a.zip")
    assert contents(plan) == tiles
    assert dict(plan.listing.passed_over) == {"hidden files": 3, ".txt files": 1}


@pytest.mark.parametrize("query", ["", "?sig=a", "?sig=a/b.txt", "?name=a.zip&sig=/", "?sig=a#b/c.csv"])
def test_a_signature_behind_a_name_changes_nothing(query: str, tmp_path: Path, tiles: dict[str, bytes]) -> None:
    folder = write_files(tmp_path / "www", {f"in/{name}": data for name, data in tiles.items()})
    for kind in ("zip", "tar", "tar.gz", "parquet"):
        (folder / f"a.{kind}").write_bytes(archive_of(kind, tiles, tmp_path))
    names = [f"in/{name}" for name in tiles]
    pq.write_table(pa.table({"image_uri": names}), folder / "m.parquet")
    with serving(folder, Ranges) as base:
        members = [f"{kind}://{name}::{base}/a.{kind}{query}" for kind in ("zip", "tar") for name in tiles]
        (folder / "m.csv").write_text("\n".join(["image_uri", *names, *members]))
        sources = {
            "m.csv": 3,
            "m.parquet": 1,
            "a.zip": 1,
            "a.tar": 1,
            "a.tar.gz": 1,
            "a.parquet": 1,
            "in/tile-00.jpg": 0,
        }
        for source, times in sources.items():
            plan = make_plan([f"{base}/{source}{query}"], EXTENSIONS, scratch=str(tmp_path / "scratch"))
            expected = [*tiles.values()] * times or [tiles["tile-00.jpg"]]
            assert Counter(row["bytes"] for row in fetch_all(plan)) == Counter(expected), source
