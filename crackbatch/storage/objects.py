"""Objects on any storage, through fsspec: look up, read, list, move and remove them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec

from crackbatch.errors import RunError, SourceError
from crackbatch.storage.buckets import list_objects
from crackbatch.storage.locations import EXTRAS, GONE, S3, is_local, is_temporary, is_web, join, normalize, scheme
from crackbatch.storage.redaction import masked, reason_of
from crackbatch.storage.retry import MAX_TRIES, is_credential, is_unexplained, lacks_credentials, retrying
from crackbatch.storage.urls import WEB

_follows_redirects = True


def follow_redirects(allowed: bool) -> None:
    """Set whether this process follows a web server that sends it to another address; it does unless told otherwise."""
    global _follows_redirects  # of the whole process, as its filesystems are
    _follows_redirects = allowed


def filesystem(location: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of a location and the path in it; SourceError says which package is missing."""
    kind = scheme(location)
    try:
        options = _without_retries() if kind in S3 else _without_unpacking(kind) if kind in WEB else {}
        # Not fsspec's `url_to_fs`: it treats `::` in a name as a chain of storages.
        known = fsspec.get_filesystem_class(kind)
        url = location if kind != "file" else f"file://{normalize(location)}"
        found, path = known(**known._get_kwargs_from_urls(url), **options), known._strip_protocol(url)
        if kind in S3:
            found.retries = 1
    except ImportError as error:
        extra = EXTRAS.get(kind)
        mend = f"pip install 'crackbatch[{extra}]'" if extra else str(error)
        raise SourceError(f"{masked(location)}: reading {kind}:// needs another package: {mend}") from None
    except ValueError as error:
        raise SourceError(f"{masked(location)}: {reason_of(error, location)}") from None
    return found, path


def _without_retries() -> dict[str, Any]:
    """Return options for an S3 filesystem that never retries: `storage/retry.py` retries and counts the retries."""
    configured: dict[str, Any] = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    return {"config_kwargs": {"retries": {"total_max_attempts": 1}, **configured}}


def _without_unpacking(kind: str) -> dict[str, Any]:
    """Return options for a web filesystem that unpacks no answer: a packed megabyte may unpack to a gigabyte."""
    configured: dict[str, Any] = fsspec.config.conf.get(kind, {})
    options = {} if _follows_redirects else {"allow_redirects": False}
    return {
        **options,
        "client_kwargs": {**configured.get("client_kwargs", {}), "auto_decompress": False},
        "headers": {**configured.get("headers", {}), "Accept-Encoding": "identity"},
    }


def arrow_filesystem(location: str) -> tuple[Any, str]:
    """Return the PyArrow filesystem of a location, None for a local path, and the path in it."""
    import pyarrow.fs

    found, path = filesystem(location)
    return None if is_local(location) else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(found)), path


def info(location: str) -> dict[str, Any]:
    """Return what a storage reports about an object now, without using a cached listing; retries."""
    found, path = filesystem(location)
    found.invalidate_cache()
    return retrying(lambda: look_up(found, path))


def look_up(found: Any, path: str) -> dict[str, Any]:
    """Return what a filesystem reports about an object; does not retry."""
    with told_apart(path):
        said: dict[str, Any] = found.info(path)
    return said


@contextmanager
def told_apart(path: str) -> Iterator[None]:
    """Raise FileNotFoundError only if the file does not exist.

    For web servers, fsspec turns every error into FileNotFoundError; this raises the original one instead.
    """
    try:
        yield
    except FileNotFoundError as error:
        cause = error.__cause__
        if cause is None or not is_web(path) or getattr(cause, "status", None) in GONE:
            raise
        raise cause from cause.__cause__


