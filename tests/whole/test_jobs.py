"""Scoring as a Ray job, submitted to a head node as to any cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import crackbatch
from builders.archives import write_files
from builders.pictures import make_photos
from builders.places import ROOT
from builders.processes import RAY, free_port

pytestmark = pytest.mark.xdist_group("ray")
# A head on loopback that lives for one test asks for no token, and its client sends none.
NO_TOKEN = {"RAY_AUTH_MODE": "disabled"}


@pytest.fixture
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Ray head node of its own; yields the address for jobs, and stops with the test."""
    folder = tmp_path_factory.mktemp("ray")
    port, dashboard = free_port(), free_port()
    environment = {**os.environ, "PYTHONPATH": "", **NO_TOKEN}
    environment.pop("RAY_ADDRESS", None)
    command = [
        RAY, "start", "--head", "--block", "--port", str(port), "--dashboard-host", "127.0.0.1",
        "--dashboard-port", str(dashboard), "--num-cpus", "3", "--disable-usage-stats",
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
        for part in [*psutil.Process(process.pid).children(recursive=True), process]:
            part.kill()  # asked to end, it takes half a minute
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


def submit(head: str, script: str, *arguments: str) -> str:
    """What a job printed that was submitted to a head and succeeded."""
    command = [
        RAY, "job", "submit", "--address", head, "--working-dir", str(ROOT),
        "--runtime-env-json", json.dumps({"excludes": [".venv", ".git", "tests", "demo", "build"]}),
        "--", sys.executable, script, *arguments,
    ]  # fmt: skip
    environment = {**{key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}, **NO_TOKEN}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_a_submitted_job_publishes_the_table(tmp_path: Path, tiles: dict[str, bytes], head: str) -> None:
    source = write_files(tmp_path / "in", tiles)
    said = submit(head, "jobs/score.py", str(source), "--out", str(tmp_path / "out"))
    assert f"ok {len(tiles)}" in said
    assert len(crackbatch.read_predictions(str(tmp_path / "out"))) == len(tiles)


@pytest.mark.slow
def test_a_submitted_training_on_two_workers_leaves_a_model(tmp_path: Path, head: str) -> None:
    photos = str(make_photos(tmp_path / "deck", 24))
    options = ["--init=none", "--image-size=64", "--batch-size=16", "--epochs=2", "--workers=2"]
    said = submit(head, "jobs/train.py", photos, "--out", str(tmp_path / "model"), *options)
    assert "epoch 2 of 2" in said
    bundle = crackbatch.load_model(str(tmp_path / "model")).bundle
    assert bundle.model_id in said
    said = submit(head, "jobs/evaluate.py", photos, "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out"))
    assert f"left out: {bundle.training['images']['train']} images on which" in said
