"""A pool of decoder processes: encoded images go in, facts about them come back, pixels lie in shared memory.

    with Decoders(size=224) as decoders:
        for decoded in decoders.decode([[b"…", b"…"], …]): …

Threads that decode wait for the interpreter's lock, and an image can do anything to the process that decodes it: abort
it, take all memory, or never end. Processes use all cores, and an image harms no other image. When a decoder dies or is
too slow, its images are decoded again, each alone. An image that kills its decoder `_MAX_TRIES` times in a row gets the
status `crashed`. The last tries are made while no other image is decoded: if the machine is short of memory, the system
may end a decoder because of an image in another one.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import datetime
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from crackbatch.errors import RunError
from crackbatch.images.decoder import FACTS, HEADER, LENGTH, READY
from crackbatch.images.picture import DEFAULT_MAX_MEGAPIXELS, NO_MEMORY
from crackbatch.machine import num_cores, start_child

DEFAULT_TIMEOUT_S = 120.0
_MAX_TRIES = 3
_STOPPED = "decoding was stopped"
_START_TIMEOUT_S = 120.0  # starting Python takes long on a busy machine
_GRACE_S = 1.0
_MAX_ANSWER_BYTES = 16 << 20  # a decoder that untrusted bytes have taken over may answer anything
# Images that one process decodes at a time: few messages for tiles, all processes for photographs.
_CHUNK_IMAGES, _CHUNK_BYTES = 16, 1 << 20

# The facts about an image: a value for each of `FACTS`.
Facts = list[Any]


class Decoded(NamedTuple):
    """A decoded batch: a column of `facts` for each of `FACTS`, and the pixels of the images whose status is `ok`.

    `pixels` (ok images, size, size, 3) uint8 are in the order of the images.
    """

    facts: dict[str, list[Any]]
    pixels: np.ndarray


class Decoders:
    """Decoder processes for one size of pictures; starts them at once. Several threads may call `decode`.

    The default of `num_processes` is the number of cores. A batch has at most `batch_size` images, and the memory holds
    `num_batches`. With `looks`, the facts hold each picture's hash.
    """

    def __init__(
        self,
        size: int,
        *,
        max_megapixels: float = DEFAULT_MAX_MEGAPIXELS,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        num_processes: int | None = None,
        batch_size: int = 64,
        num_batches: int | None = None,
        looks: bool = False,
    ) -> None:
        num_processes = num_processes or num_cores()
        num_batches = num_batches or 2 + -(-2 * num_processes // batch_size)
        self.batch_size = batch_size
        self._chunk = max(1, min(_CHUNK_IMAGES, -(-batch_size // num_processes)))
        self._memory = _Memory(num_batches * batch_size, size)
        self._free = _Free(number * batch_size for number in range(num_batches))
        asked = {"size": size, "max_megapixels": max_megapixels, "looks": looks}
        self._work: SimpleQueue[_Chunk | None] = SimpleQueue()
        self._turn, self._is_closed = threading.Lock(), False
        gate = _Gate()
        self._processes = [
            _Process(asked, self._memory, timeout_s, gate, self._work, num_processes) for _ in range(num_processes)
        ]

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, also in the middle of an image."""
        with self._turn:
            self._is_closed = True
            for _ in self._processes:
                self._work.put(None)
        for process in self._processes:
            process.end()

    @property
    def pids(self) -> list[int]:
        """The numbers of the running processes."""
        return [process.pid for process in self._processes if process.pid is not None]

    def decode(self, batches: Iterable[Sequence[bytes]]) -> Iterator[Decoded]:
        """Yield each batch decoded, in order, while the next one is being decoded.

        The pixels stay valid until the next batch is asked for. Raises RunError if decoders cannot be started.
        """
        coming, waiting = iter(batches), deque[_Batch]()
        try:
            while self._send(coming, waiting, wait=True):
                self._send(coming, waiting, wait=False)
                batch = waiting[0]
                yield batch.decoded(self._memory.pixels)
                batch.release()
                waiting.popleft()
        finally:
            for batch in waiting:
                batch.release()

    def _send(self, coming: Iterator[Sequence[bytes]], waiting: deque[_Batch], wait: bool) -> bool:
        """Send the next batch to the processes unless two are under way; return whether any batch is under way.

        Only a caller that has no batch waits for memory. So callers never wait for each other in a circle.
        """
        if len(waiting) < (1 if wait else 2):
            first = self._free.take(wait=not waiting)
            images = next(coming, None) if first is not None else None
            if images is not None and first is not None:
                waiting.append(self._submit(images, first))
            elif first is not None:
                self._free.give(first)
        return bool(waiting)

    def _submit(self, images: Sequence[bytes], first: int) -> _Batch:
        chunks = [
            _Chunk(images[start:stop], first + start) for start, stop in _cut(images, self._chunk, self.batch_size)
        ]
        batch = _Batch(chunks, first, self._free.give)
        with self._turn:
            if self._is_closed:  # nobody would decode them
                batch.release()
                raise RunError(_STOPPED)
            for chunk in chunks:
                self._work.put(chunk)
        return batch


def too_slow(timeout_s: float) -> str:
    """Return the error text of an image that took too long to decode."""
    return f"decoding took longer than {timeout_s:g} s (--decode-timeout)"


