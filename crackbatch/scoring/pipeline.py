"""The three stages of a scoring run on Ray Data: fetch → predict → parts.

Fetching and writing are tasks that need little of a CPU. Predicting is done by one actor per device
(`scoring/layout.py`). Every row carries its image's identity, so nothing depends on the order or the size of blocks.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Generator, Iterator
from typing import Any

import pyarrow as pa

from crackbatch.capacity import Capacity
from crackbatch.cluster import Cluster, Seen, cause_of, data_context, gpus_of_this_node, on_all_nodes
from crackbatch.decoding.decoders import Decoders
from crackbatch.errors import BundleError, CrackbatchError, RunError
from crackbatch.machine import num_cores
from crackbatch.models.model import CPU_BATCH_SIZE, CUDA_BATCH_SIZE, Model, load_model, photo_threads
from crackbatch.progress import say
from crackbatch.results.parts import count_part, read_done, rows_per_part, write_part
from crackbatch.results.run import Run
from crackbatch.scoring.layout import Devices, lay_out, read_ahead, rows_per_call
from crackbatch.scoring.predictor import Predictor, Stamp, Views
from crackbatch.scoring.request import Request
from crackbatch.sources.fetch import fetch
from crackbatch.sources.plan import local_roots, subtract
from crackbatch.sources.shards import Shard, read_shard, write_shards
from crackbatch.storage import objects
from crackbatch.storage.retry import num_retries

# What a cluster that grows by itself is asked for: a CPU scores that many images in five minutes.
_IMAGES_PER_CPU = 10_000
# A cluster that grows is looked at this often, and the stages are laid out anew if it has grown by this factor.
_SETTLE_S = 120.0
_MUCH = 1.25
# What the stages tell of each block, in columns of their own.
_SPENT = ("fetch_seconds", "fetch_retries", "predict_seconds", "decoder_deaths")


def score_on_ray(request: Request, run: Run, todo: pa.Table, cluster: Cluster) -> Generator[dict[str, Any]]:
    """Score the planned rows and give one dictionary of counts for each part, as it is written.

    If the cluster grows much, the stages are laid out anew for the remaining rows. Raises RunError if a stage fails.
    """
    from ray.data.exceptions import SystemException
    from ray.exceptions import RayError

    seen = Seen.from_here(local_roots(todo, request.sources))
    capacity = request.capacity
    with capacity.asked_of(cluster, todo.num_rows // _IMAGES_PER_CPU):
        while todo.num_rows:
            devices = lay_out(capacity.usable(cluster.node_resources()))
            growth = _Growth(cluster, capacity, devices)
            with data_context(read_ahead(devices)):
                dataset = _dataset(request, run, todo, devices, seen)
            try:
                for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                    yield from pa.table(batch).to_pylist()
                    if growth.is_large():
                        break
                else:
                    return
            except (RayError, SystemException) as error:
                raise RunError(f"the run stopped ({cause_of(error)}); run the same command to continue") from error
            todo = subtract(todo, read_done(run)[1])


class _Growth:
    """Whether a cluster has grown so much that the stages should be laid out anew.

    That costs what the actors are just scoring, so it is done seldom.
    """

    def __init__(self, cluster: Cluster, capacity: Capacity, devices: Devices) -> None:
        self._cluster, self._capacity, self._size = cluster, capacity, devices.size
        self._looked = time.monotonic()

    def is_large(self) -> bool:
        if time.monotonic() - self._looked < _SETTLE_S:
            return False
        self._looked = time.monotonic()
        now = lay_out(self._capacity.usable(self._cluster.node_resources()))
        if now.size < _MUCH * self._size:
            return False
        say(f"the cluster has grown: going on with {now.num_actors} actors for {now.size} batches at a time")
        return True


def _dataset(request: Request, run: Run, todo: pa.Table, devices: Devices, seen: Seen) -> Any:
    """The three stages over these rows; nothing runs before the result is read."""
    import ray.data
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    objects.remove(run.plan_folder)
    shards, rows = write_shards(todo, run.plan_folder), rows_per_part(todo.num_rows)
    # Items, because each task of a reader would request a whole CPU, which is not free; and not Arrow tables,
    # because Ray asks a worker for their sizes and waits seconds for it to start.
    return (
        ray.data.from_items([shard._asdict() for shard in shards], override_num_blocks=len(shards))
        .map_batches(
            _fetch_shards,  # type: ignore[arg-type]  # Ray's stubs lack fn_kwargs
            batch_size=None,
            batch_format="pyarrow",
            fn_kwargs={"seen": seen, "redirects": not request.only_below},
            compute=TaskPoolStrategy(size=min(devices.num_readers, len(shards))),
            num_cpus=devices.reader_cpus,
        )
        .map_batches(
            _Scorer,
            # On a GPU, Ray demands a number of rows.
            batch_size=rows_per_call(todo, request.batch_size, CUDA_BATCH_SIZE if devices.num_gpus else 0),
            batch_format="pyarrow",
            fn_constructor_kwargs={
                "location": request.bundle.location,
                "size": request.bundle.input_size,
                "stamp": Stamp(run.run_id, request.bundle.model_id, request.threshold, request.photo_threshold),
                "max_megapixels": request.max_megapixels,
                "decode_timeout_s": request.decode_timeout,
                "batch_size": request.batch_size,
                "views": request.views,
                "full_exif": request.exif == "full",
                "devices": devices,
            },
            compute=ActorPoolStrategy(
                size=devices.num_actors,
                max_concurrent_calls_per_actor=devices.calls,
                max_tasks_in_flight_per_actor=2 * devices.calls,
                enable_true_multi_threading=True,
            ),
            num_cpus=devices.num_cpus,
            num_gpus=devices.num_gpus,
        )
        .map_batches(
            _write_parts,  # type: ignore[arg-type]
            batch_size=rows,
            batch_format="pyarrow",
            fn_kwargs={"run": run},
            compute=TaskPoolStrategy(size=min(devices.num_readers, -(-todo.num_rows // rows))),
            # Zero: a task that reads keeps its share of a CPU while it waits for the later stages. If they waited
            # for that share (of this run or another), nothing would move.
            num_cpus=0,
        )
    )


def _fetch_shards(batch: pa.Table, seen: Seen, redirects: bool) -> Iterator[pa.Table]:
    seen.check()
    objects.follow_redirects(redirects)
    for place in batch.to_pylist():
        started, retries = time.perf_counter(), num_retries()
        shard = Shard(**place)
        with on_all_nodes("--out", shard.folder):
            rows = read_shard(shard)
        for block in fetch(rows):
            spent = {"_fetch_retries": num_retries() - retries, "_fetch_seconds": time.perf_counter() - started}
            yield _shared(block, spent)
            started, retries = time.perf_counter(), num_retries()


def _shared(block: pa.Table, amounts: dict[str, float]) -> pa.Table:
    """The block with columns that spread the amounts evenly over its rows, since Ray splits and joins blocks."""
    for name, amount in amounts.items():
        share = amount / max(block.num_rows, 1)
        block = block.append_column(name, pa.array([share] * block.num_rows, pa.float64()))
    return block


class _Scorer:
    """The predict actor: one bundle on one device. Several threads call it at once."""

    def __init__(
        self,
        location: str,
        size: int,
        stamp: Stamp,
        max_megapixels: float,
        decode_timeout_s: float,
        batch_size: int | None,
        views: Views | None,
        full_exif: bool,
        devices: Devices,
    ) -> None:
        # Before torch is imported, which takes as long as the decoders need to start.
        decoders = Decoders(
            size,
            max_megapixels=max_megapixels,
            timeout_s=decode_timeout_s,
            num_processes=devices.num_decoders or max(1, num_cores() // gpus_of_this_node()),
            batch_size=batch_size or (CUDA_BATCH_SIZE if devices.device == "cuda" else CPU_BATCH_SIZE),
            num_batches=2 * devices.calls,
            photo_side=views.side if views else None,
        )
        import torch

        torch.set_num_threads(1)
        self._decoders = decoders
        self._refused: CrackbatchError | None = None
        try:
            model = _load_model(location, stamp.model_id, devices.device)
            num_threads = photo_threads(devices.device, devices.calls)
            self._predict = Predictor(lambda: model, stamp, decoders, views, num_threads, full_exif)
        except CrackbatchError as error:  # raised here, it would come again from each actor that Ray tries to start
            self._refused = error

    def __call__(self, block: pa.Table) -> pa.Table:
        if self._refused is not None:
            raise self._refused
        started = time.perf_counter()
        rows = self._predict(block)
        for name in ("_fetch_seconds", "_fetch_retries"):
            rows = rows.append_column(name, block.column(name))
        spent = {"_predict_seconds": time.perf_counter() - started, "_decoder_deaths": self._decoders.take_deaths()}
        return _shared(rows, spent)


def _load_model(location: str, model_id: str, device: str) -> Model:
    try:
        model = load_model(location, device)
    except BundleError as error:  # the driver could read it
        raise BundleError(f"on node {socket.gethostname()}: {error}") from None
    if model.bundle.model_id != model_id:
        raise BundleError(
            f"model {location} is {model.bundle.model_id} on node {socket.gethostname()}, expected {model_id};"
            " put the same bundle on every node"
        )
    return model


def _write_parts(rows: pa.Table, run: Run) -> pa.Table:
    started, retries = time.perf_counter(), num_retries()
    spent = {name: math.fsum(rows.column(f"_{name}").to_pylist()) for name in _SPENT}
    finished = rows.drop_columns([f"_{name}" for name in _SPENT])
    write_part(run, finished)
    counts = {
        **count_part(finished),
        "fetch_seconds": spent["fetch_seconds"],
        "predict_seconds": spent["predict_seconds"],
        "write_seconds": time.perf_counter() - started,
        "retries": spent["fetch_retries"] + num_retries() - retries,
        "decoder_deaths": spent["decoder_deaths"],
    }
    return pa.Table.from_pylist([counts])
