"""Trains a network: one epoch at a time, each with a checkpoint.

The same code runs in this process and in each worker of Ray Train.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crackbatch.datasets.pixels import Pixels
from crackbatch.errors import RunError
from crackbatch.models.model import Normalisation, runs_bfloat16
from crackbatch.storage.redaction import redact
from crackbatch.training.batches import Batch, HeldBatches, StreamedBatches
from crackbatch.training.checkpoints import Checkpoints
from crackbatch.training.recipe import Recipe

if TYPE_CHECKING:
    import torch

# One row of metrics.parquet.
Figures = dict[str, float]

_WEIGHT_DECAY = {"sgd": 5e-4, "adamw": 0.05}
_MOMENTUM = 0.9
_WARM_UP = 0.1  # share of all steps in which the learning rate rises
_MIN_WARM_UP = 50  # steps, but at most half of all: a random network that starts at the full rate diverges
# Weights are averaged over about 500 steps (Tarvainen & Valpola 2017), over fewer at the beginning.
_AVERAGE_DECAY = 0.998
_VALIDATION_BATCH = 64
_CHECK_STEPS = 50


class Learner:
    """Trains a network by a recipe, epoch by epoch. `wrap` turns it into the module to train (DistributedDataParallel).

    A moving average of the trained weights is validated and kept.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        head: str,
        recipe: Recipe,
        num_steps: int,
        device: str = "cpu",
        wrap: Callable[[torch.nn.Module], torch.nn.Module] | None = None,
    ) -> None:
        import torch

        self._recipe = recipe
        self._device = torch.device(device)
        self._bfloat16 = runs_bfloat16(self._device.type)
        if self._device.type == "cuda":
            compute_alike()
        self._network = network.to(self._device).to(memory_format=torch.channels_last)
        if recipe.freeze:
            for name, parameter in self._network.named_parameters():
                parameter.requires_grad_(name.startswith(f"{head}."))
        self._average = copy.deepcopy(self._network).eval()
        self._module = wrap(self._network) if wrap else self._network
        both = list(zip(self._average.state_dict().values(), self._network.state_dict().values(), strict=True))
        self._blended = [pair for pair in both if pair[0].is_floating_point()]
        self._copied = [pair for pair in both if not pair[0].is_floating_point()]
        self._optimizer = _optimizer(self._network, recipe)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: _rate(step, recipe.epochs * num_steps)
        )
        self._step = 0
        self._to_input = Normalisation(*recipe.normalisation, self._device)

    def train_epoch(self, epoch: int, batches: Iterable[Batch]) -> float:
        """Train on the batches and return their mean loss; raises FloatingPointError if it is not finite."""
        import torch

        torch.manual_seed((self._recipe.seed << 20) + epoch)  # for networks with dropout
        self._network.train(not self._recipe.freeze)
        total, num = torch.zeros((), device=self._device), 0
        for images, labels in batches:
            loss = self._loss(images, labels)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            self._schedule.step()
            self._step += 1
            self._update_average()
            total += loss.detach()
            num += 1
            if num % _CHECK_STEPS == 0 and self._module is self._network:  # several workers must stop together
                _check(float(total), epoch)
        mean = self._sum(total) / max(self._sum(num), 1)
        _check(mean, epoch)
        return mean

    def validate(self, blocks: Iterable[Pixels], epoch: int) -> dict[str, float]:
        """Mean loss and accuracy of the averaged weights on decoded images.

        Of several workers only one has blocks, but all must call this. Raises FloatingPointError if the loss is not
        finite.
        """
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits

        total, right, num = 0.0, 0, 0
        for block in blocks:
            for start in range(0, len(block), _VALIDATION_BATCH):
                with torch.inference_mode(), self._precision():
                    outputs = self._average(self._to_input(block.images[start : start + _VALIDATION_BATCH])).float()
                    logits = (outputs[:, 1] - outputs[:, 0]).cpu()
                labels = torch.from_numpy(block.labels[start : start + _VALIDATION_BATCH])
                total += float(binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum"))
                right += int(((logits > 0) == (labels == 1)).sum())
                num += len(labels)
        loss = self._sum(total) / max(self._sum(num), 1)
        _check(loss, epoch)
        return {"validation_loss": loss, "validation_accuracy": right / max(num, 1)}

    def weights(self) -> dict[str, torch.Tensor]:
        """The averaged weights."""
        return {name: value.detach().cpu() for name, value in self._average.state_dict().items()}

    def state(self) -> dict[str, Any]:
        """Everything that is needed to continue from this point, as plain values and tensors."""
        return {
            "network": self._network.state_dict(),
            "average": self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": {"last_epoch": self._schedule.last_epoch},
            "step": self._step,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self._network.load_state_dict(state["network"])
        self._average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.last_epoch = state["schedule"]["last_epoch"]
        self._step = state["step"]

    def _loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        from torch.nn.functional import cross_entropy

        with self._precision():
            outputs = self._module(self._to_input.scale(images))
        return cross_entropy(outputs.float(), labels, label_smoothing=self._recipe.label_smoothing)

    def _precision(self) -> Any:
        import torch

        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16)

    def _sum(self, value: torch.Tensor | float) -> float:
        """The sum over all workers."""
        import torch

        total = torch.as_tensor(value, dtype=torch.float64, device=self._device)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
        return float(total)

    def _update_average(self) -> None:
        """Move the averaged weights towards the new ones, and copy counters, which are not averaged.

        torch's AveragedModel would wait for the GPU in each step, because it counts on the CPU.
        """
        import torch

        decay = min(_AVERAGE_DECAY, (1 + self._step) / (10 + self._step))
        torch._foreach_lerp_([average for average, _ in self._blended], [new for _, new in self._blended], 1 - decay)
        for average, new in self._copied:
            average.copy_(new)


def _optimizer(network: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer, without weight decay for biases and scales: those with one dimension (He et al. 2019,
    section 3.1)."""
    import torch

    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    decay = _WEIGHT_DECAY[recipe.optimizer]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, recipe.peak_learning_rate)
    return torch.optim.SGD(groups, recipe.peak_learning_rate, momentum=_MOMENTUM, nesterov=True)


def _rate(step: int, num_steps: int) -> float:
    """Share of the peak learning rate: a linear rise, then half a cosine down to 0 (Loshchilov & Hutter 2017)."""
    warm_up = max(1, min(num_steps // 2, max(int(_WARM_UP * num_steps), _MIN_WARM_UP)))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / max(1, num_steps - warm_up))))


def compute_alike() -> None:
    """Make CUDA add numbers in the same order each time, so that a seed gives the same weights; this costs speed."""
    import torch

    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first use
    torch.use_deterministic_algorithms(True, warn_only=True)  # some layers have no deterministic version
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it costs time


def _check(loss: float, epoch: int) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss} in epoch {epoch}")


@dataclass(frozen=True)
class Fit:
    """What one worker needs: its learner, its batches, the checkpoints, and the validation images (first worker only).

    It is one of `workers` workers, which all show the same number of images.
    """

    learner: Learner
    batches: HeldBatches | StreamedBatches
    validation: Callable[[], Iterable[Pixels]] | None
    checkpoints: Checkpoints
    epochs: int
    workers: int


def fit(job: Fit, on_epoch: Callable[[Figures], None]) -> list[Figures]:
    """Train all epochs that the checkpoints do not hold yet, and return the figures of every epoch.

    Only the worker with the validation images writes checkpoints. Every worker calls `on_epoch`, which may wait for the
    others. Raises RunError in every worker if a loss is not finite.
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
    """What to do about a loss that is not finite."""
    if not history:
        return "give a lower --learning-rate"
    best = redact(job.checkpoints.best_location(best_epoch(history)))
    return f"give a lower --learning-rate and another --out; --init {best} continues from the best epoch so far"


def best_figures(history: list[Figures]) -> Figures:
    """The figures of the first epoch with the lowest validation loss."""
    return min(history, key=lambda figures: figures["validation_loss"])


def best_epoch(history: list[Figures]) -> int:
    """The number of the first epoch with the lowest validation loss."""
    return int(best_figures(history)["epoch"])


def _save(job: Fit, epoch: int, history: list[Figures]) -> None:
    if best_epoch(history) == epoch:
        job.checkpoints.save_best(epoch, job.learner.weights())
    state: dict[str, Any] = {"learner": job.learner.state(), "history": history}
    # The previous checkpoint stays too. A training that continues from it needs the best weights up to that epoch.
    job.checkpoints.save(epoch, state, {best_epoch(history[:end]) for end in (epoch - 1, epoch) if end})
