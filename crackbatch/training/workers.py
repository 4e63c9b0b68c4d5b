"""Epochs on Ray Train. Ray Data reads and decodes the images, and each worker has its own, fixed part of them.

Only the seed and the number of workers decide which worker trains on which image, so that two runs give the same
weights. Checkpoints are crackbatch's (`training/checkpoints.py`), so a run continues even if Ray's own state is lost.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from crackbatch.cluster import IO_CPUS, Cluster, cause_of, data_context
from crackbatch.datasets.pixels import Marks, Pixels, held_or_streamed, marks_of, stream_pixels
from crackbatch.errors import RunError
from crackbatch.sources.shards import read_shard, write_shards
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

    shards: str
    num_shards: int
    marks: Marks


@dataclass(frozen=True)
class Job:
    """Everything that a worker of Ray Train needs to know."""

    recipe: Recipe
    folder: str
    train: list[Part]
    validation: Part
    device: str


def fit_on_ray(
    recipe: Recipe,
    folder: str,
    train: pa.Table,
    validation: pa.Table,
    workers: int,
    max_failures: int,
    address: str | None,
    on_epoch: Callable[[Figures], None],
    say: Callable[[str], None],
) -> None:
    """Train all epochs that the checkpoints below `folder` do not hold yet; raises RunError if the training fails."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    with Cluster(address) as cluster:
        cluster.start()
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        device = cluster.train_device(workers)
        say(describe_device(device, workers, cluster.node_resources()))
        data = locations.join(folder, "data")
        objects.remove(data)
        parts = [
            _write_part(part, locations.join(data, f"train-{rank}"))
            for rank, part in enumerate(deal(train, workers, recipe.seed))
        ]
        job = Job(recipe, folder, parts, _write_part(validation, locations.join(data, "validation")), device)
        trainer = TorchTrainer(
            _work,
            train_loop_config={"job": job},
            torch_config=TorchConfig(timeout_s=_WAIT_S),
            scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=device == "cuda"),
            run_config=_run_config(folder, max_failures),
            datasets=_datasets(job),
            dataset_config=_data_config(),
        )
        with _Watch(folder, on_epoch):
            try:
                trainer.fit()
            except Exception as error:  # Ray Train wraps a worker's error in its own types
                raise RunError(f"the training stopped ({cause_of(error)}); run the same command to continue") from None
    if (failure := read_json(_failure_file(folder))) is not None:
        raise RunError(failure["error"])


def describe_device(device: str, workers: int, nodes: Sequence[dict[str, float]]) -> str:
    """One line on what the workers train on, and why not on the GPUs; `nodes` are the resources of the nodes."""
    kind = "GPU" if device == "cuda" else "CPU"
    said = f"training on Ray Train with {workers} {kind} worker{'s' if workers > 1 else ''}"
    gpus = sum(node.get("GPU", 0) for node in nodes)
    if kind == "GPU" or not gpus:
        return said
    return f"{said}: {workers} workers need a GPU each, the cluster has {gpus:g}; give fewer --workers to use GPUs"


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


def _datasets(job: Job) -> dict[str, Any]:
    """One dataset of decoded images for each worker, and one for validation."""
    named = {_train_name(rank): (part, stored_size(job.recipe)) for rank, part in enumerate(job.train)}
    named["validation"] = (job.validation, job.recipe.image_size)
    return {name: _dataset(part, size) for name, (part, size) in named.items()}


def _data_config() -> Any:
    """Settings so that each worker reads its own dataset in a fixed order: the draw from a stream depends on it."""
    import ray.train

    options = ray.train.DataConfig.default_ingest_options()
    options.preserve_order = True
    return ray.train.DataConfig(datasets_to_split=[], execution_options=options)


def _dataset(part: Part, size: int) -> Any:
    import ray.data

    with data_context():
        return ray.data.from_items(
            [{"shard": index} for index in range(part.num_shards)], override_num_blocks=part.num_shards
        ).map_batches(
            _decode_shards,  # type: ignore[arg-type]  # Ray's stubs lack fn_kwargs
            batch_size=None,
            fn_kwargs={"folder": part.shards, "size": size},
            num_cpus=IO_CPUS,
        )


def _decode_shards(batch: dict[str, np.ndarray], folder: str, size: int) -> Iterator[dict[str, np.ndarray]]:
    for index in batch["shard"].tolist():
        for block in stream_pixels(read_shard(folder, index), size):
            yield {
                "image": block.images,
                "label": block.labels,
                "number": block.numbers,
                "source": block.sources.astype(str),
            }


def _work(config: dict[str, Any]) -> None:
    """The work of each worker. An error that would happen again (a loss that is not finite) is written, not retried."""
    import ray.train

    job: Job = config["job"]
    try:
        _train(job)
    except RunError as error:
        if ray.train.get_context().get_world_rank() == 0:
            write_json(_failure_file(job.folder), {"error": str(error)})


def _train(job: Job) -> None:
    """Load the worker's part of the images into memory if it fits, then train epoch after epoch."""
    import ray.train
    import ray.train.torch
    import torch

    recipe = job.recipe
    rank, neighbours = ray.train.get_context().get_world_rank(), ray.train.get_context().get_local_world_size()
    if job.device == "cpu":  # Ray gives a worker one thread, which would leave most of the machine idle
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // neighbours))
    workers = len(job.train)
    marks, stream = [part.marks for part in job.train], partial(_stream, _train_name(rank))
    batches = make_batches(recipe, marks, rank, neighbours, stream)
    network, head, _ = initial_network(recipe.network, recipe.init, recipe.image_size, recipe.seed)
    wrap = ray.train.torch.prepare_model if workers > 1 else None
    learner = Learner(network, head, recipe, batches.num_steps, job.device, wrap)
    validation = None
    if rank == 0:
        read = partial(_stream, "validation")
        validation = held_or_streamed(read, job.validation.marks, recipe.image_size, neighbours)

    def report(figures: Figures) -> None:
        if rank == 0:
            atomic.write_whole(_progress_file(job.folder, int(figures["epoch"])), json.dumps(figures).encode())
        ray.train.report(figures)

    fit(Fit(learner, batches, validation, Checkpoints(job.folder), recipe.epochs, workers), report)


def _train_name(rank: int) -> str:
    """The name of a worker's dataset."""
    return f"train-{rank}"


def _stream(name: str) -> Iterator[Pixels]:
    import ray.train

    for block in ray.train.get_dataset_shard(name).iter_batches(batch_size=None, batch_format="numpy"):
        yield Pixels(block["image"], block["label"], block["number"], block["source"].astype(object))


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
