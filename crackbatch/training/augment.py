"""Augmentation: changes a training picture as another camera, distance, light or surface would change it.

All changes depend only on (seed, epoch, place in the epoch, number of the image), not on the thread. So two runs with
the same seed see the same pictures.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import PIL.Image

# Training pictures are stored this much larger than the network's input, so that crops need no enlarging.
MARGIN = 8 / 7


class _Ranges(NamedTuple):
    """The ranges of random changes, and their probabilities."""

    crop_area: tuple[float, float]
    crop_ratio: tuple[float, float]
    light: tuple[float, float]  # factor of brightness, and of contrast
    saturation: tuple[float, float]
    noise: float  # probability of blur, and of JPEG noise


# Crops show cracks larger than scoring sees them, so a final training on nearly whole pictures helps (Touvron et al.
# 2019). A crop of less than 0.45 of a cracked tile too often shows no crack.
_RANGES = {
    "full": _Ranges((0.45, 1.0), (4 / 5, 5 / 4), (0.65, 1.35), (0, 1.5), 0.15),
    "light": _Ranges((0.8, 1.0), (0.95, 1 / 0.95), (0.8, 1.2), (0.5, 1.25), 0.05),
}
AUGMENTATIONS = tuple(_RANGES)


class Augmentation:
    """Random crop and scale, flips, quarter turns, light, colour, blur and JPEG noise, for one input size."""

    def __init__(self, size: int, seed: int, strength: str) -> None:
        self._size = size
        self._seed = seed
        self._ranges = _RANGES[strength]

    def __call__(self, pixels: np.ndarray, epoch: int, place: int, number: int) -> np.ndarray:
        """(size, size, 3) uint8 from pixels (height, width, 3) uint8."""
        from torchvision.transforms.v2 import functional

        random = np.random.default_rng((self._seed, epoch, place, number))
        ranges = self._ranges
        image = PIL.Image.fromarray(pixels)
        crop = _draw_crop(image, ranges, random)
        image = functional.resized_crop(image, *crop, [self._size, self._size], antialias=True)
        if random.random() < 0.5:
            image = functional.horizontal_flip(image)
        if turns := int(random.integers(4)):
            image = functional.rotate(image, 90 * turns)
        image = functional.adjust_brightness(image, random.uniform(*ranges.light))
        image = functional.adjust_contrast(image, random.uniform(*ranges.light))
        image = functional.adjust_saturation(image, random.uniform(*ranges.saturation))
        noise = random.random(2)
        if noise[0] < ranges.noise:
            sigma = random.uniform(0.3, 1.2)
            image = functional.gaussian_blur(image, [5, 5], [sigma, sigma])
        if noise[1] < ranges.noise:
            image = functional.to_pil_image(
                functional.jpeg(functional.pil_to_tensor(image), int(random.integers(40, 91)))
            )
        return np.asarray(image)


def _draw_crop(image: PIL.Image.Image, ranges: _Ranges, random: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a crop with a random area and aspect (Szegedy et al. 2015, section 6)."""
    area = random.uniform(*ranges.crop_area) * image.width * image.height
    ratio = np.exp(random.uniform(*np.log(ranges.crop_ratio)))
    width = min(image.width, round(float(np.sqrt(area * ratio))))
    height = min(image.height, round(float(np.sqrt(area / ratio))))
    return int(random.integers(image.height - height + 1)), int(random.integers(image.width - width + 1)), height, width
