"""Train the shipped model: labelled tiles in an archive → a bundle.

Labels are the names of the folders. Groups (the photo a tile was cut from) never stand on both sides of the split.
A plain loop in this process: first at half the input size, then briefly at the full one.

    python jobs/train.py --out BUNDLE ../shared/data/metu.zip ../shared/data/sdnet.tar
"""

from __future__ import annotations

import copy
import re
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from crackbatch.bundle import Bundle, OperatingPoint, write_bundle
from crackbatch.errors import SourceError
from crackbatch.image import read_image, to_input
from crackbatch.model import build_network

POSITIVE = frozenset(["positive", "crack", "cracked", "cd", "cp", "cw"])
NEGATIVE = frozenset(["negative", "no_crack", "uncracked", "ud", "up", "uw"])
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as torchvision's weights expect
NAMES_PER_GROUP = 40  # tiles with neighbouring names are cut from the same photo


def train(
    sources: list[str],
    out: str,
    name: str = "concrete-resnet18",
    epochs: int = 3,
    last_images: int = 8000,
    input_size: int = 224,
    seed: int = 0,
) -> Bundle:
    """Train a ResNet-18 from scratch on labelled zip and tar archives and write its bundle; raises SourceError."""
    import torch
    from safetensors.torch import save

    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    samples = [sample for source in sources for sample in _labelled(source)]
    labels = np.array([label for _, label, _ in samples])
    if len(set(labels.tolist())) != 2:
        raise SourceError(f"training needs folders of both classes in {', '.join(sources)}")
    splits = _split([group for _, _, group in samples], random)
    network = build_network("resnet18").to(memory_format=torch.channels_last)
    small = input_size * 4 // 7
    pixels = _decode([data for data, _, _ in samples], small)
    network = _fit(network, pixels, labels, np.flatnonzero(splits == "train"), epochs, 0.2, random)
    del pixels
    last = random.permutation(np.flatnonzero(splits == "train"))[:last_images]
    pixels = _decode([samples[index][0] for index in last], input_size)
    network = _fit(network, pixels, labels[last], np.arange(len(last)), 1, 0.02, random)
    del pixels
    held_out = np.flatnonzero(splits == "validation")
    pixels = _decode([samples[index][0] for index in held_out], input_size)
    reached = _measure(network, pixels, labels[held_out])
    print(f"validation: {reached}", flush=True)
    weights = save({key: _half(value) for key, value in network.state_dict().items()})
    bundle = Bundle(
        location=out,
        name=name,
        network="resnet18",
        input_size=input_size,
        mean=MEAN,
        std=STD,
        temperature=1.0,
        operating_points={"balanced": OperatingPoint(0.5, reached["precision"], reached["recall"])},
        weights_sha256="",
        training={
            "data": [PurePosixPath(source).name for source in sources],
            "epochs": epochs,
            "seed": seed,
            "images": {split: int((splits == split).sum()) for split in ("train", "validation", "test")},
            "validation": reached,
            "torch": torch.__version__,
        },
    )
    return write_bundle(bundle, weights)


def _half(value: Any) -> Any:
    return value.half().contiguous() if value.is_floating_point() else value.contiguous()


def _labelled(source: str) -> Iterator[tuple[bytes, int, str]]:
    """(encoded image, label, group) of every image whose folder says what it shows."""
    for index, (name, data) in enumerate(_members(source)):
        path = PurePosixPath(name)
        folder = path.parent.name.lower()
        if folder not in POSITIVE | NEGATIVE:
            continue
        photo = re.match(r"(\d+)-\d+$", path.stem)
        group = f"{path.parts[0]}/{photo[1]}" if photo else f"{path.parent}/{index // NAMES_PER_GROUP}"
        yield data, int(folder in POSITIVE), f"{PurePosixPath(source).name}/{group}"


