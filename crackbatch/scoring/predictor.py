"""From encoded images to rows of the results table: decoding and the network, on one device.

This is the whole computation of a scoring run. Ray's actors, runs without Ray, tests and benchmarks call it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crackbatch.decoding.decoder import MAX_ERROR
from crackbatch.decoding.decoders import Decoders
from crackbatch.models.model import Model
from crackbatch.results.table import COLUMNS
from crackbatch.sources.rows import CARRIED

_FROM_IMAGE = (
    "status", "error", "format", "width", "height", "captured_at", "latitude", "longitude", "camera", "sha256"
)  # fmt: skip


@dataclass(frozen=True)
class Stamp:
    """What a run writes beside each probability: the run, the model and the threshold."""

    run_id: str
    model_id: str
    threshold: float


class Predictor:
    """Scores tables of encoded images, as `fetch` returns them. Several threads may call it at once.

    `model` is called when the first images are decoded, so that loading it takes no extra time.
    """

    def __init__(self, model: Callable[[], Model], stamp: Stamp, decoders: Decoders) -> None:
        self._model = model
        self._stamp = stamp
        self._decoders = decoders

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return one result row for each row of the block, in the same order."""
        encoded = block.column("bytes")
        rows = np.flatnonzero(np.asarray(encoded.is_valid()))
        facts: dict[str, list[Any]] = {name: [] for name in _FROM_IMAGE}
        logits = [np.empty(0, np.float32)]
        for decoded in self._decoders.decode(_batches(encoded, rows, self._decoders.batch_size)):
            for name, column in facts.items():
                column.extend(decoded.facts[name])
            if len(decoded.pixels):
                logits.append(self._model().logits(decoded.pixels))
        found = np.concatenate(logits)
        _refuse_no_numbers(facts, found)
        known = pa.table({name: pa.array(facts[name], COLUMNS.field(name).type) for name in _FROM_IMAGE})
        known = known.append_column(
            "crack_logit", _spread(found[np.isfinite(found)], np.array(facts["status"]) == "ok")
        )
        return self._rows(block, known if len(rows) == block.num_rows else _with_others(block, known, rows))

    def _rows(self, block: pa.Table, known: pa.Table) -> pa.Table:
        """Return the rows of the results, from the block and what is known about each of its images."""
        num = block.num_rows
        logits = known.column("crack_logit").combine_chunks()
        probabilities = pa.array(
            self._model().probability(logits.fill_null(0).to_numpy(zero_copy_only=False)),
            mask=np.asarray(logits.is_null()),
        )
        threshold = pa.scalar(self._stamp.threshold, pa.float32())
        negative, positive = self._model().bundle.classes
        values = {
            **{name: known.column(name) for name in known.column_names},
            "error": pc.utf8_slice_codeunits(known.column("error"), 0, MAX_ERROR),
            "crack_probability": probabilities,
            "label": pc.if_else(pc.greater_equal(probabilities, threshold), positive, negative),
            "model_id": pa.repeat(self._stamp.model_id, num),
            "run_id": pa.repeat(self._stamp.run_id, num),
            "threshold": pa.repeat(threshold, num),
            "scored_at": pa.repeat(pa.scalar(datetime.now(UTC), COLUMNS.field("scored_at").type), num),
        }
        columns = [_column(field, block, values) for field in COLUMNS]
        carried = [field for field in block.schema if field.name.startswith(CARRIED)]
        columns += [block.column(field.name) for field in carried]
        schema = [*COLUMNS, *(field.with_name(field.name.removeprefix(CARRIED)) for field in carried)]
        return pa.Table.from_arrays(columns, schema=pa.schema(schema))


def _refuse_no_numbers(facts: dict[str, list[Any]], logits: np.ndarray) -> None:
    """Mark the images for which the network gives infinity or no number as failed: they have no probability."""
    if np.isfinite(logits).all():
        return
    scored = np.flatnonzero(np.array(facts["status"]) == "ok")
    for row in scored[~np.isfinite(logits)].tolist():
        facts["status"][row], facts["error"][row] = "failed", "the network gives no number for it"


def _batches(encoded: pa.ChunkedArray, rows: np.ndarray, size: int) -> Iterator[list[bytes]]:
    """Yield the bytes of the given rows in batches."""
    for start in range(0, len(rows), size):
        yield [encoded[int(row)].as_py() for row in rows[start : start + size]]


def _spread(logits: np.ndarray, is_ok: np.ndarray) -> pa.Array:
    """Return a column with the logits at the images that are `ok`, in their order, and null at the others."""
    spread = np.zeros(len(is_ok), np.float32)
    spread[is_ok] = logits
    return pa.array(spread, mask=~is_ok)


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
