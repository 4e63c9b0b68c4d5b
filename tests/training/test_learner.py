"""The weights that are kept are those of the best epoch, and GPUs are told to compute alike."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from builders.trainings import run_epochs
from crackbatch.training.checkpoints import Checkpoints
from crackbatch.training.learner import best_epoch, compute_alike


@pytest.mark.parametrize("is_damaged", [False, True])
def test_the_best_weights_are_those_of_the_best_epoch_of_the_history(is_damaged: bool, tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    run_epochs(tmp_path, [3.0, 2.0, 2.5, 1.0], 4)
    assert {file.name for file in tmp_path.glob("best*")} == {"best-0002.pt", "best-0004.pt"}
    if is_damaged:
        (tmp_path / "epoch-0004.pt").write_bytes(b"cut off")
    else:
        (tmp_path / "epoch-0004.pt").unlink()  # killed after its weights, before its checkpoint
    history = run_epochs(tmp_path, [3.0, 2.0, 2.5, 2.4, 2.3], 5)  # another kind of machine, which rounds otherwise
    assert checkpoints.best(best_epoch(history)) == {"epoch": torch.tensor(2)}
    assert {file.name for file in tmp_path.glob("best*")} == {"best-0002.pt"}


def test_torch_is_told_to_compute_alike_for_gpus() -> None:
    try:
        compute_alike()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"]
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_a_training_that_an_older_version_began_goes_on_with_its_best_weights(tmp_path: Path) -> None:
    run_epochs(tmp_path, [3.0, 2.0], 2)
    (tmp_path / "best-0001.pt").unlink()
    (tmp_path / "best-0002.pt").rename(tmp_path / "best.pt")
    history = run_epochs(tmp_path, [3.0, 2.0, 2.5, 2.4], 4)
    assert Checkpoints(str(tmp_path)).best(best_epoch(history)) == {"epoch": torch.tensor(2)}
    history = run_epochs(tmp_path, [3.0, 2.0, 2.5, 2.4, 1.0, 1.1], 6)
    assert Checkpoints(str(tmp_path)).best(best_epoch(history)) == {"epoch": torch.tensor(5)}
    assert not (tmp_path / "best.pt").exists()
