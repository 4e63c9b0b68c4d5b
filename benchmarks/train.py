"""Measures the speed of a training epoch, compared with a plain PyTorch loop over tensors that lie on the device.

    python benchmarks/train.py [--device cuda] [--images 1024] [--image-size 224] [--batch-size 64] [--rounds 3]

plain       the same network, optimizer and precision on ready batches: nothing is read, augmented or averaged
crackbatch  an epoch of `crackbatch train`: augmented pictures from pixels in memory, and the moving average of weights

Both run in this process, in turns, so that other load on the machine affects both. "Batches" is the share of an epoch's
time in which the process made batches: a CPU's network waits for them, a GPU's does not. Only the ratio is meaningful.
"""

from __future__ import annotations

import argparse
import time
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from crackbatch.augmentation.augment import MARGIN, Augmentation
from crackbatch.cli.demo import draw_tile
from crackbatch.datasets.pixels import Pixels
from crackbatch.images.picture import read_image, to_input
from crackbatch.models.model import runs_bfloat16
from crackbatch.training.batches import Batch, HeldBatches
from crackbatch.training.initial import initial_network
from crackbatch.training.learner import Learner
from crackbatch.training.recipe import MEAN, STD, Recipe
from crackbatch.training.sampling import Sampler

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "metu.zip"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    device = arguments.device
    size, batch_size = arguments.image_size, arguments.batch_size
    recipe = Recipe(init="none", epochs=arguments.rounds + 1, image_size=size, batch_size=batch_size)
    pixels = load_pixels(arguments.images, round(size * MARGIN))
    num_steps = len(pixels) // batch_size
    sampler = Sampler(pixels.labels, pixels.sources, "none", {}, 0)
    batches = HeldBatches(pixels, sampler, Augmentation(size, 0, recipe.augmentation, device), batch_size, num_steps)
    learner = Learner(*initial_network("resnet18", "none")[:2], recipe, num_steps, device)
    plain = Plain(list(batches.epoch(0)), device)
    place = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{len(pixels):,} images of {size} px, batches of {batch_size}, {place}", flush=True)
    ours, theirs, waits = [], [], []
    for epoch in range(arguments.rounds + 1):
        speed = plain.epoch()
        waiting = Waiting(batches.epoch(epoch + 1))
        began = time.perf_counter()
        learner.train_epoch(epoch + 1, waiting)
        seconds = time.perf_counter() - began
        if epoch:  # the first warms up
            theirs.append(speed)
            ours.append(num_steps * batch_size / seconds)
            waits.append(waiting.seconds / seconds)
    print(f"plain loop  {np.median(theirs):8.1f} images/s")
    print(f"crackbatch  {np.median(ours):8.1f} images/s, {np.median(waits):.1%} of the time making batches")
    ratios = np.array(ours) / np.array(theirs)
    print(
        f"ratio {np.median(ratios):.2f} (median of {arguments.rounds} rounds: {ratios.min():.2f} to {ratios.max():.2f})"
    )


def load_pixels(num_images: int, size: int) -> Pixels:
    """METU tiles, or drawn tiles if the data set is missing."""
    if SHARED.exists():
        with zipfile.ZipFile(SHARED) as archive:
            names = archive.namelist()
            data = [archive.read(names[index * len(names) // num_images]) for index in range(num_images)]
    else:
        data = [draw_tile(index, index % 2 == 0) for index in range(num_images)]
    images = np.stack([to_input(read_image(item), size) for item in data])
    numbers = np.arange(num_images)
    return Pixels(images, numbers % 2, numbers, np.full(num_images, "tiles", dtype=object))


class Plain:
    """A training loop as in a tutorial."""

    def __init__(self, batches: list[Batch], device: str) -> None:
        self._device = device
        self._batches = [(images.byte(), labels) for images, labels in batches]
        self._network = initial_network("resnet18", "none").network.to(device).to(memory_format=torch.channels_last)
        self._optimizer = torch.optim.SGD(self._network.parameters(), 0.01, momentum=0.9, nesterov=True)
        self._mean = torch.tensor(MEAN, device=device).mul(255).view(1, 3, 1, 1)
        self._std = torch.tensor(STD, device=device).mul(255).view(1, 3, 1, 1)

    def epoch(self) -> float:
        """Images/s of one epoch."""
        self._network.train()
        began = time.perf_counter()
        loss = torch.zeros(())
        for images, labels in self._batches:
            with torch.autocast(self._device, torch.bfloat16, enabled=runs_bfloat16(self._device)):
                outputs = self._network((images.float() - self._mean) / self._std)
            loss = cross_entropy(outputs.float(), labels, label_smoothing=0.1)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._optimizer.step()
        float(loss.detach())  # waits for a GPU
        return sum(len(labels) for _, labels in self._batches) / (time.perf_counter() - began)


class Waiting:
    """Gives batches and measures the seconds until each is there."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self.seconds = 0.0

    def __iter__(self) -> Iterable[Batch]:
        while True:
            began = time.perf_counter()
            batch = next(self._batches, None)
            self.seconds += time.perf_counter() - began
            if batch is None:
                return
            yield batch


if __name__ == "__main__":
    main()
