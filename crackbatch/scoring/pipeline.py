"""The three stages of a scoring run on Ray Data: fetch → predict → parts.

Fetching and writing are tasks that need little of a CPU. Predicting is done by one actor per device
(`scoring/layout.py`). Every row carries its image's identity, so nothing depends on the order or the size of blocks.
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from crackbatch.cluster import IO_CPUS, Cluster, cause_of, data_context
from crackbatch.errors import BundleError, RunError
from crackbatch.images.decoders import Decoded, Decoder, IsolatedDecoder, too_slow
from crackbatch.images.picture import Picture
from crackbatch.models.bundle import read_bundle_and_weights
from crackbatch.results.parts import write_part
from crackbatch.results.run import Run
from crackbatch.scoring.crashes import Attempts, Past, Watch
from crackbatch.scoring.layout import lay_out, read_ahead
from crackbatch.scoring.predictor import Predictor, Stamp
from crackbatch.scoring.request import Request
from crackbatch.sources.fetch import fetch
from crackbatch.sources.shards import read_shard
from crackbatch.storage.redaction import redact
from crackbatch.storage.retry import num_retries


def run_pipeline(
    request: Request, run: Run, num_rows: int, num_shards: int, roots: list[str], cluster: Cluster
) -> Iterator[dict[str, Any]]:
    """Run the stages and give one dictionary of counts for each part, as it is written.

    `roots` are the local folders that the run reads. Raises RunError if a stage fails.
    """
    import ray
    from ray.data import ActorPoolStrategy, TaskPoolStrategy
    from ray.data.exceptions import SystemException
    from ray.exceptions import RayError

    devices = lay_out(cluster.node_resources())
    seen = _Seen(_node(), roots)
    stamp = Stamp(run.run_id, request.bundle.model_id, request.threshold)
    with data_context(read_ahead(devices)):
        # Items, because each task of a reader would request a whole CPU, which is not free; and not Arrow tables,
        # because Ray asks a worker for their sizes and waits seconds for it to start.
        dataset = (
            ray.data.from_items([{"shard": index} for index in range(num_shards)], override_num_blocks=num_shards)
            .map_batches(
                _fetch_shards,  # type: ignore[arg-type]  # Ray's stubs lack fn_kwargs
                batch_size=None,
                batch_format="pyarrow",
                fn_kwargs={"folder": run.plan_folder, "seen": seen},
                compute=TaskPoolStrategy(size=devices.num_readers),
                num_cpus=IO_CPUS,
            )
            .map_batches(
                _Scorer,
                batch_size=None,
                batch_format="pyarrow",
                fn_constructor_kwargs={
                    "location": request.bundle.location,
                    "stamp": stamp,
                    "max_megapixels": request.max_megapixels,
                    "decode_timeout_s": request.decode_timeout,
                    "attempts": run.attempts_folder,
                    "batch_size": request.batch_size,
                    "device": devices.kind,
                    "threads": devices.threads,
                },
                compute=ActorPoolStrategy(
                    size=devices.num_actors,
                    max_concurrent_calls_per_actor=devices.calls,
                    max_tasks_in_flight_per_actor=2 * devices.calls,
                    enable_true_multi_threading=True,
                ),
                num_cpus=devices.num_cpus,
                num_gpus=1 if devices.kind == "cuda" else 0,
            )
            .map_batches(
                _write_parts,  # type: ignore[arg-type]
                batch_size=max(256, min(8192, num_rows // 256)),
                batch_format="pyarrow",
                fn_kwargs={"run": run},
                compute=TaskPoolStrategy(size=devices.num_readers),
                # Zero: a task that reads keeps its share of a CPU while it waits for the later stages. If they waited
                # for that share (of this run or another), nothing would move.
                num_cpus=0,
            )
        )
    try:
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from pa.table(batch).to_pylist()
    except (RayError, SystemException) as error:
        raise RunError(f"the run stopped ({cause_of(error)}); run the same command to continue") from error


@dataclass(frozen=True)
class _Seen:
    """The local folders that the driver reads, and its node; all other nodes must see the folders too."""

    node: str
    roots: list[str]

    def check(self) -> None:
        """Raise RunError on a node that lacks a source; else all of the source's images would be reported missing."""
        if _node() == self.node:
            return
        for root in self.roots:
            if not os.path.lexists(root):
                raise _not_seen(redact(root), "give sources as URLs or as paths that all nodes share")


def _not_seen(what: str, mend: str) -> RunError:
    return RunError(f"node {socket.gethostname()} cannot find {what}; {mend}")


