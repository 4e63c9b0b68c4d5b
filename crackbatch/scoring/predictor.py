"""From encoded images to rows of the results table: decoding and the network, on one device.

This is the whole computation of a scoring run, without Ray. Actors, tests and benchmarks call it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from crackbatch.images.decoders import Decoded, Decoder
from crackbatch.images.picture import Picture
from crackbatch.models.model import Model
from crackbatch.results.table import COLUMNS
from crackbatch.sources.rows import CARRIED

# (row, encoded bytes) → picture and network input.
Decode = Callable[[int, bytes], Decoded]

_FROM_PICTURE = ("format", "width", "height", "captured_at", "latitude", "longitude", "camera")


@dataclass(frozen=True)
class Stamp:
    """What a run writes beside each probability: the run, the model and the threshold."""

    run_id: str
    model_id: str
    threshold: float


class Predictor:
    """Scores tables of encoded images, as `fetch` returns them. Several threads may call it at once.

    With one decode thread (on CPUs), each calling thread decodes and scores its own small batches. With more (on
    CUDA), `decode_threads` threads decode the images of a batch.
    """

    def __init__(self, model: Model, stamp: Stamp, decoder: Decoder, decode_threads: int = 1) -> None:
        self._model = model
        self._stamp = stamp
        self._decoder = decoder
        self._map: Callable[..., Any] = map
        if decode_threads > 1:
            self._map = ThreadPoolExecutor(decode_threads, thread_name_prefix="decode").map

    def __call__(self, block: pa.Table, decode: Decode | None = None) -> pa.Table:
        """One result row for each row of the block, in the same order. `decode(row, bytes)` replaces the decoder."""
        decode = decode or (lambda _, data: self._decoder(data))

        def picture(row: int) -> Decoded:
            image = data[row]
            return (Picture(statuses[row] or "failed"), None) if image is None else decode(row, image)

        data = block.column("bytes").to_pylist()
        statuses = block.column("status").to_pylist()
        pictures: list[Picture] = []
        logits: list[float | None] = []
        for start in range(0, len(data), self._model.batch_size):
            batch = list(self._map(picture, range(start, min(start + self._model.batch_size, len(data)))))
            pictures.extend(picture for picture, _ in batch)
            logits.extend(self._score([pixels for _, pixels in batch]))
        return self._rows(block, data, pictures, logits)

    def _score(self, pixels: list[np.ndarray | None]) -> list[float | None]:
        """One logit per image, None for an image without pixels."""
        there = [image for image in pixels if image is not None]
        found = iter(self._model.logits(np.stack(there)) if there else ())
        return [None if image is None else float(next(found)) for image in pixels]

    def _rows(
        self, block: pa.Table, data: list[bytes | None], pictures: list[Picture], logits: list[float | None]
    ) -> pa.Table:
        num = block.num_rows
        probabilities = [
            None if logit is None else float(self._model.probability(np.array([logit]))[0]) for logit in logits
        ]
        threshold = np.float32(self._stamp.threshold)
        negative, positive = self._model.bundle.classes
        errors = block.column("error").to_pylist()
        values: dict[str, list[Any]] = {
            name: [getattr(picture, name) for picture in pictures] for name in _FROM_PICTURE
        }
        values["status"] = [picture.status for picture in pictures]
        values["error"] = [picture.error or error for picture, error in zip(pictures, errors, strict=True)]
        values["crack_logit"] = logits
        values["crack_probability"] = probabilities
        values["label"] = [
            None if value is None else positive if value >= threshold else negative for value in probabilities
        ]
        values["sha256"] = [None if item is None else hashlib.sha256(item).hexdigest() for item in data]
        values["model_id"] = [self._stamp.model_id] * num
        values["run_id"] = [self._stamp.run_id] * num
        values["threshold"] = [float(threshold)] * num
        values["scored_at"] = [datetime.now(UTC)] * num
        columns = [self._column(field, block, values, num) for field in COLUMNS]
        schema = list(COLUMNS)
        for field in block.schema:
            if field.name.startswith(CARRIED):
                columns.append(block.column(field.name))
                schema.append(field.with_name(field.name.removeprefix(CARRIED)))
        return pa.Table.from_arrays(columns, schema=pa.schema(schema))

    @staticmethod
    def _column(field: pa.Field, block: pa.Table, values: dict[str, list[Any]], num: int) -> pa.Array:
        if field.name in values:
            return pa.array(values[field.name], field.type)
        if field.name in block.column_names:
            return block.column(field.name)
        return pa.nulls(num, field.type)
