"""Decoded images of a dataset: as a stream of blocks, or all in memory for training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from crackbatch.datasets.dataset import read_decoded
from crackbatch.datasets.listing import LABEL_COLUMN
from crackbatch.decoding.decoders import Decoders
from crackbatch.errors import RunError
from crackbatch.machine import free_memory

_MEMORY_SHARE = 0.4
_BATCH, _BATCH_BYTES = 256, 64 << 20


@dataclass(frozen=True)
class Marks:
    """What is known about images before they are decoded: labels (images,) int64, numbers (images,) int64, sources
    (images,) str.

    An image's number is its position in its split. It is the same in every run and worker.
    """

    labels: np.ndarray
    numbers: np.ndarray
    sources: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Pixels:
    """Images (images, size, size, 3) uint8 with their labels, numbers and sources, as in `Marks`."""

    images: np.ndarray
    labels: np.ndarray
    numbers: np.ndarray
    sources: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def number_rows(rows: pa.Table) -> pa.Table:
    """Return the rows of a split with their numbers, in a column `number`."""
    return rows.append_column("number", pa.array(np.arange(rows.num_rows)))


def marks_of(rows: pa.Table) -> Marks:
    """Return the marks of numbered rows, in the order of their numbers."""
    return _marks(rows.sort_by("number"))


def _marks(rows: pa.Table) -> Marks:
    return Marks(
        np.asarray(rows.column(LABEL_COLUMN)).astype(np.int64),
        np.asarray(rows.column("number")),
        np.asarray(rows.column("source").to_pylist(), dtype=object),
    )


def stream_pixels(rows: pa.Table, size: int, num_processes: int | None = None) -> Iterator[Pixels]:
    """Yield blocks of numbered rows, decoded and scaled as in scoring. RunError if an image can no longer be read.

    The pixels of a block stay valid until the next one is asked for. By default as many processes decode as there are
    cores.
    """
    start, most = 0, max(8, min(_BATCH, _BATCH_BYTES // (size * size * 3)))
    with Decoders(size, num_processes=num_processes, batch_size=most) as decoders:
        for facts, images in read_decoded(rows, decoders):
            for row, status in enumerate(facts["status"], start=start):
                if status != "ok":
                    uri = rows.column("image_uri")[row]
                    raise RunError(f"{uri} could be read when it was listed, but is now {status}; run again")
            mine = _marks(rows.slice(start, len(images)))
            start += len(images)
            yield Pixels(images, mine.labels, mine.numbers, mine.sources)


def hold(blocks: Iterable[Pixels], marks: Marks) -> Pixels:
    """Return all blocks as one, in the order of the images' numbers. Raises RunError if images are missing."""
    images = np.empty((0, 0, 0, 3), np.uint8)
    came = np.zeros(len(marks), bool)
    for block in blocks:
        if not images.size:
            images = np.empty((len(marks), *block.images.shape[1:]), np.uint8)
        places = np.searchsorted(marks.numbers, block.numbers)
        images[places], came[places] = block.images, True
    if not came.all():
        raise RunError(f"only {came.sum():,} of {len(marks):,} images were read; run again")
    return Pixels(images, marks.labels, marks.numbers, marks.sources)


def held_or_streamed(
    stream: Callable[[], Iterable[Pixels]], marks: Marks, size: int, neighbours: int
) -> Callable[[], Iterable[Pixels]]:
    """Return a function that gives all blocks at each call: from memory if they fit, else from the stream again."""
    if not fits_memory(len(marks), size, neighbours):
        return stream
    held = hold(stream(), marks)
    return lambda: (held,)


def fits_memory(num_images: int, size: int, neighbours: int) -> bool:
    """Return whether decoded images fit into this worker's share of the machine's free memory.

    Together, the workers on this machine may fill 40 % of it. There are `neighbours` of them, each with as many images.
    """
    return num_images * size * size * 3 <= _MEMORY_SHARE * free_memory() / neighbours
