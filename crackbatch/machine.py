"""What this machine has for a process: memory that it may take, and the versions of the libraries it runs."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

_MEMORY, _GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def free_memory() -> int:
    """Bytes that this process may still take: what the machine has free, or what its container is allowed."""
    if not _MEMORY.exists():  # not Linux: what is free is told by no file, so half of what there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    with open(_MEMORY) as file:
        free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    limit = _GROUP / "memory.max"
    if limit.exists() and (allowed := limit.read_text().strip()) != "max":
        free = min(free, int(allowed) - _used_by_group())
    return max(free, 0)


def _used_by_group() -> int:
    """Bytes that the container holds, without what it has read of files, which the system drops where it needs room."""
    lines = (_GROUP / "memory.stat").read_text().splitlines()
    files = sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "active_file ")))
    return max(int((_GROUP / "memory.current").read_text()) - files, 0)


def library_versions(*libraries: str) -> dict[str, str]:
    """The versions of installed libraries and of Python, by name."""
    return {**{library: version(library) for library in libraries}, "python": platform.python_version()}
