"""Decides which images each worker has and the order of an epoch: seeded, balanced, the same on any machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa

from crackbatch.errors import RunError

# Neighbours in an archive are read together, so workers get runs of neighbours. Each worker gets at least `_MIN_RUNS`
# runs if there are enough images: the images of one class are neighbours, and must not all go to one worker.
_RUN = 64
_MIN_RUNS = 16

_Cell = tuple[str, int]


class Sampler:
    """Decides how often an epoch shows each image of a worker.

    `balance` `class` shows cracked and sound images equally often. `source` shows all sources equally often, and the
    classes within each source too. `weights` then multiply how often a source is shown. Without balance and weights,
    every image is shown once.
    """

    def __init__(
        self, labels: np.ndarray, sources: np.ndarray, balance: str, weights: Mapping[str, float], seed: int
    ) -> None:
        self._seed = seed
        self._members = _cells(labels, sources)
        self._quotas = _quotas({cell: len(members) for cell, members in self._members.items()}, balance, weights)

    def __len__(self) -> int:
        """The number of images that an epoch shows."""
        return sum(self._quotas.values())

    def order(self, epoch: int) -> np.ndarray:
        """(images,) int64: the places of the images to show, in order."""
        random = np.random.default_rng((self._seed, epoch))
        drawn = [_draw(members, self._quotas[cell], random) for cell, members in self._members.items()]
        order: np.ndarray = random.permutation(np.concatenate(drawn))
        return order

    def times(self, labels: np.ndarray, sources: Iterable[str], random: np.random.Generator) -> np.ndarray:
        """(images,) int64: how often to show each image of a block. For streams, which have no full order to draw;
        the quotas hold on average."""
        rates = {cell: self._quotas[cell] / len(members) for cell, members in self._members.items()}
        wanted = np.array([rates[str(source), int(label)] for source, label in zip(sources, labels, strict=True)])
        whole = np.floor(wanted)
        times: np.ndarray = (whole + (random.random(len(wanted)) < wanted - whole)).astype(np.int64)
        return times


def deal(rows: pa.Table, workers: int, seed: int) -> list[pa.Table]:
    """One part of a split's rows for each worker, shuffled by runs of neighbours; raises RunError for too few rows."""
    random = np.random.default_rng(seed)
    size = max(1, min(_RUN, rows.num_rows // (workers * _MIN_RUNS)))
    starts = np.arange(0, rows.num_rows, size)
    # In each round, every worker gets one run at random: data in a regular order must not be dealt in the same order.
    rounds = [random.permutation(workers) for _ in range(-(-len(starts) // workers))]
    ranks = np.concatenate(rounds)[: len(starts)]
    parts = []
    for rank in range(workers):
        mine = [
            np.arange(start, min(start + size, rows.num_rows)) for start in random.permutation(starts[ranks == rank])
        ]
        if not mine:
            raise RunError(f"{rows.num_rows:,} training images are too few for {workers} workers; give fewer --workers")
        parts.append(rows.take(np.concatenate(mine)))
    return parts


def _cells(labels: np.ndarray, sources: np.ndarray) -> dict[_Cell, np.ndarray]:
    """(source, class) → the places of its images."""
    cells = {}
    for source in sorted(set(sources.tolist())):
        for label in (0, 1):
            if len(members := np.flatnonzero((sources == source) & (labels == label))):
                cells[source, label] = members
    return cells


def _quotas(sizes: Mapping[_Cell, int], balance: str, weights: Mapping[str, float]) -> dict[_Cell, int]:
    """(source, class) → the number of images that an epoch shows."""
    by_class = {label: sum(size for cell, size in sizes.items() if cell[1] == label) for label in (0, 1)}
    num_classes = Counter(source for source, _ in sizes)
    even: dict[str, dict[_Cell, float]] = {
        "none": dict(sizes),
        "class": {cell: size / by_class[cell[1]] for cell, size in sizes.items()},
        "source": {cell: 1 / num_classes[cell[0]] for cell in sizes},
    }
    shares = {cell: share * weights.get(cell[0], 1) for cell, share in even[balance].items()}
    total = sum(size * weights.get(cell[0], 1) for cell, size in sizes.items())
    scale = total / sum(shares.values())
    return {cell: max(1, round(share * scale)) for cell, share in shares.items()}


def _draw(members: np.ndarray, quota: int, random: np.random.Generator) -> np.ndarray:
    """Draw `quota` members; each member's count differs from any other's by at most one."""
    rounds = [random.permutation(members) for _ in range(-(-quota // len(members)))]
    return np.concatenate(rounds)[:quota]
