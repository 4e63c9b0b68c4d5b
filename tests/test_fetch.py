"""Bytes come from stores that fail, refuse and change, and every row says what became of its image."""

from __future__ import annotations

import ctypes
import errno
import functools
import io
import mmap
import os
import re
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from conftest import SECRET
from crackbatch.errors import RunError, SourceError
from crackbatch.images.formats import EXTENSIONS
from crackbatch.sources.fetch import fetch
from crackbatch.sources.listing import list_source
from crackbatch.sources.members import Listing
from crackbatch.sources.plan import Plan, make_plan
from crackbatch.sources.rows import SCHEMA, list_archive
from crackbatch.sources.shards import shard_sizes
from crackbatch.storage import retry
from crackbatch.storage.retry import num_retries
from faulty import FAULTS, Faults, FaultyProxy
from test_archive import tar_of, write_files, zip_with


@pytest.fixture
def bucket(s3: str, request: pytest.FixtureRequest) -> str:
    """A prefix of its own in the bucket."""
    return f"fetch/{request.node.name.translate({91: '-', 93: ''})}"


@pytest.fixture
def through(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Faults], None]]:
    """Puts a faulty proxy before the store; pauses between tries are short here."""
    monkeypatch.setattr(retry, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(retry, "_MAX_PAUSE_S", 0.01)
    proxies: list[FaultyProxy] = []

    def put(faults: Faults) -> None:
        proxies.append(FaultyProxy(s3, faults).__enter__())
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxies[-1].url)
        s3fs.S3FileSystem.clear_instance_cache()

    yield put
    s3fs.S3FileSystem.clear_instance_cache()
    for proxy in proxies:
        proxy.__exit__(None, None, None)


def put(s3: str, key: str, data: bytes) -> None:
    boto3.client("s3", endpoint_url=s3).put_object(Bucket="inspections", Key=key, Body=data)


def fetch_all(plan: Plan) -> list[dict[str, object]]:
    start, rows = 0, []
    for size in shard_sizes(plan.table):
        for block in fetch(plan.table.slice(start, size)):
            rows.extend(block.to_pylist())
        start += size
    return rows


@pytest.mark.parametrize("kind", FAULTS)
def test_what_passes_by_itself_is_asked_again(
    kind: str, s3: str, bucket: str, through: Callable[[Faults], None], tiles: dict[str, bytes]
) -> None:
    for name, data in tiles.items():
        put(s3, f"{bucket}/{name}", data)
    put(s3, f"{bucket}/tiles.zip", zip_with(zipfile.ZIP_DEFLATED, tiles))
    faults = Faults(share=0.3, kinds=(kind,), silence_s=0.2)
    through(faults)
    before = num_retries()
    plan = make_plan([f"s3://inspections/{bucket}"], EXTENSIONS)
    rows = fetch_all(plan)
    assert plan.listing.problems == []
    assert [row["status"] for row in rows] == [None] * 2 * len(tiles)
    for row in rows:
        assert row["bytes"] == tiles[str(row["image_uri"]).partition("::")[0].rpartition("/")[2]]
    assert faults.made[kind] > 0
    retries = num_retries() - before  # the HTTP client itself asks again on a connection that was reset
    assert retries <= faults.made[kind]
    assert (retries > 0) == (kind != "silence")


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


def test_credentials_that_expire_while_archives_are_listed_end_the_run(
    s3: str, bucket: str, through: Callable[[Faults], None], tiles: dict[str, bytes]
) -> None:
    for number in range(3):
        put(s3, f"{bucket}/{number}.zip", zip_with(zipfile.ZIP_STORED, tiles))
    through(Faults(expires_after=3))
    with pytest.raises(RunError, match=r"refuses this job's credentials at s3://.*zip.*renew them and run again"):
        make_plan([f"s3://inspections/{bucket}"], EXTENSIONS)


@pytest.mark.parametrize(("fault", "message"), [("expired", "renew them and run again"), ("503", "; run again")])
@pytest.mark.parametrize("name", ["names.csv", "names.parquet"])
def test_a_manifest_whose_storage_fails_is_no_wrong_one(
    name: str, fault: str, message: str, s3: str, bucket: str, through: Callable[[Faults], None], tmp_path: Path
) -> None:
    pq.write_table(pa.table({"image_uri": ["a.jpg"]}), tmp_path / "names.parquet")
    (tmp_path / "names.csv").write_text("image_uri\na.jpg\n")
    put(s3, f"{bucket}/{name}", (tmp_path / name).read_bytes())
    through(Faults(expires_after=1) if fault == "expired" else Faults(kinds=("503",), share=1, method="GET"))
    with pytest.raises(RunError, match=rf"/{name}.*{message}"):
        make_plan([f"s3://inspections/{bucket}/{name}"], EXTENSIONS)


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