def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def _read_shard(folder: str, index: int, seen: _Seen) -> pa.Table:
    seen.check()
    try:
        return read_shard(folder, index)
    except FileNotFoundError:
        mend = "give --out as a URL or a path that all nodes share"
        raise _not_seen(f"the run's folder {redact(folder)}", mend) from None


def _fetch_shards(batch: pa.Table, folder: str, seen: _Seen) -> Iterator[pa.Table]:
    for index in batch.column("shard").to_pylist():
        started, retries = time.perf_counter(), num_retries()
        for block in fetch(_read_shard(folder, index, seen)):
            block = _shared(block, "_fetch_retries", num_retries() - retries)
            yield _shared(block, "_fetch_seconds", time.perf_counter() - started)
            started, retries = time.perf_counter(), num_retries()


def _shared(block: pa.Table, name: str, amount: float) -> pa.Table:
    """The block with a column that spreads the amount evenly over its rows, since Ray splits and joins blocks."""
    share = amount / max(block.num_rows, 1)
    return block.append_column(name, pa.array([share] * block.num_rows, pa.float64()))


class _Scorer:
    """The predict actor: one bundle on one device. Several threads call it at once."""

    def __init__(
        self,
        location: str,
        stamp: Stamp,
        max_megapixels: float,
        decode_timeout_s: float,
        attempts: str,
        batch_size: int | None,
        device: str,
        threads: int,
    ) -> None:
        import torch

        from crackbatch.models.model import Model

        torch.set_num_threads(1)
        try:
            bundle, weights = read_bundle_and_weights(location)
        except BundleError as error:  # the driver could read it
            raise BundleError(f"on node {socket.gethostname()}: {error}") from None
        if bundle.model_id != stamp.model_id:
            raise BundleError(
                f"model {location} is {bundle.model_id} on node {socket.gethostname()}, expected {stamp.model_id};"
                " put the same bundle on every node"
            )
        model = Model(bundle, weights, device)
        model.batch_size = batch_size or model.batch_size
        self._decoder = Decoder(bundle.input_size, max_megapixels)
        self._decode_timeout_s = decode_timeout_s
        decode_threads = threads if device == "cuda" else 1
        self._predict = Predictor(model, stamp, self._decoder, decode_threads)
        self._attempts = Attempts(attempts)
        self._watch = Watch(self._attempts, decode_timeout_s)

    def __call__(self, block: pa.Table) -> pa.Table:
        started = time.perf_counter()
        with self._attempts.attempt(block) as (name, past):
            rows = self._score_suspicious(block, name, past) if past.is_suspicious else self._score(block, name, past)
        for name in ("_fetch_seconds", "_fetch_retries"):
            rows = rows.append_column(name, block.column(name))
        return _shared(rows, "_predict_seconds", time.perf_counter() - started)

    def _score(self, block: pa.Table, name: str, past: Past) -> pa.Table:
        def decode(row: int, data: bytes) -> Decoded:
            if row in past.slow:
                return Picture("failed", too_slow(self._decode_timeout_s)), None
            with self._watch.decoding(name, row):
                return self._decoder(data)

        return self._predict(block, decode)

    def _score_suspicious(self, block: pa.Table, name: str, past: Past) -> pa.Table:
        """Decode each image in its own process: an image that crashes its decoder does not crash this process."""
        with IsolatedDecoder(self._decoder, self._decode_timeout_s) as isolated:

            def decode(row: int, data: bytes) -> Decoded:
                if row in past.killers:
                    return Picture("crashed", "decoding it crashed the worker even when isolated"), None
                with self._attempts.alone(name, row):
                    return isolated(data)

            return self._predict(block, decode)


def _write_parts(rows: pa.Table, run: Run) -> pa.Table:
    started, retries = time.perf_counter(), num_retries()
    finished = rows.drop_columns(["_fetch_seconds", "_fetch_retries", "_predict_seconds"])
    write_part(run, finished)
    counts = Counter(finished.column("status").to_pylist())
    return pa.table(
        {
            "rows": [finished.num_rows],
            "failed": [finished.num_rows - counts["ok"]],
            "fetch_seconds": [sum(rows.column("_fetch_seconds").to_pylist())],
            "predict_seconds": [sum(rows.column("_predict_seconds").to_pylist())],
            "write_seconds": [time.perf_counter() - started],
            "retries": [sum(rows.column("_fetch_retries").to_pylist()) + num_retries() - retries],
        }
    )
