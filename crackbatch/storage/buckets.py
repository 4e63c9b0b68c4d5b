"""What lies below a folder of a bucket or any other remote filesystem, page by page, by several requests at once.

A bucket is asked folder by folder until there are enough of them to keep every thread busy; each is then listed with
all that lies below it. Pages come in any order, and only a few ever wait for the caller, who decides what to keep.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import fsspec.asyn

from crackbatch.storage import locations
from crackbatch.storage.retry import MAX_TRIES, retrying

_THREADS = 16
_WAITING_PAGES = 16
_MANY_FOLDERS = 16
_GOOGLE_FIELDS = "nextPageToken,prefixes,items(name,size,etag)"


class Entry(NamedTuple):
    """An object as its filesystem names it (`bucket/key`); its version is that of `storage.version`."""

    path: str
    size: int | None
    version: str


class _Folder(NamedTuple):
    """Where to look: below `prefix`, or, of the folders just below it, only in `first` to `last`."""

    prefix: str
    levels: int | None  # how many levels from here down are of interest, None for all
    deep: bool = False  # all levels in one listing
    first: str = ""
    last: str = ""


class _Page(NamedTuple):
    entries: list[Entry]
    folders: list[str]


class _Store(NamedTuple):
    """How one kind of storage is listed."""

    pages: Callable[[_Folder], Iterator[_Page]]
    root: str
    num_threads: int = _THREADS
    bucket: str = ""  # what stands before its prefixes in the paths of entries
    is_deep: bool = True  # it lists all levels below a prefix at once
    has_ranges: bool = False  # it lists from a name on


def list_objects(
    filesystem: Any,
    path: str,
    levels: int | None = None,
    is_entered: Callable[[str], bool] = lambda _: False,
    max_tries: int = MAX_TRIES,
) -> Iterator[list[Entry]]:
    """Pages of the files below a folder, in no order. Raises what the storage raises.

    `levels` bounds the depth, but below those folders on the last level whose path `is_entered` takes, all is listed.
    Markers of empty folders, whose names end in a slash, are among them.
    """
    walk = _Walk(_store(filesystem, path, max_tries), levels, is_entered)
    try:
        yield from walk
    finally:
        walk.stop()


class _Walk:
    """Folders still to be listed, and pages that wait for the caller."""

    def __init__(self, store: _Store, levels: int | None, is_entered: Callable[[str], bool]) -> None:
        self._store = store
        self._is_entered = is_entered
        self._folders = [_Folder(store.root, levels)]
        self._pages: deque[list[Entry]] = deque()
        self._num_working = 0
        self._stopped = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        num_threads = 1 if levels == 1 else store.num_threads  # one folder is one listing
        for number in range(num_threads):  # daemons: nobody who presses Ctrl-C waits for a listing to end
            threading.Thread(target=self._work, name=f"list-{number}", daemon=True).start()

    def __iter__(self) -> Iterator[list[Entry]]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pages or self._is_over())
                if self._failure is not None:
                    raise self._failure
                if not self._pages:
                    return
                page = self._pages.popleft()
                self._changed.notify_all()
            yield page

    def stop(self) -> None:
        """Let the threads end, whatever is left."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _is_over(self) -> bool:
        return self._stopped or not (self._folders or self._num_working)

    def _work(self) -> None:
        while (folder := self._take()) is not None:
            try:
                for page in self._store.pages(folder):
                    if not self._give(folder, page):
                        break
            except BaseException as error:  # the caller gets it, whatever it is
                with self._changed:
                    self._failure, self._stopped = self._failure or error, True
            with self._changed:
                self._num_working -= 1
                self._changed.notify_all()

    def _take(self) -> _Folder | None:
        with self._changed:
            self._changed.wait_for(lambda: self._folders or self._is_over())
            if self._stopped or not self._folders:
                return None
            num_known = len(self._folders) + self._num_working
            folder = self._folders.pop()
            self._num_working += 1
        if folder.levels is None and self._store.is_deep and num_known >= self._store.num_threads:
            return folder._replace(deep=True)
        return folder

    def _give(self, folder: _Folder, page: _Page) -> bool:
        """Hand a page to the caller once there is room; False where nobody wants it any more."""
        with self._changed:
            self._folders.extend(_below(folder, page.folders, self._store, self._is_entered))
            self._changed.notify_all()
            if page.entries:
                self._changed.wait_for(lambda: self._stopped or len(self._pages) < _WAITING_PAGES)
                self._pages.append(page.entries)
                self._changed.notify_all()
            return not self._stopped


