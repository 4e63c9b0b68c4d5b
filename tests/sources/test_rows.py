"""An archive that changes, fails or cannot be unpacked while it is listed gives no wrong row."""

from __future__ import annotations

import io
import os
import resource
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from builders.archives import archive_of, tar_of, zip_with
from builders.faulty import Faults
from builders.plans import plan_of_archive
from builders.servers import WholeFiles, deleted, grown, put, replaced, serving
from crackbatch.archives.members import Listing
from crackbatch.errors import RunError
from crackbatch.images.formats import EXTENSIONS
from crackbatch.sources.fetch import fetch
from crackbatch.sources.listing import list_source
from crackbatch.sources.plan import make_plan
from crackbatch.sources.rows import list_archive
from crackbatch.storage.retry import num_retries


def test_one_name_twice_in_an_archive_is_two_images(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    first, second = tiles["tile-00.jpg"], tiles["tile-01.jpg"]
    with tarfile.open(tmp_path / "a.tar", "w") as tar, zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for data in (first, second):
            entry = tarfile.TarInfo("a.jpg")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # zipfile warns of the second
                archive.writestr("a.jpg", data)
    for name in ("a.tar", "a.zip"):
        table = plan_of_archive(tmp_path / name).table
        assert len(set(zip(table["image_uri"].to_pylist(), table["version"].to_pylist(), strict=True))) == 2
        assert [row["bytes"] for block in fetch(table) for row in block.to_pylist()] == [first, second]


def test_a_file_that_may_not_grow_ends_the_planning_and_leaves_no_half_of_it(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "a.tar.gz", {f"{number}.jpg": os.urandom(1 << 20) for number in range(4)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, before[1]))
    try:
        with pytest.raises(RunError, match="File too large"):
            plan_of_archive(archive)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_credentials_that_expire_while_archives_are_listed_end_the_run(
    s3: str, bucket: str, through: Callable[[Faults], None], tiles: dict[str, bytes]
) -> None:
    for number in range(3):
        put(s3, f"{bucket}/{number}.zip", zip_with(zipfile.ZIP_STORED, tiles))
    through(Faults(expires_after=3))
    with pytest.raises(RunError, match=r"refuses this job's credentials at s3://.*zip.*renew them and run again"):
        make_plan([f"s3://inspections/{bucket}"], EXTENSIONS)


@pytest.mark.parametrize("fault", ["expired", "503"])
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "parquet"])
def test_a_store_that_fails_while_an_archive_is_read_is_no_damage_of_the_archive(
    kind: str, fault: str, s3: str, bucket: str, through: Callable[[Faults], None], tmp_path: Path
) -> None:
    images = {f"{number}.jpg": os.urandom(3 << 20) for number in range(4)}
    put(s3, f"{bucket}/a.{kind}", archive_of(kind, images, tmp_path))
    faults = Faults(kinds=("503",))
    through(faults)
    (found,) = list_source(f"s3://inspections/{bucket}/a.{kind}", EXTENSIONS, Listing())

    def fail(*_: object) -> bool:
        faults.expires_after, faults.share = (0, 0) if fault == "expired" else (None, 1)
        return True

    if kind in ("zip", "parquet"):  # all of their directories is read at once
        fail()
    message = "token has expired.*renew them and" if fault == "expired" else "(Please reduce|Service Unavailable).*;"
    with pytest.raises(RunError, match=rf"/a\.{kind}.*{message} run again"):
        list_archive(found, fail, str(tmp_path / "scratch"))


@pytest.mark.parametrize(("change", "status"), [(replaced, "changed"), (grown, "changed"), (deleted, "missing")])
def test_an_archive_that_changes_while_it_is_unpacked_gives_no_pixels(
    change: Callable[[str, str, bytes], None], status: str, s3: str, bucket: str, tmp_path: Path
) -> None:
    images = {f"{number}.jpg": os.urandom(3 << 20) for number in range(4)}  # more than is read at once
    archive = archive_of("tar.gz", images, tmp_path)
    put(s3, f"{bucket}/a.tar.gz", archive)
    (found,) = list_source(f"s3://inspections/{bucket}/a.tar.gz", EXTENSIONS, Listing())

    def change_now(*_: object) -> bool:
        change(s3, f"{bucket}/a.tar.gz", archive)
        return True

    listed = list_archive(found, change_now, str(tmp_path / "scratch"))
    assert listed is not None
    statuses = listed[0]["status"].to_pylist()
    assert statuses
    assert set(statuses) <= {status, "truncated"}
    assert statuses[0] == status


def test_a_local_archive_that_is_replaced_while_it_is_unpacked_gives_no_pixels(
    tmp_path: Path, tiles: dict[str, bytes]
) -> None:
    tar_of(tmp_path / "a.tar.gz", tiles)
    (found,) = list_source(str(tmp_path / "a.tar.gz"), EXTENSIONS, Listing())
    tar_of(tmp_path / "other.tar.gz", tiles).replace(tmp_path / "a.tar.gz")
    listed = list_archive(found, lambda *_: True, str(tmp_path / "scratch"))
    assert listed is not None
    assert set(listed[0]["status"].to_pylist()) == {"changed"}
    assert "run again" in listed[0]["error"][0].as_py()


@pytest.mark.usefixtures("short_pauses")
def test_an_image_whose_web_server_cannot_be_reached_is_unreadable(tmp_path: Path) -> None:
    with serving(tmp_path, WholeFiles) as base:
        pass
    (tmp_path / "m.csv").write_text(f"image_uri\n{base}/a.jpg\n")
    before = num_retries()
    (row,) = make_plan([str(tmp_path / "m.csv")], EXTENSIONS).table.to_pylist()
    assert row["status"] == "unreadable"
    assert "Cannot connect to host" in row["error"]
    assert num_retries() > before
