"""Labelled data, and what a model says of them."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from crackbatch.datasets.dataset import Dataset
from crackbatch.evaluation.metrics import Scored


def sides(dataset: Dataset, column: str) -> dict[str, set[str]]:
    """The splits in which each value of a column stands."""
    found = defaultdict(set)
    names = dataset.table.column(column).to_pylist()
    for name, split in zip(names, dataset.table.column("split").to_pylist(), strict=True):
        found[name].add(split)
    return found


def make_scored(num: int = 600, seed: int = 0, ties: bool = False) -> Scored:
    """Labels at random, in groups, with probabilities that know something of them."""
    random = np.random.default_rng(seed)
    labels = (random.random(num) < 0.3).astype(np.int64)
    probabilities = np.clip(0.35 * labels + random.normal(0.3, 0.2, num), 0, 1)
    if ties:
        probabilities = np.round(probabilities, 1)
    return Scored(probabilities.astype(np.float32), labels, random.integers(0, 40, num).astype(str))
