"""What a job asks a Ray cluster for, and how it waits until that is there and free."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from crackbatch.cluster import IO_CPUS, Cluster
from crackbatch.errors import OptionError, RunError
from crackbatch.progress import Step, counted, duration

# A cluster that grows by itself may begin without workers. Starting a machine and its image takes minutes.
DEFAULT_MAX_WAIT = 30.0
_POLL_S = 1.0
# What the smallest work needs: an actor and a task that reads.
_LEAST = {"CPU": 2 * IO_CPUS, "GPU": 1.0}


@dataclass(frozen=True)
class Capacity:
    """What a job may use and how long it waits for it; raises OptionError for an invalid value.

    `gpus` is the number of GPUs; 0: it works on CPUs only; None: on the GPUs that are there, else on CPUs.
    `max_wait` is in minutes.
    """

    gpus: int | None = None
    max_wait: float = DEFAULT_MAX_WAIT

    def __post_init__(self) -> None:
        if self.gpus is not None and self.gpus < 0:
            raise OptionError(f"--gpus must be 0 or more, got {self.gpus}")
        if not 0 <= self.max_wait <= 10_080:
            raise OptionError(f"--max-wait must be from 0 to 10,080 minutes, got {self.max_wait:g}")

    def usable(self, nodes: Sequence[dict[str, float]]) -> list[dict[str, float]]:
        """Return the resources of nodes without the GPUs that this job does not use."""
        left = self.gpus
        if left is None:
            return list(nodes)
        usable = []
        for node in nodes:
            num = min(int(node.get("GPU", 0)), left)
            left -= num
            usable.append({**node, "GPU": float(num)})
        return usable

    @contextmanager
    def asked_of(self, cluster: Cluster, num_cpus: int, together: dict[str, float] | None = None) -> Iterator[None]:
        """Wait until the cluster has what the job needs to begin; inside, a cluster that grows is asked for all of it.

        That is the GPUs, or `num_cpus` if the job asks for none. To begin, it needs one GPU or a part of a CPU, or what
        `together` says. Raises RunError if that is not free in time, OptionError if this machine does not have it.
        """
        needed = together or _LEAST
        if cluster.is_own:  # it cannot grow, and nobody else works on it
            self._check_machine(cluster.node_resources())
            yield
            return
        from ray.autoscaler.sdk import request_resources

        if self.gpus:
            request_resources(bundles=[{"GPU": 1}] * self.gpus)
        else:
            request_resources(num_cpus=max(1, num_cpus))
        try:
            self._wait(cluster, needed)
            yield
        finally:
            with suppress(Exception):  # Ray may be gone
                request_resources(num_cpus=0)

    def _check_machine(self, nodes: Sequence[dict[str, float]]) -> None:
        there = int(sum(node.get("GPU", 0) for node in nodes))
        if self.gpus and there < self.gpus:
            has = counted(there, "GPU") if there else "none"
            raise OptionError(f"--gpus is {self.gpus}, but this machine has {has}; give fewer, or leave out --gpus")

    def _wait(self, cluster: Cluster, needed: dict[str, float]) -> None:
        if (lack := self._lack(cluster, needed)) is None:
            return
        end = time.monotonic() + 60 * self.max_wait
        while lack is not None:  # another line when it lacks something else
            with Step(f"waiting up to {duration(60 * self.max_wait)} for {lack}"):
                waited_for = lack
                while lack == waited_for:
                    if time.monotonic() >= end:
                        raise RunError(f"waited {duration(60 * self.max_wait)} for {lack}; {self._mend(needed)}")
                    time.sleep(_POLL_S)
                    lack = self._lack(cluster, needed)

    def _lack(self, cluster: Cluster, needed: dict[str, float]) -> str | None:
        """What is not there or not free; None if the job can begin."""
        all_nodes = cluster.node_resources()
        there = {name: _sum(name, self.usable(all_nodes)) for name in _LEAST}
        kind = "GPU" if self.gpus or (self.gpus is None and there["GPU"] >= needed["GPU"]) else "CPU"
        num = needed[kind]
        if there[kind] < num:
            wanted = f"{num:g} {kind}s" if num > 1 else f"a node with {kind}s"
            return f"{wanted} in the Ray cluster, which has " + (f"{there[kind]:g}" if there[kind] else "none")
        total, free = _sum(kind, all_nodes), cluster.free_resources().get(kind, 0)
        if free >= num:
            return None
        wanted = f"{num:g} free {kind}s" if num > 1 else f"a free {kind}"
        return f"{wanted}: other jobs hold {total - free:g} of the {total:g} in the Ray cluster"

    def _mend(self, needed: dict[str, float]) -> str:
        fewer = ", or give fewer --workers" if needed is not _LEAST else ""
        return (
            f"add a worker node{fewer}, or run again later; --max-wait says how many minutes to wait, --gpus 0 works on"
            " CPUs only"
        )


def _sum(name: str, nodes: Sequence[dict[str, float]]) -> float:
    """The amount of a resource on the nodes that have at least one of it."""
    return sum(node[name] for node in nodes if node.get(name, 0) >= 1)
