"""Bytes come from stores that fail, refuse and change, and every row says what became of its image."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders.archives import archive_of, tar_of, write_files, zip_with
from builders.credentials import SECRET
from builders.faulty import Faults, bad_sector
from builders.places import TESTS
from builders.plans import contents, fetch_all, plan_of
from builders.servers import (
    Endless,
    InPieces,
    Packed,
    Place,
    Ranges,
    WholeFiles,
    cut_short,
    deleted,
    grown,
    put,
    refusing,
    replaced,
    serving,
)
from crackbatch.errors import RunError
from crackbatch.images.formats import EXTENSIONS
from crackbatch.sources.fetch import fetch
from crackbatch.sources.plan import make_plan
from crackbatch.sources.rows import SCHEMA
from crackbatch.storage import retry
from crackbatch.storage.retry import num_retries


def test_an_object_that_is_refused_is_a_row_with_the_stores_message(
    s3: str, bucket: str, through: Callable[[Faults], None], tiles: dict[str, bytes]
) -> None:
    for name, data in tiles.items():
        put(s3, f"{bucket}/{name}", data)
    plan = make_plan([f"s3://inspections/{bucket}"], EXTENSIONS)
    through(Faults(denied="tile-03"))
    rows = {str(row["image_uri"]).rpartition("/")[2]: row for row in fetch_all(plan)}
    assert {name for name, row in rows.items() if row["status"]} == {"tile-03.jpg"}
    assert rows["tile-03.jpg"]["status"] == "unreadable"
    assert "not for your eyes" in str(rows["tile-03.jpg"]["error"])


def test_credentials_that_expire_end_the_run_and_are_not_shown(
    s3: str, bucket: str, through: Callable[[Faults], None], tiles: dict[str, bytes]
) -> None:
    for name, data in tiles.items():
        put(s3, f"{bucket}/{name}", data)
    plan = make_plan([f"s3://inspections/{bucket}"], EXTENSIONS)
    through(Faults(expires_after=3))
    with pytest.raises(RunError, match=r"The provided token has expired.*renew them and run again") as raised:
        fetch_all(plan)
    assert SECRET not in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "status"), [(replaced, "changed"), (grown, "changed"), (cut_short, "changed"), (deleted, "missing")]
)
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "parquet"])
def test_an_object_that_changes_after_listing_never_gives_new_pixels_under_its_old_version(
    kind: str, change: Callable[[str, str, bytes], None], status: str, s3: str, bucket: str, tmp_path: Path,
    tiles: dict[str, bytes],
) -> None:  # fmt: skip
    archive = archive_of(kind, tiles, tmp_path)
    for name, data in {**tiles, f"tiles.{kind}": archive}.items():
        put(s3, f"{bucket}/{name}", data)
    plan = make_plan([f"s3://inspections/{bucket}"], EXTENSIONS, scratch=str(tmp_path / "scratch"))
    change(s3, f"{bucket}/tile-01.jpg", tiles["tile-01.jpg"])
    change(s3, f"{bucket}/tiles.{kind}", archive)
    rows = fetch_all(plan)
    assert len(rows) == 2 * len(tiles)
    for row in rows:
        # What is unpacked while it is listed is of the listed version, whatever comes after.
        of_changed = kind != "tar.gz" if row["archive"] else str(row["image_uri"]).endswith("tile-01.jpg")
        assert row["status"] == (status if of_changed else None), row["error"]
        assert (row["bytes"] is None) == of_changed
    assert {row["bytes"] for row in rows} - {None} <= set(tiles.values())


def test_a_parquet_file_that_changes_while_it_is_read_gives_no_new_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crackbatch.sources.fetch.MAX_BLOCK_BYTES", 1 << 20)
    path, old, new = tmp_path / "a.parquet", [os.urandom(100_000) for _ in range(60)], bytes(100_000)
    options = {"row_group_size": 4, "compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(pa.table({"bytes": old}), path, **options)
    blocks = fetch(make_plan([str(path)], EXTENSIONS).table)
    rows = next(blocks).to_pylist()
    changed = path.read_bytes()
    for data in old:
        changed = changed.replace(data, new)
    path.write_bytes(changed)
    rows += [row for block in blocks for row in block.to_pylist()]
    read = [row["bytes"] for row in rows if row["status"] is None]
    assert 0 < len(read) < len(rows) == 60
    assert read == old[: len(read)]
    assert {row["status"] for row in rows[len(read) :]} == {"changed"}


@pytest.mark.parametrize("header", ["Last-Modified", "ETag"])
def test_a_file_on_a_web_server_that_is_replaced_by_one_of_its_size_is_seen_to_have_changed(
    header: str, tmp_path: Path, tiles: dict[str, bytes]
) -> None:
    folder = write_files(tmp_path / "www", {"a.jpg": tiles["tile-00.jpg"]})
    os.utime(folder / "a.jpg", (1e9, 1e9))

    class Handler(WholeFiles):
        def send_header(self, name: str, value: str) -> None:
            super().send_header(header if name == "Last-Modified" else name, value)

    with serving(folder, Handler) as base:
        plan = make_plan([f"{base}/a.jpg"], EXTENSIONS)
        assert [row["bytes"] for row in fetch_all(plan)] == [tiles["tile-00.jpg"]]
        (folder / "a.jpg").write_bytes(bytes(len(tiles["tile-00.jpg"])))
        assert [row["status"] for row in fetch_all(plan)] == ["changed"]
        assert make_plan([f"{base}/a.jpg"], EXTENSIONS).table["version"][0] != plan.table["version"][0]


def test_a_web_server_that_does_not_say_how_long_an_image_is_gives_all_of_it(
    tmp_path: Path, tiles: dict[str, bytes]
) -> None:
    images = {"a.jpg": tiles["tile-00.jpg"], "b.jpg": os.urandom(3 << 20), "c.jpg": b""}
    folder = write_files(tmp_path / "www", images)
    (folder / "m.csv").write_text("image_uri\n" + "\n".join(images))
    with serving(folder, InPieces) as base:
        plan = make_plan([f"{base}/m.csv", f"{base}/a.jpg"], EXTENSIONS)
        rows = {str(row["image_uri"]).rpartition("/")[2]: row for row in fetch_all(plan)}
    assert {name: row["bytes"] for name, row in rows.items()} == images
    assert {name: row["size_bytes"] for name, row in rows.items()} == {name: len(data) for name, data in images.items()}


def test_an_image_without_end_is_read_no_further_than_an_image_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crackbatch.sources.fetch.MAX_IMAGE_BYTES", 1 << 20)
    folder = write_files(tmp_path / "www", {"a.jpg": bytes(1 << 20), "b.jpg": bytes((1 << 20) + 1)})
    with serving(folder, InPieces) as base:
        rows = fetch_all(make_plan([f"{base}/a.jpg", f"{base}/b.jpg"], EXTENSIONS))
    assert [row["status"] for row in rows] == [None, "too_large"]


ANSWERS = [  # status, how many requests get it, what becomes of the row, and why
    (403, 999, "unreadable", "403, message='Forbidden'"),
    (404, 999, "missing", ""),
    (410, 999, "missing", ""),
    (503, 7, None, ""),
    (503, 999, "unreadable", "503, message='Service Unavailable'"),
]


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize(("answer", "times", "status", "message"), ANSWERS)
def test_what_a_web_server_says_of_an_image_in_a_manifest_is_what_its_row_says(
    answer: int, times: int, status: str | None, message: str, tmp_path: Path, tiles: dict[str, bytes]
) -> None:
    folder = write_files(tmp_path / "www", {"a.jpg": tiles["tile-00.jpg"], "m.csv": b"image_uri\na.jpg\n"})
    before = num_retries()
    with serving(folder, refusing("/a.jpg", answer, times)) as base:
        (row,) = fetch_all(make_plan([f"{base}/m.csv"], EXTENSIONS))
    assert row["status"] == status
    assert message in str(row["error"])
    assert row["bytes"] == (None if status else tiles["tile-00.jpg"])
    assert (num_retries() > before) == (answer == 503)


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize(("answer", "times", "status", "message"), ANSWERS)
@pytest.mark.parametrize("name", ["a.jpg", "a.zip", "in-pieces.jpg"])
def test_what_a_web_server_says_of_an_object_that_was_listed_is_what_its_row_says(
    name: str, answer: int, times: int, status: str | None, message: str, tmp_path: Path, tiles: dict[str, bytes]
) -> None:
    one = {"a.jpg": tiles["tile-00.jpg"]}
    folder = write_files(tmp_path / "www", {name: zip_with(0, one) if name.endswith("zip") else one["a.jpg"]})
    handler = refusing(f"/{name}", answer, 0, InPieces if name == "in-pieces.jpg" else Ranges)
    with serving(folder, handler) as base:
        plan = make_plan([f"{base}/{name}"], EXTENSIONS)
        handler.times = times
        (row,) = fetch_all(plan)
    assert row["status"] == status
    assert message in str(row["error"])
    assert row["bytes"] == (None if status else tiles["tile-00.jpg"])


def test_a_local_file_that_changes_after_listing_never_gives_new_pixels(
    tmp_path: Path, tiles: dict[str, bytes]
) -> None:
    for name, data in tiles.items():
        (tmp_path / name).write_bytes(data)
    plan = make_plan([str(tmp_path)], EXTENSIONS)
    (tmp_path / "tile-01.jpg").write_bytes(bytes(len(tiles["tile-01.jpg"])))  # as long as before
    (tmp_path / "tile-02.jpg").unlink()
    statuses = {Path(str(row["image_uri"])).name: row["status"] for row in fetch_all(plan)}
    assert {name: status for name, status in statuses.items() if status} == {
        "tile-01.jpg": "changed",
        "tile-02.jpg": "missing",
    }


def test_a_bad_sector_costs_the_images_in_it_and_none_beside_them(tmp_path: Path) -> None:
    first, last, page = b"first image", b"last image", mmap.PAGESIZE
    with bad_sector(first, last, tmp_path / "empty") as (location, start):
        spans = [(start, len(first)), (start + page - 10, 20), (start + page, 10), (start + 2 * page, len(last))]
        known = {"container": os.fsencode(location), "container_version": "", "method": "range"}
        rows = [known | {"start": begin, "length": size, "size_bytes": size} for begin, size in spans]
        columns = {name: [row.get(name) for row in rows] for name in SCHEMA.names}
        found = [row for block in fetch(pa.table(columns, schema=SCHEMA)) for row in block.to_pylist()]
    assert [row["bytes"] for row in found] == [first, None, None, last]
    assert [row["status"] for row in found] == [None, "unreadable", "unreadable", None]
    assert os.strerror(errno.EIO) in str(found[1]["error"])


def test_a_place_of_an_archive_that_a_store_cannot_read_costs_the_images_in_one_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(retry, "_MAX_PAUSE_S", 0.01)
    members = {f"tile-0{index}.jpg": os.urandom(3 << 20) for index in range(6)}  # two at most in a request
    place = tar_of(tmp_path / "a.tar", members).read_bytes().index(members["tile-02.jpg"])

    class Handler(Ranges):
        broken = False

        def send_head(self) -> Any:
            first, last = map(int, self.headers.get("Range", "bytes=0-0").removeprefix("bytes=").split("-"))
            if not (Handler.broken and first <= place <= last):
                return super().send_head()
            self.send_error(500)
            return None

    with serving(tmp_path, Handler) as base:
        plan = make_plan([f"{base}/a.tar"], EXTENSIONS)
        Handler.broken = True
        rows = fetch_all(plan)
    given = {str(row["image_uri"]).partition("::")[0].rpartition("/")[2]: row for row in rows}
    lost = {name for name, row in given.items() if row["status"] == "unreadable"}
    assert "tile-02.jpg" in lost
    assert len(lost) <= 2
    assert all(given[name]["bytes"] == members[name] for name in members.keys() - lost)


def test_an_image_that_vanishes_under_a_name_that_is_no_utf8_is_missing(tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"\xff.jpg")
    with open(path, "wb") as file:
        file.write(b"x")
    plan = plan_of(tmp_path)
    os.unlink(path)
    assert list(contents(plan).values()) == ["missing"]


def test_planned_and_fetched_to_the_same_bytes(place: Place, tiles: dict[str, bytes]) -> None:
    plan = make_plan([f"{place.url}/lot", f"{place.url}/lot.zip"], EXTENSIONS)
    assert plan.table.num_rows == 2 * len(tiles)
    assert dict(plan.listing.passed_over) == {"hidden files": 1, ".txt files": 1}
    fetched = [data for block in fetch(plan.table) for data in block["bytes"].to_pylist()]
    assert sorted(fetched) == sorted([*tiles.values()] * 2)
    for uri in plan.table["image_uri"].to_pylist()[:: len(tiles) // 2]:
        with fsspec.open(uri) as file:
            assert file.read() == tiles[uri.partition("::")[0].rsplit("/", 1)[-1]]


@pytest.mark.parametrize("kind", [Packed, Endless])
def test_a_web_server_that_sends_more_than_it_is_asked_for_takes_no_memory(
    kind: type[WholeFiles], tmp_path: Path
) -> None:
    """A packed megabyte is not unpacked to a gigabyte, and a range without end is not read to its end."""
    bomb = zlib.compressobj(9, wbits=31)
    packed = b"".join([*(bomb.compress(bytes(1 << 20)) for _ in range(300)), bomb.flush()])
    write_files(tmp_path / "www", {f"{number}.jpg": packed for number in range(20)})
    with serving(tmp_path / "www", kind) as base:
        code = f"""
from builders.plans import fetch_all, plan_of
lines = [f"{base}/{{number}}.jpg" for number in range(20)]
open("{tmp_path}/m.csv", "w").write("image_uri\\n" + "\\n".join(lines))
plan = plan_of("{tmp_path}/m.csv")
print(sorted({{(row["status"], len(row["bytes"] or b"")) for row in fetch_all(plan)}}, key=str))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
        done = subprocess.run([sys.executable, "-c", code], cwd=TESTS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = (None, len(packed)) if kind is Packed else ("changed", 0)
    told, peak_kb = done.stdout.splitlines()
    assert told == str([expected])
    assert int(peak_kb) < 600_000
