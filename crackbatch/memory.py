"""How much memory there is to take."""

from __future__ import annotations

import os
from pathlib import Path

_MEMORY, _LIMIT, _USED = map(Path, ("/proc/meminfo", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"))


def free_memory() -> int:
    """Bytes that this process may still take: what the machine has free, or what its container is allowed."""
    if not _MEMORY.exists():  # not Linux: what is free is told by no file, so half of what there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    with open(_MEMORY) as file:
        free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    if _LIMIT.exists() and (allowed := _LIMIT.read_text().strip()) != "max":
        free = min(free, int(allowed) - int(_USED.read_text()))
    return max(free, 0)
