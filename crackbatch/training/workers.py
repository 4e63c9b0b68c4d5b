"""Epochs on Ray Train. Each worker has its own, fixed part of the images; its decoder processes decode them.

Only the seed and the number of workers decide which worker trains on which image, so that two runs give the same
weights. Checkpoints are crackbatch's (`training/checkpoints.py`), so a run continues even if Ray's own state is lost.
"""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from crackbatch import cluster
from crackbatch.capacity import Capacity
from crackbatch.cluster import IO_CPUS, Cluster, Seen, cause_of, on_all_nodes
from crackbatch.datasets.pixels import Marks, Pixels, held_or_streamed, marks_of, stream_pixels
from crackbatch.errors import RunError
from crackbatch.machine import num_cores
from crackbatch.progress import counted, say
from crackbatch.sources.shards import Shard, read_shard, write_shards
from crackbatch.storage import atomic, locations, objects
from crackbatch.storage.documents import read_json, write_json
from crackbatch.training.batches import make_batches, stored_size
from crackbatch.training.checkpoints import Checkpoints
from crackbatch.training.initial import initial_network
from crackbatch.training.learner import Figures, Fit, Learner, fit
from crackbatch.training.recipe import Recipe
from crackbatch.training.sampling import deal

_POLL_S = 1.0
# The workers wait for the first one while it validates, which may take longer than torch's default of half an hour. Ray
# notices a worker that died.
_WAIT_S = 24 * 3600


@dataclass(frozen=True)
class Part:
    """The images of one worker, or the validation images, before decoding."""

    folder: str
    shards: list[Shard]
    marks: Marks


@dataclass(frozen=True)
class Job:
    """Everything that a worker of Ray Train needs to know. `device` is where its network runs, "cpu" or "cuda"."""

    recipe: Recipe
    folder: str
    train: list[Part]
    validation: Part
    device: str
    seen: Seen


def fit_on_ray(
    recipe: Recipe,
    folder: str,
    train: pa.Table,
    validation: pa.Table,
    roots: Sequence[str],
    workers: int,
    max_failures: int,
    address: str | None,
    capacity: Capacity,
    on_epoch: Callable[[Figures], None],
) -> None:
    """Train all epochs that the checkpoints below `folder` do not hold yet; raises RunError if the training fails.

    `roots` are the local folders that hold the images.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    with Cluster(address) as ours:
        ours.start()
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        with capacity.asked_of(ours, workers + 1, {"GPU": workers, "CPU": workers + IO_CPUS}):
            nodes = capacity.usable(ours.node_resources())
            on_gpus = has_gpus(nodes, workers)
            say(describe_device(on_gpus, workers, nodes))
            data = locations.join(folder, "data")
            objects.remove(data)
            parts = [
                _write_part(part, locations.join(data, f"train-{rank}"))
                for rank, part in enumerate(deal(train, workers, recipe.seed))
            ]
            held_out = _write_part(validation, locations.join(data, "validation"))
            device = cluster.GPU_DEVICE if on_gpus else "cpu"
            job = Job(recipe, folder, parts, held_out, device, Seen.from_here(roots))
            trainer = TorchTrainer(
                _work,
                train_loop_config={"job": job},
                torch_config=TorchConfig(backend="nccl" if device == "cuda" else "gloo", timeout_s=_WAIT_S),
                scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=on_gpus),
                run_config=_run_config(folder, max_failures),
            )
            with _Watch(folder, on_epoch):
                try:
                    trainer.fit()
                except Exception as error:  # Ray Train wraps a worker's error in its own types
                    _raise_failure(folder)
                    raise RunError(
                        f"the training stopped ({cause_of(error)}); run the same command to continue"
                    ) from None
    _raise_failure(folder)


def _raise_failure(folder: str) -> None:
    if (failure := read_json(_failure_file(folder))) is not None:
        raise RunError(failure["error"])


def has_gpus(nodes: Sequence[dict[str, float]], workers: int) -> bool:
    """Return whether nodes have a GPU for each worker; raises RunError if there are not enough CPUs either."""
    there = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
    if there["GPU"] >= workers:
        return True
    if there["CPU"] < workers + IO_CPUS:
        raise RunError(
            f"--workers {workers} needs a CPU for each worker and part of one for reading, but there are"
            f" {there['CPU']:g} CPUs; give fewer --workers, or 0 to train in this process"
        )
    return False


def describe_device(on_gpus: bool, workers: int, nodes: Sequence[dict[str, float]]) -> str:
    """Return what the workers train on, and why not on the GPUs, given the nodes' resources."""
    said = f"training on Ray Train with {counted(workers, 'GPU worker' if on_gpus else 'CPU worker')}"
    num_gpus = sum(node.get("GPU", 0) for node in nodes)
    if on_gpus or not num_gpus:
        return said
    return f"{said}: {workers} workers need a GPU each, the cluster has {num_gpus:g}; give fewer --workers to use GPUs"


