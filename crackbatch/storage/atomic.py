"""Writing whole or not at all: no reader ever sees a part of a file, and of several who create one only one does."""

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
from crackbatch.storage.redaction import reason_of, redact
from crackbatch.storage.retry import retrying


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
