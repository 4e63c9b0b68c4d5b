"""One decoder process, seen from its parent: gives it images, and starts it again after an image has killed it.

When it dies or is too slow, its images are decoded again, each alone. An image that kills it `_MAX_TRIES` times in a
row gets the status `crashed`. The last tries are made while no other image is decoded: if the machine is short of
memory, the system may end a process because of an image in another one.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import datetime
from queue import SimpleQueue
from typing import Any

from crackbatch.decoding.decoder import FACTS, HEADER, LENGTH, READY
from crackbatch.decoding.memory import Memory, PhotoMemory
from crackbatch.errors import RunError
from crackbatch.images.picture import NO_MEMORY
from crackbatch.machine import start_child

STOPPED = "decoding was stopped"
_MAX_TRIES = 3
_START_TIMEOUT_S = 120.0  # starting Python takes long on a busy machine
_GRACE_S = 1.0
_MAX_ANSWER_BYTES = 16 << 20  # a decoder that untrusted bytes have taken over may answer anything

# The facts about an image: a value for each of `FACTS`.
Facts = list[Any]


class Chunk:
    """Images that one process decodes; the pixels of the first lie at place `first` of the shared memory.

    With `photo`, it is one image, whose pixels are written there at their own size.
    """

    def __init__(self, images: Sequence[bytes], first: int, photo: PhotoMemory | None = None) -> None:
        self.images, self.first, self.photo = images, first, photo
        self.facts: Future[list[Facts]] = Future()


def too_slow(timeout_s: float) -> str:
    """Return the error text of an image that took too long to decode."""
    return f"decoding took longer than {timeout_s:g} s (--decode-timeout)"


class Gate:
    """Lets many decode at the same time, or one alone."""

    def __init__(self) -> None:
        self._turn = threading.Lock()  # held while an image is decoded alone; others release it at once
        self._ended = threading.Condition()
        self._num_decoding = 0

    @contextmanager
    def beside(self) -> Iterator[None]:
        with self._turn, self._ended:
            self._num_decoding += 1
        try:
            yield
        finally:
            with self._ended:
                self._num_decoding -= 1
                self._ended.notify()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._turn, self._ended:
            self._ended.wait_for(lambda: not self._num_decoding)
            yield


class _Died(Exception):
    """The process died; the argument says how."""


class _TooSlow(Exception):
    """The process did not answer in time."""


class Process:
    """One decoder process, and the thread that gives it work, and that starts it again after it died."""

    def __init__(
        self,
        asked: dict[str, Any],
        memory: Memory,
        timeout_s: float,
        gate: Gate,
        work: SimpleQueue[Chunk | None],
        num_processes: int,
    ) -> None:
        self._asked, self._memory, self._timeout_s = asked, memory, timeout_s
        self._gate, self._work, self._beside = gate, work, num_processes - 1
        self._child: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._is_closed = False
        self.num_deaths = 0
        # The thread stays, because the process dies when the thread ends that started it.
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None else None

    def end(self) -> None:
        self._is_closed = True
        if (child := self._child) is not None:
            child.kill()
        self._thread.join()

    def _run(self) -> None:
        with suppress(RunError):  # the first chunk meets the same error and tells it
            self._start()
        while (chunk := self._work.get()) is not None:
            if not chunk.facts.set_running_or_notify_cancel():
                continue
            try:
                chunk.facts.set_result(self._decode(chunk))
            except BaseException as error:
                chunk.facts.set_exception(error)
        self._stop()

    def _decode(self, chunk: Chunk) -> list[Facts]:
        try:
            with self._gate.beside():
                rows = self._ask(chunk.images, chunk.first, chunk.photo)
        except _TooSlow:
            if len(chunk.images) == 1:
                return [self._failure("failed", too_slow(self._timeout_s))]
            rows = None
        except _Died:
            rows = None
        return [
            self._decode_alone(image, chunk.first + index, chunk.photo)
            if rows is None or _lacked_memory(rows[index])
            else rows[index]
            for index, image in enumerate(chunk.images)
        ]

    def _decode_alone(self, image: bytes, place: int, photo: PhotoMemory | None) -> Facts:
        """Decode an image whose decoder died, or lacked memory; the first time other processes go on."""
        how = ""
        for number in range(_MAX_TRIES):
            try:
                with self._gate.alone() if number else self._gate.beside():
                    (row,) = self._ask([image], place, photo, alone=number > 0)
                if not _lacked_memory(row):
                    return row
            except _Died as death:
                how = str(death)
            except _TooSlow:
                return self._failure("failed", too_slow(self._timeout_s))
        return self._failure("crashed", f"decoding it crashed the decoder process ({how})")

    @staticmethod
    def _failure(status: str, error: str) -> Facts:
        return [{"status": status, "error": error}.get(name) for name in FACTS]

    def _ask(self, images: Sequence[bytes], first: int, photo: PhotoMemory | None, alone: bool = False) -> list[Facts]:
        """Have the process decode images; raises _Died or _TooSlow, and then the process is gone."""
        if self._connection is None:
            self._start()
        assert self._connection is not None
        try:
            connection = _Timed(self._connection, self._timeout_s)
            head = HEADER.pack(len(images), first, 0 if alone else self._beside)
            connection.send(head, [] if photo is None else [photo.descriptor])
            connection.send(b"".join(LENGTH.pack(len(image)) for image in images))
            for image in images:
                connection.send(image)
            (length,) = LENGTH.unpack(connection.receive(LENGTH.size))
            if length > _MAX_ANSWER_BYTES:
                raise EOFError
            columns = json.loads(connection.receive(length))
        except TimeoutError:
            self.num_deaths += 1
            self._stop()
            raise _TooSlow from None
        except (OSError, EOFError, ValueError):
            self.num_deaths += not self._is_closed
            raise _Died(_describe(self._stop(is_dying=True))) from None
        rows = [list(row) for row in zip(*columns, strict=True)]
        at = FACTS.index("captured_at")
        for row in rows:
            if row[at] is not None:
                row[at] = datetime.fromisoformat(row[at])
        return rows

    def _start(self) -> None:
        """Start the process; raises RunError if it does not come up."""
        mine, its = socket.socketpair()
        asked = {
            **self._asked,
            "socket": its.fileno(),
            "memory": self._memory.descriptor,
            "places": self._memory.num_places,
        }
        with its, tempfile.TemporaryFile() as said:
            if self._is_closed:
                raise RunError(STOPPED)
            descriptors = (its.fileno(), self._memory.descriptor)
            child = start_child("crackbatch.decoding.decoder", asked, descriptors, said)
            self._child, self._connection = child, mine
            its.close()
            try:
                started = _Timed(mine, _START_TIMEOUT_S).receive(len(READY)) == READY
            except (OSError, EOFError):
                started = False
            if not started:
                code = self._stop(is_dying=True)
                said.seek(0)
                lines = said.read().decode(errors="replace").strip().splitlines() or [_describe(code)]
                raise RunError(f"a decoder process does not start: {lines[-1]}")

    def _stop(self, is_dying: bool = False) -> int:
        """End the process if it still runs, and return its exit code."""
        child, connection = self._child, self._connection
        self._child = self._connection = None
        if connection is not None:
            connection.close()
        if child is None:
            return 0
        if is_dying:
            with suppress(subprocess.TimeoutExpired):  # it closes its socket a moment before it ends
                child.wait(_GRACE_S)
        child.kill()
        return child.wait()


class _Timed:
    """Sends and receives, all within a time limit; raises TimeoutError, EOFError and OSError."""

    def __init__(self, connection: socket.socket, timeout_s: float) -> None:
        self._connection, self._end = connection, time.monotonic() + timeout_s

    def send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send bytes, and with the first of them open files."""
        self._connection.settimeout(self._left())
        sent = socket.send_fds(self._connection, [data], descriptors) if descriptors else 0
        self._connection.sendall(data[sent:])

    def receive(self, length: int) -> bytearray:
        data = bytearray(length)
        view, have = memoryview(data), 0
        while have < length:
            self._connection.settimeout(self._left())
            if not (num := self._connection.recv_into(view[have:])):
                raise EOFError
            have += num
        return data

    def _left(self) -> float:
        if (left := self._end - time.monotonic()) <= 0:
            raise TimeoutError
        return left


def _lacked_memory(row: Facts) -> bool:
    return bool(row[FACTS.index("error")] == NO_MEMORY)


def _describe(code: int) -> str:
    if code < 0:
        return f"signal {-code}, {signal.strsignal(-code)}"
    return f"exit code {code}"