def _write_part(rows: pa.Table, folder: str) -> Part:
    return Part(folder, write_shards(rows, folder), marks_of(rows))


def _run_config(folder: str, max_failures: int) -> Any:
    import ray.train

    filesystem, path = objects.arrow_filesystem(locations.join(folder, "ray"))
    return ray.train.RunConfig(
        name=uuid.uuid4().hex,  # Ray takes a name that was used before as finished, and trains nothing
        storage_path=path,
        storage_filesystem=filesystem,
        failure_config=ray.train.FailureConfig(max_failures=max_failures),
    )


def _work(config: dict[str, Any]) -> None:
    """The work of each worker. An error that would happen again (a loss that is not finite) is written, not retried."""
    job: Job = config["job"]
    if objects.exists(_failure_file(job.folder)):  # of the workers before, which Ray has started again
        return
    try:
        _train(job)
    except RunError as error:
        write_json(_failure_file(job.folder), {"error": str(error)})
        if len(job.train) > 1:  # the others may wait for this worker; Ray ends them all
            raise


def _train(job: Job) -> None:
    """Load the worker's part of the images into memory if it fits, then train epoch after epoch."""
    import ray.train
    import ray.train.torch
    import torch

    job.seen.check()
    recipe = job.recipe
    rank, neighbours = ray.train.get_context().get_world_rank(), ray.train.get_context().get_local_world_size()
    cores = max(1, num_cores() // neighbours)
    if job.device == "cpu":  # Ray gives a worker one thread, which would leave most of the machine idle
        torch.set_num_threads(cores)
    workers = len(job.train)
    device = str(ray.train.torch.get_device()) if job.device == "cuda" else job.device
    stream = partial(_stream, job.train[rank], stored_size(recipe), cores)
    batches = make_batches(recipe, [part.marks for part in job.train], rank, neighbours, stream, device)
    network, head, _ = initial_network(recipe.network, recipe.init, recipe.image_size, recipe.seed)
    wrap = ray.train.torch.prepare_model if workers > 1 else None
    learner = Learner(network, head, recipe, batches.num_steps, device, wrap)
    validation = None
    if rank == 0:
        read = partial(_stream, job.validation, recipe.image_size, cores)
        validation = held_or_streamed(read, job.validation.marks, recipe.image_size, neighbours)

    def report(figures: Figures) -> None:
        if rank == 0:
            atomic.write_whole(_progress_file(job.folder, int(figures["epoch"])), json.dumps(figures).encode())
        ray.train.report(figures)

    fit(Fit(learner, batches, validation, Checkpoints(job.folder), recipe.epochs, workers), report)


def _stream(part: Part, size: int, num_processes: int) -> Iterator[Pixels]:
    """Yield the decoded images of a part, always in the same order: the draw from a stream depends on it."""
    with on_all_nodes("--out", part.folder):
        rows = pa.concat_tables(map(read_shard, part.shards))
    yield from stream_pixels(rows, size, num_processes)


class _Watch:
    """Reports epochs as their figures appear in files, since the output of the workers stays on their machines."""

    def __init__(self, folder: str, on_epoch: Callable[[Figures], None]) -> None:
        self._folder, self._on_epoch = folder, on_epoch
        self._epoch = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="watch epochs", daemon=True)

    def __enter__(self) -> None:
        for file in objects.list_files(self._folder, ".json"):
            if "/progress-" in file or file == _failure_file(self._folder):
                objects.remove(file)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._tell()

    def _poll(self) -> None:
        while not self._stop.wait(_POLL_S):
            with suppress(Exception):  # each storage raises its own types; the next poll, or the end, tries again
                self._tell()

    def _tell(self) -> None:
        files = [file for file in objects.list_files(self._folder, ".json") if "/progress-" in file]
        for file in files:
            figures = json.loads(objects.read_bytes(file))
            if figures["epoch"] > self._epoch:
                self._epoch = figures["epoch"]
                self._on_epoch(figures)


def _failure_file(folder: str) -> str:
    return locations.join(folder, "failure.json")


def _progress_file(folder: str, epoch: int) -> str:
    return locations.join(folder, f"progress-{epoch:04d}.json")