@pytest.mark.parametrize(
    ("fault", "after", "error", "message"),
    [
        ("expired", 0, RunError, "The provided token has expired.*renew them and run again"),
        ("expired", 2, RunError, "The provided token has expired.*renew them and run again"),
        ("503", 0, RunError, "cannot read s3://.*; run again"),
        ("denied", 0, SourceError, "cannot read s3://.*not for your eyes"),
    ],
)
def test_a_bucket_that_cannot_be_listed_to_its_end_is_no_mistake_of_the_request(
    fault: str,
    after: int,
    error: type[Exception],
    message: str,
    s3: str,
    bucket: str,
    through: Callable[[Faults], None],
) -> None:
    for number in range(3):
        put(s3, f"{bucket}/{number}/{number}.jpg", b"x")
    through(
        {
            "expired": Faults(expires_after=after),
            "503": Faults(kinds=("503",), share=1),
            "denied": Faults(denied="prefix="),
        }[fault]
    )
    with pytest.raises(error, match=message):
        list(list_source(f"s3://inspections/{bucket}", EXTENSIONS, Listing()))


def archive_of(kind: str, images: dict[str, bytes], folder: Path) -> bytes:
    if kind == "zip":
        return zip_with(zipfile.ZIP_STORED, images)
    if kind == "parquet":
        pq.write_table(pa.table({"bytes": list(images.values())}), folder / "a.parquet", row_group_size=5)
        return (folder / "a.parquet").read_bytes()
    return tar_of(folder / f"a.{kind}", images).read_bytes()


def replaced(s3: str, key: str, data: bytes) -> None:
    put(s3, key, bytes(len(data)))


def grown(s3: str, key: str, data: bytes) -> None:
    put(s3, key, data + b"more")


def cut_short(s3: str, key: str, data: bytes) -> None:
    put(s3, key, data[:-100])


def deleted(s3: str, key: str, _: bytes) -> None:
    boto3.client("s3", endpoint_url=s3).delete_object(Bucket="inspections", Key=key)


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


def test_a_parquet_file_that_changes_while_it_is_read_gives_no_new_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crackbatch.sources.fetch._MAX_BLOCK_BYTES", 1 << 20)
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


@pytest.mark.parametrize("size", [100_000, 1_000_000])
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "parquet"])
def test_a_web_server_without_ranges_gives_no_image_the_pixels_of_another(kind: str, size: int, tmp_path: Path) -> None:
    refusal = "its server sends whole files only; download it and name the copy"
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
            with pytest.raises(SourceError, match=rf"/a\.{kind}: .*sends whole files only; download it and name the c"):
                make_plan([f"{base}/a.{kind}"], EXTENSIONS)


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_MAX_PAUSE_S", 0.01)


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
def test_an_image_whose_web_server_cannot_be_reached_is_unreadable(tmp_path: Path) -> None:
    with serving(tmp_path, WholeFiles) as base:
        pass
    (tmp_path / "m.csv").write_text(f"image_uri\n{base}/a.jpg\n")
    before = num_retries()
    (row,) = make_plan([str(tmp_path / "m.csv")], EXTENSIONS).table.to_pylist()
    assert row["status"] == "unreadable"
    assert "Cannot connect to host" in row["error"]
    assert num_retries() > before


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize(
    ("answer", "times", "error"),
    [
        (403, 999, SourceError(r"cannot read http.*/a\.jpg: 403, message='Forbidden'")),
        (404, 999, SourceError(r"no such object or prefix: http.*/a\.jpg")),
        (503, 3, None),
        (503, 999, RunError(r"cannot read http.*/a\.jpg: 503, message='Service Unavailable'.*; run again")),
    ],
)
def test_what_a_web_server_says_of_an_image_that_is_named_is_said(
    answer: int, times: int, error: Exception | None, tmp_path: Path, tiles: dict[str, bytes]
) -> None:
    folder = write_files(tmp_path / "www", {"a.jpg": tiles["tile-00.jpg"]})
    with serving(folder, refusing("/a.jpg", answer, times)) as base:
        if error is None:
            assert [row["bytes"] for row in fetch_all(make_plan([f"{base}/a.jpg"], EXTENSIONS))] == [
                tiles["tile-00.jpg"]
            ]
        else:
            with pytest.raises(type(error), match=str(error)):
                make_plan([f"{base}/a.jpg"], EXTENSIONS)


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


