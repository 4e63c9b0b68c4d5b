"""A network over a whole picture answers as it does for each window, however the picture is cut into strips."""

from __future__ import annotations

import pytest

from crackbatch.errors import BundleError
from crackbatch.models.dense import Dense
from crackbatch.models.networks import build_network, fold

torch = pytest.importorskip("torch")


def dense(name: str, input_size: int = 224) -> Dense:
    torch.manual_seed(0)
    network = build_network(name, input_size)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):  # as after training: no channel is flat
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    return Dense(fold(network.eval()).to(memory_format=torch.channels_last), name, input_size)


def logits(network: Dense, picture: torch.Tensor, heights: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat(list(network.logits(picture.split(heights, 2))), 1)


def picture(height: int, width: int, num: int = 1) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randn(num, 3, height, width, generator=random).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2", "densenet121", "regnet_x_400mf"])
def test_strips_change_nothing_and_one_window_is_what_the_network_says(name: str) -> None:
    network = dense(name)
    assert (network.stride, network.side) == (32, 7)
    two = picture(320, 288, 2)
    whole = logits(network, two, [320])
    assert whole.shape == (2, 4, 3)
    assert whole.std() > 0
    for heights in ([32] * 10, [7, 25, 64, 1, 100, 123], [160, 160]):
        assert torch.allclose(logits(network, two, heights), whole, rtol=1e-3, atol=1e-4 * whole.abs().max().item())
    tile = two[:1, :, :224, :224]
    with torch.inference_mode():
        outputs = network._network(tile)
    assert logits(network, tile, [100, 124]).item() == pytest.approx((outputs[0, 1] - outputs[0, 0]).item(), rel=1e-3)


def test_a_window_has_the_size_that_the_network_was_trained_on() -> None:
    network = dense("resnet18", 160)
    assert (network.stride, network.side) == (32, 5)
    assert logits(network, picture(160, 192), [160]).shape == (1, 1, 2)


@pytest.mark.parametrize("name", ["vit_b_16", "vgg11", "efficientnet_b0", "googlenet", "shufflenet_v2_x1_0"])
def test_networks_that_need_pictures_of_one_size_are_refused(name: str) -> None:
    with pytest.raises(BundleError, match=f"network {name} cannot look at windows of a photograph .*--view whole"):
        Dense(fold(build_network(name).eval()), name, 224)
