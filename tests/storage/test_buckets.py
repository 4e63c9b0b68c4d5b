"""A bucket is listed by many requests at once: every object once, in the same order, whatever its prefixes are."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from builders.archives import write_files, zip_with
from builders.plans import contents, plan_of
from builders.servers import Place, WholeFiles, serving
from crackbatch.errors import SourceError
from crackbatch.storage import locations, objects
from crackbatch.storage.buckets import _WAITING_PAGES, Entry, list_objects


def listed(location: str, levels: int | None = None) -> list[Entry]:
    return [entry for page in list_objects(*objects.filesystem(location), levels) for entry in page]


def version_of(location: str) -> str:
    """The version of one object as a look at it gives it, and as reading an archive compares it."""
    filesystem, path = objects.filesystem(location)
    filesystem.invalidate_cache()
    return locations.version(filesystem.info(path))


@pytest.mark.parametrize("prefix", ["", "/many", "/large", "/a", "/a/b/c", "/marker", "/ü"])
def test_every_object_is_listed_once_as_the_storage_itself_lists_it(listed_bucket: str, prefix: str) -> None:
    filesystem, path = objects.filesystem(listed_bucket + prefix)
    expected = filesystem.find(path, detail=True)
    found = listed(listed_bucket + prefix)
    assert sorted(entry.path for entry in found) == sorted(expected)
    assert {entry.path: entry.size for entry in found} == {name: info["size"] for name, info in expected.items()}


def test_versions_are_those_that_a_look_at_the_object_gives(listed_bucket: str) -> None:
    for entry in [*listed(f"{listed_bucket}/many")[::20], *listed(f"{listed_bucket}/a")]:
        if not entry.path.endswith("/"):
            assert entry.version == version_of(f"s3://{entry.path}"), entry.path


def test_a_listing_that_is_given_up_ends_its_threads(listed_bucket: str) -> None:
    pages = list_objects(*objects.filesystem(listed_bucket))
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

    memory = fsspec.filesystem("memory")
    memory.pipe({f"/tree/{a}/{b}.jpg": b"x" for a in range(5) for b in range(5)})
    assert [entry.path for entry in sorted(listed("memory://tree"))] == sorted(memory.find("/tree"))
    assert len(listed("memory://tree", levels=1)) == 0
    assert len(listed("memory://tree", levels=2)) == 25


def test_many_pages_of_folders_are_listed_as_the_storage_does_with_each_objects_version(
    place: Place,
) -> None:
    root = objects.filesystem(place.url)[1]
    names = [f"{root}/many/{number:04d}/{number // 200}/{number % 23:02d}.jpg" for number in range(1100)]
    place.filesystem.pipe(dict.fromkeys(names, b"x"))
    found = {entry.path: entry for page in list_objects(place.filesystem, f"{root}/many") for entry in page}
    assert sorted(found) == sorted(names)
    for name in names[::100]:
        place.filesystem.invalidate_cache()
        assert found[name].version == locations.version(place.filesystem.info(name))
        assert found[name].size == 1


@pytest.mark.parametrize("breadth", [1, 40])
def test_a_web_server_whose_folders_have_no_end_is_refused(
    breadth: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("crackbatch.storage.buckets._MOST_FOLDERS", 2_000)

    class Handler(WholeFiles):
        def do_GET(self) -> None:  # noqa: N802  # http.server calls it so
            links = "".join(f'<a href="{self.path.rstrip("/")}/{number}/">x</a>' for number in range(breadth))
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(f"<html>{links}</html>".encode())

    with serving(tmp_path, Handler) as base:
        with pytest.raises(SourceError, match=r"its folders have no end"):
            plan_of(f"{base}/top/")
        for thread in threading.enumerate():  # while the server still answers them
            if thread.name.startswith("list-"):
                thread.join(30)