class WholeFiles(SimpleHTTPRequestHandler):
    """Python's own server of files, which takes no notice of the ranges it is asked for."""

    def log_message(self, *_: object) -> None:
        pass


class Ranges(WholeFiles):
    """A server that gives what it is asked for."""

    def send_head(self) -> Any:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not wanted:
            return super().send_head()
        part = Path(self.translate_path(self.path)).read_bytes()[int(wanted[1]) : int(wanted[2]) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        return io.BytesIO(part)


class InPieces(WholeFiles):
    """A server that makes its answers while it sends them, so that it does not say how long they are."""

    protocol_version = "HTTP/1.1"

    def send_header(self, name: str, value: str) -> None:
        super().send_header(*(("Transfer-Encoding", "chunked") if name == "Content-Length" else (name, value)))

    def copyfile(self, source: IO[bytes], outputfile: IO[bytes]) -> None:
        while piece := source.read(50_000):
            outputfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            outputfile.flush()
        outputfile.write(b"0\r\n\r\n")


def refusing(path: str, status: int, at_first: int, server: type[SimpleHTTPRequestHandler] = WholeFiles) -> Any:
    """A server that answers the next requests for one path with a status."""

    class Handler(server):  # type: ignore[misc,valid-type]
        times = at_first

        def send_head(self) -> Any:
            if self.path == path and Handler.times:
                Handler.times -= 1
                self.send_response(status)
                SimpleHTTPRequestHandler.send_header(self, "Content-Length", "0")
                self.end_headers()
                return None
            return super().send_head()

    return Handler


@contextmanager
def serving(folder: Path, handler: type[SimpleHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


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


@contextmanager
def bad_sector(before: bytes, behind: bytes, empty: Path) -> Iterator[tuple[str, int]]:
    """(file, where in it) of data around a page that cannot be read: an I/O error, as of a disk's bad sector.

    The file is this process's own memory, the page one of a mapped file behind that file's end.
    """
    size, libc = mmap.PAGESIZE, ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    address = libc.mmap(None, 3 * size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    empty.touch()
    with empty.open("rb") as file:
        fixed = 0x10  # MAP_FIXED
        assert libc.mmap(address + size, size, mmap.PROT_READ, mmap.MAP_PRIVATE | fixed, file.fileno(), 0) == (
            address + size
        )
    try:
        ctypes.memmove(address, before.ljust(size, b"\0"), size)
        ctypes.memmove(address + 2 * size, behind.ljust(size, b"\0"), size)
        yield "/proc/self/mem", address
    finally:
        libc.munmap(address, 3 * size)


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


@pytest.mark.faults
def test_a_zip_of_100_000_members_takes_few_requests(
    s3: str, bucket: str, through: Callable[[Faults], None], tiles: dict[str, bytes]
) -> None:
    file, tile = io.BytesIO(), tiles["tile-00.jpg"][:2000]
    with zipfile.ZipFile(file, "w") as archive:
        for index in range(100_000):
            archive.writestr(f"{index:06d}.jpg", tile)
    put(s3, f"{bucket}/large.zip", file.getvalue())
    faults = Faults()
    through(faults)
    plan = make_plan([f"s3://inspections/{bucket}/large.zip"], EXTENSIONS)
    assert sum(row["bytes"] == tile for row in fetch_all(plan)) == 100_000
    assert faults.requests.total() < 2000
    print(f"{faults.requests.total()} requests for {len(file.getvalue()) / 1e6:.0f} MB in 100,000 members")


def test_nothing_is_asked_again_that_stays_as_it_is() -> None:
    assert not retry.is_transient(FileNotFoundError("x"))
    assert not retry.is_transient(PermissionError("x"))
    assert not retry.is_transient(OSError(28, os.strerror(28)))
    assert not retry.is_transient(ValueError("x"))
    assert retry.is_transient(ConnectionResetError("x"))
    assert retry.is_transient(TimeoutError("x"))
