"""Shows where the cracks are: pictures of images, or of the most probable rows of a published run."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import PIL.Image

from crackbatch.decoding.decoders import Decoders
from crackbatch.errors import OptionError
from crackbatch.images.picture import Picture, to_input
from crackbatch.models.bundle import DEFAULT_MODEL, read_bundle_and_weights
from crackbatch.models.model import Model, default_device
from crackbatch.models.photo import check_scale_for, judge
from crackbatch.progress import Step, counted
from crackbatch.reports.overlay import draw_overlay
from crackbatch.results.predictions import read_predictions
from crackbatch.sources.image import open_image
from crackbatch.storage import atomic, locations
from crackbatch.storage.redaction import masked, reason_of

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_NAME = 80


@dataclass(frozen=True)
class Shown:
    """The pictures that `show` wrote, and the images that cannot be shown, with the reason."""

    files: list[str]
    passed_over: dict[str, str]


class _Chosen(NamedTuple):
    uri: str
    version: str | None
    mm_per_pixel: float | None


def show(
    images: Sequence[locations.Location] = (),
    out: locations.Location = "",
    *,
    results: locations.Location | None = None,
    top: int = 20,
    run_id: str | None = None,
    model: locations.Location = DEFAULT_MODEL,
    tile_size: float | None = None,
    ground_resolution: float | None = None,
) -> Shown:
    """Write a JPEG for each image: the picture, its crack map as a transparent colour, and its worst region in a box.

    `images` are paths or URLs, also of members of archives, as in the table's `image_uri`. With `results`, the `top`
    most probable rows of the runs in that location are shown instead. Raises RequestError.
    """
    if top < 1:
        raise OptionError(f"--top must be 1 or more, got {top}")
    if (results is None) == (not images):
        raise OptionError("give images to show, or --from with the --out of a scoring run")
    if run_id is not None and results is None:
        raise OptionError("--run-id selects a run of --from; give both, or neither")
    bundle, weights = read_bundle_and_weights(os.fspath(model))
    check_scale_for(bundle, tile_size, ground_resolution)
    chosen = (
        [_Chosen(os.fspath(image), None, ground_resolution) for image in images]
        if results is None
        else _most_probable(os.fspath(results), top, run_id, ground_resolution)
    )
    location = atomic.check_output(os.fspath(out))
    loaded = Model(bundle, weights, default_device())
    files, passed_over = list[str](), dict[str, str]()
    with (
        Decoders(loaded.bundle.input_size, num_processes=1, photo_side=1) as decoders,
        Step("drawing", lambda: f" {len(files)} of {counted(len(chosen), 'picture')}"),
    ):
        for number, item in enumerate(chosen, start=1):
            try:
                drawn = _draw(item, decoders, loaded, tile_size)
            except (OSError, ValueError) as error:
                passed_over[masked(item.uri)] = reason_of(error, item.uri)
                continue
            file = locations.join(location, f"{number:03d}-{_name_of(item.uri)}.jpg")
            atomic.write_whole(file, drawn)
            files.append(file)
    return Shown(files, passed_over)


def _most_probable(results: str, top: int, run_id: str | None, mm_per_pixel: float | None) -> list[_Chosen]:
    columns = ["image_uri", "version", "status"]
    rows = read_predictions(results, run_id=run_id)
    rows = rows[rows["status"] == "ok"].head(top)
    known = rows["ground_resolution"] if "ground_resolution" in rows else [mm_per_pixel] * len(rows)
    found = zip(*(rows[name] for name in columns[:2]), known, strict=True)
    return [_Chosen(uri, version, None if mm is None or np.isnan(mm) else float(mm)) for uri, version, mm in found]


def _draw(chosen: _Chosen, decoders: Decoders, model: Model, tile_size: float | None) -> bytes:
    """Return the JPEG of one image; raises OSError or ValueError if it cannot be opened or decoded."""
    data = open_image(chosen.uri, chosen.version).getvalue()
    (photo,) = decoders.decode_whole([data])
    try:
        if photo.pixels is None:
            raise ValueError(f"{photo.facts['status']}: {photo.facts['error']}")
        return _overlay(chosen, photo.pixels, model, tile_size)
    finally:
        photo.release()


def _overlay(chosen: _Chosen, pixels: np.ndarray, model: Model, tile_size: float | None) -> bytes:
    bundle = model.bundle
    picture = PIL.Image.fromarray(pixels)
    crack_map = model.map(picture, tile_size=tile_size, ground_resolution=chosen.mm_per_pixel)
    if crack_map.is_of_windows and bundle.photo is not None:
        verdict = judge(crack_map, bundle.photo)
        logit, box = verdict.logit * bundle.temperature, verdict.box
        line, kind = bundle.draw_photo_line(None, None), f"{verdict.crack_tiles:,} of {verdict.tiles:,} windows"
    else:
        tile = to_input(Picture(pixels=picture), bundle.input_size)
        logit, box = float(model.logits(tile[None])[0]), None
        line, kind = bundle.draw_line(None, None), "one tile"
    probability = float(model.probability(np.array([logit]))[0])
    label = bundle.classes[int(probability >= np.float32(line))]
    text = [
        f"{label}  {probability:.3f} ({kind})",
        _name_of(chosen.uri),
        f"{crack_map.width} x {crack_map.height} pixels, {bundle.model_id}",
    ]
    return draw_overlay(picture, crack_map, box, text, chosen.mm_per_pixel)


def _name_of(uri: str) -> str:
    """Return the last part of a URI, with letters that every file system takes."""
    last = masked(uri).partition("::")[0].rstrip("/").rpartition("/")[2]
    stem = last.rpartition(".")[0] or last or "image"
    return _NOT_IN_NAMES.sub("_", stem)[-_MAX_NAME:]
