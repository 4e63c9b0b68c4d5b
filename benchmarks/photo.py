"""Measures photographs: seconds for each, in windows by the dense pass, and in tiles that are cut apart.

    python benchmarks/photo.py [--rounds 3] [--photo FILE]

dense      the network run once over the photograph: a window every 32 pixels of its input
tiles      tiles without overlap, each cut, scaled and scored in batches
half       tiles that overlap by half, in both directions
ceiling    the network's arithmetic for so many pixels, at the rate of tiles that are already scaled

All by one thread on one core, in turn, without decoding. Then two photographs on two cores against one after the other.
Only the ratios are meaningful.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image

from crackbatch.models.model import Model, load_model, one_thread_each

PHOTO = Path(__file__).resolve().parents[2] / "shared" / "data" / "photos" / "W_7130.jpg"
CELL = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--photo", type=Path, default=PHOTO)
    arguments = parser.parse_args()
    with PIL.Image.open(arguments.photo) as image:
        pixels = np.array(image.convert("RGB"))
    model = load_model()
    size = model.bundle.input_size
    scale = size / CELL
    num_tiles = pixels.shape[0] * pixels.shape[1] * scale**2 / size**2
    scaled = np.random.default_rng(0).integers(0, 255, (model.batch_size, size, size, 3), np.uint8)
    ways: dict[str, Callable[[], object]] = {
        "dense": lambda: model.map_photo(pixels, scale),
        "tiles": lambda: cut_apart(model, pixels, CELL),
        "half": lambda: cut_apart(model, pixels, CELL // 2),
        "ceiling": lambda: [model.logits(scaled) for _ in range(round(num_tiles / model.batch_size))],
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    with one_thread_each():
        for run in ways.values():  # the first call of each makes its plans
            run()
        for _ in range(arguments.rounds):
            for name, run in ways.items():
                taken[name].append(seconds(run))
        pairs = np.array([two(lambda: model.map_photo(pixels, scale)) for _ in range(arguments.rounds)])
    print(f"{pixels.shape[1]} x {pixels.shape[0]} pixels, {num_tiles:.0f} tiles")
    for name, values in taken.items():
        ratio = np.median(np.array(values) / np.array(taken["tiles"]))
        print(f"{name:8} {np.median(values):6.2f} s   {ratio:.2f} of tiles")
    print(f"two photographs on two cores: {np.median(pairs[:, 0] / pairs[:, 1]):.2f} of one after the other")


def cut_apart(model: Model, pixels: np.ndarray, step: int) -> np.ndarray:
    """Return the logits of tiles, `step` pixels apart."""
    size, found = model.bundle.input_size, []
    height, width = pixels.shape[:2]
    places = [(y, x) for y in range(0, height - CELL + 1, step) for x in range(0, width - CELL + 1, step)]
    for first in range(0, len(places), model.batch_size):
        tiles = [
            PIL.Image.fromarray(pixels[y : y + CELL, x : x + CELL]).resize((size, size), PIL.Image.Resampling.BILINEAR)
            for y, x in places[first : first + model.batch_size]
        ]
        found.append(model.logits(np.stack([np.asarray(tile) for tile in tiles])))
    return np.concatenate(found)


def two(run: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of two calls at the same time, and of two calls one after the other."""
    with ThreadPoolExecutor(2) as threads:
        together = seconds(lambda: list(threads.map(lambda _: run(), range(2))))
    return together, seconds(run) + seconds(run)


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
