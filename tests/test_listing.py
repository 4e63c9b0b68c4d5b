"""A bucket is listed by many requests at once: every object once, in the same order, whatever its prefixes are."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from crackbatch.errors import SourceError
from crackbatch.images.formats import EXTENSIONS
from crackbatch.sources.plan import Plan, make_plan
from crackbatch.storage import locations, objects
from crackbatch.storage.buckets import _WAITING_PAGES, Entry, list_objects
from test_archive import contents, write_files, zip_with


@pytest.fixture(scope="module")
def bucket(s3: str) -> str:
    """A bucket with prefixes of every shape: many small, few large, deep, and names that order oddly."""
    import boto3

    client = boto3.client("s3")
    client.create_bucket(Bucket="listed")
    keys = [f"many/day-{day:03d}/{number}.jpg" for day in range(70) for number in range(2)]
    keys += [f"many/day-{day:03d}.jpg" for day in range(0, 70, 7)]  # files between the folders
    keys += [f"large/{number:05d}.jpg" for number in range(2100)]  # more than two pages
    keys += ["a/b/c/d/e/f.jpg", "a/b.jpg", "a.jpg", "a-b/c.jpg", "a//double.jpg", "ü/ß.jpg", "photo (1).JPG", "😀.png"]
    keys += [".hidden/x.jpg", "a/._x.jpg", "readme.txt", "noext", "marker/", "a/marker.jpg/"]
    keys += ["results/runs/x/x.jpg", "results/predictions/x.jpg"]
    keys += ["results/runs/x/plan/0", "results/runs/x/run.json", "results/predictions/date=2026-11-20/x.parquet"]
    for key in keys:
        client.put_object(Bucket="listed", Key=key, Body=b"" if key.endswith("/") else key.encode())
    return "s3://listed"


def plan_of(*sources: str, **options: object) -> Plan:
    return make_plan(sources, EXTENSIONS, **options)


def listed(location: str, levels: int | None = None) -> list[Entry]:
    return [entry for page in list_objects(*objects.filesystem(location), levels) for entry in page]


def version_of(location: str) -> str:
    """The version of one object as a look at it gives it, and as reading an archive compares it."""
    filesystem, path = objects.filesystem(location)
    filesystem.invalidate_cache()
    return locations.version(filesystem.info(path))


@pytest.mark.parametrize("prefix", ["", "/many", "/large", "/a", "/a/b/c", "/marker", "/ü"])
def test_every_object_is_listed_once_as_the_storage_itself_lists_it(bucket: str, prefix: str) -> None:
    filesystem, path = objects.filesystem(bucket + prefix)
    expected = filesystem.find(path, detail=True)
    found = listed(bucket + prefix)
    assert sorted(entry.path for entry in found) == sorted(expected)
    assert {entry.path: entry.size for entry in found} == {name: info["size"] for name, info in expected.items()}


def test_the_plan_has_the_order_of_names_and_is_the_same_each_time(bucket: str) -> None:
    first = plan_of(bucket, skip=[f"{bucket}/results"])
    uris = first.table["image_uri"].to_pylist()
    assert uris == sorted(uris)
    assert len(uris) == len(set(uris)) == 140 + 10 + 2100 + 8 + 2
    assert dict(first.listing.passed_over) == {"hidden files": 2, ".txt files": 1, "files without an extension": 1}
    assert plan_of(bucket, skip=[f"{bucket}/results"]).table.equals(first.table)


def test_versions_are_those_that_a_look_at_the_object_gives(bucket: str) -> None:
    for entry in [*listed(f"{bucket}/many")[::20], *listed(f"{bucket}/a")]:
        if not entry.path.endswith("/"):
            assert entry.version == version_of(f"s3://{entry.path}"), entry.path


@pytest.mark.parametrize(
    ("pattern", "number"),
    [("*.jpg", 1), ("*.*", 3), ("many/*.jpg", 10), ("many/day-00?/1.jpg", 10), ("many/day-0[01]*/*.jpg", 40),
     ("**/0.jpg", 70), ("a/**/*.jpg", 2), ("large/0000*", 10), ("nowhere/*.jpg", 0)],
)  # fmt: skip
def test_globs_give_the_images_that_fsspec_gives(bucket: str, pattern: str, number: int) -> None:
    filesystem, path = objects.filesystem(f"{bucket}/{pattern}")
    expected = [f"s3://{name}" for name in filesystem.glob(path) if filesystem.isfile(name) and "/._" not in name]
    images = [uri for uri in expected if uri.lower().endswith((".jpg", ".png"))]
    assert len(images) == number
    if number:
        assert plan_of(f"{bucket}/{pattern}").table["image_uri"].to_pylist() == sorted(images)
    else:
        with pytest.raises(SourceError, match="no images in"):
            plan_of(f"{bucket}/{pattern}")


@pytest.mark.parametrize(
    ("pattern", "folders", "number"),
    [("many/day-00*", ["many/day-00"], 22), ("a*", ["a.", "a/", "a-b"], 5),
     ("?/b", ["a/b/"], 1), ("*", [""], 2260)],
)  # fmt: skip
def test_folders_that_a_glob_matches_are_entered_and_no_image_is_listed_twice(
    bucket: str, pattern: str, folders: list[str], number: int
) -> None:
    everything = plan_of(bucket).table["image_uri"].to_pylist()
    expected = [uri for uri in everything if uri.startswith(tuple(f"{bucket}/{folder}" for folder in folders))]
    assert len(expected) == number
    assert plan_of(f"{bucket}/{pattern}").table["image_uri"].to_pylist() == expected


@pytest.mark.parametrize("source", ["s3://listed/nothing", "s3://listed/nothing.jpg", "s3://no-such-bucket/x"])
def test_a_prefix_without_objects_is_an_error(bucket: str, source: str) -> None:
    with pytest.raises(SourceError, match=r"no such object or prefix|cannot read") as raised:
        plan_of(source)
    assert source in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_listing_that_is_given_up_ends_its_threads(bucket: str) -> None:
    pages = list_objects(*objects.filesystem(bucket))
    next(pages)
    workers = [thread for thread in threading.enumerate() if thread.name.startswith("list-")]
    assert workers
    pages.close()
    for worker in workers:
        worker.join(30)
        assert not worker.is_alive()


class CountingFileSystem(MemoryFileSystem):
    """Says how many folders it was asked for."""

    num_listed = 0

    def ls(self, path: str, detail: bool = True, **options: object) -> list[Any]:
        self.num_listed += 1
        return super().ls(path, detail=detail, **options)


def test_only_a_few_pages_wait_for_a_slow_caller() -> None:
    filesystem = CountingFileSystem()
    filesystem.pipe({f"/folders/{number:03d}/a.jpg": b"x" for number in range(100)})
    pages = list_objects(filesystem, "/folders")
    taken = len([next(pages)])
    ahead = _WAITING_PAGES + 1
    ticks = threading.Event()
    while filesystem.num_listed - 1 < taken + ahead:  # one more for the folder of folders
        ticks.wait(0.01)
    for _ in pages:
        taken += 1
        assert filesystem.num_listed - 1 <= taken + ahead
    assert taken == 100


def test_what_lies_below_folders_that_a_glob_does_not_match_is_not_listed() -> None:
    filesystem = CountingFileSystem(skip_instance_cache=True)  # whose count is its own
    filesystem.pipe({f"/entered/{number:02d}/deep/{number}.jpg": b"x" for number in range(40)})
    pages = list_objects(filesystem, "/entered", 1, lambda path: path.endswith("7"))
    found = sorted(entry.path for page in pages for entry in page)
    assert found == [f"/entered/{number:02d}/deep/{number}.jpg" for number in (7, 17, 27, 37)]
    assert filesystem.num_listed == 1 + 4 * 2


@pytest.fixture
def website(tmp_path: Path, tiles: dict[str, bytes]) -> Iterator[str]:
    """A web server that shows its folders as pages of links."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    folder = write_files(tmp_path / "www", {f"sub/{name}": data for name, data in tiles.items()})
    (folder / "a.zip").write_bytes(zip_with(0, tiles))
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_web_folder_is_listed_with_the_sizes_and_versions_of_its_files(website: str, tiles: dict[str, bytes]) -> None:
    found = {entry.path: entry for entry in listed(website)}
    assert len(found) == len(tiles) + 1
    for location, entry in found.items():
        assert entry.version == version_of(location)
    assert found[f"{website}/a.zip"].size == len(zip_with(0, tiles))
    assert sorted(contents(plan_of(f"{website}/sub")).values()) == sorted(tiles.values())


def test_a_folder_in_memory_is_listed_and_no_listing_is_kept() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe({f"/tree/{a}/{b}.jpg": b"x" for a in range(5) for b in range(5)})
    assert [entry.path for entry in sorted(listed("memory://tree"))] == sorted(memory.find("/tree"))
    assert len(listed("memory://tree", levels=1)) == 0
    assert len(listed("memory://tree", levels=2)) == 25
