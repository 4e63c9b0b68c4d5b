"""Which images were being scored when their worker died, kept beside the run, where the next worker finds it.

    <folder>/<block>-<attempt>.try           is being scored, or was when its worker died
    <folder>/<block>-<row>.slow              this row's decoding took longer than it may
    <folder>/<block>-<row>-<attempt>.alone   is being decoded in a process of its own, or was when its worker died

A block is named after its images. A worker that dies (a decoder that aborts, a machine out of memory) cannot say what
of: after `MAX_DEATHS` of them the images of the block are decoded each in a process of its own (`decoder.py`). An image
with which as many workers die even then (a machine so short of memory that the system ends both) is what kills them:
its worker decodes nothing beside it, and a machine that is lost now and then meets another image each time.
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
    """What is known of a block: how many workers died while they scored it, which of its rows are too slow, and with
    which as many died that had given them a process of their own."""

    deaths: int = 0
    slow: frozenset[int] = frozenset()
    killers: frozenset[int] = frozenset()

    @property
    def is_suspicious(self) -> bool:
        return self.deaths >= MAX_DEATHS


class Attempts:
    """The attempts of one worker, in a folder that all workers of the run share."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._open: set[str] = set()
        self._turn = threading.Lock()  # who decodes alone keeps it, all others give it back at once
        self._ended = threading.Condition()
        self._num_decoding = 0  # of those others

    @contextmanager
    def attempt(self, block: pa.Table) -> Iterator[tuple[str, Past]]:
        """(name, past) of a block while it is scored; if the process dies in between, that is remembered."""
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
        """Decode in this process, among others that do, and while no image is decoded alone."""
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
        """Remember the row while it, and nothing else of this worker's, is decoded in a process of its own."""
        with self._turn, self._ended:
            self._ended.wait_for(lambda: self._num_decoding == 0)
            with self._mark(f"{name}-{row}-{uuid.uuid4().hex}.alone"):
                yield

    def give_up(self, name: str, row: int) -> None:
        """Remember that a row is too slow, and that this worker's end is no death of the others' making."""
        atomic.write_whole(locations.join(self._folder, f"{name}-{row}.slow"), b"")
        for file in list(self._open):
            objects.remove(file)

    @contextmanager
    def _mark(self, file: str) -> Iterator[None]:
        """A mark that stays if the process dies; an exception is no death."""
        mark = locations.join(self._folder, file)
        atomic.write_whole(mark, b"")
        self._open.add(mark)
        try:
            yield
        finally:
            self._open.discard(mark)
            objects.remove(mark)


def _rows(files: list[str], ending: str) -> Counter[int]:
    """How many files of this ending each row has."""
    marks = (re.search(rf"-(\d+){ending}$", file) for file in files)
    return Counter(int(mark[1]) for mark in marks if mark)


@dataclass
class _Decoding:
    name: str
    row: int
    began: float = field(default_factory=time.monotonic)


class Watch:
    """Ends this process when decoding an image takes longer than `timeout_s`: nothing else stops a decoder."""

    def __init__(self, attempts: Attempts, timeout_s: float) -> None:
        self._attempts, self._timeout_s = attempts, timeout_s
        self._decoding: dict[int, _Decoding] = {}
        threading.Thread(target=self._look, name="watch decoding", daemon=True).start()

    @contextmanager
    def decoding(self, name: str, row: int) -> Iterator[None]:
        """Watch what this thread does in the block."""
        thread = threading.get_ident()
        with self._attempts.decoding():
            self._decoding[thread] = _Decoding(name, row)
            try:
                yield
            finally:
                del self._decoding[thread]

    def _look(self) -> None:
        while True:
            # A decoder that does not let other threads run is ended by this timer, which needs no turn: a death.
            faulthandler.dump_traceback_later(2 * self._timeout_s + _LOOK_S, exit=True, file=_nowhere)
            time.sleep(_LOOK_S)
            now = time.monotonic()
            for decoding in list(self._decoding.values()):
                if now - decoding.began > self._timeout_s:
                    self._attempts.give_up(decoding.name, decoding.row)
                    os._exit(1)


_nowhere = open(os.devnull, "w")  # noqa: SIM115  # the timer writes to it at any time
