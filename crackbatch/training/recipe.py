"""The recipe of a training: the options of `crackbatch train`, with their checks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from crackbatch.augmentation.augment import AUGMENTATIONS
from crackbatch.datasets.split import check_seed
from crackbatch.errors import OptionError

BALANCES = ("none", "class", "source")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as most of torchvision's weights expect
# The weights of these two networks expect pixels from -1 to 1; torchvision corrects for that with `transform_input`.
_CENTERED_NETWORKS = ("googlenet", "inception_v3")
# Transformers and similar networks do not train well with plain SGD; torchvision's recipes also use AdamW for them.
_ADAMW_NETWORKS = ("convnext", "maxvit", "swin", "vit")


@dataclass(frozen=True)
class Recipe:
    """The options that, with the data, determine the trained weights; raises OptionError for an invalid value."""

    network: str = "resnet18"
    init: str = "imagenet"
    freeze: bool = False
    epochs: int = 10
    batch_size: int = 64
    learning_rate: float | None = None
    image_size: int = 224
    seed: int = 0
    balance: str = "none"
    weights: Mapping[str, float] = field(default_factory=dict)
    augmentation: str = "full"
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise OptionError(f"--epochs must be 1 or more, got {self.epochs}")
        if self.batch_size < 2:
            raise OptionError(f"--batch-size must be 2 or more (for batch normalisation), got {self.batch_size}")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise OptionError(f"--learning-rate must be finite and above 0, got {self.learning_rate:g}")
        if not 32 <= self.image_size <= 1024:
            raise OptionError(f"--image-size must be from 32 to 1024 pixels, got {self.image_size}")
        check_seed(self.seed)
        if self.balance not in BALANCES:
            raise OptionError(f"--balance must be one of {', '.join(BALANCES)}, got {self.balance!r}")
        if self.augmentation not in AUGMENTATIONS:
            raise OptionError(f"--augmentation must be one of {', '.join(AUGMENTATIONS)}, got {self.augmentation!r}")
        for name, weight in self.weights.items():
            if not 0 < weight <= 100:
                raise OptionError(f"--weight must be above 0 and at most 100, got {name}={weight:g}")

    @property
    def normalisation(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """(mean, std) of each channel, which normalise pixels from 0 to 1."""
        half = (0.5, 0.5, 0.5)
        return (half, half) if self.network in _CENTERED_NETWORKS else (MEAN, STD)

    @property
    def optimizer(self) -> str:
        """`adamw` for transformers and ConvNeXts, `sgd` for other networks."""
        return "adamw" if self.network.startswith(_ADAMW_NETWORKS) else "sgd"

    @property
    def peak_learning_rate(self) -> float:
        """The given rate, else a rate for the optimizer, lower if the initial weights are already trained.

        The rate of SGD grows with the batch size (Goyal et al. 2017, section 2.1).
        """
        if self.learning_rate is not None:
            return self.learning_rate
        rate = 5e-4 if self.optimizer == "adamw" else 0.05 * self.batch_size / 64
        return rate if self.init == "none" else rate / 5

    def describe(self) -> dict[str, Any]:
        """The recipe as it is written in a bundle."""
        return {**asdict(self), "weights": dict(self.weights), "learning_rate": self.peak_learning_rate,
                "optimizer": self.optimizer}  # fmt: skip
