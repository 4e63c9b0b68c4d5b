"""Ray on this machine that outlives its drivers."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

import psutil
import pytest

from builders.processes import RAY, alone, free_port


@pytest.fixture
def cluster() -> Iterator[str]:
    """Ray on this machine that outlives its drivers; yields its address."""
    port = free_port()
    environment = {**alone(), "RAY_AUTH_MODE": "disabled"}
    subprocess.run(
        [RAY, "start", "--head", "--port", str(port), "--num-cpus", "2", "--include-dashboard", "false",
         "--disable-usage-stats", "--temp-dir", f"/tmp/cbf-{os.getpid()}"],
        env=environment, check=True, capture_output=True,
    )  # fmt: skip
    started = [process for process in psutil.process_iter() if _is_of(process, f"/tmp/cbf-{os.getpid()}")]
    yield f"127.0.0.1:{port}"
    for process in started:
        for child in [*process.children(recursive=True), process] if process.is_running() else []:
            child.kill()
    shutil.rmtree(f"/tmp/cbf-{os.getpid()}", ignore_errors=True)


def _is_of(process: psutil.Process, folder: str) -> bool:
    try:
        return any(folder in word for word in process.cmdline())
    except psutil.Error:
        return False
