"""How the stages of a scoring run are laid out on the devices of a Ray cluster: actors, CPUs, threads, readers."""

from __future__ import annotations

from dataclasses import dataclass

from crackbatch.cluster import IO_CPUS, MAX_BLOCK_BYTES
from crackbatch.errors import RunError

# As many tasks read at once as this share of the CPUs allows.
_SHARE_READING = 1 / 8
# Beyond about this many threads an actor's Python code, not its network, is what they wait for.
_MAX_THREADS = 16
_AHEAD_PER_THREAD = 16 << 20


@dataclass(frozen=True)
class Devices:
    """How the stages are laid out: how many actors predict, what each takes and how many threads work in it, how many
    tasks read at once.

    On CPUs an actor asks for less than half of what it uses, so that one whose node died finds room beside another (its
    blocks would wait for it for ever), or another run's, and both leave room for reading.
    """

    kind: str
    num_actors: int
    num_cpus: float
    threads: int
    calls: int
    num_readers: int


def lay_out(nodes: list[dict[str, float]]) -> Devices:
    """One actor per GPU if there are any; else actors of equal size, as many as fill each node."""
    gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
    if gpus:
        num = int(sum(node["GPU"] for node in gpus))
        cores = min(int(node.get("CPU", 1) // node["GPU"]) for node in gpus)
        # Its threads decode for the GPU on all cores, but at thousands of images a second reading needs many tasks.
        share = max(cores / 2, 2 * IO_CPUS)
        left = sum(node.get("CPU", 0) for node in nodes) - num * share
        return Devices("cuda", num, share, max(cores, 1), calls=2, num_readers=max(1, int(left / IO_CPUS)))
    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    if not cpus:
        raise RunError("the Ray cluster has no CPU to work on: start a worker node and run again")
    size = min([*cpus, _MAX_THREADS])
    num = sum(count // size for count in cpus)
    num_readers = sum(max(1, int(count * _SHARE_READING / IO_CPUS)) for count in cpus)
    num_cpus = max(IO_CPUS, size / 2 - max(IO_CPUS, size * _SHARE_READING))
    return Devices("cpu", num, num_cpus, size, calls=size, num_readers=num_readers)


def read_ahead(devices: Devices) -> int:
    """Bytes of images that may wait for the predict stage."""
    # Reading is ten times as fast as the network: without a limit a third of the machine's memory would fill with
    # images that wait, and every process that touches them would grow with it.
    return devices.num_actors * (MAX_BLOCK_BYTES * 2 + devices.threads * _AHEAD_PER_THREAD)
