"""Several trainings side by side on Ray Tune, where a cluster has room for more than one."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crackbatch.cluster import Cluster, cause_of
from crackbatch.errors import RunError
from crackbatch.storage import objects
from crackbatch.training import train


@dataclass(frozen=True)
class Room:
    """How many trainings a cluster has room for at once, and what each is given."""

    trainings: int
    cpus: float
    gpus: float


def find_room(nodes: Sequence[dict[str, float]]) -> Room:
    """One training for each GPU, or for each node where there are none; `nodes` are the nodes' resources."""
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if gpus:
        cpus = min(node.get("CPU", 1) // node["GPU"] for node in nodes if node.get("GPU", 0) >= 1)
        return Room(gpus, max(1.0, cpus - 1), 1)
    sizes = [node["CPU"] for node in nodes if node.get("CPU", 0) >= 1]
    return Room(len(sizes), min(sizes, default=1.0), 0)


def train_side_by_side(trainings: Sequence[dict[str, Any]], folder: str, address: str | None) -> bool:
    """Run trainings (each `train`'s arguments) at once, if there is room for two; returns whether there was.

    What they leave lies where their `out` says. Raises RunError where one failed, after the others are done.
    """
    with Cluster(address) as cluster:
        cluster.start()
        room = find_room(cluster.node_resources())
        if room.trainings < 2:
            return False
        _run(trainings, folder, room)
    return True


def _run(trainings: Sequence[dict[str, Any]], folder: str, room: Room) -> None:
    from ray import tune

    location = objects.join(folder, "tune")
    filesystem, path = objects.arrow_filesystem(location)
    tuner = tune.Tuner(
        tune.with_resources(_trial, {"cpu": room.cpus, "gpu": room.gpus}),
        param_space={"training": tune.grid_search(list(trainings)), "threads": int(room.cpus)},
        tune_config=tune.TuneConfig(max_concurrent_trials=room.trainings),
        run_config=tune.RunConfig(name=uuid.uuid4().hex, storage_path=path, storage_filesystem=filesystem, verbose=0),
    )
    try:
        failed = list(tuner.fit().errors)
    except Exception as error:  # Ray Tune wraps what it meets in errors of its own
        raise RunError(f"the comparison broke off ({cause_of(error)}); the same command continues it") from None
    objects.remove(location)
    if failed:
        raise RunError(
            f"{len(failed)} of {len(trainings)} trainings broke off ({cause_of(failed[0])}); the same command continues"
        )


def _trial(config: dict[str, Any]) -> None:
    """One training in a trial's own process, on what the trial was given."""
    import torch

    torch.set_num_threads(max(1, config["threads"]))
    train(**config["training"], workers=0)
