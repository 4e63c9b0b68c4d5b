"""What this process may use of its machine (cores, memory, GPUs), its libraries, and its child processes.

Child processes handle untrusted bytes. They die with their parent, and what ends them ends nothing else.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

_MEMORY, _GROUPS = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
# Ray ends workers when more than this share of the machine's memory is in use (its default).
_RAY_SHARE = 0.95
_PARENT_DIED = 1  # PR_SET_PDEATHSIG of Linux's prctl


def num_cores() -> int:
    """Return the number of cores that this process may use, within its affinity and its container's quota.

    `os.cpu_count()` counts the cores of the host, also in a container that may use only a few of them.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [group / "cpu.max" for group in _own_groups()]
    for quota in (file.read_text().split() for file in quotas if file.exists()):
        if quota[0] != "max":
            cores = min(cores, math.ceil(int(quota[0]) / int(quota[1])))
    old = _GROUPS / "cpu" / "cpu.cfs_quota_us"  # version 1 of Linux's control groups
    if old.exists() and (allowed := int(old.read_text())) > 0:
        cores = min(cores, math.ceil(allowed / int(old.with_name("cpu.cfs_period_us").read_text())))
    return max(cores, 1)


def has_gpu() -> bool:
    """Return whether this machine may have a GPU of NVIDIA: its driver is there, and no variable hides all GPUs."""
    return Path("/dev/nvidiactl").exists() and os.environ.get("CUDA_VISIBLE_DEVICES", "all") not in ("", "-1")


def free_memory() -> int:
    """Return the bytes of memory that this process may still use, within the machine and its container's limit.

    If Ray watches the memory, it is only the part that may be in use before Ray ends workers.
    """
    if not _MEMORY.exists():  # not Linux: free memory is unknown, so assume half of all memory
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    with open(_MEMORY) as file:
        known = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in file}
    free, total = known["MemAvailable"], known["MemTotal"]
    for group in _own_groups():
        limit = group / "memory.max"
        if limit.exists() and (allowed := limit.read_text().strip()) != "max":
            free, total = min(free, int(allowed) - _used_by(group)), min(total, int(allowed))
    if "RAY_RAYLET_PID" in os.environ:  # a worker of Ray, or a process below it
        share = float(os.environ.get("RAY_memory_usage_threshold", _RAY_SHARE))  # noqa: SIM112
        free -= round((1 - share) * total)
    return max(free, 0)


def _own_groups() -> list[Path]:
    """Return the folders of this process's control group and of all groups above it; each may have limits."""
    try:
        path = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return [_GROUPS]
    inner = _GROUPS / path.strip("/")
    return [inner, *inner.parents[: len(inner.parts) - len(_GROUPS.parts)]]


def _used_by(group: Path) -> int:
    """Return the bytes that a control group uses, without cached file contents: the system drops these when needed."""
    lines = (group / "memory.stat").read_text().splitlines()
    files = sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "active_file ")))
    return max(int((group / "memory.current").read_text()) - files, 0)


def library_versions(*libraries: str) -> dict[str, str]:
    """Return the versions of the given installed libraries and of Python, by name."""
    return {**{library: version(library) for library in libraries}, "python": platform.python_version()}


def start_child(
    module: str, asked: dict[str, Any], descriptors: Sequence[int], said: int | IO[bytes] = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Start a process that calls `serve` of a module, with the open descriptors; `asked` is its argument, as JSON.

    Its standard error goes to `said`. On Linux it also dies when the thread ends that started it (PR_SET_PDEATHSIG).
    """
    asked = {**asked, "parent": os.getpid()}
    return subprocess.Popen(
        # -P: modules of the current folder, which may come from an archive, are not imported.
        [sys.executable, "-P", "-c", f"from {module} import serve; serve()", json.dumps(asked)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=said,
        pass_fds=descriptors,
        env=_environment_of_child(),
    )


def live_as_child() -> dict[str, Any]:
    """Return what was asked of this child process. From now on it dies with its parent, also in the middle of work.

    If the system is short of memory, it ends this process before the parent.
    """
    asked: dict[str, Any] = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent decides
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DIED, signal.SIGKILL)
        with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    if os.getppid() != asked["parent"]:  # it died before
        sys.exit(1)
    return asked


def _environment_of_child() -> dict[str, str]:
    """The environment of a child: the same modules as here, but none from the current folder."""
    folders = [path for path in sys.path if os.path.isabs(path) and path != os.getcwd()]
    folders.append(str(Path(__file__).parents[1]))
    # numpy's library starts a thread for each core of the machine, which a child never uses.
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "OPENBLAS_NUM_THREADS": "1"}


def limit_memory(most: int) -> None:
    """Limit this process to so many bytes of memory, or to a limit that it has already; then allocations fail."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def receive(sender: socket.socket, length: int) -> bytearray:
    """Read exactly `length` bytes; raises EOFError if the sender is gone."""
    data = bytearray(length)
    view, have = memoryview(data), 0
    while have < length:
        if not (num := sender.recv_into(view[have:])):
            raise EOFError
        have += num
    return data
