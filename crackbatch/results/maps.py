"""Crack maps: for each photograph of a run that asked for them, the probability in each of its windows.

OUT/maps/date=D/<run_id>-NNNNN.parquet   published before the rows of the same photographs
OUT/runs/<run_id>/parts/<part>.maps      while the run works, written before the part of the same name
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crackbatch.errors import OptionError, OutputError, PublishError
from crackbatch.models.bundle import uncalibrated
from crackbatch.models.photo import CrackMap
from crackbatch.results.run import MAPS, Run
from crackbatch.sources.rows import IDENTITY, one_each, without
from crackbatch.storage import atomic, locations, objects, ranges
from crackbatch.storage.documents import read_table, write_table
from crackbatch.storage.redaction import masked

# The column of a block of rows that holds their maps. The results table does not have it.
MAP = "_map"
_SUFFIX = ".maps"
_GROUP_ROWS = 256  # a map of a large photograph has tens of thousands of numbers
_FIELDS = [
    ("rows", pa.int32()),
    ("columns", pa.int32()),
    ("stride", pa.float32()),  # between two windows, across, in pixels of the photograph
    ("window", pa.float32()),  # width of a window, in pixels of the photograph
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("probabilities", pa.list_(pa.float32())),  # row by row
]
SCHEMA = pa.schema([*((name, pa.string()) for name in IDENTITY), ("run_id", pa.string()), *_FIELDS])


def pack_maps(maps: Sequence[CrackMap | None]) -> pa.Array:
    """Return a column of maps, null where there is none."""
    packed = [
        None
        if crack_map is None
        else {
            "rows": crack_map.logits.shape[0],
            "columns": crack_map.logits.shape[1],
            "stride": crack_map.step[0],
            "window": crack_map.window[0],
            "width": crack_map.width,
            "height": crack_map.height,
            "probabilities": crack_map.probabilities.ravel(),
        }
        for crack_map in maps
    ]
    return pa.array(packed, pa.struct(_FIELDS))


def without_maps(run: Run, rows: pa.Table, part: str) -> pa.Table:
    """Write the maps of the rows of a part, if they have any, and return the rows without them."""
    if MAP not in rows.column_names:
        return rows
    maps = rows.select([*IDENTITY, "run_id", MAP]).filter(pc.is_valid(rows.column(MAP)))
    if maps.num_rows:
        table = maps.drop_columns([MAP])
        packed = maps.column(MAP).combine_chunks()
        for index, (name, _) in enumerate(_FIELDS):
            table = table.append_column(name, packed.field(index))
        write_table(locations.join(run.parts_folder, f"{part}{_SUFFIX}"), table.cast(SCHEMA))
    return rows.drop_columns([MAP])


def publish_maps(run: Run, expected: pa.Table) -> None:
    """Write the maps of the expected images to a new file, without those that an attempt has already published."""
    files = objects.list_files(run.parts_folder, _SUFFIX)
    if not files:
        return
    left = expected
    for file in run.published_files(MAPS):
        left = without(left, _identities(file))
    if not left.num_rows:
        return
    visible = run.published_file(run.next_number(MAPS), MAPS)
    hidden = locations.join(run.folder, "publish", f"{visible.rsplit('/', 1)[-1]}{_SUFFIX}")
    with atomic.new_file(hidden) as opened, pq.ParquetWriter(opened, SCHEMA, compression="zstd") as writer:
        for table in _each_once(files, left):
            writer.write_table(table, row_group_size=_GROUP_ROWS)
    objects.move(hidden, visible)


def read_maps(run: Run, images: Collection[tuple[str, str]]) -> dict[tuple[str, str], CrackMap]:
    """Return the maps of a run's photographs, each named by `image_uri` and `version`, of those that have one."""
    found: dict[tuple[str, str], CrackMap] = {}
    for file in run.published_files(MAPS):
        with ranges.open_file(file) as opened:
            groups = pq.ParquetFile(opened, pre_buffer=False)
            for number in range(groups.num_row_groups):
                names = groups.read_row_group(number, IDENTITY, use_threads=False).to_pylist()
                wanted = [row for row, name in enumerate(names) if tuple(name.values()) in images]
                if wanted:
                    maps = groups.read_row_group(number, use_threads=False).take(wanted)
                    found |= {
                        tuple(names[row].values()): _unpack(maps.slice(place, 1)) for place, row in enumerate(wanted)
                    }
    return found


def read_map(out: locations.Location, image_uri: str, run_id: str | None = None) -> CrackMap:
    """Return the newest map of a photograph, or its map in one run. Raises OptionError if there is none."""
    root = locations.join(locations.normalize(os.fspath(out)), MAPS)
    files = objects.list_files(root, ".parquet")
    if not files:
        raise OutputError(f"no maps in {masked(os.fspath(out))}; run `crackbatch score` with --maps first")
    for file in sorted(files, reverse=True):  # by date
        with ranges.open_file(file) as opened:
            groups = pq.ParquetFile(opened, pre_buffer=False)
            for number in reversed(range(groups.num_row_groups)):
                known = groups.read_row_group(number, ["image_uri", "run_id"], use_threads=False)
                found = pc.equal(known.column("image_uri"), image_uri)
                if run_id is not None:
                    found = pc.and_(found, pc.equal(known.column("run_id"), run_id))
                if pc.any(found).as_py():
                    return _unpack(groups.read_row_group(number, use_threads=False).filter(found).slice(0, 1))
    raise OptionError(f"no map of {masked(image_uri)} in {masked(os.fspath(out))}; it needs the image_uri of a row")


def _unpack(table: pa.Table) -> CrackMap:
    (row,) = table.drop_columns(["probabilities"]).to_pylist()
    probabilities = table.column("probabilities").combine_chunks().flatten().to_numpy()
    shape = (row["rows"], row["columns"])
    side = round(row["window"] / row["stride"])
    step = (row["width"] / (shape[1] - 1 + side), row["height"] / (shape[0] - 1 + side))
    logits = uncalibrated(probabilities).reshape(shape).astype(np.float32)
    return CrackMap(logits, row["width"], row["height"], step, (side * step[0], side * step[1]))


def _each_once(files: list[str], expected: pa.Table) -> Iterator[pa.Table]:
    """Yield the maps of the expected images from the files, each image once."""
    for file in files:
        try:
            table = read_table(file)
        except pa.ArrowException:
            raise PublishError(f"{masked(file)} is damaged; remove the folder it is in, and run again") from None
        taken = table.take(pa.array(one_each(table, expected)))
        if taken.num_rows:
            expected = without(expected, taken)
            yield taken


def _identities(file: str) -> pa.Table:
    with ranges.open_file(file) as opened:
        return pq.ParquetFile(opened, pre_buffer=False).read(IDENTITY, use_threads=False)
