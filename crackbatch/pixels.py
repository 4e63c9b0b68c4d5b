"""Decoded images of a dataset, as they come (a stream of blocks) and as a network is trained on them (in memory)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from crackbatch.dataset import LABEL_COLUMN, Encoded, read_encoded
from crackbatch.errors import RunError
from crackbatch.image import Picture, read_image, to_input

# Neighbours in an archive are read together; runs of them are dealt out, so that a worker sees all of the data.
_RUN = 64


@dataclass
class Pixels:
    """Images (images, size, size, 3) uint8, labels (images,) int64, numbers (images,) int64, sources (images,) str.

    A number is an image's place in its split, the same in every run and worker.
    """

    images: np.ndarray
    labels: np.ndarray
    numbers: np.ndarray
    sources: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def number_rows(rows: pa.Table) -> pa.Table:
    """The rows of a split with their numbers."""
    return rows.append_column("number", pa.array(np.arange(rows.num_rows)))


def deal(rows: pa.Table, workers: int, seed: int) -> list[pa.Table]:
    """A split's numbered rows in as many parts as there are workers, each shuffled by runs of neighbours."""
    starts = np.random.default_rng(seed).permutation(np.arange(0, rows.num_rows, _RUN))
    parts = []
    for rank in range(workers):
        mine = [np.arange(start, min(start + _RUN, rows.num_rows)) for start in starts[rank::workers]]
        if not mine:
            raise RunError(f"{rows.num_rows:,} training images are too few for {workers} workers; give fewer --workers")
        parts.append(rows.take(np.concatenate(mine)))
    return parts


def stream_pixels(rows: pa.Table, size: int) -> Iterator[Pixels]:
    """Blocks of numbered rows, decoded and scaled as scoring does it; RunError where an image changed since listing."""
    uris, start = rows.column("image_uri"), 0

    def decode(image: Encoded) -> np.ndarray:
        return _decode_input(image, size, uris[image.row].as_py())

    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="decode") as threads:
        for batch in read_encoded(rows):
            images = np.stack(list(threads.map(decode, batch)))
            mine = rows.slice(start, len(batch))
            start += len(batch)
            yield Pixels(
                images,
                np.asarray(mine.column(LABEL_COLUMN)).astype(np.int64),
                np.asarray(mine.column("number")),
                np.asarray(mine.column("source").to_pylist(), dtype=object),
            )


def hold(blocks: Iterator[Pixels], num_images: int) -> Pixels:
    """All blocks as one, in the order of their numbers, however they came; RunError where some are missing."""
    held: Pixels | None = None
    at = 0
    for block in blocks:
        if held is None:
            shape = (num_images, *block.images.shape[1:])
            held = Pixels(np.empty(shape, np.uint8), *(np.empty(num_images, kind) for kind in (int, int, object)))
        stop = at + len(block)
        held.images[at:stop], held.labels[at:stop] = block.images, block.labels
        held.numbers[at:stop], held.sources[at:stop] = block.numbers, block.sources
        at = stop
    if held is None or at != num_images:
        raise RunError(f"{at:,} of {num_images:,} images came out of the reading; run again")
    order = np.argsort(held.numbers)
    if (order == np.arange(num_images)).all():
        return held
    return Pixels(held.images[order], held.labels[order], held.numbers[order], held.sources[order])


def decode_pixels(rows: pa.Table, size: int) -> Pixels:
    """All numbered rows, decoded, in memory."""
    return hold(stream_pixels(rows, size), rows.num_rows)


def fits_memory(num_images: int, size: int, share: float = 0.4) -> bool:
    """Whether decoded images would take no more than a share of the memory that is free here."""
    return num_images * size * size * 3 <= share * free_memory()


def free_memory() -> int:
    """Bytes that this process may still take: what the machine has free, or what its container is allowed."""
    with open("/proc/meminfo") as file:
        free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and (allowed := limit.read_text().strip()) != "max":
        free = min(free, int(allowed) - int(used.read_text()))
    return max(free, 0)


def _decode_input(image: Encoded, size: int, uri: str) -> np.ndarray:
    """(size, size, 3) uint8 of an image that could be read when it was listed; RunError where it no longer can."""
    picture = Picture(image.status or "failed") if image.data is None else read_image(image.data)
    if picture.status != "ok":
        raise RunError(f"{uri} could be read when it was listed, and is now {picture.status}; run again")
    return to_input(picture, size)
