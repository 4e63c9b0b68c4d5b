"""Every storage through fsspec: opening URLs, naming versions, writing whole or not at all.

A *location* is a local path or any fsspec URL. Local paths are kept as plain absolute paths, everything else keeps
its scheme, so that `fsspec.open(location)` works on what stands in the table.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

import fsspec

from crackbatch.errors import OutputError, RunError, SourceError
from crackbatch.storage.redaction import AZURE, as_text, reason_of, redact, redact_url
from crackbatch.storage.retry import MAX_TRIES, is_credential, is_unexplained, retrying

Location = str | os.PathLike[str]
_S3 = ("s3", "s3a")
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
GONE = (404, 410)  # what a web server says of a file that it does not have


def scheme(location: str) -> str:
    """The URL scheme, `file` for a local path."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", location)
    return match[1].lower() if match else "file"


def is_local(location: str) -> bool:
    """Whether the location is a path on this machine."""
    return scheme(location) in ("file", "local")


def is_web(location: str) -> bool:
    """Whether the location is the URL of a web server."""
    return scheme(location) in ("http", "https")


def normalize(location: str) -> str:
    """The one spelling of a location: absolute if local, no trailing slash, the scheme in small letters."""
    location = re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*(?=://)", lambda found: found[0].lower(), location)
    if is_local(location):
        return os.path.abspath(os.path.expanduser(re.sub(r"^(file|local)://", "", location)))
    return location.rstrip("/") if "?" not in location else location


def filesystem(location: str) -> tuple[Any, str]:
    """The fsspec filesystem of a location and the path within it; SourceError names the extra that is missing."""
    kind = scheme(location)
    try:
        options = _without_retries() if kind in _S3 else {}
        # Not by fsspec's `url_to_fs`, which takes `::` in a name for a chain of storages.
        known = fsspec.get_filesystem_class(kind)
        url = location if kind != "file" else f"file://{normalize(location)}"
        found, path = known(**known._get_kwargs_from_urls(url), **options), known._strip_protocol(url)
        if kind in _S3:
            found.retries = 1
    except ImportError as error:
        extra = _EXTRAS.get(kind)
        mend = f"pip install 'crackbatch[{extra}]'" if extra else str(error)
        raise SourceError(f"{redact(location)}: reading {kind}:// needs another package: {mend}") from None
    except ValueError as error:
        raise SourceError(f"{redact(location)}: {reason_of(error)}") from None
    return found, path


def _without_retries() -> dict[str, Any]:
    """Options of an S3 filesystem that asks once: asking again is ours (`retry.py`), so that it is counted."""
    configured: dict[str, Any] = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    return {"config_kwargs": {"retries": {"total_max_attempts": 1}, **configured}}


def arrow_filesystem(location: str) -> tuple[Any, str]:
    """The same for libraries that know PyArrow's filesystems; None stands for this machine's."""
    import pyarrow.fs

    found, path = filesystem(location)
    return None if is_local(location) else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(found)), path


def join(location: str, *parts: str) -> str:
    """A location below another."""
    return "/".join([location.rstrip("/"), *parts])


def file_name(location: str) -> str:
    """The last part of a location, without the query of an HTTP URL."""
    path = without_query(location)
    return PurePosixPath(path.partition("://")[2].partition("/")[2] if is_web(location) else path).name


def without_query(location: str) -> str:
    """A location without the query of an HTTP URL, whose slashes and dots are no part of names."""
    return re.split("[?#]", location)[0] if is_web(location) else location


def locate(path: str, like: str) -> str:
    """The location of a path that the filesystem of the location `like` gave, on the same account."""
    if scheme(path) != "file":  # and not wherever `://` stands, which names of objects may hold
        return path
    kind = scheme(like)
    if kind == "memory":
        return f"memory://{path}"
    host = urlsplit(like).netloc if kind in AZURE else ""
    if "@" in host:  # abfss://container@account.dfs.core.windows.net/path, where the path is container/path
        return f"{kind}://{host}/{path.lstrip('/').partition('/')[2]}"
    if host.endswith(".core.windows.net"):
        return f"{kind}://{host}/{path.lstrip('/')}"
    host = urlsplit(like).netloc if kind not in _EXTRAS else ""  # ftp://host/path, where the path is /path
    inner = path.lstrip("/")
    return f"{kind}://{inner}" if not host or f"{inner}/".startswith(f"{host}/") else f"{kind}://{host}/{inner}"


def version(info: dict[str, Any]) -> str:
    """What changes when an object does: its ETag, else modification time and size."""
    for key in ("ETag", "etag", "md5Hash", "content_md5"):
        if info.get(key):
            return str(info[key]).strip('"')
    size = info.get("size")
    for key in ("mtime", "LastModified", "last_modified", "Last-Modified", "updated", "created"):
        moment = info.get(key)
        if isinstance(moment, datetime):
            return f"{moment.isoformat()}-{size}"
        if moment is not None:
            return f"{moment}-{size}"
    return str(size)


