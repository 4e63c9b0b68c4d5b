"""Runs a classifier over pictures of any size: one logit for each place of a grid of windows.

A classifier of convolutions answers for one window of the size that it was trained on. Its convolutions accept any
size. So the network runs once over the whole picture, and instead of the average over all places, a sliding window
takes averages (Sermanet et al. 2014, section 3.3). Neighbouring windows share most of the work. They lie one step of
the last layer apart: 32 pixels for ResNet.

The picture passes through the network in strips of rows. Each layer keeps the last rows that its next strip needs. So
no row is computed twice, the result does not depend on the strips, and memory grows only with the picture's width.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from crackbatch.errors import BundleError

if TYPE_CHECKING:
    import torch


class Dense:
    """A network of convolutions for pictures of any size.

    Two windows lie at least `stride` pixels of the network's input apart. A window has `side` steps of `stride` pixels,
    about the input size that the network was trained on. Raises BundleError for a network with other layers.
    """

    def __init__(self, network: torch.fx.GraphModule, name: str, input_size: int) -> None:
        import torch

        self._name, self._network = name, network
        nodes = list(network.graph.nodes)
        pools = [place for place, node in enumerate(nodes) if _averages_all(network, node)]
        if not pools:
            raise self._refusal("no average over all places at its end")
        self._nodes, pool = nodes[: pools[-1]], nodes[pools[-1]]
        self._pooled: torch.fx.Node = pool.args[0]
        self._head = _after(network, pool)
        strides: dict[torch.fx.Node, int] = {}
        for node in self._nodes:
            window = _window(network, node)
            before = max((strides[source] for source in node.all_input_nodes), default=1)
            strides[node] = before * (window.stride if window else 1)
        self.stride, device = strides[self._pooled], next(network.parameters()).device
        features = self._features(self._steps(), torch.zeros(1, 3, input_size, input_size, device=device), True)
        if features is None or features.shape[2] != features.shape[3]:
            raise self._refusal("windows that are not square")
        self.side: int = features.shape[2]

    def logits(self, strips: Iterable[torch.Tensor], side: int | None = None) -> Iterator[torch.Tensor]:
        """Yield rows of crack logits (pictures, rows, columns) float32 for strips of pictures, from top to bottom.

        With a `side` of 1, each place of the last layer answers by itself: class activation (Zhou et al. 2016). The
        strips (pictures, 3, rows, width) are normalised, as for the network. The width and the sum of the rows are
        multiples of `stride`, and at least `side * stride`.
        """
        steps, average = self._steps(), _Sliding(_average_of(side or self.side))
        for strip, is_last in _with_last(strips):
            pooled = average([self._features(steps, strip, is_last)], is_last)
            if pooled is not None:
                num, _, rows, columns = pooled.shape
                outputs = self._head(pooled.permute(0, 2, 3, 1).reshape(num * rows * columns, -1, 1, 1)).float()
                yield (outputs[:, 1] - outputs[:, 0]).reshape(num, rows, columns)

    def _features(self, steps: Sequence[_Step], strip: torch.Tensor, is_last: bool) -> torch.Tensor | None:
        """Return the new rows of the last layer before the average."""
        made: dict[torch.fx.Node, torch.Tensor | None] = {}
        left = {node: len(node.users) for node in self._nodes}
        for node, step in zip(self._nodes, steps, strict=True):
            sources = node.all_input_nodes
            made[node] = step([made[source] for source in sources] or [strip], is_last)
            for source in sources:
                left[source] -= 1
                if not left[source]:
                    made[source] = None  # frees its memory
        return _rows_of(made[self._pooled])  # type: ignore[no-any-return]

    def _steps(self) -> list[_Step]:
        return [self._step(node) for node in self._nodes]

    def _step(self, node: torch.fx.Node) -> _Step:
        """Return a new step for a layer of the network."""
        from torch import nn
        from torch.nn import functional

        if node.op == "placeholder":
            return _each(lambda rows: rows)
        if (window := _window(self._network, node)) is not None:
            return _Sliding(window)
        if node.op == "call_module":
            layer = self._network.get_submodule(str(node.target))
            if isinstance(layer, nn.ReLU):
                return _rectify(is_shared=len(node.all_input_nodes[0].users) > 1)
            if isinstance(layer, nn.ReLU6 | nn.SiLU | nn.GELU | nn.Hardswish | nn.BatchNorm2d):
                return _each(_on_copy(layer) if len(node.all_input_nodes[0].users) > 1 else layer)
            if isinstance(layer, nn.Dropout | nn.Identity):  # neither does anything after the training
                return _each(lambda rows: rows)
            raise self._refusal(type(layer).__name__)
        if node.target is functional.relu:
            return _rectify(is_shared=len(node.all_input_nodes[0].users) > 1)
        if node.target in (operator.add, operator.iadd) and len(node.all_input_nodes) == 2:
            return _Merging(lambda parts: parts[0] + parts[1])
        if getattr(node.target, "__name__", "") == "cat" and (node.args[1:] or [node.kwargs.get("dim")])[0] == 1:
            import torch

            return _Merging(lambda parts: torch.cat(parts, 1))
        raise self._refusal(str(getattr(node.target, "__name__", node.target)))

    def _refusal(self, layer: str) -> BundleError:
        return BundleError(
            f"network {self._name} cannot look at windows of a photograph (it has {layer}); give --view whole,"
            " or a model with another network, such as resnet18"
        )


# One layer of one picture. It gets the new rows of each of its inputs (None for no new rows) and whether they are the
# last ones, and returns the new rows of its output.
_Step = Callable[[list[Any], bool], Any]


class _Window(NamedTuple):
    """A layer that looks at `kernel` rows at a time, `stride` apart. `run` gets rows with `padding` rows of `fill`."""

    kernel: int
    stride: int
    padding: int
    fill: float
    run: Callable[[Any], Any]


class _Sliding:
    """The step of a layer with a window: keeps the rows that its next window needs."""

    def __init__(self, window: _Window) -> None:
        self._window, self._is_begun = window, False
        self._kept: Any = None
        self._memory: Any = None
        self._skip = 0

    def __call__(self, inputs: list[Any], is_last: bool) -> Any:
        from torch.nn import functional

        kernel, stride, padding, fill, run = self._window
        (new,) = inputs
        if new is not None and self._skip:
            new = _rows_of(new)
            self._skip, new = max(0, self._skip - new.shape[2]), new[:, :, self._skip :]
        rows = self._behind(new) if isinstance(new, _Rectified) else _joined(self._kept, new)
        if rows is None:
            return None
        top, bottom = 0 if self._is_begun else padding, padding if is_last else 0
        self._is_begun = True
        if top or bottom:
            rows = functional.pad(rows, (0, 0, top, bottom), value=fill)
        num = (rows.shape[2] - kernel) // stride + 1
        if num < 1:
            self._kept = rows
            return None
        self._kept = rows[:, :, num * stride :].clone()
        self._skip = max(0, num * stride - rows.shape[2])
        return run(rows[:, :, : (num - 1) * stride + kernel])

    def _behind(self, new: _Rectified) -> Any:
        """Return the rows that were kept, and the new ones behind them, in memory that is used again."""
        import torch

        kept = self._kept
        if not new.is_pending or kept is None or not kept.shape[2]:
            return _joined(kept, new.value())
        num, channels, height, width = new.shape
        shape = (num, channels, kept.shape[2] + height, width)
        if self._memory is None or self._memory.shape != shape:
            self._memory = torch.empty(
                shape, dtype=kept.dtype, device=kept.device, memory_format=torch.channels_last
            )  # fmt: skip
        self._memory[:, :, : kept.shape[2]] = kept
        new.write(self._memory[:, :, kept.shape[2] :])
        return self._memory


class _Merging:
    """The step of a layer with several inputs, of which some may be rows ahead of others."""

    def __init__(self, run: Callable[[list[Any]], Any]) -> None:
        self._run, self._held = run, list[Any]()

    def __call__(self, inputs: list[Any], is_last: bool) -> Any:
        held = self._held or [None] * len(inputs)
        self._held = [_joined(kept, _rows_of(new)) for kept, new in zip(held, inputs, strict=True)]
        num = min(0 if rows is None else rows.shape[2] for rows in self._held)
        if not num:  # the memory of the rows may be used again for the next ones
            self._held = [None if rows is None else rows.clone() for rows in self._held]
            return None
        ready = [rows[:, :, :num] for rows in self._held]
        self._held = [rows[:, :, num:].clone() if rows.shape[2] > num else None for rows in self._held]
        return self._run(ready)


def _each(run: Callable[[Any], Any]) -> _Step:
    """Return the step of a layer that treats each place by itself."""
    return lambda inputs, is_last: None if inputs[0] is None else run(_rows_of(inputs[0]))


class _Rectified:
    """Rows before a ReLU, which is applied where they are used first.

    A layer with a window has the result written behind the rows that it has kept. Without this, all rows would be
    copied once more.
    """

    def __init__(self, rows: Any, is_shared: bool) -> None:
        self._rows, self._is_shared, self.shape = rows, is_shared, rows.shape
        self._value: Any = None

    @property
    def is_pending(self) -> bool:
        return self._value is None

    def value(self) -> Any:
        if self._value is None:
            self._value = self._rows.relu() if self._is_shared else self._rows.relu_()
        return self._value

    def write(self, target: Any) -> None:
        """Write the result to memory of the same shape."""
        import torch

        self._value = torch.clamp_min(self._rows, 0, out=target)


def _rectify(is_shared: bool) -> _Step:
    """Return the step of a ReLU; `is_shared` if another layer uses the same input."""
    return lambda inputs, is_last: None if inputs[0] is None else _Rectified(_rows_of(inputs[0]), is_shared)


def _rows_of(rows: Any) -> Any:
    return rows.value() if isinstance(rows, _Rectified) else rows


def _on_copy(layer: Any) -> Callable[[Any], Any]:
    """Let a layer that may overwrite its input work on a copy."""
    return lambda rows: layer(rows.clone())


def _joined(kept: Any, new: Any) -> Any:
    import torch

    if kept is None or not kept.shape[2]:
        return new
    return kept if new is None else torch.cat([kept, new], 2)


def _window(network: torch.fx.GraphModule, node: torch.fx.Node) -> _Window | None:
    """Return the window of a convolution or a pooling; None for other layers."""
    from torch import nn
    from torch.nn import functional

    if node.op != "call_module":
        return None
    layer: Any = network.get_submodule(str(node.target))
    if isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        padding = (0, layer.padding[1])

        def convolve(rows: Any) -> Any:
            return functional.conv2d(
                rows, layer.weight, layer.bias, layer.stride, padding, layer.dilation, layer.groups
            )  # fmt: skip

        frame: Any = getattr(layer, "in_float32", None)
        run = frame(convolve) if frame else convolve
        return _Window((layer.kernel_size[0] - 1) * layer.dilation[0] + 1, layer.stride[0], layer.padding[0], 0.0, run)
    if isinstance(layer, nn.MaxPool2d | nn.AvgPool2d) and not layer.ceil_mode:
        kernel, stride, sides = _pair(layer.kernel_size), _pair(layer.stride), _pair(layer.padding)
        if isinstance(layer, nn.AvgPool2d):
            if sides == (0, 0):
                return _Window(kernel[0], stride[0], 0, 0.0, lambda rows: functional.avg_pool2d(rows, kernel, stride))
        elif _pair(layer.dilation) == (1, 1):
            sideways = (0, sides[1])
            return _Window(
                kernel[0], stride[0], sides[0], -float("inf"),
                lambda rows: functional.max_pool2d(rows, kernel, stride, sideways),
            )  # fmt: skip
    return None


def _average_of(side: int) -> _Window:
    from torch.nn import functional

    return _Window(side, 1, 0, 0.0, lambda rows: functional.avg_pool2d(rows, (side, side), 1))


def _averages_all(network: torch.fx.GraphModule, node: torch.fx.Node) -> bool:
    """Whether a layer takes the average over all places of each channel."""
    from torch import nn
    from torch.nn import functional

    if node.op == "call_module":
        layer = network.get_submodule(str(node.target))
        return isinstance(layer, nn.AdaptiveAvgPool2d) and _pair(layer.output_size) == (1, 1)
    if node.target is functional.adaptive_avg_pool2d:
        return _pair(node.args[1]) == (1, 1)
    return node.op == "call_method" and node.target == "mean" and list(node.args[1]) == [2, 3]  # type: ignore[arg-type]


def _after(network: torch.fx.GraphModule, pool: torch.fx.Node) -> torch.fx.GraphModule:
    """Return the layers after the average: for its output (places, channels, 1, 1) they give (places, classes)."""
    import torch

    graph = torch.fx.Graph()
    copies: dict[torch.fx.Node, torch.fx.Node] = {}
    reached = False
    for node in network.graph.nodes:
        if node is pool:
            averages, reached = graph.placeholder("averages"), True
            # Without the last two dimensions if the layer drops them.
            copies[node] = graph.call_method("flatten", (averages, 1)) if node.target == "mean" else averages
        elif reached:
            copies[node] = graph.node_copy(node, lambda source: copies[source])
    return torch.fx.GraphModule(network, graph)


def _with_last(strips: Iterable[Any]) -> Iterator[tuple[Any, bool]]:
    """Yield each strip, and whether it is the last one."""
    held = None
    for strip in strips:
        if held is not None:
            yield held, False
        held = strip
    if held is not None:
        yield held, True


def _pair(value: Any) -> tuple[Any, Any]:
    return (value, value) if isinstance(value, int) else tuple(value)
