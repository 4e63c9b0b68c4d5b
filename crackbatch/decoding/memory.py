"""The memory that decoder processes share with their parent, for pixels: places of one size, and whole photographs."""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress

import numpy as np

from crackbatch.errors import RunError


class Memory:
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


class PhotoMemory:
    """Shared memory for the pixels of one photograph, RGB of 8 bits. It is given back with `close`."""

    def __init__(self, num_pixels: int) -> None:
        self.descriptor = _nameless_file()
        os.ftruncate(self.descriptor, 3 * num_pixels)  # takes memory as pixels are written

    def pixels(self, height: int, width: int) -> np.ndarray:
        """Return the pixels (height, width, 3) uint8. They stay valid after `close`, while anything refers to them."""
        return np.frombuffer(mmap.mmap(self.descriptor, 3 * height * width), np.uint8).reshape(height, width, 3)

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        with suppress(OSError):  # forbidden in some sandboxes
            return os.memfd_create("crackbatch pixels")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Budget:
    """Bytes that photographs may take at the same time. Who waits longest gets its bytes first."""

    def __init__(self, size_bytes: int) -> None:
        self._size = self._left = size_bytes
        self._waiting: deque[tuple[int, Future[None]]] = deque()
        self._lock = threading.Lock()

    def take(self, num: int, wait: bool) -> bool:
        """Take bytes and return whether they were free. A photograph larger than the budget gets all of it."""
        with self._lock:
            if not self._waiting and self._left >= min(num, self._size):
                self._left -= num
                return True
            if not wait:
                return False
            mine: Future[None] = Future()
            self._waiting.append((num, mine))
        mine.result()
        return True

    def give(self, num: int) -> None:
        with self._lock:
            self._left += num
            while self._waiting and self._left >= min(self._waiting[0][0], self._size):
                wanted, other = self._waiting.popleft()
                self._left -= wanted
                other.set_result(None)


class Free:
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
