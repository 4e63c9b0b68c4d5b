"""Several nodes on this machine run a command as a cluster does, and are gone with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import crackbatch
from builders.archives import write_files
from builders.places import ROOT
from builders.processes import CRACKBATCH

SHOW_NODES = """
import json, os, ray
ray.init(os.environ["RAY_ADDRESS"], logging_level="ERROR")
nodes = [(node["NodeManagerAddress"], node["Resources"].get("CPU", 0)) for node in ray.nodes()]
print(json.dumps(sorted(nodes)))
raise SystemExit(7)
"""


def on_cluster(*command: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, str(ROOT / "cluster" / "local.py"), "--workers", "2", "--cpus", "1", "--"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run([*program, *command], env=environment, capture_output=True, text=True, timeout=150)


@pytest.mark.slow
def test_a_run_on_several_nodes_gives_one_row_for_each_image(tmp_path: Path, many_tiles: dict[str, bytes]) -> None:
    folder = write_files(tmp_path / "in", {**many_tiles, "bad.jpg": b"x"})
    done = on_cluster(CRACKBATCH, "score", str(folder), "--out", str(tmp_path / "out"), "--max-error-rate", "0.001")
    assert done.returncode == 3, done.stderr
    table = crackbatch.read_predictions(tmp_path / "out")
    assert sorted(uri.removeprefix(f"{folder}/") for uri in table["image_uri"]) == sorted([*many_tiles, "bad.jpg"])


@pytest.mark.slow
def test_the_head_has_no_work_and_nobody_else_reaches_the_nodes() -> None:
    done = on_cluster(sys.executable, "-c", SHOW_NODES)
    assert done.returncode == 7, done.stderr
    assert done.stdout.splitlines()[-1] == '[["127.0.0.1", 0], ["127.0.0.1", 1.0], ["127.0.0.1", 1.0]]'
    assert not [process for process in psutil.Process().children(recursive=True) if "raylet" in process.name()]
