"""List the files below a folder of a bucket or another remote filesystem, page by page, with parallel requests.

A bucket is listed folder by folder until there are enough folders to keep every thread busy. Then each folder is listed
together with everything below it. Pages come in any order. Only a few pages wait in memory until the caller takes them.
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
# Of a server that lists one folder at a time, and may make them up. An archive has fewer.
_MOST_LEVELS, _MOST_FOLDERS = 64, 100_000
_GOOGLE_FIELDS = "nextPageToken,prefixes,items(name,size,etag)"


class Entry(NamedTuple):
    """A listed object: its path as the filesystem names it (`bucket/key`), and its version from `locations.version`."""

    path: str
    size: int | None
    version: str


class _Folder(NamedTuple):
    """A folder to list: all of `prefix`, or only the folders from `first` to `last` directly below it."""

    prefix: str
    levels: int | None  # how many levels to list, None for all
    deep: bool = False  # whether one listing covers all levels
    first: str = ""
    last: str = ""


class _Page(NamedTuple):
    entries: list[Entry]
    folders: list[str]


class _Store(NamedTuple):
    """How to list one kind of storage."""

    pages: Callable[[_Folder], Iterator[_Page]]
    root: str
    num_threads: int = _THREADS
    bucket: str = ""  # what comes before its prefixes in the paths of entries
    is_deep: bool = True  # whether it can list all levels below a prefix at once
    has_ranges: bool = False  # whether a listing can start at a given name


def list_objects(
    filesystem: Any,
    path: str,
    levels: int | None = None,
    is_entered: Callable[[str], bool] = lambda _: False,
    max_tries: int = MAX_TRIES,
) -> Iterator[list[Entry]]:
    """Yield pages of the files below a folder, in no order. Errors of the storage are not caught.

    `levels` limits the depth. But if `is_entered` accepts the path of a folder on the last level, everything below that
    folder is listed too. The pages include markers of empty folders; their names end in a slash.
    """
    walk = _Walk(_store(filesystem, path, max_tries), levels, is_entered)
    try:
        yield from walk
    finally:
        walk.stop()


class _Walk:
    """The folders that are still to be listed, and the pages that wait for the caller."""

    def __init__(self, store: _Store, levels: int | None, is_entered: Callable[[str], bool]) -> None:
        self._store = store
        self._is_entered = is_entered
        self._folders = [_Folder(store.root, levels)]
        self._pages: deque[list[Entry]] = deque()
        self._num_working = 0
        self._stopped = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        num_threads = 1 if levels == 1 else store.num_threads  # one folder needs only one listing
        for number in range(num_threads):  # daemons: Ctrl-C does not wait for a listing
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
        """Stop the threads, even if folders and pages are left."""
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
            except BaseException as error:  # `__iter__` raises it in the caller's thread
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
        """Queue a page for the caller as soon as there is room; return False if the walk has been stopped."""
        with self._changed:
            self._folders.extend(_below(folder, page.folders, self._store, self._is_entered))
            self._changed.notify_all()
            if page.entries:
                self._changed.wait_for(lambda: self._stopped or len(self._pages) < _WAITING_PAGES)
                self._pages.append(page.entries)
                self._changed.notify_all()
            return not self._stopped


def _below(folder: _Folder, names: list[str], store: _Store, is_entered: Callable[[str], bool]) -> Iterator[_Folder]:
    """Yield what to list next. Many folders are grouped into a few ranges, because that takes fewer requests."""
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
    """Whether a key is in the range. Files between two folders are not: they were listed together with the folders."""
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
            items = page.get("Contents", ())  # absent on a page that has only folders
            found = [
                Entry(f"{bucket}/{item['Key']}", int(item["Size"]), locations.version({"ETag": item.get("ETag")}))
                for item in items
                if _in_range(folder, item["Key"])
            ]
            yield _Page(found, [item["Prefix"] for item in page.get("CommonPrefixes", ())])
            if not page.get("IsTruncated") or (items and _is_beyond(folder, items[-1]["Key"])):
                return
            asked["ContinuationToken"] = page["NextContinuationToken"]

    # A directory bucket (S3 Express) is not listed in order, so ranges do not work.
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
        except ResourceNotFoundError:  # adlfs raises this error in its other calls
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
    """Whether a blob is a folder: hierarchical namespaces keep folders as blobs with a mark and no slash at the end."""
    marks = {name.lower(): value for name, value in (blob.metadata or {}).items()}
    return "true" in (marks.get("is_directory"), marks.get("hdi_isfolder"))


def _any_store(filesystem: Any, path: str, max_tries: int) -> _Store:
    root = filesystem._strip_protocol(path)
    entered = {root.rstrip("/")}

    def pages(folder: _Folder) -> Iterator[_Page]:
        found, folders = [], []
        for info in retrying(partial(filesystem.ls, folder.prefix, detail=True), max_tries):
            name = info["name"]
            if "/../" in f"{name}/":  # a page may link to what is above it
                continue
            if info["type"] != "directory":
                found.append(_entry(filesystem, info))
            elif name.startswith(root) and name.rstrip("/") not in entered:  # links of web pages may form a loop
                entered.add(name.rstrip("/"))
                folders.append(name)
            if name.count("/") - root.count("/") > _MOST_LEVELS or len(entered) > _MOST_FOLDERS:
                raise OSError(f"its folders have no end: more than {_MOST_LEVELS} levels, or {_MOST_FOLDERS:,} folders")
        filesystem.invalidate_cache(folder.prefix)  # fsspec would keep every listing in memory
        yield _Page(found, folders)

    # Synchronous filesystems, such as FTP, have one connection. Two threads must not use it at once.
    return _Store(pages, root, num_threads=_THREADS if filesystem.async_impl else 1, is_deep=False)


def _entry(filesystem: Any, info: dict[str, Any]) -> Entry:
    """Return the entry of a file. If the listing gives no size (a link of a web page), ask for the file itself."""
    if info.get("size") is None:
        with suppress(FileNotFoundError):  # reading it later reports it as missing
            info = retrying(partial(filesystem.info, info["name"]))
    size = info.get("size")
    return Entry(info["name"], None if size is None else int(size), locations.version(info))
