"""Epoch after epoch, each with its checkpoint: the same in this process and in each worker of Ray Train."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from crackbatch.batches import HeldBatches, StreamedBatches
from crackbatch.checkpoints import Checkpoints
from crackbatch.datasets.pixels import Pixels
from crackbatch.errors import RunError
from crackbatch.learner import Learner
from crackbatch.storage.redaction import redact

# One row of metrics.parquet.
Figures = dict[str, float]


@dataclass(frozen=True)
class Fit:
    """What one worker needs: its learner and batches, the validation images (the first worker's), and what it keeps.

    It is one of `workers` that show as many images as it does.
    """

    learner: Learner
    batches: HeldBatches | StreamedBatches
    validation: Callable[[], Iterable[Pixels]] | None
    checkpoints: Checkpoints
    epochs: int
    workers: int


def fit(job: Fit, on_epoch: Callable[[Figures], None]) -> list[Figures]:
    """Train all epochs that the checkpoints do not hold yet and return the figures of every epoch.

    Only the worker with the validation images writes; `on_epoch` is called by each, and may wait for the others.
    Raises RunError, in every worker, where a loss is no number.
    """
    history: list[Figures] = []
    if (checkpoint := job.checkpoints.latest()) is not None:
        job.learner.load_state(checkpoint["learner"])
        history = checkpoint["history"]
    for epoch in range(len(history) + 1, job.epochs + 1):
        began = time.monotonic()
        try:
            figures = _run_epoch(job, epoch)
        except FloatingPointError as error:
            raise RunError(f"{error}: {_lower_rate(job, history)}") from None
        if job.validation is not None:
            history.append({**figures, "seconds": time.monotonic() - began})
            _save(job, epoch, history)
        on_epoch(figures)
    return history


def _run_epoch(job: Fit, epoch: int) -> Figures:
    began = time.monotonic()
    loss = job.learner.train_epoch(epoch, job.batches.epoch(epoch))
    seconds = time.monotonic() - began
    shown = job.batches.num_steps * job.batches.batch_size * job.workers
    figures = {"epoch": epoch, "train_loss": loss, "images_per_s": shown / seconds}
    measured = job.learner.validate(job.validation() if job.validation is not None else (), epoch)
    return figures if job.validation is None else {**figures, **measured}


def _lower_rate(job: Fit, history: list[Figures]) -> str:
    """What to do about a loss that is no number."""
    if not history:
        return "give a lower --learning-rate"
    best = redact(job.checkpoints.best_location(best_epoch(history)))
    return f"give a lower --learning-rate and another --out; --init {best} goes on from the best epoch so far"


def best_figures(history: list[Figures]) -> Figures:
    """Those of the first epoch with the least validation loss."""
    return min(history, key=lambda figures: figures["validation_loss"])


def best_epoch(history: list[Figures]) -> int:
    """The number of the first epoch with the least validation loss."""
    return int(best_figures(history)["epoch"])


def _save(job: Fit, epoch: int, history: list[Figures]) -> None:
    if best_epoch(history) == epoch:
        job.checkpoints.save_best(epoch, job.learner.weights())
    state: dict[str, Any] = {"learner": job.learner.state(), "history": history}
    # The checkpoint before this one stays too, and wants its own best weights should it be gone on from.
    job.checkpoints.save(epoch, state, {best_epoch(history[:end]) for end in (epoch - 1, epoch) if end})
