"""The lease on a run: one process works on it at a time, on whichever machine.

    <folder>/lease-00003.json   who holds it, since when, and when it was renewed last

Whoever takes the lease creates the number after the newest that it saw, which only one process can. A holder that was
killed does not renew: on the same machine that is known at once, elsewhere after half a minute of silence, measured by
the waiting process's own clock, so that clocks need not agree.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from crackbatch.errors import HeldError, LeaseLostError
from crackbatch.storage import atomic, locations, objects
from crackbatch.storage.redaction import redact

_RENEW_S = 5.0
_SILENT_S = 30.0
_POLL_S = 1.0


@dataclass(frozen=True)
class Lease:
    """Who holds a run.

    `machine` and `started` tell processes apart that `host` and `pid` do not (boot, container), and `token` the holders
    within a process.
    """

    number: int
    host: str
    pid: int
    machine: str
    started: str
    token: str
    since: str
    renewed_at: str

    @property
    def holder(self) -> str:
        """The process, as a person looks for it."""
        return f"process {self.pid} on {self.host}"

    @property
    def is_alive(self) -> bool:
        """Whether the holder works still, as far as one look, and for another machine's this one's clock, can tell."""
        if (known := _is_running(self)) is not None:
            return known
        silent = datetime.now(UTC) - datetime.fromisoformat(self.renewed_at)
        return silent.total_seconds() < _SILENT_S


def read_lease(folder: str) -> Lease | None:
    """The newest lease in a run's folder, None where nobody holds it."""
    return next((lease for file in reversed(_files(folder)) if (lease := _read(file)) is not None), None)


class Holding:
    """Holds the lease of a run while the block lasts; HeldError where another process works on it."""

    def __init__(self, folder: str, what: str) -> None:
        self._folder, self._what = folder, what
        self._lost = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="renew the lease", daemon=True)

    def __enter__(self) -> Holding:
        self._lease = self._take()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        with suppress(Exception):  # it ends by silence as well, and must not hide what went wrong
            if self._is_mine():
                objects.remove_file(self._location(self._lease.number))

    def check(self) -> None:
        """Raise LeaseLostError where another process took over: this one must not publish any more."""
        if not self._lost:
            newest = self._newest()
            if not newest and not objects.exists(self._folder):
                raise LeaseLostError(
                    f"{redact(self._folder)} is gone; bring it back, and the same command continues the run"
                )
            # Gone, or of another process: it took over and has ended since, while this one stood still.
            if newest != self._lease.number or not self._is_mine():
                self._lost = f"another process took {self._what} over"
        if self._lost:
            raise LeaseLostError(f"{self._lost}: this one stops; what it did is kept")

    def _is_mine(self) -> bool:
        there = _read(self._location(self._lease.number))
        return there is not None and replace(there, renewed_at=self._lease.renewed_at) == self._lease

    def _newest(self) -> int:
        """The number of the newest lease, 0 where there is none."""
        return max(map(_number, _files(self._folder)), default=0)

    def _location(self, number: int) -> str:
        return locations.join(self._folder, f"lease-{number:05d}.json")

    def _take(self) -> Lease:
        """Create the next lease as soon as the one that is there is known to be dead."""
        seen, since = (0, ""), time.monotonic()
        while True:
            newest = self._newest()
            known = _read(self._location(newest)) if newest else None
            state = (newest, known.renewed_at if known is not None else "")  # "": it is being written
            if not newest or (known is not None and _is_running(known) is False):
                free = True
            elif newest != seen[0]:
                seen, since, free = state, time.monotonic(), False
            elif known is not None and (state != seen or _is_running(known)):
                raise HeldError(
                    f"{self._what} is being worked on by {known.holder} since {known.since}; wait for it to end"
                    " (if that process is gone, its hold ends within half a minute)"
                )
            else:
                free = time.monotonic() - since > _SILENT_S
            if free and (mine := self._create(newest + 1)) is not None:
                return mine
            time.sleep(_POLL_S)

    def _create(self, number: int) -> Lease | None:
        """The lease of this number, None where another process was faster."""
        since = datetime.now(UTC).isoformat(timespec="seconds")
        pid, token = os.getpid(), uuid.uuid4().hex
        mine = Lease(number, socket.gethostname(), pid, _machine(), _started(pid), token, since, since)
        if not atomic.create(self._location(number), _encode(mine)):
            return None
        for file in _files(self._folder):
            if _number(file) < number:
                objects.remove_file(file)
        return mine

    def _renew(self) -> None:
        renewed = time.monotonic()
        while not self._stop.wait(_RENEW_S):
            began = time.monotonic()
            try:
                self.check()
                self._lease = replace(self._lease, renewed_at=datetime.now(UTC).isoformat(timespec="milliseconds"))
                atomic.write_whole(self._location(self._lease.number), _encode(self._lease))
                renewed = time.monotonic()
                if renewed - began > _SILENT_S:  # meanwhile another may have come and gone, and this wrote it anew
                    self._lost = f"the lease on {self._what} was renewed too late"
            except Exception as error:  # each storage raises its own; the next renewal may succeed, of a folder too
                if not self._lost and time.monotonic() - renewed > _SILENT_S:
                    self._lost = f"the lease on {self._what} could not be renewed ({redact(str(error))})"
                if self._lost:
                    return


def _files(folder: str) -> list[str]:
    return [file for file in objects.list_files(folder, ".json", recursive=False) if _number(file)]


def _read(file: str) -> Lease | None:
    """None for what is gone, or has not been written to its end."""
    try:
        return Lease(number=_number(file), **json.loads(objects.read_bytes(file)))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _number(file: str) -> int:
    found = re.search(r"/lease-(\d+)\.json$", file)
    return int(found[1]) if found else 0


def _encode(lease: Lease) -> bytes:
    return json.dumps({key: value for key, value in asdict(lease).items() if key != "number"}).encode() + b"\n"


def _is_running(lease: Lease) -> bool | None:
    """Whether the holder's process is there; None where it is not one of this machine's."""
    if not lease.machine or lease.machine != _machine():
        return None
    return _started(lease.pid) == lease.started


def _machine() -> str:
    """What two processes share that see each other's numbers: the boot of the machine and the container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return ""


def _started(pid: int) -> str:
    """When a process started, in the kernel's ticks since boot; empty where it is gone (or a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
