"""Rows are kept as they come, and a node that does not see the images says so."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pandas as pd
import pytest

import crackbatch
from builders.archives import write_files
from builders.processes import CRACKBATCH
from crackbatch.cli.demo import draw_tile
from crackbatch.errors import RunError


@pytest.mark.slow  # enough shards that reading does not end before the first image is scored
def test_rows_are_kept_as_they_come_and_not_at_the_end_of_the_run(tmp_path: Path) -> None:
    tiles = [draw_tile(seed, cracked=False) for seed in range(20)]
    source = write_files(tmp_path / "in", {f"{index:04d}.jpg": tiles[index % 20] for index in range(6000)})
    command = [CRACKBATCH, "score", str(source), "--out", str(tmp_path / "out")]
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


@pytest.mark.usefixtures("ray_here")
def test_a_node_that_does_not_see_what_the_driver_sees_says_so_and_no_image_is_missing(tmp_path: Path) -> None:
    from crackbatch.scoring.pipeline import _node, _read_shard, _Seen

    elsewhere = _Seen("another node", [str(tmp_path), str(tmp_path / "photos")])
    with pytest.raises(RunError, match=rf"cannot find {tmp_path}/photos; give sources as URLs or as paths that all"):
        _read_shard(str(tmp_path), 0, elsewhere)
    with pytest.raises(RunError, match=rf"cannot find the run's folder {tmp_path}; give --out as a URL or a path"):
        _read_shard(str(tmp_path), 0, _Seen(_node(), elsewhere.roots))
