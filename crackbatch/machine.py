"""Read what this process may use of its machine (cores, memory, GPUs), and which libraries are installed."""

from __future__ import annotations

import math
import os
import platform
from importlib.metadata import version
from pathlib import Path

_MEMORY, _GROUPS = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
# Ray ends workers when more than this share of the machine's memory is in use (its default).
_RAY_SHARE = 0.95


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
