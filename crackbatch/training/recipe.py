"""How a network is to be trained: the options of `crackbatch train`, checked where they are given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from crackbatch.datasets.split import check_seed
from crackbatch.errors import OptionError
from crackbatch.training.augment import AUGMENTATIONS

BALANCES = ("none", "class", "source")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as most of torchvision's weights expect
# These two networks' weights expect pixels from -1 to 1; torchvision sets their `transform_input` to make up for it.
_CENTERED_NETWORKS = ("googlenet", "inception_v3")
# Transformers and their like do not train by plain SGD; torchvision's own recipes make the same distinction.
_ADAMW_NETWORKS = ("convnext", "maxvit", "swin", "vit")


@dataclass(frozen=True)
class Recipe:
    """The options that decide what weights come out, given the data; OptionError for a value that means nothing."""

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
            raise OptionError(f"--epochs {self.epochs}: give a number above 0")
        if self.batch_size < 2:
            raise OptionError(f"--batch-size {self.batch_size}: batch normalisation needs at least 2 images")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise OptionError(f"--learning-rate {self.learning_rate:g}: give a number above 0")
        if not 32 <= self.image_size <= 1024:
            raise OptionError(f"--image-size {self.image_size}: give a number of pixels from 32 to 1024")
        check_seed(self.seed)
        if self.balance not in BALANCES:
            raise OptionError(f"--balance {self.balance!r}: choose from {', '.join(BALANCES)}")
        if self.augmentation not in AUGMENTATIONS:
            raise OptionError(f"--augmentation {self.augmentation!r}: choose from {', '.join(AUGMENTATIONS)}")
        for name, weight in self.weights.items():
            if not 0 < weight <= 100:
                raise OptionError(f"--weight {name}={weight:g}: give a number above 0, 100 at most")

    @property
    def normalisation(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """(mean, std) of each channel, that pixels from 0 to 1 are normalised by."""
        half = (0.5, 0.5, 0.5)
        return (half, half) if self.network in _CENTERED_NETWORKS else (MEAN, STD)

    @property
    def optimizer(self) -> str:
        """`adamw` for transformers and ConvNeXts, `sgd` for the others."""
        return "adamw" if self.network.startswith(_ADAMW_NETWORKS) else "sgd"

    @property
    def peak_learning_rate(self) -> float:
        """The given one, else one that suits the optimizer, lower where the weights are trained already.

        SGD's grows with the batch (Goyal et al. 2017, section 2.1).
        """
        if self.learning_rate is not None:
            return self.learning_rate
        rate = 5e-4 if self.optimizer == "adamw" else 0.05 * self.batch_size / 64
        return rate if self.init == "none" else rate / 5

    def describe(self) -> dict[str, Any]:
        """The recipe as it stands in a bundle."""
        return {**asdict(self), "weights": dict(self.weights), "learning_rate": self.peak_learning_rate,
                "optimizer": self.optimizer}  # fmt: skip
