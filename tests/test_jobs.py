"""Scoring as a Ray job, submitted to a head node as to any cluster."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import crackbatch
from test_archive import write_files

# A head on loopback that lives for one test asks for no token, and its client sends none.
NO_TOKEN = {"RAY_AUTH_MODE": "disabled"}
ROOT = Path(__file__).resolve().parents[1]
RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Ray head node of its own; yields the address for jobs, and stops with the test."""
    folder = tmp_path_factory.mktemp("ray")
    port, dashboard = free_port(), free_port()
    environment = {**os.environ, "PYTHONPATH": "", **NO_TOKEN}
    environment.pop("RAY_ADDRESS", None)
    command = [
        RAY, "start", "--head", "--block", "--port", str(port), "--dashboard-host", "127.0.0.1",
        "--dashboard-port", str(dashboard), "--num-cpus", "2", "--disable-usage-stats",
        "--ray-client-server-port", str(free_port()), "--dashboard-agent-listen-port", str(free_port()),
        "--temp-dir", f"/tmp/cb-{os.getpid()}",
    ]  # fmt: skip
    log = (folder / "head.log").open("wb")
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{dashboard}"
        _wait_until_it_answers(address, process, folder / "head.log")
        yield address
    finally:
        process.terminate()
        process.wait(60)
        log.close()


def _wait_until_it_answers(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    import threading
    import urllib.error
    import urllib.request

    ticks = threading.Event()
    for _ in range(240):
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{address}/api/jobs/", timeout=5):
                return
        except OSError:
            ticks.wait(0.5)
    raise AssertionError(log.read_text())


def test_a_submitted_job_publishes_the_table(tmp_path: Path, tiles: dict[str, bytes], head: str) -> None:
    source = write_files(tmp_path / "in", tiles)
    command = [
        RAY, "job", "submit", "--address", head, "--working-dir", str(ROOT),
        "--runtime-env-json", json.dumps({"excludes": [".venv", ".git", "tests", "demo"]}),
        "--", sys.executable, "jobs/score.py", str(source), "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    environment = {**{key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}, **NO_TOKEN}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"ok {len(tiles)}" in result.stdout
    assert len(crackbatch.read_predictions(str(tmp_path / "out"))) == len(tiles)
