"""Pictures of known pixels in every format, and tiles of photos that are labelled by their folders."""

from __future__ import annotations

import io
import itertools
import struct
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFilter
import pillow_heif

from crackbatch.cli.demo import draw_tile
from crackbatch.images.picture import Picture

pillow_heif.register_heif_opener()


def make_photos(folder: Path, num_photos: int = 12, tiles_each: int = 4, seed: int = 0) -> Path:
    """Tiles named as SDNET2018's: cracked and sound ones of the same photos."""
    for photo in range(num_photos):
        for tile in range(tiles_each):
            cracked = tile % 2 == 0
            path = folder / "D" / ("CD" if cracked else "UD") / f"{7000 + photo}-{tile}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(draw_tile(seed + photo * tiles_each + tile, cracked))
    return folder


def make_mislabelled(folder: Path) -> Path:
    """Drawn tiles of twenty photos, two of which lie in the wrong folder."""
    make_photos(folder, 20)
    (folder / "D" / "CD" / "7900-1.jpg").write_bytes(draw_tile(7901, cracked=False))
    (folder / "D" / "UD" / "7900-2.jpg").write_bytes(draw_tile(7902, cracked=True))
    return folder


def gradient(width: int = 64, height: int = 48) -> PIL.Image.Image:
    """Every corner another colour, so that a turned or mirrored picture is told from the upright one."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return PIL.Image.fromarray(np.stack([x, y, 255 - x], axis=2).astype(np.uint8))


def encode(image: PIL.Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(
    strip: bytes | list[bytes],
    width: int,
    height: int,
    bits: tuple[int, ...],
    photometric: int,
    compression: int = 1,
    sample_format: int = 1,
    order: str = "<",
) -> bytes:
    """A TIFF of one strip, or of one for each plane, also of kinds that Pillow does not write (TIFF 6.0, section 2)."""
    strips = [strip] if isinstance(strip, bytes) else strip
    strip = b"".join(strips)
    starts = tuple(8 + sum(map(len, strips[:plane])) for plane in range(len(strips)))
    shorts = {258: bits, 259: (compression,), 262: (photometric,), 277: (len(bits),), 339: (sample_format,) * len(bits)}
    shorts[284] = (1 if len(strips) == 1 else 2,)
    longs = {256: (width,), 257: (height,), 273: starts, 278: (height,), 279: tuple(map(len, strips))}
    entries = [(tag, 3, values) for tag, values in shorts.items()] + [(tag, 4, longs[tag]) for tag in longs]
    strip += bytes(len(strip) % 2)
    directory, behind = struct.pack(order + "H", len(entries)), b""
    end = 8 + len(strip) + 2 + 12 * len(entries) + 4
    for tag, kind, values in sorted(entries):
        value = struct.pack(f"{order}{len(values)}{'HI'[kind - 3]}", *values)
        if len(value) > 4:
            value, behind = struct.pack(order + "I", end + len(behind)), behind + value
        directory += struct.pack(order + "HHI4s", tag, kind, len(values), value)
    magic = {"<": b"II*\0", ">": b"MM\0*"}[order]
    return magic + struct.pack(order + "I", 8 + len(strip)) + strip + directory + bytes(4) + behind


def pixels(picture: Picture) -> np.ndarray:
    assert picture.status == "ok", picture.error
    return np.asarray(picture.pixels).astype(int)


def draw_photo(columns: int = 7, rows: int = 5, cracked: tuple[int, ...] = (2, 3, 4), seed: int = 0) -> PIL.Image.Image:
    """A photograph of 256 pixels a cell, put together from sound tiles, with a crack through some cells of row 2."""
    random = np.random.default_rng(seed)
    height, width = rows * 256, columns * 256
    coarse = random.normal(0, 1, (rows * 3, columns * 3)).astype(np.float32)
    stains = np.asarray(PIL.Image.fromarray(coarse).resize((width, height), PIL.Image.Resampling.BICUBIC))
    grey = 170 + 5 * stains + random.normal(0, 5, (height, width))
    pixels = np.clip(grey[..., None] * np.array([1.0, 0.985, 0.96]), 0, 255).astype(np.uint8)
    image = PIL.Image.fromarray(pixels)
    if cracked:
        along = np.arange(cracked[0] * 256 + 20, (cracked[-1] + 1) * 256 - 20, 12)
        across = 2.5 * 256 + np.cumsum(random.normal(0, 3, len(along))).clip(-60, 60)
        pen = PIL.ImageDraw.Draw(image)
        for (x0, y0), (x1, y1) in itertools.pairwise(zip(along, across, strict=True)):
            pen.line([(x0, y0), (x1, y1)], fill=(48, 47, 46), width=int(random.integers(3, 6)))
    return image.filter(PIL.ImageFilter.GaussianBlur(0.6))
