"""A training begins with the weights that are named, or is refused in one line; nothing in them is executed."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch

from crackbatch.errors import BundleError
from crackbatch.training.initial import initial_network


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_torchvision_state_dict_is_where_training_starts(wrapped: bool, tmp_path: Path) -> None:
    from torchvision.models import resnet18

    state = resnet18(num_classes=1000).state_dict()  # as ImageNet's, with another head
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}} if wrapped else state, tmp_path / "r.pth")
    network, head, origin = initial_network("resnet18", str(tmp_path / "r.pth"))
    assert head == "fc"
    assert origin.startswith("r.pth@")
    assert torch.equal(network.state_dict()["layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])
    assert network.state_dict()["fc.weight"].shape == (2, 512)


@pytest.mark.parametrize("network", ["mnasnet0_5", "densenet121"])
def test_weights_that_torchvision_reads_in_a_way_of_its_own_are_where_training_starts(
    network: str, tmp_path: Path
) -> None:
    state = initial_network(network, "none", 64, seed=1).network.state_dict()
    named_as_once = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): state[key] for key in state}
    assert named_as_once.keys() != state.keys() or network == "mnasnet0_5"
    safetensors.torch.save_file(named_as_once, tmp_path / "weights.safetensors")
    found = initial_network(network, str(tmp_path / "weights.safetensors"), 64).network.state_dict()
    assert all(torch.equal(found[key], state[key]) for key in state)


class _Exploding:
    def __reduce__(self):
        return (open, ("exploded", "w"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(pickle.dumps(_Exploding())), "is not loaded"),
        (lambda path: torch.save({"a": _Exploding()}, path), "is not loaded"),
        (lambda path: path.write_bytes(b""), "is not loaded"),
        (lambda path: path.write_bytes(b"."), "is not loaded"),
        (lambda path: path.write_bytes(b"hello"), "is not loaded"),
        (lambda path: torch.save({"conv1.weight": torch.zeros(1)}, path), "does not fit network resnet18"),
        (lambda path: torch.save([1, 2], path), "is not a state dict"),
        (lambda path: None, "no bundle and no weights there"),
    ],
)
def test_initial_weights_that_are_none_are_refused_and_never_run(
    make, message: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "weights.pth")
    with pytest.raises(BundleError, match=message) as raised:
        initial_network("resnet18", str(tmp_path / "weights.pth"))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "exploded").exists()


def test_imagenet_weights_without_a_connection_name_the_other_choices(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(BundleError, match=r"--init none.*concrete-resnet18"):
        initial_network("resnet18", "imagenet")


@pytest.mark.parametrize(
    ("network", "size"), [("vit_b_16", 100), ("alexnet", 32), ("inception_v3", 64), ("maxvit_t", 100)]
)
def test_a_size_that_a_network_cannot_take_is_refused_in_one_line(network: str, size: int) -> None:
    with pytest.raises(
        BundleError, match=rf"--network {network} does not accept images of {size} .*--image-size"
    ) as raised:
        initial_network(network, "none", size)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("network", ["resnet99", "fcn_resnet50", "squeezenet1_0"])
def test_what_is_no_classifier_of_torchvision_is_refused(network: str) -> None:
    with pytest.raises(BundleError, match=network):
        initial_network(network, "none")
