"""From encoded images to rows of the results table: decoding and the network, on one device.

This is the whole computation of a scoring run. Ray's actors, runs without Ray, tests and benchmarks call it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc

from crackbatch.decoding.decoder import MAX_ERROR
from crackbatch.decoding.decoders import Decoders, Photo
from crackbatch.images.picture import PHOTO, Picture, to_input
from crackbatch.models.model import Model
from crackbatch.models.photo import CrackMap, Verdict, judge, window_scale
from crackbatch.results.maps import MAP, pack_maps
from crackbatch.results.resolution import RESOLUTION, WrongResolution, read_resolution
from crackbatch.results.table import COLUMNS, FLIGHT
from crackbatch.sources.rows import CARRIED

_FROM_IMAGE = (
    "status", "error", "format", "width", "height", "captured_at", "latitude", "longitude", "camera", "sha256"
)  # fmt: skip


# The columns of a photograph that was looked at in windows, from what its map says.
_REGIONS: dict[str, Callable[[Verdict], int | None]] = {
    "tiles": lambda verdict: verdict.tiles,
    "crack_tiles": lambda verdict: verdict.crack_tiles,
    "box_x": lambda verdict: verdict.box and verdict.box.x,
    "box_y": lambda verdict: verdict.box and verdict.box.y,
    "box_w": lambda verdict: verdict.box and verdict.box.width,
    "box_h": lambda verdict: verdict.box and verdict.box.height,
}


@dataclass(frozen=True)
class Stamp:
    """What a run writes beside each probability: the run, the model, and the threshold of tiles and of photographs."""

    run_id: str
    model_id: str
    threshold: float
    photo_threshold: float


@dataclass(frozen=True)
class Views:
    """How large images are looked at.

    An image with two sides of at least `side` pixels is a photograph. `tile_size` and `mm_per_pixel` say at which scale
    it is looked at (`models/photo.py`). With `maps`, the rows hold the maps of the photographs.
    """

    side: int
    tile_size: float | None = None
    mm_per_pixel: float | None = None
    maps: bool = False


class Predictor:
    """Scores tables of encoded images, as `fetch` returns them. Several threads may call it at once.

    `model` is called when the first images are decoded, so that loading it takes no extra time. With `views`, large
    images are looked at in windows, by `num_threads` threads at the same time. With `full_exif`, the rows have the
    columns of drones.
    """

    def __init__(
        self,
        model: Callable[[], Model],
        stamp: Stamp,
        decoders: Decoders,
        views: Views | None = None,
        num_threads: int = 1,
        full_exif: bool = False,
    ) -> None:
        self._model = model
        self._stamp = stamp
        self._decoders = decoders
        self._views = views
        self._columns = pa.schema([*COLUMNS, *(FLIGHT if full_exif else ())])
        self._from_image = (*_FROM_IMAGE, *(FLIGHT.names if full_exif else ()))
        self._threads = ThreadPoolExecutor(num_threads, "photographs")

    def close(self) -> None:
        """End the threads. The decoders must be closed before."""
        self._threads.shutdown(cancel_futures=True)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return one result row for each row of the block, in the same order."""
        encoded = block.column("bytes")
        rows = np.flatnonzero(np.asarray(encoded.is_valid()))
        facts: dict[str, list[Any]] = {name: [] for name in self._from_image}
        found = [np.empty(0, np.float32)]
        for decoded in self._decoders.decode(_batches(encoded, rows, self._decoders.batch_size)):
            for name, column in facts.items():
                column.extend(decoded.facts[name])
            if len(decoded.pixels):
                found.append(self._model().logits(decoded.pixels))
        logits = np.full(len(rows), np.nan, np.float32)
        logits[[status == "ok" for status in facts["status"]]] = np.concatenate(found)
        seen = self._look_at_photos(block, rows, facts)
        for place, photo in seen.items():
            for name, column in facts.items():
                column[place] = photo.facts[name]
            logits[place] = photo.logit
        _refuse_no_numbers(facts, logits)
        known = pa.table({name: pa.array(facts[name], self._columns.field(name).type) for name in facts})
        is_ok = np.array([status == "ok" for status in facts["status"]], bool)
        known = known.append_column("crack_logit", pa.array(np.where(is_ok, logits, 0), pa.float32(), mask=~is_ok))
        known = self._with_regions(known, {place: photo for place, photo in seen.items() if is_ok[place]})
        return self._rows(block, known if len(rows) == block.num_rows else _with_others(block, known, rows))

    def _look_at_photos(self, block: pa.Table, rows: np.ndarray, facts: dict[str, list[Any]]) -> dict[int, _Seen]:
        """Decode the photographs among the images and run the network over them; the key is their place in `facts`."""
        places = [place for place, status in enumerate(facts["status"]) if status == PHOTO]
        if not places:
            return {}
        assert self._views is not None
        encoded = block.column("bytes")
        stated = block.column(CARRIED + RESOLUTION) if CARRIED + RESOLUTION in block.column_names else None
        photos = (
            (encoded[int(rows[place])].as_py(), facts["width"][place] * facts["height"][place]) for place in places
        )
        waiting: dict[int, Future[_Seen]] = {}
        try:
            for place, photo in zip(places, self._decoders.decode_photos(photos), strict=True):
                resolution = None if stated is None else stated[int(rows[place])].as_py()
                waiting[place] = self._threads.submit(self._look_at, photo, resolution)
            return {place: future.result() for place, future in waiting.items()}
        finally:
            for future in waiting.values():
                future.cancel()

    def _look_at(self, photo: Photo, stated: Any) -> _Seen:
        """Run the network over a photograph. `stated` is its resolution in a manifest, None if it has none."""
        try:
            if photo.pixels is None:
                return _Seen(photo.facts)
            assert self._views is not None
            mm_per_pixel = read_resolution(stated) or self._views.mm_per_pixel
            return self._windows(photo, mm_per_pixel)
        except WrongResolution as error:
            return _Seen({**photo.facts, "status": "failed", "error": str(error)})
        finally:
            photo.release()

    def _windows(self, photo: Photo, mm_per_pixel: float | None) -> _Seen:
        model, views = self._model(), self._views
        settings, width, height = model.bundle.photo, photo.facts["width"], photo.facts["height"]
        assert photo.pixels is not None
        assert views is not None
        scale = window_scale(
            model.bundle, width, height, side=views.side, tile_size=views.tile_size, mm_per_pixel=mm_per_pixel
        )
        if scale is None or settings is None:
            pixels = to_input(Picture(pixels=PIL.Image.fromarray(photo.pixels)), model.bundle.input_size)
            return _Seen(photo.facts, float(model.logits(pixels[None])[0]))
        crack_map = model.map_photo(photo.pixels, scale, self._decoders.check)
        if not np.isfinite(crack_map.logits).all():
            return _Seen(photo.facts)
        verdict = judge(crack_map, settings)
        # So that the probability of every row is sigmoid(crack_logit / temperature).
        logit = verdict.logit * model.bundle.temperature
        return _Seen(photo.facts, logit, verdict, crack_map if views.maps else None)

    def _with_regions(self, known: pa.Table, seen: dict[int, _Seen]) -> pa.Table:
        """Return the table with the windows and the worst regions of photographs, and their maps where asked for."""
        places = [seen.get(place) for place in range(known.num_rows)] if seen else []
        for name, of_photo in _REGIONS.items():
            kind = COLUMNS.field(name).type
            values = [photo and photo.verdict and of_photo(photo.verdict) for photo in places]
            known = known.append_column(name, pa.array(values, kind) if seen else pa.nulls(known.num_rows, kind))
        if self._views is not None and self._views.maps:
            maps = pack_maps([photo and photo.crack_map for photo in places])
            known = known.append_column(MAP, maps if seen else pa.nulls(known.num_rows, maps.type))
        return known

    def _rows(self, block: pa.Table, known: pa.Table) -> pa.Table:
        """Return the rows of the results, from the block and what is known about each of its images."""
        num = block.num_rows
        logits = known.column("crack_logit").combine_chunks()
        probabilities = pa.array(
            self._model().probability(logits.fill_null(0).to_numpy(zero_copy_only=False)),
            mask=np.asarray(logits.is_null()),
        )
        threshold = pc.if_else(
            known.column("tiles").is_valid(),
            pa.scalar(self._stamp.photo_threshold, pa.float32()),
            pa.scalar(self._stamp.threshold, pa.float32()),
        )
        negative, positive = self._model().bundle.classes
        values = {
            **{name: known.column(name) for name in known.column_names},
            "error": pc.utf8_slice_codeunits(known.column("error"), 0, MAX_ERROR),
            "crack_probability": probabilities,
            "label": pc.if_else(pc.greater_equal(probabilities, threshold), positive, negative),
            "model_id": pa.repeat(self._stamp.model_id, num),
            "run_id": pa.repeat(self._stamp.run_id, num),
            "threshold": threshold,
            "scored_at": pa.repeat(pa.scalar(datetime.now(UTC), COLUMNS.field("scored_at").type), num),
        }
        columns = {field.name: _column(field, block, values) for field in self._columns}
        table = pa.table(columns, schema=self._columns)
        for field in block.schema:
            if field.name.startswith(CARRIED):
                name = field.name.removeprefix(CARRIED)
                table = table.append_column(field.with_name(name), block.column(field.name))
        return table.append_column(MAP, known.column(MAP)) if MAP in known.column_names else table


