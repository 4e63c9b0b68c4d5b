"""Reads the published table."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs

from crackbatch.errors import OptionError, OutputError
from crackbatch.results.run import PREDICTIONS
from crackbatch.sources.rows import in_order, with_large_texts
from crackbatch.storage import locations, objects
from crackbatch.storage.redaction import masked

if TYPE_CHECKING:
    import pandas as pd

_NEEDED = ("image_uri", "version", "scored_at", "crack_probability", "threshold", "tiles")
_NO_CAST = (pa.ArrowInvalid, pa.ArrowNotImplementedError)


def read_predictions(
    out: locations.Location,
    run_id: str | None = None,
    date: str | None = None,
    min_probability: float | None = None,
    columns: Sequence[str] | None = None,
    model_id: str | None = None,
) -> pd.DataFrame:
    """Return published rows as a DataFrame, most probable cracks first; by default the newest row of each image.

    `run_id` selects all rows of one run, `date` (YYYY-MM-DD) the newest row of each image on that day.
    `min_probability` selects images with at least this probability, `model_id` rows of one model. Warns if rows were
    labelled at several thresholds. Raises OutputError if nothing is published or if
    runs give a column types that cannot be combined, OptionError for a column, run or date that does not exist.
    """
    out = os.fspath(out)
    root = locations.join(locations.normalize(out), PREDICTIONS)
    files = objects.list_files(root, ".parquet")
    if not files:
        raise OutputError(f"no predictions in {masked(out)}; run `crackbatch score` with this --out first")
    dataset = _open(root, files)
    wanted = _check_columns(columns, dataset.schema)
    condition = _condition(run_id, date)
    needed = list(dict.fromkeys([*wanted, *_NEEDED, *(["model_id"] if model_id is not None else [])]))
    needed = [name for name in needed if name in dataset.schema.names]  # older tables lack some
    table = _read(dataset, needed, condition)
    if not table.num_rows and condition is not None:
        known = sorted(dataset.to_table(columns=["run_id"]).column("run_id").unique().to_pylist())
        raise OptionError(f"no rows match (run: {run_id or 'any'}, date: {date or 'any'}); runs: {', '.join(known)}")
    if model_id is not None:  # before _newest: the newest row of an image may be from another model
        table = table.filter(pc.field("model_id") == model_id)
    table = with_large_texts(table)
    if run_id is None:
        table = _newest(table)
    if min_probability is not None:
        table = table.filter(pc.field("crack_probability") >= min_probability)
    if "label" in wanted and {"threshold", "tiles"} <= set(table.column_names):
        _warn_of_thresholds(table)
    keys = [("crack_probability", "descending", "at_end"), ("image_uri", "ascending", "at_end")]
    table = pa.concat_tables(in_order(table, pc.sort_indices(table, sort_keys=keys)))
    frame: pd.DataFrame = table.select(wanted).to_pandas()
    return frame


def _warn_of_thresholds(table: pa.Table) -> None:
    """Warn if labels in one frame mean different things. Photographs have a threshold of their own."""
    of_photos = table.column("tiles").is_valid()
    for chosen in (of_photos, pc.invert(of_photos)):
        found = sorted(table.column("threshold").filter(chosen).drop_null().unique().to_pylist())
        if len(found) > 1:
            shown = ", ".join(f"{threshold:g}" for threshold in found)
            warnings.warn(
                f"the rows were labelled at several thresholds ({shown}); compare crack_probability, or read one run"
                " (run_id=)",
                stacklevel=3,
            )


def _open(root: str, files: list[str]) -> ds.FileSystemDataset:
    """Open all files as one dataset. Manifests can add different columns, so the schema of every file is read."""
    filesystem, base = objects.filesystem(root)
    options = ds.FileSystemFactoryOptions(base, ds.partitioning(flavor="hive"))
    paths = [objects.filesystem(file)[1] for file in files]
    arrow = pa.fs.PyFileSystem(pa.fs.FSSpecHandler(filesystem))
    factory = ds.FileSystemDatasetFactory(arrow, paths, ds.ParquetFileFormat(), options)
    try:
        return factory.finish(factory.inspect(promote_options="permissive"))
    except pa.ArrowTypeError:
        first = factory.inspect(fragments=1)  # this has the partition column
        files_schemas = (fragment.physical_schema for fragment in factory.finish(first).get_fragments())
        return factory.finish(_merge([first, *files_schemas]))


def _merge(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Return all columns of all files; a column with types that cannot be combined becomes text."""
    found: dict[str, list[pa.Field]] = {}
    for field in itertools.chain.from_iterable(schemas):
        found.setdefault(field.name, []).append(field)
    merged = []
    for name, fields in found.items():
        try:
            merged.extend(pa.unify_schemas([pa.schema([field]) for field in fields], promote_options="permissive"))
        except pa.ArrowTypeError:
            merged.append(pa.field(name, pa.string()))
    return pa.schema(merged)


