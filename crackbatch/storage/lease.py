"""The lease on a run: only one process works on a run at a time, across all machines.

    <folder>/lease-00003.json   who holds it, since when, and when it was last renewed

To take the lease, a process creates the file with the number after the newest one that it saw. Only one process can
create it. A holder that was killed no longer renews its lease. A process on the same machine sees this at once. A
process on another machine waits until the lease has not been renewed for half a minute. It measures this time with its
own clock, so the clocks of the machines need not agree.
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
from crackbatch.storage.redaction import masked, redact

_RENEW_S = 5.0
_SILENT_S = 30.0
_POLL_S = 1.0
_WATCHED = 2.5  # renewals


@dataclass(frozen=True)
class Lease:
    """Who holds a run.

    Two processes can have the same `host` and `pid`, after a reboot or in containers; then `machine` and `started`
    differ. `token` distinguishes the holders within one process.
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
        """The process in words: its number and its host."""
        return f"process {self.pid} on {self.host}"


def read_lease(folder: str) -> Lease | None:
    """Return the newest complete lease in a run's folder, None if there is none."""
    return next((lease for file in reversed(_files(folder)) if (lease := _read(file)) is not None), None)


def working_lease(folder: str) -> Lease | None:
    """Return the lease of a run on which a process works, None if none does.

    A holder on another machine whose lease does not look fresh is watched for a few renewals: the clocks of the
    machines may differ.
    """
    held = read_lease(folder)
    if held is None or (running := _is_running(held)) is False:
        return None
    age = datetime.now(UTC) - datetime.fromisoformat(held.renewed_at)
    if running or abs(age.total_seconds()) < _SILENT_S:
        return held
    since = time.monotonic()
    while time.monotonic() - since < _WATCHED * _RENEW_S:
        time.sleep(min(_POLL_S, _RENEW_S))
        now = read_lease(folder)
        if now != held:
            return now
    return None


class Holding:
    """Context manager that holds the lease of a run; raises HeldError if another process works on the run."""

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
        with suppress(Exception):  # an unrenewed lease expires too, and this must not hide the real error
            if self._is_mine():
                objects.remove_file(self._location(self._lease.number))

    def check(self) -> None:
        """Raise LeaseLostError if this process must not publish: another one took over, or the folder is gone."""
        if not self._lost:
            newest = self._newest()
            if not newest and not objects.exists(self._folder):
                raise LeaseLostError(
                    f"{masked(self._folder)} no longer exists; restore it and run the same command again to continue"
                )
            # The lease is gone or not ours: another process took over, and may have ended, while this one was paused.
            if newest != self._lease.number or not self._is_mine():
                self._lost = f"another process took over {self._what}"
        if self._lost:
            raise LeaseLostError(f"{self._lost}; this process stops, and its finished work is kept")

    def _is_mine(self) -> bool:
        there = _read(self._location(self._lease.number))
        return there is not None and replace(there, renewed_at=self._lease.renewed_at) == self._lease

    def _newest(self) -> int:
        """Return the number of the newest lease, 0 if there is none."""
        return max(map(_number, _files(self._folder)), default=0)

    def _location(self, number: int) -> str:
        return locations.join(self._folder, f"lease-{number:05d}.json")

    def _take(self) -> Lease:
        """Create the next lease as soon as the holder of the current one is known to be dead.

        Raises HeldError as soon as the holder is known to be alive.
        """
        seen, since = (0, ""), time.monotonic()
        while True:
            newest = self._newest()
            known = _read(self._location(newest)) if newest else None
            state = (newest, known.renewed_at if known is not None else "")  # "": not completely written yet
            if not newest or (known is not None and _is_running(known) is False):
                free = True
            elif newest != seen[0]:
                seen, since, free = state, time.monotonic(), False
            elif known is not None and (state != seen or _is_running(known)):
                raise HeldError(
                    f"{known.holder} has been working on {self._what} since {known.since}; wait for it to end"
                    " (if that process is gone, its lease expires within half a minute)"
                )
            else:
                free = time.monotonic() - since > _SILENT_S
            if free and (mine := self._create(newest + 1)) is not None:
                return mine
            time.sleep(_POLL_S)

    def _create(self, number: int) -> Lease | None:
        """Create the lease with this number and remove older ones; return None if another process was faster."""
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
                if renewed - began > _SILENT_S:  # another may have held the lease and ended meanwhile
                    self._lost = f"the lease on {self._what} was renewed too late"
            except Exception as error:  # of any storage, or no folder; the next renewal may succeed
                if not self._lost and time.monotonic() - renewed > _SILENT_S:
                    self._lost = f"the lease on {self._what} could not be renewed ({redact(str(error))})"
                if self._lost:
                    return


def _files(folder: str) -> list[str]:
    return [file for file in objects.list_files(folder, ".json", recursive=False) if _number(file)]


def _read(file: str) -> Lease | None:
    """Read a lease; return None if it is gone, not completely written, or not one that a process has written."""
    try:
        lease = Lease(number=_number(file), **json.loads(objects.read_bytes(file)))
        moments = [datetime.fromisoformat(moment) for moment in (lease.since, lease.renewed_at)]
    except (FileNotFoundError, ValueError, TypeError, RecursionError):
        return None
    texts = (lease.host, lease.machine, lease.started, lease.token)
    is_ours = isinstance(lease.pid, int) and all(isinstance(text, str) for text in texts)
    return lease if is_ours and all(moment.tzinfo for moment in moments) else None


def _number(file: str) -> int:
    found = re.search(r"/lease-(\d+)\.json$", file)
    return int(found[1]) if found else 0


def _encode(lease: Lease) -> bytes:
    return json.dumps({key: value for key, value in asdict(lease).items() if key != "number"}).encode() + b"\n"


def _is_running(lease: Lease) -> bool | None:
    """Whether the holder's process is running; None if it is not known to be on this machine."""
    if not lease.machine or lease.machine != _machine():
        return None
    return _started(lease.pid) == lease.started


def _machine() -> str:
    """Return an id (boot and container) that processes share if they see each other's numbers; empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return ""


def _started(pid: int) -> str:
    """Return when a process started, in kernel ticks since boot; empty if it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
