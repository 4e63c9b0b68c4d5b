"""Options that mean nothing are refused, and each network's pictures are normalised as it was made for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from builders.trainings import SMALL
from crackbatch import train
from crackbatch.errors import OptionError
from crackbatch.training.recipe import Recipe


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_imagenets_weights_of_each_network_see_what_they_were_made_for(name: str) -> None:
    import torchvision.models

    theirs = getattr(torchvision.models, name)(weights=None, init_weights=False, transform_input=True).eval()
    ours = getattr(torchvision.models, name)(weights=None, init_weights=False).eval()
    ours.load_state_dict(theirs.state_dict())
    pixels = torch.rand(2, 3, 80, 80, generator=torch.Generator().manual_seed(0))
    logits = [
        network((pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
        for network, (mean, std) in ((theirs, Recipe().normalisation), (ours, Recipe(network=name).normalisation))
    ]
    torch.testing.assert_close(*logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "--epochs"),
        ({"batch_size": 1}, "--batch-size"),
        ({"learning_rate": -1.0}, "--learning-rate"),
        ({"image_size": 8}, "--image-size"),
        ({"seed": 2**32}, "--seed .* got 4294967296"),
        ({"balance": "all"}, "--balance"),
        ({"augmentation": "none"}, "--augmentation"),
        ({"weights": {"deck/D": 0.0}}, "--weight"),
        ({"workers": -1}, "--workers"),
    ],
)
def test_an_option_that_means_nothing_is_refused_before_reading(options, message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        train("nowhere", str(tmp_path / "out"), **{**SMALL, **options})
    assert not (tmp_path / "out").exists()