def _read(dataset: ds.FileSystemDataset, columns: list[str], condition: ds.Expression | None) -> pa.Table:
    """Read the rows of all files; if types cannot be combined, only the files with matching rows are read."""
    try:
        return dataset.to_table(columns=columns, filter=condition)
    except _NO_CAST:
        files = list(dataset.get_fragments())
        if condition is not None:
            files = [file for file in files if file.scanner(dataset.schema, filter=condition).count_rows()]
        own = _merge([file.physical_schema for file in files])
        schema = pa.schema([own.field(field.name) if field.name in own.names else field for field in dataset.schema])
        chosen = ds.FileSystemDataset(files, schema, dataset.format, dataset.filesystem)
        for name in columns:
            _check_column(chosen, name, condition)
        return chosen.to_table(columns=columns, filter=condition)


def _check_column(dataset: ds.FileSystemDataset, name: str, condition: ds.Expression | None) -> None:
    """Raise OutputError if the column cannot be read because files give it different types."""
    try:
        dataset.to_table(columns=[name], filter=condition)
    except _NO_CAST:
        schemas = [file.physical_schema for file in dataset.get_fragments()]
        types = sorted({str(schema.field(name).type) for schema in schemas if name in schema.names})
        if len(types) < 2:
            raise
        raise OutputError(
            f"column {name!r} is {' and '.join(types)} in different runs, which cannot be combined;"
            " give run_id= to read one run, or columns= without it"
        ) from None


def _check_columns(columns: Sequence[str] | None, schema: pa.Schema) -> list[str]:
    if columns is None:
        return list(schema.names)
    if unknown := [name for name in columns if name not in schema.names]:
        raise OptionError(f"no column {unknown[0]!r} in the predictions; there are: {', '.join(schema.names)}")
    return list(columns)


def _condition(run_id: str | None, date: str | None) -> ds.Expression | None:
    conditions = []
    if run_id is not None:
        conditions.append(pc.field("run_id") == run_id)
    if date is not None:
        conditions.append(pc.field("date").cast(pa.string()) == date)
    if not conditions:
        return None
    return conditions[0] if len(conditions) == 1 else conditions[0] & conditions[1]


def _newest(table: pa.Table) -> pa.Table:
    """Return the row of each image that was scored last.

    Members of an archive that have the same name are different images; their versions end differently (`#2`, `#3`).
    """
    if len(pc.unique(table.column("image_uri"))) == table.num_rows:
        return table
    which = pc.extract_regex(table.column("version"), r"(?P<which>#\d+)$")
    keys = {"image_uri": table.column("image_uri"), "which": pc.struct_field(which, "which")}
    order = pc.sort_indices(table, sort_keys=[("scored_at", "ascending")])
    numbered = pa.concat_tables(in_order(pa.table(keys), order)).append_column("row", order)
    last = numbered.group_by(list(keys), use_threads=False).aggregate([("row", "last")])
    return pa.concat_tables(in_order(table, last.column("row_last").combine_chunks()))
