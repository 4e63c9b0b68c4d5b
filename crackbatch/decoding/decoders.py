"""A pool of decoder processes: encoded images go in, facts about them come back, pixels lie in shared memory.

    with Decoders(size=224) as decoders:
        for decoded in decoders.decode([[b"…", b"…"], …]): …

Threads that decode wait for the interpreter's lock, and an image can do anything to the process that decodes it: abort
it, take all memory, or never end. Processes use all cores, and an image harms no other image (`decoding/process.py`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from crackbatch.decoding.decoder import FACTS
from crackbatch.decoding.memory import Budget, Free, Memory, PhotoMemory
from crackbatch.decoding.process import STOPPED, Chunk, Gate, Process
from crackbatch.errors import RunError
from crackbatch.images.picture import DEFAULT_MAX_MEGAPIXELS, PHOTO
from crackbatch.machine import num_cores

DEFAULT_TIMEOUT_S = 120.0
# Images that one process decodes at a time: few messages for tiles, all processes for photographs.
_CHUNK_IMAGES, _CHUNK_BYTES = 16, 1 << 20
# Decoded photographs may take so much memory for each process: one of 50 megapixels, or three of 16.
_PHOTO_BYTES = 150_000_000


class Photo(NamedTuple):
    """A photograph decoded at its own size: a value for each of `FACTS`, and its pixels, None unless it is `ok`.

    `pixels` are (height, width, 3) uint8, RGB, upright. `release` gives back the memory, and must be called.
    """

    facts: dict[str, Any]
    pixels: np.ndarray | None
    release: Callable[[], None]


class Decoded(NamedTuple):
    """A decoded batch: a column of `facts` for each of `FACTS`, and the pixels of the images whose status is `ok`.

    `pixels` (ok images, size, size, 3) uint8 are in the order of the images.
    """

    facts: dict[str, list[Any]]
    pixels: np.ndarray


class Decoders:
    """Decoder processes for one size of pictures; starts them at once. Several threads may call `decode`.

    The default of `num_processes` is the number of cores. A batch has at most `batch_size` images, and the memory holds
    `num_batches`. With `looks`, the facts hold each picture's hash. With `photo_side`, of an image with two sides that
    long only the header is read: it has the status `photo`, and `decode_photos` decodes it.
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
        photo_side: int | None = None,
    ) -> None:
        num_processes = num_processes or num_cores()
        num_batches = num_batches or 2 + -(-2 * num_processes // batch_size)
        self.batch_size = batch_size
        self._chunk = max(1, min(_CHUNK_IMAGES, -(-batch_size // num_processes)))
        self._memory = Memory(num_batches * batch_size, size)
        self._free = Free(number * batch_size for number in range(num_batches))
        self._photo_bytes = Budget(num_processes * _PHOTO_BYTES)
        asked = {"size": size, "max_megapixels": max_megapixels, "looks": looks, "photo_side": photo_side}
        self._work: SimpleQueue[Chunk | None] = SimpleQueue()
        self._turn, self._is_closed = threading.Lock(), False
        self._told_deaths = 0
        gate = Gate()
        self._processes = [
            Process(asked, self._memory, timeout_s, gate, self._work, num_processes) for _ in range(num_processes)
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

    def take_deaths(self) -> int:
        """Return how many processes died, or were ended because they took too long, since the last call."""
        with self._turn:
            num = sum(process.num_deaths for process in self._processes)
            since, self._told_deaths = num - self._told_deaths, num
        return since

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

    def decode_photos(self, photos: Iterable[tuple[bytes, int]]) -> Generator[Photo]:
        """Yield photographs decoded at their own size, in order, while the next ones are decoded.

        A photograph is its bytes and its number of pixels, which is width times height in its header. Those that are
        not released take a limited amount of memory, unless one alone takes more.
        """
        return self._decode_photos(photos)

    def decode_whole(self, images: Iterable[bytes]) -> Generator[Photo]:
        """Yield images of any size in the same way; it needs a `photo_side` of 1, and reads the headers itself.

        An image whose header cannot be read has no pixels.
        """
        return self._decode_photos(map(self._sized, images))

    def _sized(self, image: bytes) -> tuple[bytes, int] | _Refused:
        (header,) = self.decode([[image]])
        facts = {name: values[0] for name, values in header.facts.items()}
        return (image, facts["width"] * facts["height"]) if facts["status"] == PHOTO else _Refused(facts)

    def _decode_photos(self, photos: Iterable[tuple[bytes, int] | _Refused]) -> Generator[Photo]:
        coming, waiting = iter(photos), deque[_Photo | _Refused]()
        following = next(coming, None)
        try:
            while following is not None or waiting:
                while following is not None:
                    if isinstance(following, _Refused):
                        waiting.append(following)
                    elif self._photo_bytes.take(3 * following[1], wait=not waiting):
                        waiting.append(self._submit_photo(*following))
                    else:
                        break
                    following = next(coming, None)
                yield waiting.popleft().decoded()
        finally:
            for photo in waiting:
                photo.cancel()

    def check(self) -> None:
        """Raise RunError if the processes are closed: then whatever was decoded is of no use."""
        if self._is_closed:
            raise RunError(STOPPED)

    def _submit_photo(self, image: bytes, num_pixels: int) -> _Photo:
        photo = _Photo(image, num_pixels, lambda: self._photo_bytes.give(3 * num_pixels))
        with self._turn:
            if self._is_closed:
                photo.cancel()
                raise RunError(STOPPED)
            self._work.put(photo.chunk)
        return photo

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
            Chunk(images[start:stop], first + start) for start, stop in _cut(images, self._chunk, self.batch_size)
        ]
        batch = _Batch(chunks, first, self._free.give)
        with self._turn:
            if self._is_closed:  # nobody would decode them
                batch.release()
                raise RunError(STOPPED)
            for chunk in chunks:
                self._work.put(chunk)
        return batch


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


class _Photo:
    """A photograph under way. Its memory is free again once it is released and no process writes into it."""

    def __init__(self, image: bytes, num_pixels: int, free: Callable[[], None]) -> None:
        self._memory, self._num_pixels, self._free = PhotoMemory(num_pixels), num_pixels, free
        self.chunk = Chunk([image], 0, self._memory)

    def decoded(self) -> Photo:
        """Wait until it is decoded."""
        try:
            (row,) = self.chunk.facts.result()
            facts, pixels = dict(zip(FACTS, row, strict=True)), None
            if facts["status"] == "ok" and facts["width"] * facts["height"] != self._num_pixels:
                facts |= {"status": "failed", "error": "it has another size than its header says"}
            elif facts["status"] == "ok":
                pixels = self._memory.pixels(facts["height"], facts["width"])
        except BaseException:
            self._release()
            raise
        return Photo(facts, pixels, self._release)

    def cancel(self) -> None:
        """Give it up, before or while it is decoded."""
        self.chunk.facts.cancel()
        self.chunk.facts.add_done_callback(lambda _: self._release())

    def _release(self) -> None:
        self._memory.close()
        self._free()


class _Refused:
    """An image that is not decoded, because its header cannot be read."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self._facts = facts

    def decoded(self) -> Photo:
        return Photo(self._facts, None, self.cancel)

    def cancel(self) -> None:
        """Nothing is held for it."""


class _Batch:
    """A batch under way. Its memory is free again once it is released and no process writes into it."""

    def __init__(self, chunks: list[Chunk], first: int, free: Callable[[int], None]) -> None:
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
