"""Write files atomically.

`write_whole` and `new_file` never show a partial file to a reader. `create` lets only one of several processes create a
file.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from crackbatch.errors import OutputError, SourceError
from crackbatch.storage.locations import is_local, join, normalize, scheme
from crackbatch.storage.objects import filesystem, read_bytes, remove
from crackbatch.storage.redaction import masked, reason_of
from crackbatch.storage.retry import retrying


def write_whole(location: str, data: bytes) -> None:
    """Write an object without showing a part of it: a local file is renamed, a remote object is one PUT."""
    if is_local(location):
        with new_local_file(location) as file:
            file.write(data)
        return
    found, path = filesystem(location)
    retrying(lambda: found.pipe_file(path, data))


def create(location: str, data: bytes) -> bool:
    """Create an object; return False and write nothing if it already exists.

    If several processes try at once, only one succeeds. A local file is visible before it is completely written.
    """
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
        return not is_local(location) and read_bytes(location) == data  # an earlier try made it
    return True


@contextmanager
def new_file(location: str) -> Iterator[IO[bytes]]:
    """Yield a file to write. It appears under its name only if the block ends without an exception."""
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
    """`new_file` for a local path: a temporary file in the same folder, flushed to the disk, then renamed."""
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


def check_output(out: str) -> str:
    """Return the normalized location of `--out`; raise OutputError if files cannot be written below it."""
    if not out:
        raise OutputError("--out is missing: give a folder or URL for the output")
    location = normalize(out)
    _check_writable(location)
    return location


def _check_writable(location: str) -> None:
    if scheme(location) == "memory":
        raise OutputError("--out must not be memory://: several processes write to it; give a path or another URL")
    probe = join(location, ".writable")
    try:
        made = missing_folders(location)
        write_whole(probe, b"")
        remove(probe)
        remove_folders(made)  # a request that is refused later must leave no folders
    except FileNotFoundError as error:
        why = "the bucket or container does not exist; create it first"
        where = reason_of(error, location) if is_local(location) else why
        raise OutputError(f"cannot write to {masked(location)}: {where}") from None
    except (OSError, SourceError, ValueError) as error:
        raise OutputError(f"cannot write to {masked(location)}: {reason_of(error, location)}") from None
    except Exception as error:  # each cloud library has its own exceptions
        name = type(error).__name__
        raise OutputError(f"cannot write to {masked(location)}: {name}: {reason_of(error, location)}") from None


def missing_folders(location: str) -> list[Path]:
    """Return the folder and its parents that do not exist, innermost first; an empty list if it is not local."""
    folder = Path(normalize(location))
    return [path for path in (folder, *folder.parents) if not path.exists()] if is_local(location) else []


def remove_folders(folders: list[Path]) -> None:
    """Remove the folders that are empty; keep the others."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
