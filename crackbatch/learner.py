"""A network in training: its optimizer, its schedule, the average of its weights, and what one epoch does to them."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from crackbatch.batches import Batch
from crackbatch.datasets.pixels import Pixels
from crackbatch.recipe import Recipe

if TYPE_CHECKING:
    import torch

_WEIGHT_DECAY = {"sgd": 5e-4, "adamw": 0.05}
_MOMENTUM = 0.9
_WARM_UP = 0.1  # share of all steps in which the learning rate rises
_MIN_WARM_UP = 50  # steps, or half of all: a random network thrown at the full rate goes astray at once
# Weights are averaged over about 500 steps (Tarvainen & Valpola 2017), over fewer at the beginning.
_AVERAGE_DECAY = 0.998
_VALIDATION_BATCH = 64
_CHECK_STEPS = 50


class Learner:
    """Trains a network by a recipe, epoch by epoch; `wrap` makes the trained module of it (DistributedDataParallel).

    The weights that are validated and kept are the moving average of those that are trained.
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
        self._optimizer = _optimizer(self._network, recipe)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: _rate(step, recipe.epochs * num_steps)
        )
        self._step = 0
        mean, std = recipe.normalisation
        self._mean = torch.tensor(mean, device=self._device).mul(255).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=self._device).mul(255).view(1, 3, 1, 1)

    def train_epoch(self, epoch: int, batches: Iterable[Batch]) -> float:
        """Train on the batches and return their mean loss; raises FloatingPointError where that is no number."""
        import torch

        torch.manual_seed((self._recipe.seed << 20) + epoch)  # for networks that drop out
        self._network.train(not self._recipe.freeze)
        total, num = torch.zeros((), device=self._device), 0
        for images, labels in batches:
            loss = self._loss(images, labels)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            self._schedule.step()
            self._update_average()
            total += loss.detach()
            num += 1
            if num % _CHECK_STEPS == 0 and self._module is self._network:  # one of several workers must not stop alone
                _check(float(total), epoch)
        mean = self._sum(total) / max(self._sum(num), 1)
        _check(mean, epoch)
        return mean

    def validate(self, blocks: Iterable[Pixels], epoch: int) -> dict[str, float]:
        """Mean loss and accuracy of the averaged weights on decoded images; raises FloatingPointError as training does.

        Of several workers one has blocks, and all must call.
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
        """All that is needed to go on from here, of plain values and tensors."""
        return {
            "network": self._network.state_dict(),
            "average": self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": {"last_epoch": self._schedule.last_epoch},
            "step": self._step,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._network.load_state_dict(state["network"])
        self._average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.last_epoch = state["schedule"]["last_epoch"]
        self._step = state["step"]

    def _loss(self, images: np.ndarray, labels: np.ndarray) -> torch.Tensor:
        import torch
        from torch.nn.functional import cross_entropy

        with self._precision():
            outputs = self._module(self._to_input(images))
        answers = torch.from_numpy(labels).to(self._device)
        return cross_entropy(outputs.float(), answers, label_smoothing=self._recipe.label_smoothing)

    def _precision(self) -> Any:
        import torch

        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16)

    def _to_input(self, images: np.ndarray) -> torch.Tensor:
        import torch

        pixels = torch.from_numpy(images).to(self._device, non_blocking=True).permute(0, 3, 1, 2)
        return (pixels.float() - self._mean) / self._std

    def _sum(self, value: torch.Tensor | float) -> float:
        """The sum over all workers."""
        import torch

        total = torch.as_tensor(value, dtype=torch.float64, device=self._device)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
        return float(total)

    def _update_average(self) -> None:
        import torch

        self._step += 1
        decay = min(_AVERAGE_DECAY, (1 + self._step) / (10 + self._step))
        kept, new = self._average.state_dict(), self._network.state_dict()
        floats = [name for name, value in new.items() if value.is_floating_point()]
        with torch.no_grad():
            torch._foreach_lerp_([kept[name] for name in floats], [new[name] for name in floats], 1 - decay)
            for name in new.keys() - set(floats):
                kept[name].copy_(new[name])


def _optimizer(network: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """No weight decay for biases and scales, which have one dimension (He et al. 2019, section 3.1)."""
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
    """Share of the peak learning rate: a straight rise, then half a cosine to nothing (Loshchilov & Hutter 2017)."""
    warm_up = max(1, min(num_steps // 2, max(int(_WARM_UP * num_steps), _MIN_WARM_UP)))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / max(1, num_steps - warm_up))))


def compute_alike() -> None:
    """Have CUDA add in the same order each time, for a seed to give the same weights; else it takes what is fastest."""
    import torch

    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # is read when cuBLAS is first used
    torch.use_deterministic_algorithms(True, warn_only=True)  # some networks have a layer that knows no other way
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # takes time


def _check(loss: float, epoch: int) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss} in epoch {epoch}")


def runs_bfloat16(device: str) -> bool:
    """Whether the device multiplies bfloat16 in hardware: GPUs from Ampere on, CPUs with AVX512-BF16 or AMX."""
    import torch

    if device != "cpu":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch has no public question for it; without the instructions bfloat16 is emulated, at a fifth of the speed.
    asked = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(asked is not None and asked())
