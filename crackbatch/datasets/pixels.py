"""Decoded images of a dataset: as a stream of blocks, or all in memory for training."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from crackbatch.datasets.dataset import Encoded, read_encoded
from crackbatch.datasets.listing import LABEL_COLUMN
from crackbatch.errors import RunError
from crackbatch.images.picture import Picture, read_image, to_input
from crackbatch.machine import free_memory

_MEMORY_SHARE = 0.4


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


def stream_pixels(rows: pa.Table, size: int) -> Iterator[Pixels]:
    """Yield blocks of numbered rows, decoded and scaled as in scoring. RunError if an image can no longer be read."""
    uris, start = rows.column("image_uri"), 0

    def decode(image: Encoded) -> np.ndarray:
        return _decode_input(image, size, uris[image.row].as_py())

    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="decode") as threads:
        for batch in read_encoded(rows):
            images = np.stack(list(threads.map(decode, batch)))
            mine = _marks(rows.slice(start, len(batch)))
            start += len(batch)
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


def _decode_input(image: Encoded, size: int, uri: str) -> np.ndarray:
    """Return (size, size, 3) uint8 of an image that was readable when listed. Raises RunError if it no longer is."""
    picture = Picture(image.status or "failed") if image.data is None else read_image(image.data)
    if picture.status != "ok":
        raise RunError(f"{uri} could be read when it was listed, but is now {picture.status}; run again")
    return to_input(picture, size)
