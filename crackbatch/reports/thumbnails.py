"""Draws small pictures of rows of a run: the image with its crack map and box, and its worst region."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image

from crackbatch.decoding.decoders import Decoders, Photo
from crackbatch.images.picture import Picture, to_input
from crackbatch.models.bundle import read_bundle_and_weights
from crackbatch.models.heat import lay_over
from crackbatch.models.model import Model, default_device
from crackbatch.models.photo import Box, CrackMap
from crackbatch.sources.image import open_images
from crackbatch.storage import locations

SIDE = 320  # pixels of the longer side
_QUALITY = 72
_DEFAULT_SIZE = 224  # decoders want a size of pictures, also where no model is at hand
_LEAST_DETAIL = 256  # pixels of a photograph beside each other in the picture of its worst region

# The columns of the table that pictures, and the texts beside them, are made of.
COLUMNS = [
    "image_uri", "version", "archive", "status", "error", "label", "crack_probability", "threshold", "width", "height",
    "tiles", "crack_tiles", "box_x", "box_y", "box_w", "box_h", "captured_at", "latitude", "longitude", "camera",
]  # fmt: skip

Identity = tuple[str, str]


@dataclass(frozen=True)
class Thumbnail:
    """JPEGs of an image: the whole of it with what was found, and its worst region, or a tile as it is.

    Without pictures, `reason` says why. `looks` is the picture's hash, in hexadecimal digits.
    """

    whole: bytes | None = None
    detail: bytes | None = None
    reason: str = ""
    has_map: bool = False
    looks: str | None = None


def model_of(model_ids: Collection[str | None], location: locations.Location, notes: list[str]) -> Model | None:
    """Return the model at a location if the rows were scored with it; otherwise note that crack maps are missing."""
    bundle, weights = read_bundle_and_weights(os.fspath(location))
    if others := sorted({str(model_id) for model_id in model_ids} - {bundle.model_id}):
        notes.append(
            f"Tiles have no crack map: they were scored with {', '.join(others)}, and --model is {bundle.model_id}."
        )
        return None
    model = Model(bundle, weights, default_device())
    if not model.has_maps:
        notes.append(f"Tiles have no crack map: {bundle.network} cannot show where a crack is.")
        return None
    return model


def draw_thumbnails(
    rows: Sequence[dict[str, Any]], maps: dict[Identity, CrackMap], model: Model | None, photo_maps: bool
) -> Iterator[tuple[int, Thumbnail]]:
    """Yield the place of each row in `rows` and its thumbnail, in the order of the archives.

    A row has the columns of the table. Maps of photographs are taken from `maps`; with `photo_maps`, the model makes
    those that are missing. Maps of tiles are made by the model.
    """
    size = model.bundle.input_size if model is not None else _DEFAULT_SIZE
    sent = deque[int]()
    refused: dict[int, Thumbnail] = {}

    def images() -> Iterator[bytes]:
        for place, found in open_images([(row["image_uri"], row["version"]) for row in rows]):
            if isinstance(found, OSError):
                refused[place] = Thumbnail(reason=str(found))
            else:
                sent.append(place)
                yield found

    # Processes decode the images: what is in one harms no other.
    with Decoders(size, photo_side=1, looks=True) as decoders, closing(decoders.decode_whole(images())) as photos:
        for photo in photos:
            place = sent.popleft()
            try:
                yield place, _draw(rows[place], photo, maps, model, photo_maps)
            finally:
                photo.release()
    yield from refused.items()


def _draw(
    row: dict[str, Any], photo: Photo, maps: dict[Identity, CrackMap], model: Model | None, photo_maps: bool
) -> Thumbnail:
    if photo.pixels is None:
        return Thumbnail(reason=f"{photo.facts['status']}: {photo.facts['error']}")
    picture = PIL.Image.fromarray(photo.pixels)
    crack_map = _map_of(row, picture, maps, model, photo_maps)
    box = Box(*(int(row[name]) for name in ("box_x", "box_y", "box_w", "box_h"))) if row["box_x"] is not None else None
    ratio = SIDE / max(picture.size)
    width, height = (max(1, round(side * ratio)) for side in picture.size)
    whole = lay_over(picture, width, height, crack_map, box)
    detail = picture.convert("RGB") if box is None else picture.crop(_around(box, *picture.size))
    detail.thumbnail((SIDE, SIDE), PIL.Image.Resampling.LANCZOS)
    return Thumbnail(_jpeg(whole), _jpeg(detail), "", crack_map is not None, photo.facts["looks"])


def _map_of(
    row: dict[str, Any],
    picture: PIL.Image.Image,
    maps: dict[Identity, CrackMap],
    model: Model | None,
    photo_maps: bool,
) -> CrackMap | None:
    is_tile = row["tiles"] is None
    if is_tile and model is not None:
        pixels = to_input(Picture(pixels=picture), model.bundle.input_size)
        return model.map_tile(np.asarray(pixels), *picture.size)
    if (found := maps.get((row["image_uri"], row["version"]))) is not None:
        return found
    return model.map(picture, ground_resolution=row.get("ground_resolution")) if photo_maps and model else None


def _around(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """Return the corners of a square around the middle of a box: the box, but some pixels at least."""
    side = min(max(box.width, box.height, _LEAST_DETAIL), width, height)
    left = min(max(0, box.x + (box.width - side) // 2), width - side)
    top = min(max(0, box.y + (box.height - side) // 2), height - side)
    return left, top, left + side, top + side


def wanted(rows: Iterable[dict[str, Any]]) -> Collection[Identity]:
    """Return the identities of the rows that are photographs, whose maps a run may have published."""
    return {(row["image_uri"], row["version"]) for row in rows if row["tiles"] is not None}


def _jpeg(picture: PIL.Image.Image) -> bytes:
    target = io.BytesIO()
    picture.save(target, "JPEG", quality=_QUALITY)
    return target.getvalue()
