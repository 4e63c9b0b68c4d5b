"""Batches show what the sampler says, the same in every run, from memory or from a stream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from builders.trainings import SMALL, weights
from crackbatch import train
from crackbatch.augmentation.augment import Augmentation
from crackbatch.datasets.pixels import Marks, Pixels
from crackbatch.models.bundle import read_bundle
from crackbatch.training import batches
from crackbatch.training.batches import HeldBatches, StreamedBatches, make_batches, stored_size
from crackbatch.training.recipe import Recipe
from crackbatch.training.sampling import Sampler

RECIPE = Recipe(init="none", image_size=32, batch_size=8)


@pytest.fixture
def pixels() -> Pixels:
    """50 even pictures, of which each has its own grey and every third a crack."""
    numbers, side = np.arange(50), stored_size(RECIPE)
    images = np.full((50, side, side, 3), 3, np.uint8) * numbers[:, None, None, None].astype(np.uint8)
    return Pixels(images, (numbers % 3 == 0).astype(np.int64), numbers, np.full(50, "deck", dtype=object))


def streamed(pixels: Pixels) -> Iterator[Pixels]:
    """The pictures in blocks of seven."""
    for start in range(0, len(pixels), 7):
        part = slice(start, start + 7)
        yield Pixels(pixels.images[part], pixels.labels[part], pixels.numbers[part], pixels.sources[part])


def made(pixels: Pixels, monkeypatch: pytest.MonkeyPatch, fits: bool) -> HeldBatches | StreamedBatches:
    monkeypatch.setattr(batches, "fits_memory", lambda *_: fits)
    marks = Marks(pixels.labels, pixels.numbers, pixels.sources)
    return make_batches(RECIPE, [marks], 0, 1, lambda: streamed(pixels), "cpu")


@pytest.mark.parametrize("fits", [True, False])
def test_the_same_epoch_gives_the_same_batches_and_another_epoch_others(
    pixels: Pixels, monkeypatch: pytest.MonkeyPatch, fits: bool
) -> None:
    first, again = made(pixels, monkeypatch, fits), made(pixels, monkeypatch, fits)
    epochs = [list(source.epoch(epoch)) for source, epoch in ((first, 1), (first, 2), (again, 2))]
    assert [len(epoch) for epoch in epochs] == [6, 6, 6]
    for images, labels in epochs[0]:
        assert images.shape == (8, 3, 32, 32)
        assert labels.dtype == torch.int64
    same = [torch.equal(left[0], right[0]) for left, right in zip(epochs[1], epochs[2], strict=True)]
    other = [torch.equal(left[0], right[0]) for left, right in zip(epochs[0], epochs[1], strict=True)]
    assert all(same)
    assert not any(other)


class _Seen(Augmentation):
    """Notes the numbers and places that it is given, and shows the pictures as they are."""

    def __init__(self) -> None:
        super().__init__(32, 0, "full")
        self.seen: list[tuple[int, int]] = []

    def __call__(
        self, images: torch.Tensor, epoch: int, places: np.ndarray, numbers: np.ndarray, labels: np.ndarray
    ) -> torch.Tensor:
        assert (images[:, 0, 0, 0].numpy() == 3 * numbers).all()
        self.seen += zip(places.tolist(), numbers.tolist(), strict=True)
        return images


@pytest.mark.parametrize("room", [1, 20, 1000])  # pictures in the buffer: at least a batch, some, all
@pytest.mark.parametrize("is_held", [True, False])
def test_an_epoch_shows_each_picture_once_with_its_label_in_random_order(
    pixels: Pixels, monkeypatch: pytest.MonkeyPatch, room: int, is_held: bool
) -> None:
    monkeypatch.setattr(batches, "_BUFFER_BYTES", room * pixels.images[0].nbytes)
    sampler, augmentation = Sampler(pixels.labels, pixels.sources, "none", {}, 0), _Seen()
    source = (
        HeldBatches(pixels, sampler, augmentation, 5, 10)
        if is_held
        else StreamedBatches(lambda: streamed(pixels), sampler, augmentation, 5, 10, 0)
    )
    labels = torch.cat([labels for _, labels in source.epoch(1)])
    places, numbers = zip(*augmentation.seen, strict=True)
    assert places == tuple(range(50))
    assert sorted(numbers) == list(range(50))
    assert numbers != tuple(range(50))
    assert labels.tolist() == [int(number % 3 == 0) for number in numbers]


def test_a_worker_with_few_images_shows_them_again(pixels: Pixels) -> None:
    sampler, augmentation = Sampler(pixels.labels, pixels.sources, "none", {}, 0), _Seen()
    assert len(list(StreamedBatches(lambda: streamed(pixels), sampler, augmentation, 60, 5, 0).epoch(1))) == 5
    assert set(Counter(number for _, number in augmentation.seen).values()) <= {5, 6, 7}


def test_an_error_of_the_stream_reaches_the_training(pixels: Pixels) -> None:
    def broken() -> Iterator[Pixels]:
        yield from streamed(pixels)
        raise OSError("the archive is gone")

    sampler = Sampler(pixels.labels, pixels.sources, "none", {}, 0)
    with pytest.raises(OSError, match="the archive is gone"):
        list(StreamedBatches(broken, sampler, Augmentation(32, 0, "full"), 5, 10, 0).epoch(1))


@pytest.mark.slow
def test_images_that_do_not_fit_into_memory_are_streamed_and_train_alike(
    photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("crackbatch.training.batches.fits_memory", lambda *_: False)
    monkeypatch.setattr("crackbatch.datasets.pixels.fits_memory", lambda *_: False)
    options = {**SMALL, "epochs": 2}
    results = [train(photos, str(tmp_path / name), workers=0, **options) for name in "ab"]
    assert "do not fit in memory" in capfd.readouterr().err
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert read_bundle(str(tmp_path / "a")).temperature == read_bundle(str(tmp_path / "b")).temperature
    assert all(result.trained and len(result.history) == 2 for result in results)
