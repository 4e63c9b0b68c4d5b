"""JPEG noise: what saving a picture as JPEG does to its pixels, for batches on CPUs and GPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

# Weights of red, green and blue in grey (ITU-R BT.601, as in JPEG and torchvision).
RED, GREEN, BLUE = 0.299, 0.587, 0.114
# Y, Cb and Cr of red, green and blue, all around 0 (ITU-T T.871, section 7).
_YCBCR = np.array([
    [RED, GREEN, BLUE],
    [-RED / 1.772, -GREEN / 1.772, 0.5],
    [0.5, -GREEN / 1.402, -BLUE / 1.402],
])  # fmt: skip
# Quantisation steps of Y, and of Cb and Cr, at quality 50 (ITU-T T.81, tables K.1 and K.2).
_STEPS = np.array([
    [16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51,
     87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101,
     72, 92, 95, 98, 112, 100, 103, 99],
    [17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99, 47, 66,
     *[99] * 38],
])  # fmt: skip


class SavedAsJpeg:
    """Saves pictures as JPEG and loads them again, as libjpeg does it, with colour at half the resolution (4:2:0)."""

    def __init__(self, device: str) -> None:
        import torch

        def constant(values: np.ndarray) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)

        self._to_ycbcr, self._to_rgb = constant(_YCBCR), constant(np.linalg.inv(_YCBCR))
        self._steps = constant(_STEPS)
        # Cosines of 8 points (ITU-T T.81, section A.3.3); in two dimensions a row for each of 64 waves.
        cosines = np.cos(np.pi / 16 * np.outer(np.arange(8), 2 * np.arange(8) + 1)) / 2
        cosines[0] /= np.sqrt(2)
        self._waves = constant(np.kron(cosines, cosines))

    def __call__(self, pictures: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
        """Pictures (pictures, 3, height, width) from 0 to 255; `quality`, (pictures,), is libjpeg's."""
        import torch
        from torch.nn.functional import avg_pool2d, interpolate, pad

        height, width = pictures.shape[2:]
        padded = pad(pictures.round() - 128, (0, -width % 16, 0, -height % 16), mode="replicate")
        ycbcr = torch.einsum("ij,njhw->nihw", self._to_ycbcr, padded).round()
        of_light, of_colour = self._scaled_steps(quality)
        light = self._quantised(ycbcr[:, :1], of_light)
        colour = self._quantised(avg_pool2d(ycbcr[:, 1:], 2).round(), of_colour)
        colour = interpolate(colour, scale_factor=2, mode="bilinear", align_corners=False)
        rgb = torch.einsum("ij,njhw->nihw", self._to_rgb, torch.cat([light, colour], 1))
        return (rgb[..., :height, :width] + 128).round().clamp(0, 255)

    def _scaled_steps(self, quality: torch.Tensor) -> torch.Tensor:
        """(2, pictures, 1, 1, 1, 64): the steps at a quality, as in libjpeg's jpeg_quality_scaling (jcparam.c)."""
        import torch

        percent = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)
        steps = ((self._steps[:, None] * percent[:, None] + 50) / 100).floor().clamp(1, 255)
        return steps[:, :, None, None, None]

    def _quantised(self, planes: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """Round the waves of each block of 8 x 8 pixels to multiples of their steps."""
        num, channels, height, width = planes.shape
        blocks = planes.reshape(num, channels, height // 8, 8, width // 8, 8).transpose(3, 4).flatten(4)
        waves = ((blocks @ self._waves.T) / steps).round() * steps  # (num, channels, rows, columns, 64)
        # Even blocks often fall halfway between two whole numbers; libjpeg rounds up, `round` to the even one.
        blocks = (waves @ self._waves + 0.5).floor().reshape(num, channels, height // 8, width // 8, 8, 8)
        return blocks.transpose(3, 4).reshape(planes.shape)
