"""Records which images were being scored when a worker died, in files beside the run that the next worker reads.

    <folder>/<block>-<attempt>.try           the block is being scored, or its worker died while scoring it
    <folder>/<block>-<row>.slow              decoding this row took longer than the time limit
    <folder>/<block>-<row>-<attempt>.alone   the row is being decoded in its own process, or its worker died meanwhile

A block is named after its images. A worker that dies (its decoder aborts, or the machine runs out of memory) cannot
say which image was the cause. After `MAX_DEATHS` deaths, each image of the block is decoded in its own process
(`images/decoders.py`). A worker can die even then: on a machine that is short of memory, the system may end both
processes. If `MAX_DEATHS` workers die in this way with the same image, that image is the cause: the worker decodes
nothing else at that time, and a machine that is lost by chance is unlikely to be lost at the same image again.
"""

from __future__ import annotations

import faulthandler
import os
import re
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyarrow as pa

from crackbatch.sources.rows import block_digest
from crackbatch.storage import atomic, locations, objects

MAX_DEATHS = 3
_LOOK_S = 0.5


@dataclass(frozen=True)
class Past:
    """What is known about a block: how many workers died while scoring it, which rows are too slow to decode, and
    which rows killed `MAX_DEATHS` workers even when decoded in their own process."""

    deaths: int = 0
    slow: frozenset[int] = frozenset()
    killers: frozenset[int] = frozenset()

    @property
    def is_suspicious(self) -> bool:
        return self.deaths >= MAX_DEATHS


class Attempts:
    """Records the attempts of one worker, in a folder that all workers of the run share."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._open: set[str] = set()
        self._turn = threading.Lock()  # held while an image is decoded alone; others release it at once
        self._ended = threading.Condition()
        self._num_decoding = 0  # threads that decode, but not alone

    @contextmanager
    def attempt(self, block: pa.Table) -> Iterator[tuple[str, Past]]:
        """Give (name, past) of a block that is about to be scored. If the process dies inside, the record stays."""
        name = block_digest(block)
        before = [file for file in objects.list_files(self._folder, recursive=False) if f"/{name}-" in file]
        slow, alone = _rows(before, r"\.slow"), _rows(before, r"-\w+\.alone")
        past = Past(
            sum(file.endswith(".try") for file in before),
            frozenset(slow),
            frozenset(row for row, deaths in alone.items() if deaths >= MAX_DEATHS),
        )
        with self._mark(f"{name}-{uuid.uuid4().hex}.try"):
            try:
                yield name, past
            finally:
                for file in before:
                    objects.remove(file)

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Decode in this process. Other threads may decode at the same time, but no image is decoded alone."""
        with self._turn, self._ended:
            self._num_decoding += 1
        try:
            yield
        finally:
            with self._ended:
                self._num_decoding -= 1
                self._ended.notify()

    @contextmanager
    def alone(self, name: str, row: int) -> Iterator[None]:
        """Record the row while it is decoded in its own process and this worker decodes nothing else."""
        with self._turn, self._ended:
            self._ended.wait_for(lambda: self._num_decoding == 0)
            with self._mark(f"{name}-{row}-{uuid.uuid4().hex}.alone"):
                yield

    def give_up(self, name: str, row: int) -> None:
        """Record that a row is too slow, and remove this worker's open records: its end does not count as a death."""
        atomic.write_whole(locations.join(self._folder, f"{name}-{row}.slow"), b"")
        for file in list(self._open):
            objects.remove(file)

    @contextmanager
    def _mark(self, file: str) -> Iterator[None]:
        """Write a record that stays only if the process dies; an exception removes it."""
        mark = locations.join(self._folder, file)
        atomic.write_whole(mark, b"")
        self._open.add(mark)
        try:
            yield
        finally:
            self._open.discard(mark)
            objects.remove(mark)


def _rows(files: list[str], ending: str) -> Counter[int]:
    """Row → number of its files with this ending."""
    marks = (re.search(rf"-(\d+){ending}$", file) for file in files)
    return Counter(int(mark[1]) for mark in marks if mark)


@dataclass
class _Decoding:
    name: str
    row: int
    began: float = field(default_factory=time.monotonic)


class Watch:
    """Ends this process when decoding an image takes longer than `timeout_s`; nothing else can stop a decoder."""

    def __init__(self, attempts: Attempts, timeout_s: float) -> None:
        self._attempts, self._timeout_s = attempts, timeout_s
        self._decoding: dict[int, _Decoding] = {}
        threading.Thread(target=self._look, name="watch decoding", daemon=True).start()

    @contextmanager
    def decoding(self, name: str, row: int) -> Iterator[None]:
        """Watch this thread while it decodes a row of the block."""
        thread = threading.get_ident()
        with self._attempts.decoding():
            self._decoding[thread] = _Decoding(name, row)
            try:
                yield
            finally:
                del self._decoding[thread]

    def _look(self) -> None:
        while True:
            # A decoder that blocks all other threads is ended by this timer, which runs without the interpreter lock.
            # That counts as a death.
            faulthandler.dump_traceback_later(2 * self._timeout_s + _LOOK_S, exit=True, file=_nowhere)
            time.sleep(_LOOK_S)
            now = time.monotonic()
            for decoding in list(self._decoding.values()):
                if now - decoding.began > self._timeout_s:
                    self._attempts.give_up(decoding.name, decoding.row)
                    os._exit(1)


_nowhere = open(os.devnull, "w")  # noqa: SIM115  # stays open: the timer may write to it at any time
