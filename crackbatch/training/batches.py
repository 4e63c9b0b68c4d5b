"""Batches of augmented pictures for an epoch. Threads make them while the network works on earlier batches."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from crackbatch.datasets.pixels import Marks, Pixels, fits_memory, hold
from crackbatch.training.augment import MARGIN, Augmentation
from crackbatch.training.recipe import Recipe
from crackbatch.training.sampling import Sampler

_AHEAD = 3  # batches that wait for the network
_BUFFER_BYTES = 512 << 20

# Images (batch, size, size, 3) uint8 and labels (batch,) int64.
Batch = tuple[np.ndarray, np.ndarray]


def stored_size(recipe: Recipe) -> int:
    """Width and height, in pixels, of the stored training pictures."""
    return round(recipe.image_size * MARGIN)


def make_batches(
    recipe: Recipe, workers: Sequence[Marks], rank: int, neighbours: int, stream: Callable[[], Iterable[Pixels]]
) -> HeldBatches | StreamedBatches:
    """The batches of worker `rank`; every worker has the same number. `stream` gives its pictures, of `stored_size`.

    The pictures are held in memory if they fit, else they are read again in every epoch. `neighbours` is the number of
    workers on this machine, this one included, which share its memory.
    """
    samplers = [
        Sampler(marks.labels, marks.sources, recipe.balance, recipe.weights, recipe.seed + place)
        for place, marks in enumerate(workers)
    ]
    shown = sum(map(len, samplers))
    batch_size = max(2, min(recipe.batch_size, shown) // len(workers))
    num_steps = max(1, shown // (batch_size * len(workers)))
    augmentation = Augmentation(recipe.image_size, recipe.seed + rank, recipe.augmentation)
    if fits_memory(len(workers[rank]), stored_size(recipe), neighbours):
        pixels = hold(stream(), workers[rank])
        return HeldBatches(pixels, samplers[rank], augmentation, batch_size, num_steps)
    return StreamedBatches(stream, samplers[rank], augmentation, batch_size, num_steps, recipe.seed + rank)


class _Shown(NamedTuple):
    """One picture to augment: its pixels, label and number."""

    pixels: np.ndarray
    label: int
    number: int


class HeldBatches:
    """The batches of each epoch, from pixels in memory: `num_steps` batches of `batch_size`.

    A worker with fewer images than the others shows some images again.
    """

    def __init__(
        self, pixels: Pixels, sampler: Sampler, augmentation: Augmentation, batch_size: int, num_steps: int
    ) -> None:
        self._pixels, self._sampler, self._augmentation = pixels, sampler, augmentation
        self.batch_size, self.num_steps = batch_size, num_steps

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch."""
        order = np.resize(self._sampler.order(epoch), (self.num_steps, self.batch_size))
        return _augmented(([self._shown(index) for index in members] for members in order), self._augmentation, epoch)

    def _shown(self, index: int) -> _Shown:
        return _Shown(self._pixels.images[index], int(self._pixels.labels[index]), int(self._pixels.numbers[index]))


class StreamedBatches:
    """The batches of each epoch, from images that are read and decoded again because they do not fit in memory.

    `stream` gives the worker's blocks, always in the same order. Images are drawn at random from a buffer of about half
    a gigabyte.
    """

    def __init__(
        self,
        stream: Callable[[], Iterable[Pixels]],
        sampler: Sampler,
        augmentation: Augmentation,
        batch_size: int,
        num_steps: int,
        seed: int,
    ) -> None:
        self._stream, self._sampler, self._augmentation = stream, sampler, augmentation
        self.batch_size, self.num_steps = batch_size, num_steps
        self._seed = seed

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch."""
        return _augmented(self._batches(epoch), self._augmentation, epoch)

    def _batches(self, epoch: int) -> Iterator[list[_Shown]]:
        batch: list[_Shown] = []
        steps = 0
        while steps < self.num_steps:  # repeats only if this worker has fewer images than the others
            for shown in self._shuffled(epoch):
                batch.append(shown)
                if len(batch) == self.batch_size:
                    yield batch
                    batch, steps = [], steps + 1
                    if steps == self.num_steps:
                        return

    def _shuffled(self, epoch: int) -> Iterator[_Shown]:
        """Each picture as often as the sampler says, drawn from the buffer in a seeded random order."""
        random = np.random.default_rng((self._seed, epoch))
        buffer: list[_Shown] = []
        for block in self._stream():
            room = max(1, _BUFFER_BYTES // block.images[0].nbytes)
            times = self._sampler.times(block.labels, block.sources, random)
            for index in np.repeat(np.arange(len(block)), times):
                shown = _Shown(block.images[index].copy(), int(block.labels[index]), int(block.numbers[index]))
                if len(buffer) < room:
                    buffer.append(shown)
                else:
                    at = int(random.integers(room))
                    yield buffer[at]
                    buffer[at] = shown
        for at in random.permutation(len(buffer)):
            yield buffer[at]


def _augmented(batches: Iterable[list[_Shown]], augmentation: Augmentation, epoch: int) -> Iterator[Batch]:
    """Batches of augmented pictures; a few are made in advance."""
    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="augment") as threads:
        waiting: deque[tuple[list[_Shown], list[Future[np.ndarray]]]] = deque()
        place = 0
        for batch in batches:
            made = [
                threads.submit(augmentation, shown.pixels, epoch, place + index, shown.number)
                for index, shown in enumerate(batch)
            ]
            place += len(batch)
            waiting.append((batch, made))
            if len(waiting) > _AHEAD:
                yield _stacked(*waiting.popleft())
        while waiting:
            yield _stacked(*waiting.popleft())


def _stacked(batch: list[_Shown], made: list[Future[np.ndarray]]) -> Batch:
    images = np.stack([picture.result() for picture in made])
    return images, np.array([shown.label for shown in batch], np.int64)
