"""Read from this machine how much memory is free and which versions of libraries are installed."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

_MEMORY, _GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def free_memory() -> int:
    """Return the bytes of memory that this process may still use, within the machine and its container's limit."""
    if not _MEMORY.exists():  # not Linux: free memory is unknown, so assume half of all memory
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    with open(_MEMORY) as file:
        free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    limit = _GROUP / "memory.max"
    if limit.exists() and (allowed := limit.read_text().strip()) != "max":
        free = min(free, int(allowed) - _used_by_group())
    return max(free, 0)


def _used_by_group() -> int:
    """Return the bytes that the container uses, without cached file contents: the system drops these when needed."""
    lines = (_GROUP / "memory.stat").read_text().splitlines()
    files = sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "active_file ")))
    return max(int((_GROUP / "memory.current").read_text()) - files, 0)


def library_versions(*libraries: str) -> dict[str, str]:
    """Return the versions of the given installed libraries and of Python, by name."""
    return {**{library: version(library) for library in libraries}, "python": platform.python_version()}