def _members(source: str) -> Iterator[tuple[str, bytes]]:
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            for name in sorted(archive.namelist()):
                yield name, archive.read(name)
    else:
        with tarfile.open(source) as tar:
            for member in tar:
                if (file := tar.extractfile(member)) is not None:
                    yield member.name, file.read()


def _split(groups: list[str], random: np.random.Generator) -> np.ndarray:
    """'train', 'validation' or 'test' for each image, 80:10:10 by group."""
    names = sorted(set(groups))
    drawn = random.choice(["train", "validation", "test"], size=len(names), p=[0.8, 0.1, 0.1])
    by_group = dict(zip(names, drawn, strict=True))
    return np.array([by_group[group] for group in groups])


def _decode(images: list[bytes], size: int) -> np.ndarray:
    """(images, size, size, 3) uint8."""
    pixels = np.empty((len(images), size, size, 3), np.uint8)
    for index, data in enumerate(images):
        pixels[index] = to_input(read_image(data), size)
    return pixels


def _fit(
    network: Any,
    pixels: np.ndarray,
    labels: np.ndarray,
    indices: np.ndarray,
    epochs: int,
    learning_rate: float,
    random: np.random.Generator,
) -> Any:
    """Train by one-cycle SGD and return the exponential moving average of the weights."""
    import torch
    from torch.nn.functional import cross_entropy

    batch_size = 64
    steps = epochs * (len(indices) // batch_size)
    optimizer = torch.optim.SGD(network.parameters(), learning_rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.25)
    average = copy.deepcopy(network)
    mean = torch.tensor(MEAN).mul(255).view(1, 3, 1, 1)
    std = torch.tensor(STD).mul(255).view(1, 3, 1, 1)
    network.train()
    started, step = time.monotonic(), 0
    for _ in range(epochs):
        order = random.permutation(indices)
        for start in range(0, len(order) - batch_size + 1, batch_size):
            batch = np.sort(order[start : start + batch_size])
            images = torch.from_numpy(_augment(pixels[batch], random)).permute(0, 3, 1, 2).float()
            loss = cross_entropy(network((images - mean) / std), torch.from_numpy(labels[batch]), label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            step += 1
            _update_average(average, network, 0.99)
            if step % 20 == 0:
                speed = step * batch_size / (time.monotonic() - started)
                print(f"{pixels.shape[1]} px, step {step}/{steps}, loss {loss:.4f}, {speed:.1f} images/s", flush=True)
    return average.eval()


def _update_average(average: Any, network: Any, decay: float) -> None:
    import torch

    with torch.no_grad():
        for kept, new in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
            if kept.is_floating_point():
                kept.lerp_(new, 1 - decay)
            else:
                kept.copy_(new)


def _augment(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Flips, quarter turns, brightness and contrast, each image its own; (batch, size, size, 3) uint8."""
    turned = np.empty_like(images)
    for index, image in enumerate(images):
        image = np.rot90(image, int(random.integers(4)))
        if random.random() < 0.5:
            image = image[::-1]
        contrast, brightness = random.uniform(0.7, 1.3), random.uniform(-30, 30)
        turned[index] = np.clip((image.astype(np.float32) - 128) * contrast + 128 + brightness, 0, 255)
    return turned


def _measure(network: Any, pixels: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, precision and recall at 0.5."""
    import torch

    mean = torch.tensor(MEAN).mul(255).view(1, 3, 1, 1)
    std = torch.tensor(STD).mul(255).view(1, 3, 1, 1)
    found = []
    with torch.inference_mode():
        for start in range(0, len(pixels), 64):
            images = torch.from_numpy(pixels[start : start + 64]).permute(0, 3, 1, 2).float()
            found.append(network((images - mean) / std).argmax(1).numpy())
    predicted = np.concatenate(found)
    hits = int(((predicted == 1) & (labels == 1)).sum())
    return {
        "accuracy": round(float((predicted == labels).mean()), 4),
        "precision": round(hits / max(int((predicted == 1).sum()), 1), 4),
        "recall": round(hits / max(int((labels == 1).sum()), 1), 4),
    }
