"""A checkpoint that is damaged or cannot be looked for is passed over, and no other is lost by it."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from fsspec.implementations.local import LocalFileSystem

from builders.trainings import run_epochs
from crackbatch.errors import RunError
from crackbatch.training.checkpoints import Checkpoints


@pytest.mark.parametrize("damaged", [b"", b".", b"hello", b"PK\x03\x04", None])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(damaged: bytes | None, tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(1, {"history": [1]}, set())
    checkpoints.save(2, {"history": [1, 2]}, set())
    file = tmp_path / "epoch-0002.pt"
    file.write_bytes(file.read_bytes()[:100] if damaged is None else damaged)
    assert checkpoints.latest() == {"history": [1]}
    shutil.copy(file, tmp_path / "best-0001.pt")
    with pytest.raises(
        RunError, match=r"the weights of the best epoch \(1\) are missing from .* or damaged; remove the folder"
    ):
        checkpoints.best(1)


def test_where_one_file_cannot_be_looked_for_no_best_weights_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_epochs(tmp_path, [1.0, 2.0, 3.0], 2)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(LocalFileSystem, "info", fail)  # a disk of the network that is away for a moment
        Checkpoints(str(tmp_path)).save(3, {"history": []}, {1})
    assert Checkpoints(str(tmp_path)).best(1) == {"epoch": torch.tensor(1)}


def test_where_several_checkpoints_are_damaged_those_of_the_epochs_trained_again_stay(tmp_path: Path) -> None:
    run_epochs(tmp_path, [3.0, 2.0, 1.0], 3)
    for epoch in (2, 3):
        (tmp_path / f"epoch-{epoch:04d}.pt").write_bytes(b"cut off")
    run_epochs(tmp_path, [3.0], 1)
    assert Checkpoints(str(tmp_path)).latest() is not None
    history = run_epochs(tmp_path, [3.0, 2.0], 2)
    assert [figures["epoch"] for figures in history] == [1, 2]
    assert Checkpoints(str(tmp_path)).best(2) == {"epoch": torch.tensor(2)}
