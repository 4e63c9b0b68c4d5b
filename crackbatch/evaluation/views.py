"""Photographs with a label for each cell, and the views that they are cut into.

Whole photographs without any crack are rare. A view is a part of about 7 by 6 cells: a view without a cracked cell is a
sound photograph of a few megapixels.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from crackbatch.decoding.decoders import Decoders, Photo
from crackbatch.errors import SourceError
from crackbatch.evaluation.metrics import Scored
from crackbatch.machine import num_cores
from crackbatch.models.bundle import PhotoSettings, calibrated
from crackbatch.models.model import Model, one_thread_each, photo_threads
from crackbatch.models.photo import CrackMap, judge, scale_of
from crackbatch.progress import Step, counted
from crackbatch.storage import locations, objects
from crackbatch.storage.redaction import masked, redact

COLUMNS = ("file", "row", "col", "x", "y", "size", "cracked")
_VIEW_ROWS, _VIEW_COLUMNS = 7, 6
_MAX_BYTES = 256 << 20


@dataclass(frozen=True, eq=False)
class LabelledPhoto:
    """A photograph and its cells: where each lies (cells, 3) as x, y, size in pixels, and whether it is cracked.

    `rows` and `columns` are the places of the cells in their grid.
    """

    location: str
    surface: str
    cells: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    cracked: np.ndarray

    @property
    def name(self) -> str:
        return self.location.rsplit("/", 1)[-1]


@dataclass(frozen=True, eq=False)
class View:
    """A part of a photograph: its map, whether a cell in it is cracked, and its megapixels."""

    photo: str
    surface: str
    crack_map: CrackMap
    is_cracked: bool
    megapixels: float


def read_cells(location: str) -> list[LabelledPhoto]:
    """Read a CSV file with a line for each cell: file, row, col, x, y, size, cracked (0 or 1); optionally surface.

    Photographs are found next to the CSV file. Their surface is the column `surface`, or what stands before `_` in
    their names. Raises SourceError.
    """
    shown, location = masked(location), locations.normalize(location)
    try:
        text = objects.read_bytes(location).decode("utf-8-sig")
    except FileNotFoundError:
        raise SourceError(f"{shown} does not exist; give the CSV file with the labels of the cells") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{shown} cannot be read as a CSV file: {redact(str(error), location)}") from None
    reader = csv.DictReader(io.StringIO(text))
    if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
        raise SourceError(f"{shown} lacks the columns {', '.join(missing)}; it needs {', '.join(COLUMNS)}")
    lines: dict[str, list[tuple[int, ...]]] = {}
    surfaces: dict[str, str] = {}
    for number, row in enumerate(reader, start=2):
        try:
            values = tuple(int(float(row[name])) for name in COLUMNS[1:])
        except (TypeError, ValueError):
            raise SourceError(f"{shown}, line {number}: row, col, x, y, size and cracked must be numbers") from None
        if values[-1] not in (0, 1):
            raise SourceError(f"{shown}, line {number}: cracked must be 0 or 1, got {values[-1]}")
        file = row["file"]
        lines.setdefault(file, []).append(values)
        surfaces[file] = row.get("surface") or (file.rsplit("/", 1)[-1].partition("_")[0] if "_" in file else "all")
    if not lines:
        raise SourceError(f"{shown} has no cells")
    folder = location.rpartition("/")[0]
    return [_photo(locations.join(folder, file), surfaces[file], np.array(lines[file])) for file in sorted(lines)]


def _photo(location: str, surface: str, values: np.ndarray) -> LabelledPhoto:
    return LabelledPhoto(location, surface, values[:, 2:5], values[:, 0], values[:, 1], values[:, 5] == 1)


def map_photos(photos: Sequence[LabelledPhoto], model: Model, settings: PhotoSettings) -> list[CrackMap]:
    """Return the map of each photograph. Raises SourceError for a photograph that cannot be read."""
    scale = scale_of(model.bundle.input_size, settings)
    done = 0
    with (
        Step("looking at photographs", lambda: f" {done} of {counted(len(photos), 'photograph')}"),
        Decoders(model.bundle.input_size, photo_side=1) as decoders,
        one_thread_each(),
        ThreadPoolExecutor(photo_threads(model.device.type, num_cores())) as threads,
    ):
        decoding = decoders.decode_whole(_read(photo.location) for photo in photos)
        waiting = [
            threads.submit(_map, photo, decoded, model, scale, decoders.check)
            for photo, decoded in zip(photos, decoding, strict=True)
        ]
        found = []
        for future in waiting:
            found.append(future.result())
            done += 1
        return found


def _read(location: str) -> bytes:
    try:
        return objects.read_bytes(location)
    except OSError as error:
        raise SourceError(f"{masked(location)} cannot be read: {redact(str(error), location)}") from None


def _map(labelled: LabelledPhoto, photo: Photo, model: Model, scale: float, check: Callable[[], None]) -> CrackMap:
    try:
        if photo.pixels is None:
            raise SourceError(f"{masked(labelled.location)} cannot be read: {photo.facts['error']}")
        return model.map_photo(photo.pixels, scale, check)
    finally:
        photo.release()


def cell_logits(photo: LabelledPhoto, crack_map: CrackMap) -> np.ndarray:
    """Return the logit of each cell (cells,): the highest of the window on it and the windows one step around."""
    from scipy import ndimage

    highest = ndimage.maximum_filter(crack_map.logits, 3)
    centres = photo.cells[:, :2] + photo.cells[:, 2:] / 2
    columns = np.rint((centres[:, 0] - crack_map.window[0] / 2) / crack_map.step[0]).astype(int)
    rows = np.rint((centres[:, 1] - crack_map.window[1] / 2) / crack_map.step[1]).astype(int)
    found: np.ndarray = highest[rows.clip(0, highest.shape[0] - 1), columns.clip(0, highest.shape[1] - 1)]
    return found


def cut_views(photos: Sequence[LabelledPhoto], maps: Sequence[CrackMap]) -> list[View]:
    """Return the views of photographs in which the label of each cell is known."""
    return [view for photo, crack_map in zip(photos, maps, strict=True) for view in _cut(photo, crack_map)]


def score_views(views: Sequence[View], settings: PhotoSettings) -> Scored:
    """Return the probability of each view; its group is its photograph."""
    logits = np.array([judge(view.crack_map, settings).logit for view in views])
    labels = np.array([view.is_cracked for view in views], np.int64)
    return Scored(calibrated(logits, 1.0), labels, np.array([view.photo for view in views]))


def label_views(photos: Sequence[LabelledPhoto]) -> np.ndarray:
    """Return whether a cell is cracked, for each view (views,) that `cut_views` cuts."""
    return np.array([photo.cracked[inside].any() for photo in photos for inside in _view_cells(photo)], bool)


def _cut(photo: LabelledPhoto, crack_map: CrackMap) -> Iterator[View]:
    for inside in _view_cells(photo):
        cells = photo.cells[inside]
        left, top = cells[:, :2].min(0)
        right, bottom = (cells[:, :2] + cells[:, 2:]).max(0)
        part = _within(crack_map, left, top, right, bottom)
        if part.logits.size:
            size = (right - left) * (bottom - top) / 1e6
            yield View(photo.name, photo.surface, part, bool(photo.cracked[inside].any()), float(size))


def _view_cells(photo: LabelledPhoto) -> Iterator[np.ndarray]:
    """Yield a mask (cells,) for each view in which the label of each cell is known."""
    for rows in _parts(photo.rows, _VIEW_ROWS):
        for columns in _parts(photo.columns, _VIEW_COLUMNS):
            inside = np.isin(photo.rows, rows) & np.isin(photo.columns, columns)
            if inside.sum() == len(rows) * len(columns):
                yield inside


def _parts(places: np.ndarray, length: int) -> list[np.ndarray]:
    """Cut the places of a grid into runs of about this length."""
    every = np.arange(places.min(), places.max() + 1)
    return np.array_split(every, max(1, round(len(every) / length)))


def _within(crack_map: CrackMap, left: float, top: float, right: float, bottom: float) -> CrackMap:
    """Return the part of a map whose windows lie in a rectangle; half a step beyond it is allowed."""
    ranges = []
    for axis, (low, high) in enumerate(((left, right), (top, bottom))):
        step, window = crack_map.step[axis], crack_map.window[axis]
        first = int(np.ceil(low / step - 0.5))
        last = int(np.floor((high - window) / step + 0.5))
        ranges.append(slice(max(0, first), max(0, last + 1)))
    logits = crack_map.logits[ranges[1], ranges[0]]
    return replace(crack_map, logits=logits, width=int(right - left), height=int(bottom - top))
