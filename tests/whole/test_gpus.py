"""Scoring, training and evaluation are laid out on GPUs: Ray counts one, and the networks sit on the CPU."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import crackbatch
from builders import gpu
from builders.pictures import make_photos
from builders.processes import alone

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


def run(folder: Path, what: str) -> tuple[dict[str, Any], str]:
    """What came of it, and what was said meanwhile."""
    command = [sys.executable, gpu.__file__, str(folder), what]
    done = subprocess.run(command, env=alone(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_scoring_on_gpus_gives_the_rows_of_cpus(tmp_path: Path) -> None:
    make_photos(tmp_path / "in", 24)
    assert run(tmp_path, "score")[0] == {"scored": 96}
    table = crackbatch.read_predictions(str(tmp_path / "out"))
    assert len(table) == 96
    assert set(table["status"]) == {"ok"}
    assert crackbatch.score(str(tmp_path / "in"), str(tmp_path / "here"), engine="local").images == 96
    expected = crackbatch.read_predictions(str(tmp_path / "here")).set_index("image_uri")["crack_probability"]
    assert (table.set_index("image_uri")["crack_probability"] - expected).abs().max() < 1e-4


@pytest.mark.slow
def test_a_torch_that_cannot_use_the_gpus_of_a_cluster_is_named(tmp_path: Path) -> None:
    make_photos(tmp_path / "in", 4)
    told, _ = run(tmp_path, "refuse")
    assert re.search(r"has a GPU that torch cannot use: torch .* is built .*; install the torch", told["refused"])


@pytest.mark.slow
def test_training_and_evaluation_use_the_gpus_of_a_cluster(tmp_path: Path) -> None:
    make_photos(tmp_path / "in", 24)
    told, said = run(tmp_path, "train")
    assert "training on Ray Train with 1 GPU worker\n" in said
    assert told["evaluated"] == 96
