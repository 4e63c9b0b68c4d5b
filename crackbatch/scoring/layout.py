"""Lays out the stages of a scoring run on the nodes of a Ray cluster: actors, CPUs, threads, decoders, readers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crackbatch import cluster
from crackbatch.cluster import IO_CPUS, MAX_BLOCK_BYTES
from crackbatch.errors import RunError

# Share of the CPUs for tasks that read.
_SHARE_READING = 1 / 8
# With more threads than this, an actor's threads wait for its Python code, not for its network.
_MAX_THREADS = 16
# One small node should not make all actors small: this share of the cluster's CPUs may stay without an actor.
_MAX_UNUSED = 1 / 10
# While one batch is on the GPU, one is copied, one decoded, and one of rows is made.
_CUDA_CALLS = 4
_AHEAD_PER_CORE = 16 << 20
# The most encoded bytes that one call of a GPU's actor gets, if its images are large.
_MAX_CALL_BYTES = 128 << 20
_UNKNOWN_SIZE = 256 << 10


@dataclass(frozen=True)
class Devices:
    """The layout of the stages on devices of one kind, "cpu" or "cuda".

    Each of the `num_actors` predict actors requests `num_cpus` and `num_gpus`, and runs its network on `device` for
    `calls` blocks at once. It has `num_decoders` decoder processes (0: as many as its machine has cores for each GPU).
    `num_readers` tasks read at once; each requests `reader_cpus`.

    On CPUs an actor requests less than half of the CPUs that it uses. So an actor that lost its node can restart on the
    node of another actor or of another run (otherwise its blocks would wait for ever), and there is still room to read.
    """

    device: str
    num_actors: int
    num_cpus: float
    num_gpus: int
    calls: int
    num_decoders: int
    num_readers: int
    reader_cpus: float

    @property
    def size(self) -> int:
        """How much is scored at a time, to compare layouts on devices of one kind."""
        return self.num_actors * self.calls


def lay_out(nodes: Sequence[dict[str, float]]) -> Devices:
    """Return the layout for nodes with these resources.

    It has one actor for each GPU. Without GPUs, it has actors of equal size that fill each node. Raises RunError if the
    nodes have no CPUs.
    """
    gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
    if gpus:
        return _lay_out_on_gpus(gpus, sum(node.get("CPU", 0) for node in nodes))
    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    if not cpus:
        raise RunError("the Ray cluster has no CPUs to work on; start a worker node and run again")
    size = _actor_size(cpus)
    num_readers = sum(max(1, int(count * _SHARE_READING / IO_CPUS)) for count in cpus)
    num_cpus = max(IO_CPUS, size / 2 - max(IO_CPUS, size * _SHARE_READING))
    num = sum(count // size for count in cpus)
    return Devices("cpu", num, num_cpus, 0, calls=size, num_decoders=size, num_readers=num_readers, reader_cpus=IO_CPUS)


def _actor_size(cpus: list[int]) -> int:
    """Return the CPUs of an actor: the largest size that leaves few CPUs unused, counted node by node."""
    sizes = range(min(_MAX_THREADS, max(cpus)), 0, -1)
    used = {size: sum(count // size * size for count in cpus) for size in sizes}
    enough = (1 - _MAX_UNUSED) * sum(cpus)
    return next((size for size in sizes if used[size] >= enough), 1)


def _lay_out_on_gpus(nodes: list[dict[str, float]], num_cpus: float) -> Devices:
    """Return the layout for GPU nodes in a cluster with this number of CPUs."""
    num = sum(int(node["GPU"]) for node in nodes)
    # Of every node, since an actor may be placed on any of them. A node can offer GPUs and no CPUs at all.
    cpus_per_gpu = min(node.get("CPU", 0) / int(node["GPU"]) for node in nodes)
    share = int(cpus_per_gpu / 2 / IO_CPUS) * IO_CPUS
    left = num_cpus - num * share
    # An actor's decoders use its whole share of the cores, but at thousands of images a second many tasks must read.
    num_readers = int(left / IO_CPUS) if left >= IO_CPUS else 2 * num
    return Devices(
        cluster.GPU_DEVICE, num, share, 1, calls=_CUDA_CALLS, num_decoders=int(cpus_per_gpu), num_readers=num_readers,
        reader_cpus=IO_CPUS if left >= IO_CPUS else 0,
    )  # fmt: skip


def rows_per_call(todo: pa.Table, batch_size: int | None, default: int) -> int | None:
    """Return how many rows a predict actor gets at once; None for the blocks as they are read.

    It is one batch. For large images it is less, so that no call gets more than `_MAX_CALL_BYTES`. Without a batch size
    and a default (0), blocks stay as they are.
    """
    if not (rows := batch_size or default):
        return None
    sizes = np.asarray(pc.fill_null(todo.column("size_bytes"), _UNKNOWN_SIZE))
    ends = np.concatenate([[0], np.cumsum(sizes)])
    while rows > 1:
        together = min(rows, len(sizes))
        if (ends[together:] - ends[:-together]).max() <= _MAX_CALL_BYTES:
            break
        rows //= 2
    return rows


def read_ahead(devices: Devices) -> int:
    """Bytes of images that may wait for the predict stage."""
    # Reading is ten times as fast as the network. Without a limit, waiting images would fill a third of the machine's
    # memory, and every process that touches them would grow too.
    return devices.num_actors * (MAX_BLOCK_BYTES * 2 + max(devices.calls, devices.num_decoders) * _AHEAD_PER_CORE)
