"""The stages of a scoring run one after the other in this process: for tests that are about rows, not about Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import pytest

from crackbatch.cluster import Cluster
from crackbatch.images.decoders import Decoder
from crackbatch.models.model import Model, load_model
from crackbatch.results.parts import write_part
from crackbatch.results.run import Run
from crackbatch.scoring import score
from crackbatch.scoring.predictor import Predictor, Stamp
from crackbatch.scoring.request import Request
from crackbatch.sources.fetch import fetch
from crackbatch.sources.shards import read_shard


def run_stages(
    request: Request, run: Run, num_rows: int, num_shards: int, roots: list[str], cluster: Cluster
) -> Iterator[dict[str, Any]]:
    """What `run_pipeline` gives: fetch, predict and write each block of each shard; a part for each block."""
    model = _model(request.bundle.location, request.bundle.model_id)
    stamp = Stamp(run.run_id, request.bundle.model_id, request.threshold)
    predict = Predictor(model, stamp, Decoder(model.bundle.input_size, request.max_megapixels))
    for index in range(num_shards):
        for block in fetch(read_shard(run.plan_folder, index)):
            rows = predict(block)
            write_part(run, rows)
            statuses = Counter(rows.column("status").to_pylist())
            spent = dict.fromkeys(("fetch_seconds", "predict_seconds", "write_seconds"), 0.0)
            yield {"rows": rows.num_rows, "failed": rows.num_rows - statuses["ok"], "retries": 0, **spent}


@lru_cache(maxsize=2)
def _model(location: str, model_id: str) -> Model:
    return load_model(location)


@contextmanager
def in_this_process() -> Iterator[None]:
    """`score` runs the stages here while the block lasts, and starts no Ray."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score, "run_pipeline", run_stages)
        patch.setattr(Cluster, "start", lambda _: None)
        yield