def info(location: str) -> dict[str, Any]:
    """What a storage says of an object now, whatever an earlier listing said."""
    found, path = filesystem(location)
    found.invalidate_cache()
    return retrying(lambda: look_up(found, path))


def look_up(found: Any, path: str) -> dict[str, Any]:
    """What a filesystem says of an object; asked for once."""
    with told_apart(path):
        said: dict[str, Any] = found.info(path)
    return said


@contextmanager
def told_apart(path: str) -> Iterator[None]:
    """Raise what a web server said, and FileNotFoundError only where there is no file: to fsspec all of it is that."""
    try:
        yield
    except FileNotFoundError as error:
        cause = error.__cause__
        if cause is None or not is_web(path) or getattr(cause, "status", None) in GONE:
            raise
        raise cause from cause.__cause__


def lists_versions(location: str) -> bool:
    """Whether listing names the same version of an object as asking for the object does; servers of files need not.

    A web page of links names no versions, so that each file was asked for its own.
    """
    return scheme(location) in (*_EXTRAS, "http", "https")


def local_version(status: os.stat_result) -> str:
    """`version` of a local file, to the nanosecond."""
    return f"{status.st_mtime_ns}-{status.st_size}"


def public(location: str) -> str:
    """A location without credentials, as it stands in a table: the text between spaces is part of its name."""
    return as_text(location) if is_local(location) else redact_url(as_text(location))


def check_credentials(error: BaseException, location: str) -> None:
    """Raise RunError where the storage refuses the caller, so that no image is said to be unreadable for it."""
    if is_unexplained(error):
        found, path = filesystem(location)
        try:
            found.cat_file(path, start=0, end=1)
        except Exception as told:  # each storage raises its own
            error = told
    if is_credential(error):
        shown = f"{redact(location)} ({reason_of(error)})"
        raise RunError(f"the storage refuses this job's credentials at {shown}; renew them and run again")


def read_bytes(location: str) -> bytes:
    """The whole object; raises FileNotFoundError or OSError."""
    if is_local(location):
        return Path(normalize(location)).read_bytes()
    found, path = filesystem(location)
    data: bytes = retrying(lambda: found.cat_file(path))
    return data


def write_whole(location: str, data: bytes) -> None:
    """Write an object so that no reader ever sees a part of it: a rename here, one PUT on an object store."""
    if is_local(location):
        with new_local_file(location) as file:
            file.write(data)
        return
    found, path = filesystem(location)
    retrying(lambda: found.pipe_file(path, data))


def create(location: str, data: bytes) -> bool:
    """Make an object that is not there; False, and nothing is written, where it is: only one of several succeeds."""
    try:
        if is_local(location):
            path = Path(normalize(location))
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "xb") as file:
                file.write(data)
        else:
            found, path_there = filesystem(location)
            retrying(lambda: found.pipe_file(path_there, data, mode="create"))
    except FileExistsError:
        return not is_local(location) and read_bytes(location) == data  # made, but the answer was lost
    return True


@contextmanager
def new_file(location: str) -> Iterator[IO[bytes]]:
    """A file to fill that appears under its name only when the block ends without an exception."""
    if is_local(location):
        with new_local_file(location) as file:
            yield file
        return
    with tempfile.NamedTemporaryFile(prefix="crackbatch-") as spool:
        yield spool
        spool.flush()
        found, path = filesystem(location)
        retrying(lambda: found.put_file(spool.name, path))


@contextmanager
def new_local_file(location: str) -> Iterator[IO[bytes]]:
    """`new_file` on this machine: a temporary neighbour, flushed to the disk, then renamed."""
    path = Path(normalize(location))
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def list_files(location: str, suffix: str = "", recursive: bool = True, max_tries: int = MAX_TRIES) -> list[str]:
    """The locations of all files below a folder, sorted; none where there is no such folder.

    Raises what the storage raises where a folder cannot be listed.
    """
    top = normalize(location)
    names = _walk_local(top, recursive) if is_local(top) else _list_remote(top, recursive, max_tries)
    files = (join(top, name) for name in names)
    return sorted(file for file in files if file.endswith(suffix) and not is_temporary(file))


def list_sizes(location: str, max_tries: int = MAX_TRIES) -> dict[str, int]:
    """The files below a folder, those still being written too: path from there → bytes; raises as `list_files` does."""
    top = normalize(location)
    if not is_local(top):
        return _list_remote(top, True, max_tries)
    sizes = {}
    for name in _walk_local(top, True):
        with suppress(FileNotFoundError):
            sizes[name] = os.stat(join(top, name)).st_size
    return sizes


