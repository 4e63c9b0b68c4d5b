"""Lays out the stages of a scoring run on the devices of a Ray cluster: actors, CPUs, threads, readers."""

from __future__ import annotations

from dataclasses import dataclass

from crackbatch.cluster import IO_CPUS, MAX_BLOCK_BYTES
from crackbatch.errors import RunError

# Share of the CPUs for tasks that read.
_SHARE_READING = 1 / 8
# With more threads than this, an actor's threads wait for its Python code, not for its network.
_MAX_THREADS = 16
_AHEAD_PER_THREAD = 16 << 20


@dataclass(frozen=True)
class Devices:
    """The layout of the stages: the number of predict actors, the CPUs, threads and calls of each, and the number of
    tasks that read at once.

    On CPUs an actor requests less than half of the CPUs that it uses. So an actor that lost its node can restart on the
    node of another actor or of another run (otherwise its blocks would wait for ever), and there is still room to read.
    """

    kind: str
    num_actors: int
    num_cpus: float
    threads: int
    calls: int
    num_readers: int


def lay_out(nodes: list[dict[str, float]]) -> Devices:
    """The layout for these nodes: one actor per GPU, or, without GPUs, actors of equal size that fill each node.

    Raises RunError if the cluster has no CPUs.
    """
    gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
    if gpus:
        num = int(sum(node["GPU"] for node in gpus))
        cores = min(int(node.get("CPU", 1) // node["GPU"]) for node in gpus)
        # The actor's threads decode on all cores, but at thousands of images a second reading also needs many tasks.
        share = max(cores / 2, 2 * IO_CPUS)
        left = sum(node.get("CPU", 0) for node in nodes) - num * share
        return Devices("cuda", num, share, max(cores, 1), calls=2, num_readers=max(1, int(left / IO_CPUS)))
    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    if not cpus:
        raise RunError("the Ray cluster has no CPUs to work on; start a worker node and run again")
    size = min([*cpus, _MAX_THREADS])
    num = sum(count // size for count in cpus)
    num_readers = sum(max(1, int(count * _SHARE_READING / IO_CPUS)) for count in cpus)
    num_cpus = max(IO_CPUS, size / 2 - max(IO_CPUS, size * _SHARE_READING))
    return Devices("cpu", num, num_cpus, size, calls=size, num_readers=num_readers)


def read_ahead(devices: Devices) -> int:
    """Bytes of images that may wait for the predict stage."""
    # Reading is ten times as fast as the network. Without a limit, waiting images would fill a third of the machine's
    # memory, and every process that touches them would grow too.
    return devices.num_actors * (MAX_BLOCK_BYTES * 2 + devices.threads * _AHEAD_PER_THREAD)
