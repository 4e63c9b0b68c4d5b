"""Turns what people have (paths, URIs of a table, arrays, pictures) into decoded pictures."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import PIL.Image

from crackbatch.decoding.decoders import Decoders
from crackbatch.images.picture import PHOTO, Picture, from_pillow, read_image
from crackbatch.sources.image import open_images
from crackbatch.storage import locations

Image = str | Path | np.ndarray | PIL.Image.Image
# Below this, starting decoder processes takes longer than decoding.
_MANY = 64
_TOGETHER = 64  # images that are read together, since each archive is opened once for all of them


def decode(images: Iterable[Image], size: int, photo_side: int | None, batch_size: int) -> Iterator[Picture]:
    """Yield the picture of each image, in order; of many files, processes decode them.

    Pictures of tiles may come scaled to `size`. Raises TypeError for what is no image, ValueError for an array of
    another form or with other numbers.
    """
    if isinstance(images, Sequence) and len(images) >= _MANY and all(map(_is_name, images)):
        yield from _decode_files(list(map(str, images)), size, photo_side, batch_size)
        return
    coming = iter(images)
    while some := list(islice(coming, _TOGETHER)):
        data = iter(_read([str(image) for image in some if _is_name(image)]))
        for image in some:
            yield _decode_one(next(data)) if isinstance(image, (str, Path)) else from_pillow(to_pillow(image))


def decode_one(image: Image) -> Picture:
    """Return the picture of one image."""
    return next(decode([image], 1, None, 1))


def to_pillow(image: np.ndarray | PIL.Image.Image) -> PIL.Image.Image:
    """Return an array (height, width[, channels]) as a picture: uint8, or floats from 0 to 1.

    It has one channel (grey), three (RGB) or four (RGB and opacity).
    """
    if isinstance(image, PIL.Image.Image):
        return image
    if not isinstance(image, np.ndarray):
        raise TypeError(f"an image is a path, a URI, an array or a Pillow image, not {type(image).__name__}")
    if not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))) or not image.size:
        raise ValueError(f"an array of an image is (height, width) or (height, width, 3), got {image.shape}")
    if image.dtype.kind == "f":
        if not (image.min() >= 0 and image.max() <= 1):
            raise ValueError("an array of floats must have numbers from 0 to 1; give larger ones as uint8")
        image = np.round(image * 255).astype(np.uint8)
    if image.dtype != np.uint8:
        raise ValueError(f"an array of an image is uint8, or floats from 0 to 1, got {image.dtype}")
    return PIL.Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)


def _is_name(image: object) -> bool:
    return isinstance(image, (str, Path))


def _decode_files(names: Sequence[str], size: int, photo_side: int | None, batch_size: int) -> Iterator[Picture]:
    coming, read = iter(names), deque[list[bytes | OSError]]()

    def batches() -> Iterator[list[bytes]]:
        while batch := list(islice(coming, batch_size)):
            read.append(_read(batch))
            yield [b"" if isinstance(data, OSError) else data for data in read[-1]]

    with Decoders(size, batch_size=batch_size, photo_side=photo_side) as decoders:
        for facts, pixels in decoders.decode(batches()):
            tiles, known = iter(pixels), zip(facts["status"], facts["error"], strict=True)
            for (status, error), data in zip(known, read.popleft(), strict=True):
                if status == "ok":
                    yield Picture(pixels=PIL.Image.fromarray(next(tiles)))
                elif status == PHOTO or isinstance(data, OSError):
                    yield _decode_one(data)
                else:
                    yield Picture(status, error)


def _decode_one(data: bytes | OSError) -> Picture:
    if isinstance(data, OSError):
        return Picture("missing" if isinstance(data, FileNotFoundError) else "unreadable", str(data))
    return read_image(data)


def _read(names: Sequence[str]) -> list[bytes | OSError]:
    """Return the bytes of each image, or why it cannot be read."""
    found: list[bytes | OSError] = [_read_local(name) for name in names]
    # Not a plain file: a URL, or a member of an archive.
    others = [place for place, data in enumerate(found) if isinstance(data, OSError) and "://" in names[place]]
    if others:
        for place, data in open_images([(names[place], None) for place in others]):
            found[others[place]] = data
    return found


def _read_local(name: str) -> bytes | OSError:
    if "://" in name and not locations.is_local(name):
        return OSError(name)
    try:
        return Path(name).read_bytes()
    except FileNotFoundError:
        return FileNotFoundError(f"{name} does not exist")
    except OSError as error:
        return error
