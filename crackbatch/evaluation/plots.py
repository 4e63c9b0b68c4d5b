"""Figures: training curves, confusion matrices, precision-recall and ROC curves, reliability."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from crackbatch.evaluation.metrics import Scored, curves, reliability

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 130


def plot_training(history: Sequence[Mapping[str, float]]) -> bytes:
    """Return a PNG of losses and accuracy by epoch, with the kept epoch marked."""
    figure, (left, right) = _figure(1, 2, (10, 4))
    epochs = [row["epoch"] for row in history]
    left.plot(epochs, [row["train_loss"] for row in history], marker=".", label="training (smoothed labels)")
    left.plot(epochs, [row["validation_loss"] for row in history], marker=".", label="validation")
    right.plot(
        epochs, [row["validation_accuracy"] for row in history], marker=".", color="tab:orange", label="validation"
    )
    best = min(history, key=lambda row: row["validation_loss"])["epoch"]
    for axes, name in ((left, "loss"), (right, "accuracy")):
        axes.axvline(best, color="0.6", linestyle=":", label=f"kept epoch: {best:.0f}")
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    return _png(figure)


def plot_confusion(counts: Mapping[str, tuple[int, int, int, int]], threshold: float) -> bytes:
    """Return a PNG with a confusion matrix for each source, from (hits, false alarms, misses, correct rejections)."""
    columns = min(4, len(counts))
    rows = -(-len(counts) // columns)
    figure, grid = _figure(rows, columns, (3.1 * columns, 3.2 * rows + 0.4))
    for axes in np.atleast_1d(grid).ravel()[len(counts) :]:
        axes.set_axis_off()
    for axes, (name, (hits, false, missed, right)) in zip(np.atleast_1d(grid).ravel(), counts.items(), strict=False):
        table = np.array([[right, false], [missed, hits]])
        shares = table / np.maximum(table.sum(1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(table):
            shade = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{count:,}\n{shares[row, column]:.1%}", ha="center", va="center", color=shade)
        axes.set(xticks=[0, 1], yticks=[0, 1], xticklabels=["no crack", "crack"], yticklabels=["no crack", "crack"])
        axes.set(xlabel="predicted", ylabel="true", title=_as_it_stands(name))
    figure.suptitle(f"threshold {threshold:.3f}")
    return _png(figure)


def plot_ranking(sources: Mapping[str, Scored], threshold: float) -> bytes:
    """Return a PNG of the precision-recall and ROC curves of each source, with the threshold marked on each curve."""
    figure, (left, right) = _figure(1, 2, (11, 5))
    for name, scored in sources.items():
        if len(set(scored.labels.tolist())) < 2:
            continue
        recall, precision, false, thresholds = curves(scored)
        at = int(np.searchsorted(-thresholds, -threshold, side="right")) - 1
        # Each step has the precision at its end, as in average precision, which is the area below the line.
        steps = np.insert(recall, 0, 0), np.insert(precision, 0, precision[0])
        (line,) = left.plot(*steps, drawstyle="steps-pre", label=_as_it_stands(name))
        right.plot(np.insert(false, 0, 0), np.insert(recall, 0, 0), color=line.get_color())
        if at >= 0:
            left.plot(recall[at], precision[at], "o", color=line.get_color())
            right.plot(false[at], recall[at], "o", color=line.get_color())
    right.plot([0, 1], [0, 1], color="0.8", linestyle=":")
    left.set(xlabel="recall (share of cracks that are found)", ylabel="precision (share of alarms that are cracks)")
    right.set(xlabel="false alarm rate (share of sound images)", ylabel="recall")
    for axes in (left, right):
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        axes.grid(alpha=0.3)
    if left.lines:
        left.legend(loc="lower left")
    figure.suptitle(f"dots mark the threshold {threshold:.3f}")
    return _png(figure)


def plot_reliability(sources: Mapping[str, Scored]) -> bytes:
    """Return a PNG of the share of cracked images against the predicted probability, with the number of images."""
    figure, (above, below) = _figure(2, 1, (6, 7), height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color="0.8", linestyle=":")
    for name, scored in sources.items():
        said, was, count = reliability(scored)
        there = count > 0
        above.plot(said[there], was[there], marker="o", markersize=4, label=_as_it_stands(name))
        below.step(np.linspace(0, 1, len(count) + 1), np.append(count, count[-1]), where="post")
    above.set(xlabel="predicted probability", ylabel="share of cracked images", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    below.set(xlabel="predicted probability", ylabel="number of images", yscale="symlog", xlim=(-0.02, 1.02))
    above.legend()
    return _png(figure)


def _as_it_stands(name: str) -> str:
    """Return a name that matplotlib shows unchanged: `$…$` is mathematics, and legends skip names starting with `_`."""
    return f"{' ' * name.startswith('_')}{name}".replace("$", r"\$")


def _figure(rows: int, columns: int, size: tuple[float, float], **grid: Any) -> tuple[Figure, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, gridspec_kw=grid or None)


def _png(figure: Figure) -> bytes:
    target = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")  # matplotlib draws a box instead
        figure.savefig(target, format="png", dpi=_DPI)
    return target.getvalue()
