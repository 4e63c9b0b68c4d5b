"""Augmentation: one training picture, changed as another camera, distance, light or surface would have changed it.

All that happens to an image follows from (seed, epoch, its place in the epoch, its number), whichever thread it happens
in: two runs with one seed see the same pictures.
"""

from __future__ import annotations

import numpy as np
import PIL.Image

# Training pictures are kept this much larger than the network's input, so that crops need not be enlarged.
MARGIN = 8 / 7

_CROP_AREA = (0.45, 1.0)  # a smaller crop of a cracked tile too often shows no crack
_CROP_RATIO = (4 / 5, 5 / 4)


class Augmentation:
    """Random crop and scale, flips, quarter turns, light, colour, blur and JPEG noise, for one size of input."""

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        self._seed = seed

    def __call__(self, pixels: np.ndarray, epoch: int, place: int, number: int) -> np.ndarray:
        """(size, size, 3) uint8 from pixels (height, width, 3) uint8."""
        from torchvision.transforms.v2 import functional

        random = np.random.default_rng((self._seed, epoch, place, number))
        image = PIL.Image.fromarray(pixels)
        image = functional.resized_crop(image, *_draw_crop(image, random), [self._size, self._size], antialias=True)
        if random.random() < 0.5:
            image = functional.horizontal_flip(image)
        if turns := int(random.integers(4)):
            image = functional.rotate(image, 90 * turns)
        image = functional.adjust_brightness(image, random.uniform(0.65, 1.35))
        image = functional.adjust_contrast(image, random.uniform(0.65, 1.35))
        image = functional.adjust_saturation(image, random.uniform(0, 1.5))
        noise = random.random(2)
        if noise[0] < 0.15:
            sigma = random.uniform(0.3, 1.2)
            image = functional.gaussian_blur(image, [5, 5], [sigma, sigma])
        if noise[1] < 0.15:
            image = functional.to_pil_image(
                functional.jpeg(functional.pil_to_tensor(image), int(random.integers(40, 91)))
            )
        return np.asarray(image)


def _draw_crop(image: PIL.Image.Image, random: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a crop with a random area and aspect (Szegedy et al. 2015, section 6)."""
    area = random.uniform(*_CROP_AREA) * image.width * image.height
    ratio = np.exp(random.uniform(*np.log(_CROP_RATIO)))
    width = min(image.width, round(float(np.sqrt(area * ratio))))
    height = min(image.height, round(float(np.sqrt(area / ratio))))
    return int(random.integers(image.height - height + 1)), int(random.integers(image.width - width + 1)), height, width
