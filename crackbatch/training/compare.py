"""Compares several networks: trains each on the same split and measures each on the same test images.

OUT/<network>/                 the bundle of each network, as `train` writes it; OUT/<network>/evaluation/ its metrics
OUT/comparison.parquet         one row for each network
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa

from crackbatch.archives.members import Listing
from crackbatch.capacity import DEFAULT_MAX_WAIT, Capacity
from crackbatch.cluster import Cluster, cause_of
from crackbatch.errors import OptionError, RunError, SourceError
from crackbatch.evaluation.evaluate import evaluate
from crackbatch.evaluation.metrics import ALL
from crackbatch.images.formats import EXTENSIONS
from crackbatch.models.bundle import absolute, check_threshold
from crackbatch.models.model import Model, load_model
from crackbatch.sources.listing import check_sources, list_source
from crackbatch.storage import atomic, locations, objects
from crackbatch.storage.documents import write_table
from crackbatch.storage.redaction import masked
from crackbatch.training.initial import WORDS, initial_network
from crackbatch.training.recipe import Recipe
from crackbatch.training.train import train

_SPEED_S = 2.0
_RECIPE = {option.name for option in fields(Recipe)}
_SHOWN = ("accuracy", "average_precision", "f1")


@dataclass(frozen=True)
class Room:
    """How many trainings a cluster can run at once, and the CPUs and GPUs of each."""

    trainings: int
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Comparison:
    """One dictionary for each network, the best average precision first, and the location of the table."""

    rows: list[dict[str, Any]]
    out: str


def compare(
    sources: locations.Location | Sequence[locations.Location],
    out: locations.Location,
    *,
    networks: Sequence[str] = (),
    threshold: float | None = None,
    positive: Sequence[str] = (),
    negative: Sequence[str] = (),
    group_pattern: str | None = None,
    group_column: str = "group",
    split: locations.Location | None = None,
    init: locations.Location = "imagenet",
    workers: int = 1,
    address: str | None = None,
    gpus: int | None = None,
    max_wait: float = DEFAULT_MAX_WAIT,
    **training: Any,
) -> Comparison:
    """Train each network on the same split (options as for `train`) and measure it on the test split.

    With workers, the networks are trained at the same time if the cluster has room for several. A network that is
    already trained is not trained again. Raises RequestError and RunError.
    """
    names = [name.strip() for item in networks for name in item.split(",") if name.strip()]
    if not names:
        raise OptionError("--networks is missing; give torchvision classifiers, such as resnet18,mobilenet_v3_small")
    if len(set(names)) < len(names):
        raise OptionError(f"--networks must name each network once, got {','.join(names)}")
    if threshold is not None:
        check_threshold(threshold)
    location = atomic.check_output(os.fspath(out))
    for name in names:
        recipe = Recipe(name, **{key: value for key, value in training.items() if key in _RECIPE and value is not None})
        initial_network(name, "none", recipe.image_size)
    given = check_sources(sources)
    for source in given:
        if next(list_source(source, EXTENSIONS, Listing()), None) is None:
            raise SourceError(f"no images in {masked(source)}")
    # Each trial runs in its own working directory, so relative paths would not work.
    sources, split = list(map(locations.normalize, given)), absolute(os.fspath(split)) if split else None
    labels: dict[str, Any] = {
        "positive": positive,
        "negative": negative,
        "group_pattern": group_pattern,
        "group_column": group_column,
    }
    trainings = [
        {"sources": sources, "out": locations.join(location, name), "name": name, "network": name, "split": split,
         "init": absolute(os.fspath(init), WORDS), **labels, **training}
        for name in names
    ]  # fmt: skip
    if workers and len(names) > 1:  # a cluster may have room for several at once
        train_side_by_side(trainings, location, address, Capacity(gpus, max_wait))
    rows = []
    for name, arguments in zip(names, trainings, strict=True):
        folder = arguments["out"]
        # Returns the finished training, or trains now.
        result = train(**arguments, workers=workers, address=address, gpus=gpus, max_wait=max_wait)
        if not result.bundle.training["images"]["test"]:
            raise SourceError(
                "the test split is empty, so the networks cannot be compared: the data have too few groups (see"
                " --group-pattern), or the given --split has no test images; the trained networks are kept in"
                f" {masked(location)}"
            )
        measured = evaluate(
            sources, locations.join(folder, "evaluation"), model=folder, threshold=threshold, **labels
        ).metrics["sources"]
        rows.append(_row(name, folder, measured.get(ALL) or next(iter(measured.values())), result.history))
    rows.sort(key=lambda row: -row["average_precision"])
    table = locations.join(location, "comparison.parquet")
    write_table(table, pa.Table.from_pylist(rows))
    return Comparison(rows, table)


def _row(name: str, folder: str, measured: dict[str, Any], history: list[dict[str, float]]) -> dict[str, Any]:
    model = load_model(folder)
    return {
        "network": name,
        **{metric: measured["metrics"][metric]["value"] for metric in _SHOWN},
        "average_precision_low": measured["metrics"]["average_precision"]["low"],
        "average_precision_high": measured["metrics"]["average_precision"]["high"],
        "parameters": model.num_parameters,
        "size_mb": round(model.num_parameters * 2 / 1e6, 2),  # float16, as bundles are stored
        "images_per_s": round(_speed(model), 1),
        "training_s": round(sum(epoch["seconds"] for epoch in history), 1),
        "model_id": model.bundle.model_id,
    }


def _speed(model: Model) -> float:
    """Images/s of the forward pass on this machine, with the batch size of scoring."""
    size = model.bundle.input_size
    pixels = np.zeros((model.batch_size, size, size, 3), np.uint8)
    model.logits(pixels)
    began, done = time.monotonic(), 0
    while time.monotonic() - began < _SPEED_S:
        model.logits(pixels)
        done += model.batch_size
    return done / (time.monotonic() - began)


def find_room(nodes: Sequence[dict[str, float]]) -> Room:
    """Room for one training per GPU, or per node if there are no GPUs; `nodes` are the nodes' resources."""
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if gpus:
        cpus = min(node.get("CPU", 0) // node["GPU"] for node in nodes if node.get("GPU", 0) >= 1)
        return Room(gpus, max(min(cpus, 1.0), cpus - 1), 1)
    sizes = [node["CPU"] for node in nodes if node.get("CPU", 0) >= 1]
    return Room(len(sizes), min(sizes, default=1.0), 0)


def train_side_by_side(
    trainings: Sequence[dict[str, Any]], folder: str, address: str | None, capacity: Capacity
) -> bool:
    """Run trainings (the arguments of `train`) at the same time if the cluster has room for two; return whether it had.

    Each writes its results to its own `out`. Raises RunError if one failed, after the others are done.
    """
    with Cluster(address) as cluster:
        cluster.start()
        room = find_room(capacity.usable(cluster.node_resources()))
        if room.trainings < 2:
            return False
        _run(trainings, folder, room)
    return True


def _run(trainings: Sequence[dict[str, Any]], folder: str, room: Room) -> None:
    from ray import tune

    location = locations.join(folder, "tune")
    filesystem, path = objects.arrow_filesystem(location)
    tuner = tune.Tuner(
        tune.with_resources(_trial, {"cpu": room.cpus, "gpu": room.gpus}),
        param_space={"training": tune.grid_search(list(trainings)), "threads": int(room.cpus)},
        tune_config=tune.TuneConfig(max_concurrent_trials=room.trainings),
        run_config=tune.RunConfig(name=uuid.uuid4().hex, storage_path=path, storage_filesystem=filesystem, verbose=0),
    )
    try:
        failed = list(tuner.fit().errors)
    except Exception as error:  # Ray Tune wraps errors in its own types
        raise RunError(f"the comparison stopped ({cause_of(error)}); run the same command to continue") from None
    objects.remove(location)
    if failed:
        raise RunError(
            f"{len(failed)} of {len(trainings)} trainings stopped ({cause_of(failed[0])}); run the same command to"
            " continue"
        )


def _trial(config: dict[str, Any]) -> None:
    """One training, in the trial's own process and with its threads."""
    import torch

    torch.set_num_threads(max(1, config["threads"]))
    train(**config["training"], workers=0)
