"""Child processes that handle untrusted bytes: they die with their parent, and what ends them ends nothing else."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

_PARENT_DIED = 1  # PR_SET_PDEATHSIG of Linux's prctl


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
        env=_environment(),
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


def _environment() -> dict[str, str]:
    """The environment of a child: the same modules as here, but none from the current folder."""
    folders = [path for path in sys.path if os.path.isabs(path) and path != os.getcwd()]
    folders.append(str(Path(__file__).parents[1]))
    # numpy's library starts a thread for each core of the machine, which a child never uses.
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "OPENBLAS_NUM_THREADS": "1"}
