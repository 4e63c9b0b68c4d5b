"""torchvision's classifiers: built without weights, and made ready to score."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

from crackbatch.errors import BundleError

if TYPE_CHECKING:
    import torch

# What torchvision.ops.roi_align imports one function from: torch's compiler. No classifier calls that function.
_COMPILER = "torch._dynamo.utils"
_import_lock = threading.Lock()


def import_torchvision() -> Any:
    """Import torchvision with its models, but without torch's compiler, which takes as long to import as torch itself.

    Whoever uses the compiler later imports it then. See benchmarks/LOG.md for what this saves.
    """
    with _import_lock:
        if _COMPILER in sys.modules or "torchvision" in sys.modules:
            import torchvision.models

            return torchvision
        import torch  # noqa: F401 (before the stand-in: torch itself must see its own modules)

        stand_in = _Later(_COMPILER)
        sys.modules[_COMPILER] = stand_in
        try:
            import torchvision.models
        finally:
            if sys.modules.get(_COMPILER) is stand_in:
                del sys.modules[_COMPILER]
    return torchvision


class _Later(ModuleType):
    """Stands for a module during an import: gives functions that import the module when they are called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **options: Any) -> Any:
            import importlib

            return getattr(importlib.import_module(_COMPILER), name)(*args, **options)

        return call


def build_network(name: str, input_size: int = 224) -> torch.nn.Module:
    """Return a torchvision classifier with two classes (no crack, crack) and untrained weights. Raises BundleError."""
    torchvision = import_torchvision()
    # The list holds only classifiers. torchvision's other networks, such as detectors, would download weights.
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise BundleError(f"torchvision has no classifier {name!r}; use one that it has, such as resnet18")
    options: dict[str, Any] = {}
    if name.startswith("vit_"):  # built for one input size; the others accept any size
        options["image_size"] = input_size
    if name in ("googlenet", "inception_v3"):  # have auxiliary outputs that only help training
        options |= {"aux_logits": False, "init_weights": True}
    network: torch.nn.Module = torchvision.models.get_model(name, weights=None, num_classes=2, **options)
    return network


def load_tensors(network: torch.nn.Module, tensors: dict[str, torch.Tensor], strict: bool = True) -> None:
    """Load tensors by name into a network, as tensors of its own version; torch raises errors of several kinds."""
    state = network.state_dict()  # holds the layers' versions, which MNASNet needs and safetensors does not store
    state.clear()
    state.update(tensors)
    network.load_state_dict(state, strict=strict)


def fold(network: torch.nn.Module) -> torch.fx.GraphModule:
    """Fold each batch norm into the convolution before it (Jacob et al. 2018, section 3.2)."""
    from torch.fx.experimental.optimization import fuse

    folded: Any = fuse(network)
    return folded  # type: ignore[no-any-return]


def frame_in_float32(network: torch.nn.Module, device: str) -> None:
    """Let the first and the last layer compute in float32, also within autocast; both take little time.

    Rounding the pixels to the 8 bits of bfloat16 causes half of the error: the largest difference of a probability from
    float32 in 4,120 tiles is 0.006 instead of 0.010 (benchmarks/LOG.md). Rounded logits would have many ties.
    """
    import torch

    layers: list[Any] = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)]
    for layer in {*layers[:1], *layers[-1:]}:
        layer.in_float32 = partial(_in_float32, device)
        layer.forward = layer.in_float32(layer.forward)


def _in_float32(device: str, run: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    import torch

    def in_float32(inputs: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, enabled=False):
            return run(inputs.float())

    return in_float32
