"""A small training as a command, its workers and weights, and epochs whose losses are told beforehand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch

from builders.processes import CRACKBATCH
from crackbatch.training.checkpoints import Checkpoints
from crackbatch.training.learner import Fit, fit

SMALL = {"init": "none", "image_size": 64, "batch_size": 16, "epochs": 3}


def command(photos: str, out: Path | str, *more: str) -> list[str]:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    return [CRACKBATCH, "train", photos, "--out", str(out), "--name", "small", *options, *more]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def train_workers(driver: int) -> list[int]:
    """Ray Train's workers among the processes that descend from a driver."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            parents[int(folder.name)] = (int(fields[1]), (folder / "cmdline").read_bytes())
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = []
    for process, (parent, name) in parents.items():
        while parent not in (0, driver):
            parent = parents.get(parent, (0, b""))[0]
        if parent == driver and b"RayTrainWorker" in name:
            found.append(process)
    return found


class _Scripted:
    """A learner whose epochs have the losses that it is told, and whose weights are the number of the epoch."""

    def __init__(self, losses: list[float]) -> None:
        self._losses, self._epoch = losses, 0

    def train_epoch(self, epoch: int, batches: object) -> float:
        self._epoch = epoch
        return 0.0

    def validate(self, blocks: object, epoch: int) -> dict[str, float]:
        return {"validation_loss": self._losses[epoch - 1], "validation_accuracy": 0.0}

    def weights(self) -> dict[str, torch.Tensor]:
        return {"epoch": torch.tensor(self._epoch)}

    def state(self) -> dict[str, int]:
        return {"epoch": self._epoch}

    def load_state(self, state: dict[str, int]) -> None:
        self._epoch = state["epoch"]


def run_epochs(folder: Path, losses: list[float], epochs: int) -> list[dict[str, float]]:
    batches = SimpleNamespace(num_steps=1, batch_size=1, epoch=lambda epoch: ())
    return fit(Fit(_Scripted(losses), batches, tuple, Checkpoints(str(folder)), epochs, 1), lambda figures: None)
