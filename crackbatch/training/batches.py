"""Batches of augmented pictures for an epoch, on the device that trains."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from crackbatch.augmentation.augment import MARGIN, Augmentation
from crackbatch.datasets.pixels import Marks, Pixels, fits_memory, hold
from crackbatch.models.model import send
from crackbatch.training.recipe import Recipe
from crackbatch.training.sampling import Sampler

if TYPE_CHECKING:
    import torch

# Images (batch, 3, size, size) float32 from 0 to 255 and labels (batch,) int64, both on the device that trains.
Batch = tuple["torch.Tensor", "torch.Tensor"]

_AHEAD = 3  # batches that wait for the network
_BUFFER_BYTES = 512 << 20
_DEVICE_SHARE = 0.5  # of a GPU's free memory, for pictures; the network and its activations need the rest


def stored_size(recipe: Recipe) -> int:
    """Width and height, in pixels, of the stored training pictures."""
    return round(recipe.image_size * MARGIN)


def make_batches(
    recipe: Recipe,
    workers: Sequence[Marks],
    rank: int,
    neighbours: int,
    stream: Callable[[], Iterable[Pixels]],
    device: str,
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
    augmentation = Augmentation(recipe.image_size, recipe.seed + rank, recipe.augmentation, device)
    if fits_memory(len(workers[rank]), stored_size(recipe), neighbours):
        pixels = hold(stream(), workers[rank])
        return HeldBatches(pixels, samplers[rank], augmentation, batch_size, num_steps)
    return StreamedBatches(stream, samplers[rank], augmentation, batch_size, num_steps, recipe.seed + rank)


class _Chosen(NamedTuple):
    """The images of a batch before they are augmented."""

    images: torch.Tensor  # (batch, side, side, 3) uint8
    labels: np.ndarray  # (batch,) int64
    numbers: np.ndarray  # (batch,) int64


class HeldBatches:
    """The batches of each epoch, from pixels in memory: `num_steps` batches of `batch_size`.

    The pixels are held in the memory of the device if they fit there. A worker with fewer images than the others shows
    some images again.
    """

    def __init__(
        self, pixels: Pixels, sampler: Sampler, augmentation: Augmentation, batch_size: int, num_steps: int
    ) -> None:
        self._images = _held(pixels.images, augmentation.device)
        self._labels, self._numbers = pixels.labels, pixels.numbers
        self._sampler, self._augmentation = sampler, augmentation
        self.batch_size, self.num_steps = batch_size, num_steps

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch."""
        order = np.resize(self._sampler.order(epoch), (self.num_steps, self.batch_size))
        batches: Iterator[_Chosen] = map(self._choose, order)
        if self._images.device != self._augmentation.device:
            batches = _ahead(batches)
        return _augmented(batches, self._augmentation, epoch)

    def _choose(self, members: np.ndarray) -> _Chosen:
        images = self._images.index_select(0, send(members, self._images.device))
        return _Chosen(_pinned(images, self._augmentation.device), self._labels[members], self._numbers[members])


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
        return _augmented(_ahead(islice(self._drawn(epoch), self.num_steps)), self._augmentation, epoch)

    def _drawn(self, epoch: int) -> Iterator[_Chosen]:
        """Batches without end, drawn from the buffer in a seeded random order.

        Each pass over the stream shows each picture as often as the sampler says. Pictures that fill no batch wait in
        the buffer for the next pass. Only a worker that has fewer images than the others needs one.
        """
        random = np.random.default_rng((self._seed, epoch))
        buffer = _Buffer(self.batch_size)
        while True:
            for block in self._stream():
                times = self._sampler.times(block.labels, block.sources, random)
                waiting = np.repeat(np.arange(len(block)), times)
                while len(waiting := buffer.put(block, waiting)):
                    yield self._take(buffer, random)
            while len(buffer) >= self.batch_size:
                yield self._take(buffer, random)

    def _take(self, buffer: _Buffer, random: np.random.Generator) -> _Chosen:
        import torch

        images, labels, numbers = buffer.draw(self.batch_size, random)
        return _Chosen(_pinned(torch.from_numpy(images), self._augmentation.device), labels, numbers)


class _Buffer:
    """Pictures of a stream that wait to be drawn. There is room for half a gigabyte, at least for a batch."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._images = np.empty((0, 0, 0, 3), np.uint8)
        self._labels = self._numbers = np.empty(0, np.int64)
        self._is_taken = np.empty(0, bool)

    def __len__(self) -> int:
        return int(self._is_taken.sum())

    def put(self, block: Pixels, members: np.ndarray) -> np.ndarray:
        """Copy members of a block, as many as there is room for, and return the others."""
        if not self._images.size:
            room = max(self._batch_size, _BUFFER_BYTES // block.images[0].nbytes)
            self._images = np.empty((room, *block.images.shape[1:]), np.uint8)
            self._labels, self._numbers = np.empty(room, np.int64), np.empty(room, np.int64)
            self._is_taken = np.zeros(room, bool)
        places = np.flatnonzero(~self._is_taken)[: len(members)]
        put = members[: len(places)]
        self._images[places], self._labels[places] = block.images[put], block.labels[put]
        self._numbers[places], self._is_taken[places] = block.numbers[put], True
        return members[len(places) :]

    def draw(self, num: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Take out `num` pictures at random: their images, labels and numbers."""
        places = random.choice(np.flatnonzero(self._is_taken), num, replace=False)
        self._is_taken[places] = False
        return self._images[places], self._labels[places], self._numbers[places]


def _held(images: np.ndarray, device: torch.device) -> torch.Tensor:
    """The images in the memory of the device if they fit there, else where they are."""
    import torch

    tensor = torch.from_numpy(images)
    if device.type == "cuda" and tensor.nbytes <= _DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
        return tensor.to(device)
    return tensor


def _pinned(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Images in memory that the device reads by itself."""
    import torch

    if images.device == device:
        return images
    with torch.cuda.device(device):  # each thread has its own current GPU
        return images.pin_memory()


def _ahead(batches: Iterator[_Chosen]) -> Iterator[_Chosen]:
    """The same batches; a thread makes a few in advance."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        waiting = deque(thread.submit(next, batches, None) for _ in range(_AHEAD))
        while (batch := waiting.popleft().result()) is not None:
            waiting.append(thread.submit(next, batches, None))
            yield batch


def _augmented(batches: Iterator[_Chosen], augmentation: Augmentation, epoch: int) -> Iterator[Batch]:
    place = 0
    for batch in batches:
        places = np.arange(place, place + len(batch.labels))
        place += len(places)
        images = augmentation(batch.images, epoch, places, batch.numbers, batch.labels)
        yield images, send(batch.labels, augmentation.device)