class _Seen(NamedTuple):
    """What was seen of a photograph: its facts, its logit, and if it was looked at in windows, the verdict and map."""

    facts: dict[str, Any]
    logit: float = math.nan
    verdict: Verdict | None = None
    crack_map: CrackMap | None = None


def _refuse_no_numbers(facts: dict[str, list[Any]], logits: np.ndarray) -> None:
    """Mark the images for which the network gives infinity or no number as failed: they have no probability."""
    scored = np.array([status == "ok" for status in facts["status"]], bool)
    for row in np.flatnonzero(scored & ~np.isfinite(logits)).tolist():
        facts["status"][row], facts["error"][row] = "failed", "the network gives no number for it"


def _batches(encoded: pa.ChunkedArray, rows: np.ndarray, size: int) -> Iterator[list[bytes]]:
    """Yield the bytes of the given rows in batches."""
    for start in range(0, len(rows), size):
        yield [encoded[int(row)].as_py() for row in rows[start : start + size]]


def _with_others(block: pa.Table, known: pa.Table, rows: np.ndarray) -> pa.Table:
    """Return what is known about all rows of a block, from what is known about those whose bytes could be read."""
    places = np.full(block.num_rows, -1)
    places[rows] = np.arange(len(rows))
    spread = known.take(pa.array(places, mask=places < 0))
    for name, otherwise in (("status", "failed"), ("error", None)):
        told = pc.coalesce(spread.column(name), block.column(name), pa.scalar(otherwise, pa.string()))
        spread = spread.set_column(spread.column_names.index(name), name, told)
    return spread


def _column(field: pa.Field, block: pa.Table, values: dict[str, Any]) -> pa.Array:
    if field.name in values:
        return values[field.name]
    if field.name in block.column_names:
        return block.column(field.name)
    return pa.nulls(block.num_rows, field.type)