def _below(folder: _Folder, names: list[str], store: _Store, is_entered: Callable[[str], bool]) -> Iterator[_Folder]:
    """The next things to list; many small folders are listed in a few ranges, which costs fewer requests."""
    levels = None if folder.levels is None else folder.levels - 1
    if levels == 0:
        yield from (_Folder(name, None) for name in names if is_entered(store.bucket + name.removesuffix("/")))
    elif levels is None and store.has_ranges and len(names) > _MANY_FOLDERS:
        step = -(-len(names) // _MANY_FOLDERS)
        for start in range(0, len(names), step):
            some = names[start : start + step]
            yield _Folder(folder.prefix, None, True, some[0], some[-1])
    else:
        yield from (_Folder(name, levels) for name in names)


def _in_range(folder: _Folder, key: str) -> bool:
    """Whether a key lies in a range of folders: a file between two of them was listed with the folders themselves."""
    return not folder.last or ("/" in key[len(folder.prefix) :] and not _is_beyond(folder, key))


def _is_beyond(folder: _Folder, key: str) -> bool:
    return bool(folder.last) and key > folder.last and not key.startswith(folder.last)


def _store(filesystem: Any, path: str, max_tries: int) -> _Store:
    libraries = {kind.__module__.partition(".")[0] for kind in type(filesystem).__mro__}
    for library, make in (("s3fs", _s3), ("gcsfs", _google), ("adlfs", _azure)):
        if library in libraries and path.strip("/"):
            return make(filesystem, path, max_tries)
    return _any_store(filesystem, path, max_tries)


def _prefix(key: str) -> str:
    return f"{key.rstrip('/')}/" if key else ""


def _s3(filesystem: Any, path: str, max_tries: int) -> _Store:
    bucket, root, _ = filesystem.split_path(path)

    def pages(folder: _Folder) -> Iterator[_Page]:
        asked = {"Bucket": bucket, "Prefix": folder.prefix}
        if not folder.deep:
            asked["Delimiter"] = "/"
        if folder.first:
            asked["StartAfter"] = folder.first
        while True:
            page = retrying(partial(filesystem.call_s3, "list_objects_v2", **asked), max_tries)
            items = page.get("Contents", ())  # none on a page of folders alone
            found = [
                Entry(f"{bucket}/{item['Key']}", int(item["Size"]), locations.version({"ETag": item.get("ETag")}))
                for item in items
                if _in_range(folder, item["Key"])
            ]
            yield _Page(found, [item["Prefix"] for item in page.get("CommonPrefixes", ())])
            if not page.get("IsTruncated") or (items and _is_beyond(folder, items[-1]["Key"])):
                return
            asked["ContinuationToken"] = page["NextContinuationToken"]

    # A directory bucket (S3 Express) lists in no order.
    return _Store(pages, _prefix(root), bucket=f"{bucket}/", has_ranges=not bucket.endswith("--x-s3"))


def _google(filesystem: Any, path: str, max_tries: int) -> _Store:
    bucket, root, _ = filesystem.split_path(path)

    def pages(folder: _Folder) -> Iterator[_Page]:
        asked = {"prefix": folder.prefix, "maxResults": 1000, "fields": _GOOGLE_FIELDS}
        if not folder.deep:
            asked["delimiter"] = "/"
        if folder.first:
            asked["startOffset"] = folder.first
        while True:
            page = retrying(partial(filesystem.call, "GET", "b/{}/o", bucket, json_out=True, **asked), max_tries)
            items = page.get("items", ())
            found = [
                Entry(f"{bucket}/{item['name']}", int(item["size"]), locations.version(item))
                for item in items
                if _in_range(folder, item["name"])
            ]
            yield _Page(found, page.get("prefixes", []))
            if not page.get("nextPageToken") or (items and _is_beyond(folder, items[-1]["name"])):
                return
            asked["pageToken"] = page["nextPageToken"]

    return _Store(pages, _prefix(root), bucket=f"{bucket}/", has_ranges=True)


def _azure(filesystem: Any, path: str, max_tries: int) -> _Store:
    from azure.core.exceptions import ResourceNotFoundError

    container, root, _ = filesystem.split_path(path)

    async def next_page(pages: Any) -> list[Any] | None:
        try:
            page = await anext(pages, None)
        except ResourceNotFoundError:  # adlfs says it so elsewhere
            raise FileNotFoundError(container) from None
        return None if page is None else [blob async for blob in page]

    def pages(folder: _Folder) -> Iterator[_Page]:
        client = filesystem.service_client.get_container_client(container)
        asked = {"name_starts_with": folder.prefix, "include": ["metadata"]}
        listed = (client.list_blobs(**asked) if folder.deep else client.walk_blobs(**asked)).by_page()
        while (blobs := fsspec.asyn.sync(filesystem.loop, next_page, listed)) is not None:
            found = [
                Entry(f"{container}/{blob.name}", int(blob.size), locations.version(blob))
                for blob in blobs
                if hasattr(blob, "size") and not _is_azure_folder(blob)
            ]
            yield _Page(found, [blob.name for blob in blobs if not hasattr(blob, "size")])

    return _Store(pages, _prefix(root), bucket=f"{container}/")


def _is_azure_folder(blob: Any) -> bool:
    """An account with hierarchical namespaces keeps its folders as blobs that say so, whose names end in no slash."""
    marks = {name.lower(): value for name, value in (blob.metadata or {}).items()}
    return "true" in (marks.get("is_directory"), marks.get("hdi_isfolder"))


def _any_store(filesystem: Any, path: str, max_tries: int) -> _Store:
    root = filesystem._strip_protocol(path)
    entered = {root.rstrip("/")}

    def pages(folder: _Folder) -> Iterator[_Page]:
        found, folders = [], []
        for info in retrying(partial(filesystem.ls, folder.prefix, detail=True), max_tries):
            name = info["name"]
            if info["type"] != "directory":
                found.append(_entry(filesystem, info))
            elif name.startswith(root) and name.rstrip("/") not in entered:  # links of web pages may lead in circles
                entered.add(name.rstrip("/"))
                folders.append(name)
        filesystem.invalidate_cache(folder.prefix)  # fsspec keeps what it lists, for a million files as for ten
        yield _Page(found, folders)

    # Others, such as FTP, have one connection, which two threads must not use at once.
    return _Store(pages, root, num_threads=_THREADS if filesystem.async_impl else 1, is_deep=False)


def _entry(filesystem: Any, info: dict[str, Any]) -> Entry:
    """The entry of a file; one whose size the listing does not say (a link of a web page) is asked for by itself."""
    if info.get("size") is None:
        with suppress(FileNotFoundError):  # it is found missing when it is read
            info = retrying(partial(filesystem.info, info["name"]))
    size = info.get("size")
    return Entry(info["name"], None if size is None else int(size), locations.version(info))