def _list_remote(location: str, recursive: bool, max_tries: int) -> dict[str, int]:
    """Paths below a folder, and their bytes.

    fsspec's own `find` takes what cannot be listed for empty, but where a store lists flatly: Azure always, S3 and
    Google below all prefixes.
    """
    found, path = filesystem(location)
    path = path.rstrip("/")
    found.invalidate_cache()
    kind = scheme(location)
    entries: list[dict[str, Any]] = []
    with suppress(FileNotFoundError):
        if kind in AZURE or (recursive and kind in _EXTRAS):
            entries = list(retrying(lambda: found.find(path, detail=True), max_tries).values())
        else:
            entries = _walk_remote(found, path, recursive, max_tries)
    sizes = {str(entry["name"]).partition(f"{path}/")[2]: int(entry.get("size") or 0) for entry in entries}
    return {name: size for name, size in sizes.items() if name and (recursive or "/" not in name)}


def _walk_local(folder: str, recursive: bool) -> Iterator[str]:
    """Paths of files from a folder on."""

    def fail(error: OSError) -> None:
        if not isinstance(error, (FileNotFoundError, NotADirectoryError)):  # one may go while others are listed
            raise error

    for above, folders, names in os.walk(folder, onerror=fail):
        yield from (os.path.relpath(os.path.join(above, name), folder) for name in names)
        if not recursive:
            folders.clear()


def _walk_remote(found: Any, path: str, recursive: bool, max_tries: int) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for entry in retrying(lambda: found.ls(path, detail=True), max_tries):
        if entry["type"] != "directory":
            entries.append(entry)
        elif recursive and entry["name"].rstrip("/") != path:
            with suppress(FileNotFoundError):
                entries.extend(_walk_remote(found, entry["name"].rstrip("/"), recursive, max_tries))
    return entries


def is_temporary(location: str) -> bool:
    """Whether the name is that of a local file still being written."""
    name = location.rsplit("/", 1)[-1]
    return name.startswith(".") and name.endswith(".tmp")


def remove(location: str) -> None:
    """Remove a file or a folder with all it holds, if it is there."""
    found, path = filesystem(location)
    if not is_local(location) and re.search(r"[*?[]", path):  # which `rm` would take for a pattern
        for file in [*list_files(location), location]:
            remove_file(file)
        return
    try:
        retrying(lambda: found.rm(path, recursive=True))
    except FileNotFoundError:
        return
    found.invalidate_cache()


def remove_file(location: str) -> None:
    """Remove one file, whatever its name, if it is there."""
    found, path = filesystem(location)
    with suppress(FileNotFoundError):
        retrying(lambda: found.rm_file(path))


def move(source: str, target: str) -> None:
    """Rename a file; a copy on the server and a removal on an object store."""
    if is_local(target):
        Path(normalize(target)).parent.mkdir(parents=True, exist_ok=True)
        os.replace(normalize(source), normalize(target))
        return
    found, path = filesystem(source)
    there = filesystem(target)[1]
    retrying(lambda: found.cp_file(path, there))
    remove_file(source)


def exists(location: str) -> bool:
    """Whether there is an object or folder."""
    found, path = filesystem(location)
    found.invalidate_cache()
    return bool(retrying(lambda: found.exists(path)))


def check_output(out: str) -> str:
    """The location that `--out` names, below which files can be written; raises OutputError."""
    if not out:
        raise OutputError("--out is missing: name a folder or URL for what this makes")
    location = normalize(out)
    _check_writable(location)
    return location


def _check_writable(location: str) -> None:
    if scheme(location) == "memory":
        raise OutputError("memory:// lives in one process, and rows are written by many: give --out a path or a URL")
    probe = join(location, "runs", ".writable")
    made = missing_folders(join(location, "runs"))
    try:
        write_whole(probe, b"")
        remove(probe)
        remove_folders(made)  # a request that is refused later must leave nothing behind
    except FileNotFoundError as error:
        where = reason_of(error) if is_local(location) else "no such bucket or container; make it first"
        raise OutputError(f"cannot write to {redact(location)}: {where}") from None
    except (OSError, SourceError, ValueError) as error:
        raise OutputError(f"cannot write to {redact(location)}: {reason_of(error)}") from None
    except Exception as error:  # each cloud library raises its own
        name = type(error).__name__
        raise OutputError(f"cannot write to {redact(location)}: {name}: {reason_of(error)}") from None


def missing_folders(location: str) -> list[Path]:
    """The folder and those above it that do not exist, innermost first; elsewhere there are no empty folders."""
    folder = Path(normalize(location))
    return [path for path in (folder, *folder.parents) if not path.exists()] if is_local(location) else []


def remove_folders(folders: list[Path]) -> None:
    """Remove folders that are empty, and leave those that are not."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
