"""The network that training starts from: a torchvision architecture with the weights that `--init` names."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from crackbatch.errors import BundleError, CrackbatchError
from crackbatch.models.bundle import (
    DESCRIPTION,
    WEIGHTS,
    Bundle,
    absolute,
    read_bundle_and_weights,
    shipped_models,
)
from crackbatch.models.networks import build_network, import_torchvision, load_tensors
from crackbatch.models.seen import read_learnt
from crackbatch.storage import locations, objects
from crackbatch.storage.redaction import masked, reason_of, redact
from crackbatch.training.checkpoints import is_best

if TYPE_CHECKING:
    import torch

WORDS = ("imagenet", "none")
# torchvision's densenet weights use old names: denselayer1.norm.1 in the file is norm1 in the network.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


class Initial(NamedTuple):
    """A network to train, the name of its head (the last linear layer), and the origin of its weights."""

    network: torch.nn.Module
    head: str
    origin: str


def initial_network(name: str, init: str, input_size: int = 224, seed: int = 0) -> Initial:
    """A network with two classes and initial weights; raises BundleError.

    `init` is `imagenet` (torchvision's weights, downloaded), `none` (random), the name of a shipped model, or the
    location of a bundle or of a torchvision state dict (.pth, .safetensors). A head that does not fit stays random. The
    seed determines all random weights.
    """
    import torch

    torch.manual_seed(seed)
    network = _try_network(name, input_size)
    head = head_of(network, name)
    if init == "none":
        return Initial(network, head, "none")
    state, origin = (_imagenet(name), "imagenet") if init == "imagenet" else _read_state(init)
    _load(network, head, state, init, name)
    return Initial(network, head, origin)


def learnt_before(init: str) -> dict[int, str]:
    """The images that the initial weights were trained and tuned on; empty if the weights are not crackbatch's.

    Weights of crackbatch are a bundle, the weights file of a bundle, or the best weights of an interrupted training.
    """
    if init in WORDS:
        return {}
    if _is_bundle(init):
        return read_learnt(init)
    folder, _, name = init.rpartition("/")
    return read_learnt(folder) if name == WEIGHTS or is_best(name) else {}


def bundle_before(init: str) -> tuple[Bundle, bytes] | None:
    """Return the model that a training begins from, with its weights; None if it is not a whole model."""
    return read_bundle_and_weights(init) if init not in WORDS and _is_bundle(init) else None


def _is_bundle(init: str) -> bool:
    return init in shipped_models() or objects.exists(locations.join(absolute(init), DESCRIPTION))


def _try_network(name: str, input_size: int) -> torch.nn.Module:
    """The network, after a trial run on an empty picture, since many accept only certain sizes; raises BundleError."""
    import torch

    try:
        network = build_network(name, input_size)
        with torch.inference_mode():
            network.eval()(torch.zeros(1, 3, input_size, input_size))
    except (AssertionError, RuntimeError, ValueError) as error:  # each network raises its own
        raise BundleError(
            f"--network {name} does not accept images of {input_size} pixels ({reason_of(error)}); give another"
            " --image-size, such as 224"
        ) from None
    return network.train()


def head_of(network: torch.nn.Module, name: str) -> str:
    """The name of the last linear layer, which gives one output per class; raises BundleError if there is none."""
    import torch

    linear: list[str] = [key for key, module in network.named_modules() if isinstance(module, torch.nn.Linear)]
    if not linear:
        raise BundleError(f"--network {name} cannot be trained: it has no linear layer; give another, such as resnet18")
    return linear[-1]


def _imagenet(name: str) -> dict[str, Any]:
    try:
        weights = import_torchvision().models.get_model_weights(name).DEFAULT
        state: dict[str, Any] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # from urllib, the hub, or a proxy
        raise BundleError(
            f"the ImageNet weights of {name} cannot be downloaded ({error}); give other weights: --init none,"
            f" --init {', '.join(shipped_models())}, or --init PATH with the path of a state dict or a bundle"
        ) from None
    return state


def _read_state(init: str) -> tuple[dict[str, Any], str]:
    """Tensors by name from a bundle or a file, and the origin to record. Only tensors are unpickled."""
    from safetensors.torch import load

    if _is_bundle(init):
        bundle, weights = read_bundle_and_weights(init)
        return dict(load(weights)), bundle.model_id
    shown = masked(init)
    try:
        data = objects.read_bytes(absolute(init))
    except CrackbatchError:
        raise
    except Exception as error:  # each storage raises its own
        raise BundleError(
            f"--init {shown}: found no bundle and no weights there ({redact(str(error), init)}); give imagenet, none,"
            f" {', '.join(shipped_models())}, a bundle, or a state dict (.pth, .safetensors)"
        ) from None
    return _parse_state(data, shown), f"{PurePosixPath(shown).name}@{hashlib.sha256(data).hexdigest()[:12]}"


def _parse_state(data: bytes, shown: str) -> dict[str, Any]:
    import torch
    from safetensors.torch import load

    try:
        state = load(data) if data[8:9] == b"{" else torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # bad bytes make torch's reader raise errors of any type
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise BundleError(
            f"--init {shown} is not loaded: it is damaged or holds more than tensors ({reason[:200]})"
        ) from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):  # as training scripts save it
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise BundleError(f"--init {shown} is not a state dict: it must map names to tensors")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def _load(network: torch.nn.Module, head: str, state: dict[str, Any], init: str, name: str) -> None:
    wanted = network.state_dict()
    state = {_OLD_DENSENET.sub(r"\1\2", key): value for key, value in state.items()}
    fitting = {key: value for key, value in state.items() if key in wanted and value.shape == wanted[key].shape}
    missing = [key for key in wanted if key not in fitting and not key.startswith(f"{head}.")]
    if missing:
        found = tuple(state[missing[0]].shape) if missing[0] in state else "nothing"
        raise BundleError(
            f"--init {masked(init)} does not fit network {name}: {len(missing)} tensors differ, such as {missing[0]}"
            f" (expected {tuple(wanted[missing[0]].shape)}, found {found})"
        )
    load_tensors(network, fitting, strict=False)
