"""Rows are kept as they come, and a node that does not see the images says so."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest

import crackbatch
from builders.archives import write_files
from builders.processes import CRACKBATCH, alone, wait_for
from crackbatch.cli.demo import draw_tile


@pytest.mark.slow  # enough shards that reading does not end before the first image is scored
def test_rows_are_kept_as_they_come_and_not_at_the_end_of_the_run(tmp_path: Path) -> None:
    tiles = [draw_tile(seed, cracked=False) for seed in range(20)]
    source = write_files(tmp_path / "in", {f"{index:04d}.jpg": tiles[index % 20] for index in range(6000)})
    command = [CRACKBATCH, "score", str(source), "--out", str(tmp_path / "out"), "--engine", "ray"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    tick = threading.Event()
    first = None
    while first is None and process.poll() is None:
        first = next((path.stat().st_mtime for path in (tmp_path / "out").glob("runs/*/parts/*.part")), None)
        tick.wait(0.05)
    assert process.wait(200) == 0
    scored = crackbatch.read_predictions(str(tmp_path / "out"))["scored_at"]
    assert first is not None
    assert pd.Timestamp(first, unit="s", tz="UTC") < scored.quantile(0.4)


GROWING = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
print(cluster.address, flush=True)
for line in sys.stdin:
    cluster.add_node(num_cpus=1)
    print("added", flush=True)
cluster.shutdown()
"""
LOOKS_OFTEN = """
from crackbatch.cli import commands
from crackbatch.scoring import pipeline
pipeline._SETTLE_S = 1
commands.main()
"""


@pytest.mark.slow
def test_a_cluster_that_begins_without_workers_is_waited_for_and_nodes_that_join_later_are_used(tmp_path: Path) -> None:
    tiles = [draw_tile(seed, cracked=False) for seed in range(20)]
    source = write_files(tmp_path / "in", {f"{index:04d}.jpg": tiles[index % 20] for index in range(1500)})
    environment = {**alone(), "RAY_AUTH_MODE": "disabled"}
    nodes = subprocess.Popen(
        [sys.executable, "-c", GROWING], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert nodes.stdin is not None
    assert nodes.stdout is not None

    def add_node() -> None:
        nodes.stdin.write("add\n")  # type: ignore[union-attr]
        nodes.stdin.flush()  # type: ignore[union-attr]
        assert nodes.stdout.readline() == "added\n"  # type: ignore[union-attr]

    try:
        address = nodes.stdout.readline().strip()
        command = [sys.executable, "-c", LOOKS_OFTEN, "score", str(source), "--out", str(tmp_path / "out")]
        run = subprocess.Popen(
            [*command, "--address", address], env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert run.stderr is not None
        said = next(line for line in run.stderr if line.startswith("waiting up to"))
        assert "for a node with CPUs in the Ray cluster, which has none" in said
        add_node()
        wait_for(lambda: list((tmp_path / "out").glob("runs/*/parts/*.part")), run)
        add_node()
        _, errors = run.communicate(timeout=280)
    finally:
        nodes.communicate()
    assert run.returncode == 0, errors
    assert "the cluster has grown: going on with 2 actors" in errors
    rows = crackbatch.read_predictions(str(tmp_path / "out"))
    assert len(rows) == rows["image_uri"].nunique() == 1500
    assert set(rows["status"]) == {"ok"}