def check_credentials(error: BaseException, location: str) -> None:
    """Raise RunError if the storage refuses the credentials, so that images are not reported as unreadable."""
    if is_unexplained(error):
        found, path = filesystem(location)
        try:
            found.cat_file(path, start=0, end=1)
        except Exception as told:  # each storage has its own exceptions
            error = told
    if is_credential(error):
        shown = f"{masked(location)} ({reason_of(error, location)})"
        if lacks_credentials(error):
            raise RunError(f"there are no credentials for {shown}; set them as its own tools expect, and run again")
        raise RunError(f"the storage refuses this job's credentials at {shown}; renew them and run again")


def read_bytes(location: str) -> bytes:
    """Read a whole object; raises FileNotFoundError or another error of the storage."""
    if is_local(location):
        return Path(normalize(location)).read_bytes()
    found, path = filesystem(location)
    data: bytes = retrying(lambda: found.cat_file(path))
    return data


def list_files(location: str, suffix: str = "", recursive: bool = True) -> list[str]:
    """Return the sorted locations of the files below a folder whose names end in `suffix`.

    Temporary files are left out. The list is empty if the folder does not exist. If it cannot be listed, the storage's
    error is raised.
    """
    top = normalize(location)
    names = _walk_local(top, recursive) if is_local(top) else _list_remote(top, recursive)
    files = (join(top, name) for name in names)
    return sorted(file for file in files if file.endswith(suffix) and not is_temporary(file))


def list_sizes(location: str, max_tries: int = MAX_TRIES) -> dict[str, int]:
    """Map the files below a folder, also temporary ones, to their bytes, by relative path; raises like `list_files`."""
    top = normalize(location)
    if not is_local(top):
        return _list_remote(top, True, max_tries)
    sizes = {}
    for name in _walk_local(top, True):
        with suppress(FileNotFoundError):
            sizes[name] = os.stat(join(top, name)).st_size
    return sizes


def _list_remote(location: str, recursive: bool, max_tries: int = MAX_TRIES) -> dict[str, int]:
    """Map relative paths below a folder to sizes in bytes; empty if the folder does not exist."""
    found, path = filesystem(location)
    path = path.rstrip("/")
    found.invalidate_cache()
    sizes: dict[str, int] = {}
    with suppress(FileNotFoundError):
        for page in list_objects(found, path, None if recursive else 1, max_tries=max_tries):
            sizes.update({entry.path.partition(f"{path}/")[2]: entry.size or 0 for entry in page})
    return {name: size for name, size in sizes.items() if name and not name.endswith("/")}


def _walk_local(folder: str, recursive: bool) -> Iterator[str]:
    """Yield the paths of files, relative to the folder."""

    def fail(error: OSError) -> None:
        if not isinstance(error, (FileNotFoundError, NotADirectoryError)):  # a folder may vanish during the walk
            raise error

    for above, folders, names in os.walk(folder, onerror=fail):
        yield from (os.path.relpath(os.path.join(above, name), folder) for name in names)
        if not recursive:
            folders.clear()


def remove(location: str) -> None:
    """Remove a file or a folder with everything in it, if it exists."""
    found, path = filesystem(location)
    if not is_local(location) and re.search(r"[*?[]", path):  # `rm` would read this as a pattern
        for file in [*list_files(location), location]:
            remove_file(file)
        return
    try:
        retrying(lambda: found.rm(path, recursive=True))
    except FileNotFoundError:
        return
    found.invalidate_cache()


def remove_file(location: str) -> None:
    """Remove one file if it exists. Its name may contain any characters."""
    found, path = filesystem(location)
    with suppress(FileNotFoundError):
        retrying(lambda: found.rm_file(path))


def move(source: str, target: str) -> None:
    """Rename a file. On a remote storage, copy it there and remove the source."""
    if is_local(target):
        Path(normalize(target)).parent.mkdir(parents=True, exist_ok=True)
        os.replace(normalize(source), normalize(target))
        return
    found, path = filesystem(source)
    there = filesystem(target)[1]
    retrying(lambda: found.cp_file(path, there))
    remove_file(source)


def exists(location: str) -> bool:
    """Whether an object or folder exists."""
    found, path = filesystem(location)
    found.invalidate_cache()
    return bool(retrying(lambda: found.exists(path)))
