"""An epoch shows each source and class as often as the balance says, and workers share its images alike."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from crackbatch.datasets.pixels import number_rows
from crackbatch.training.sampling import Sampler, deal

SIZES = {("a", 0): 300, ("a", 1): 100, ("b", 0): 150, ("b", 1): 50, ("c", 0): 200}

SOURCES, LABELS = (
    np.repeat(np.array([cell[place] for cell in SIZES], dtype=kind), list(SIZES.values()))
    for place, kind in ((0, object), (1, np.int64))
)


def shares(order: np.ndarray) -> dict[tuple[str, int], float]:
    """How much of what is shown is of each source and class."""
    shown = Counter(zip(SOURCES[order].tolist(), LABELS[order].tolist(), strict=True))
    return {cell: num / len(order) for cell, num in shown.items()}


CASES = [
    ("none", {}, {cell: size / 800 for cell, size in SIZES.items()}),
    ("class", {}, {("a", 0): 3 / 13, ("b", 0): 1.5 / 13, ("c", 0): 2 / 13, ("a", 1): 1 / 3, ("b", 1): 1 / 6}),
    ("source", {}, {("a", 0): 1 / 6, ("a", 1): 1 / 6, ("b", 0): 1 / 6, ("b", 1): 1 / 6, ("c", 0): 1 / 3}),
    ("none", {"c": 2.0}, {cell: (2 if cell[0] == "c" else 1) * size / 1000 for cell, size in SIZES.items()}),
    ("source", {"c": 0.5}, {("a", 0): 0.2, ("a", 1): 0.2, ("b", 0): 0.2, ("b", 1): 0.2, ("c", 0): 0.2}),
]


@pytest.mark.parametrize(("balance", "weights", "expected"), CASES)
def test_an_epoch_shows_what_the_balance_says(
    balance: str, weights: dict[str, float], expected: dict[tuple[str, int], float]
) -> None:
    sampler = Sampler(LABELS, SOURCES, balance, weights, seed=0)
    order = sampler.order(1)
    assert len(order) == len(sampler)
    assert shares(order) == pytest.approx(expected, abs=0.002)
    assert (order == sampler.order(1)).all()
    assert (order != sampler.order(2)).any()
    for cell in SIZES:  # every image of a cell as often as any other, give or take one
        members = np.flatnonzero((cell[0] == SOURCES) & (cell[1] == LABELS))
        times = np.bincount(order, minlength=800)[members]
        assert times.max() - times.min() <= 1


@pytest.mark.parametrize(("balance", "weights", "expected"), CASES)
def test_a_stream_shows_on_average_what_an_epoch_does(
    balance: str, weights: dict[str, float], expected: dict[tuple[str, int], float]
) -> None:
    sampler, random = Sampler(LABELS, SOURCES, balance, weights, seed=0), np.random.default_rng(0)
    order = np.concatenate([np.repeat(np.arange(800), sampler.times(LABELS, SOURCES, random)) for _ in range(100)])
    assert shares(order) == pytest.approx(expected, abs=0.01)
    assert len(order) / 100 == pytest.approx(len(sampler), rel=0.01)


def test_without_a_balance_every_image_is_shown_once() -> None:
    assert sorted(Sampler(LABELS, SOURCES, "none", {}, seed=0).order(1).tolist()) == list(range(800))
    times = Sampler(LABELS, SOURCES, "none", {}, seed=0).times(LABELS, SOURCES, np.random.default_rng(0))
    assert (times == 1).all()


@pytest.mark.parametrize("labels", [[1] * 64 + [0] * 64, [0, 1] * 64, [1] * 20 + [0] * 300, [0, 1, 0]])
def test_workers_are_dealt_every_image_once_and_both_classes_alike(labels: list[int]) -> None:
    rows = number_rows(pa.table({"label": labels}))
    parts = deal(rows, 2, seed=0)
    assert sorted(number for part in parts for number in part.column("number").to_pylist()) == list(range(len(labels)))
    cracked = [sum(part.column("label").to_pylist()) for part in parts]
    assert max(cracked) - min(cracked) <= max(2, sum(cracked) // 4)
    assert [part.column("number").to_pylist() for part in deal(rows, 2, seed=0)] == [
        part.column("number").to_pylist() for part in parts
    ]
