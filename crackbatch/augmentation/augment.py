"""Augmentation: changes training pictures as another camera, distance, light or surface would change them.

It works on batches of tensors, with the same code on CPUs and GPUs. The changes of a picture depend only on (seed,
epoch, place in the epoch, number of the image), not on its batch. So two runs with the same seed see the same pictures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import numpy as np

from crackbatch.augmentation.draws import between, uniforms
from crackbatch.augmentation.jpeg import BLUE, GREEN, RED, SavedAsJpeg
from crackbatch.augmentation.lines import NUM_DRAWS as NUM_DRAWS_OF_LINES
from crackbatch.augmentation.lines import draw_lines
from crackbatch.models.model import send

if TYPE_CHECKING:
    import torch

# Training pictures are stored this much larger than the network's input, so that crops need little enlarging. Nothing
# is reduced by more than this, so bilinear sampling skips no pixel and needs no smoothing before it.
MARGIN = 8 / 7


class _Ranges(NamedTuple):
    """The ranges of random changes, and their probabilities."""

    crop_area: tuple[float, float]
    crop_ratio: tuple[float, float]
    light: tuple[float, float]  # factor of brightness, and of contrast
    saturation: tuple[float, float]
    tint: tuple[float, float]  # of the light: between warm and cold, and between green and magenta
    noise: float  # probability of blur, of sharpening, and of JPEG noise
    lines: tuple[float, float] = (0.0, 0.0)  # probability of lines that are no cracks, on sound and on cracked pictures


# Crops show cracks larger than scoring sees them, so a final training on nearly whole pictures helps (Touvron et al.
# 2019). A crop of less than 0.45 of a cracked tile too often shows no crack.
_RANGES = {
    "full": _Ranges((0.45, 1.0), (4 / 5, 5 / 4), (0.65, 1.35), (0, 1.5), (0.12, 0.05), 0.15),
    "light": _Ranges((0.8, 1.0), (0.95, 1 / 0.95), (0.8, 1.2), (0.5, 1.25), (0.06, 0.025), 0.05),
}
_RANGES |= {f"{name}+lines": ranges._replace(lines=(0.3, 0.08)) for name, ranges in _RANGES.items()}
AUGMENTATIONS = tuple(_RANGES)

# The intermediate results of so few images stay in memory that is used again and again. Those of a whole batch would
# cost as much time in page faults as in computing (benchmarks/LOG.md).
_CPU_PART = 8

_SIGMA = (0.3, 1.2)  # of the blur, in pixels
_SHARPENED = (0.3, 1.5)  # how much of the difference from a blurred picture is added, as cameras of drones do it
_QUALITY = (40, 91)  # of JPEG, without the last


class Augmentation:
    """Random crop and scale, flips, quarter turns, lines, light, colour, blur and JPEG noise, for one input size."""

    def __init__(self, size: int, seed: int, strength: str, device: str = "cpu") -> None:
        import torch

        self._seed, self._ranges = seed, _RANGES[strength]
        # Centres of the output's pixels, from -1 to 1. They mirror each other exactly, so flipped pictures do too.
        self._centres = torch.tensor((2 * np.arange(size) + 1 - size) / size, dtype=torch.float32, device=device)
        self._saved_as_jpeg = SavedAsJpeg(device)
        self.device = self._centres.device

    def __call__(
        self, images: torch.Tensor, epoch: int, places: np.ndarray, numbers: np.ndarray, labels: np.ndarray
    ) -> torch.Tensor:
        """(batch, 3, size, size) float32 from 0 to 255, from images (batch, side, side, 3) uint8.

        `places` in the epoch, `numbers` of the images and `labels` are (batch,). The result is on the device,
        channels-last.
        """
        import torch

        images = images.to(self.device, non_blocking=True)
        num = _CPU_PART if self.device.type == "cpu" else len(images)
        parts = [slice(start, start + num) for start in range(0, len(images), num)]
        return torch.cat(
            [self._changed(images[part], epoch, places[part], numbers[part], labels[part]) for part in parts]
        )

    def _changed(
        self, images: torch.Tensor, epoch: int, places: np.ndarray, numbers: np.ndarray, labels: np.ndarray
    ) -> torch.Tensor:
        import torch

        shares = uniforms((self._seed, epoch, places, numbers), _NUM_DRAWS)
        drawn = _draw(self._ranges, shares)
        changes = _Changes(*send(np.stack(drawn).astype(np.float32), self.device))
        pictures = _cropped(images.permute(0, 3, 1, 2).float(), self._centres, changes)
        if len(lined := np.flatnonzero(shares[-1] < np.asarray(self._ranges.lines)[labels])):
            of_lines = uniforms((self._seed, epoch, places[lined], numbers[lined], _LINES), NUM_DRAWS_OF_LINES)
            which = send(lined, self.device)
            pictures[which] = draw_lines(pictures[which], of_lines)
        pictures = _relit(pictures, changes)
        if len(blurred := np.flatnonzero(drawn.sigma)):
            which = send(blurred, self.device)
            pictures[which] = _blurred(pictures[which], changes.sigma[which])
        if len(sharp := np.flatnonzero(drawn.sharpened)):
            which = send(sharp, self.device)
            pictures[which] = _sharpened(pictures[which], changes.sharpened[which])
        if len(noisy := np.flatnonzero(drawn.quality)):
            which = send(noisy, self.device)
            pictures[which] = self._saved_as_jpeg(pictures[which], changes.quality[which])
        return pictures.contiguous(memory_format=torch.channels_last)


_Values = TypeVar("_Values")


class _Changes(NamedTuple, Generic[_Values]):
    """The changes of the pictures of a batch: arrays or tensors, each (batch,)."""

    width: _Values  # of the crop, as a share of the picture's
    height: _Values
    x: _Values  # centre of the crop: -1 is the left edge of the picture, 1 the right edge
    y: _Values
    mirror_x: _Values  # -1 or 1
    mirror_y: _Values
    is_turned: _Values  # 0 or 1: rows become columns
    brightness: _Values
    contrast: _Values
    saturation: _Values
    warmth: _Values  # what red gains and blue loses
    green: _Values  # what green gains, and red and blue lose half of
    sigma: _Values  # 0: no blur
    sharpened: _Values  # 0: not at all
    quality: _Values  # 0: no JPEG noise


_NUM_DRAWS = 19  # the last one decides about lines
_LINES = 1  # sets their random numbers apart


def _draw(ranges: _Ranges, shares: np.ndarray) -> _Changes[np.ndarray]:
    """The changes, as arrays, from (draws, batch) numbers from 0 to 1.

    Crops have a random area and aspect (Szegedy et al. 2015, section 6). Two flips and the exchange of rows and columns
    make the eight orientations, all equally often.
    """
    (
        area, ratio, x, y, mirror_x, mirror_y, turn, brightness, contrast, saturation, blur, sigma, jpeg, quality,
        warmth, green, sharpen, sharpened, _,
    ) = shares  # fmt: skip
    area, ratio = between(ranges.crop_area, area), np.exp(between(tuple(np.log(ranges.crop_ratio)), ratio))
    width, height = np.minimum(np.sqrt(area * ratio), 1), np.minimum(np.sqrt(area / ratio), 1)
    return _Changes(
        width, height, (2 * x - 1) * (1 - width), (2 * y - 1) * (1 - height),
        np.where(mirror_x < 0.5, -1, 1), np.where(mirror_y < 0.5, -1, 1), turn < 0.5,
        between(ranges.light, brightness), between(ranges.light, contrast), between(ranges.saturation, saturation),
        (2 * warmth - 1) * ranges.tint[0], (2 * green - 1) * ranges.tint[1],
        np.where(blur < ranges.noise, between(_SIGMA, sigma), 0),
        np.where(sharpen < ranges.noise, between(_SHARPENED, sharpened), 0),
        np.where(jpeg < ranges.noise, np.floor(between(_QUALITY, quality)), 0),
    )  # fmt: skip


def _cropped(pictures: torch.Tensor, centres: torch.Tensor, changes: _Changes[torch.Tensor]) -> torch.Tensor:
    """Crops, scaled to the output's size, flipped and turned; each pixel is sampled between four pixels."""
    import torch

    x = changes.x[:, None] + changes.width[:, None] * changes.mirror_x[:, None] * centres  # (batch, size)
    y = changes.y[:, None] + changes.height[:, None] * changes.mirror_y[:, None] * centres
    is_turned = changes.is_turned.bool()[:, None, None]
    columns = torch.where(is_turned, x[:, :, None], x[:, None, :])
    rows = torch.where(is_turned, y[:, None, :], y[:, :, None])
    grid = torch.stack([columns, rows], -1)  # (batch, size, size, 2)
    return torch.nn.functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def _relit(pictures: torch.Tensor, changes: _Changes[torch.Tensor]) -> torch.Tensor:
    """Change brightness, contrast and saturation, as torchvision defines them, and the tint of the light."""
    import torch

    contrast, saturation = (factor.view(-1, 1, 1, 1) for factor in (changes.contrast, changes.saturation))
    half = changes.green / 2
    tint = 1 + torch.stack([changes.warmth - half, changes.green, -changes.warmth - half], 1)
    pictures = (pictures * (changes.brightness[:, None] * tint)[..., None, None]).clamp_(0, 255)
    pictures = torch.lerp(_grey(pictures).mean((1, 2, 3), keepdim=True), pictures, contrast).clamp_(0, 255)
    return torch.lerp(_grey(pictures), pictures, saturation).clamp_(0, 255)


def _grey(pictures: torch.Tensor) -> torch.Tensor:
    """(batch, 1, height, width)."""
    return RED * pictures[:, :1] + GREEN * pictures[:, 1:2] + BLUE * pictures[:, 2:]


def _blurred(pictures: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Blur with a Gaussian of 5 x 5 pixels; `sigma` is (pictures,)."""
    import torch

    offsets = torch.arange(-2, 3, device=sigma.device)
    weights = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    weights = (weights / weights.sum(1, keepdim=True)).T[..., None, None, None]  # (5, pictures, 1, 1, 1)
    height, width = pictures.shape[2:]
    padded = torch.nn.functional.pad(pictures, (2, 2, 2, 2), mode="reflect")
    rows = torch.stack([weights[at] * padded[:, :, at : at + height] for at in range(5)]).sum(0)
    return torch.stack([weights[at] * rows[..., at : at + width] for at in range(5)]).sum(0)


def _sharpened(pictures: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """Add so much of the difference from a blurred picture; `amount` is (pictures,)."""
    import torch

    return torch.lerp(_blurred(pictures, torch.ones_like(amount)), pictures, 1 + amount.view(-1, 1, 1, 1)).clamp_(
        0, 255
    )