def _cut(images: Sequence[bytes], most: int, limit: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of the chunks of a batch."""
    assert len(images) <= limit, "a batch has at most `batch_size` images"
    start = held = 0
    for index, image in enumerate(images):
        if index > start and (index - start == most or held + len(image) > _CHUNK_BYTES):
            yield start, index
            start, held = index, 0
        held += len(image)
    if start < len(images):
        yield start, len(images)


class _Chunk:
    """Images that one process decodes; the pixels of the first lie at place `first` of the shared memory."""

    def __init__(self, images: Sequence[bytes], first: int) -> None:
        self.images, self.first = images, first
        self.facts: Future[list[Facts]] = Future()


class _Batch:
    """A batch under way. Its memory is free again once it is released and no process writes into it."""

    def __init__(self, chunks: list[_Chunk], first: int, free: Callable[[int], None]) -> None:
        self._chunks, self._first, self._free = chunks, first, free
        self._users = len(chunks) + 1
        self._lock = threading.Lock()
        for chunk in chunks:
            chunk.facts.add_done_callback(lambda _: self._leave())

    def decoded(self, pixels: np.ndarray) -> Decoded:
        rows = [facts for chunk in self._chunks for facts in chunk.facts.result()]
        columns = dict(zip(FACTS, map(list, zip(*rows, strict=True)), strict=True)) if rows else {}
        facts = columns or {name: [] for name in FACTS}
        mine = pixels[self._first : self._first + len(rows)]
        there = np.array([status == "ok" for status in facts["status"]], bool)
        return Decoded(facts, mine if there.all() else mine[there])

    def release(self) -> None:
        for chunk in self._chunks:
            chunk.facts.cancel()
        self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            is_last = not self._users
        if is_last:
            self._free(self._first)


class _Memory:
    """Shared memory for pixels (places, size, size, 3) uint8, without a name, so that nothing is left behind."""

    def __init__(self, num_places: int, size: int) -> None:
        size_bytes = num_places * size * size * 3
        # Not /dev/shm, which has only 64 MB in many containers.
        self.descriptor = _nameless_file()
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self.descriptor, 0, size_bytes)  # fails here rather than at a later write
            else:
                os.ftruncate(self.descriptor, size_bytes)
        except OSError as error:
            raise RunError(f"no {size_bytes:,} bytes of memory to share with decoder processes ({error})") from None
        self.num_places = num_places
        self.pixels = np.frombuffer(mmap.mmap(self.descriptor, size_bytes), np.uint8).reshape(-1, size, size, 3)

    def __del__(self) -> None:
        with suppress(OSError):
            os.close(self.descriptor)


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        with suppress(OSError):  # forbidden in some sandboxes
            return os.memfd_create("crackbatch pixels")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class _Free:
    """The first places of free memory. Who waits longest gets the next one."""

    def __init__(self, places: Iterable[int]) -> None:
        self._places = deque(places)
        self._waiting: deque[Future[int]] = deque()
        self._lock = threading.Lock()

    def take(self, wait: bool) -> int | None:
        """Return a place; None if none is free and the caller does not want to wait."""
        with self._lock:
            if self._places:
                return self._places.popleft()
            if not wait:
                return None
            mine: Future[int] = Future()
            self._waiting.append(mine)
        return mine.result()

    def give(self, place: int) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set_result(place)
            else:
                self._places.append(place)


class _Gate:
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


class _Process:
    """One decoder process, and the thread that gives it work, and that starts it again after it died."""

    def __init__(
        self,
        asked: dict[str, Any],
        memory: _Memory,
        timeout_s: float,
        gate: _Gate,
        work: SimpleQueue[_Chunk | None],
        num_processes: int,
    ) -> None:
        self._asked, self._memory, self._timeout_s = asked, memory, timeout_s
        self._gate, self._work, self._beside = gate, work, num_processes - 1
        self._child: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._is_closed = False
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

    def _decode(self, chunk: _Chunk) -> list[Facts]:
        try:
            with self._gate.beside():
                rows = self._ask(chunk.images, chunk.first)
        except _TooSlow:
            if len(chunk.images) == 1:
                return [self._failure("failed", too_slow(self._timeout_s))]
            rows = None
        except _Died:
            rows = None
        return [
            self._decode_alone(image, chunk.first + index)
            if rows is None or _lacked_memory(rows[index])
            else rows[index]
            for index, image in enumerate(chunk.images)
        ]

    def _decode_alone(self, image: bytes, place: int) -> Facts:
        """Decode an image whose decoder died, or lacked memory; the first time other processes go on."""
        how = ""
        for number in range(_MAX_TRIES):
            try:
                with self._gate.alone() if number else self._gate.beside():
                    (row,) = self._ask([image], place, alone=number > 0)
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

    def _ask(self, images: Sequence[bytes], first: int, alone: bool = False) -> list[Facts]:
        """Have the process decode images; raises _Died or _TooSlow, and then the process is gone."""
        if self._connection is None:
            self._start()
        assert self._connection is not None
        try:
            connection = _Timed(self._connection, self._timeout_s)
            head = HEADER.pack(len(images), first, 0 if alone else self._beside)
            connection.send(head + b"".join(LENGTH.pack(len(image)) for image in images))
            for image in images:
                connection.send(image)
            (length,) = LENGTH.unpack(connection.receive(LENGTH.size))
            if length > _MAX_ANSWER_BYTES:
                raise EOFError
            columns = json.loads(connection.receive(length))
        except TimeoutError:
            self._stop()
            raise _TooSlow from None
        except (OSError, EOFError, ValueError):
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
                raise RunError(_STOPPED)
            descriptors = (its.fileno(), self._memory.descriptor)
            child = start_child("crackbatch.images.decoder", asked, descriptors, said)
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

    def send(self, data: bytes) -> None:
        self._connection.settimeout(self._left())
        self._connection.sendall(data)

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
