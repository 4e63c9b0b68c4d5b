"""Which images each worker has, and in which order an epoch shows them: seeded, balanced, the same on any machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa

from crackbatch.errors import RunError

# Neighbours in an archive are read together; runs of them are dealt out, so that a worker sees all of the data: as many
# to each worker at least, lest all of a class, whose images are neighbours, go to one.
_RUN = 64
_MIN_RUNS = 16

_Cell = tuple[str, int]


class Sampler:
    """Says how often an epoch shows each image of a worker.

    `balance` `class` shows cracks and sound concrete equally often, `source` every source and, in it, each class that
    it has; `weights` then multiply how often a source is shown. Without either, every image is shown once.
    """

    def __init__(
        self, labels: np.ndarray, sources: np.ndarray, balance: str, weights: Mapping[str, float], seed: int
    ) -> None:
        self._seed = seed
        self._members = _cells(labels, sources)
        self._quotas = _quotas({cell: len(members) for cell, members in self._members.items()}, balance, weights)

    def __len__(self) -> int:
        """Images that an epoch shows."""
        return sum(self._quotas.values())

    def order(self, epoch: int) -> np.ndarray:
        """(images,) int64 places of the images to show, in order."""
        random = np.random.default_rng((self._seed, epoch))
        drawn = [_draw(members, self._quotas[cell], random) for cell, members in self._members.items()]
        order: np.ndarray = random.permutation(np.concatenate(drawn))
        return order

    def times(self, labels: np.ndarray, sources: Iterable[str], random: np.random.Generator) -> np.ndarray:
        """(images,) how often to show each image of a block; right on average, where no order can be drawn."""
        rates = {cell: self._quotas[cell] / len(members) for cell, members in self._members.items()}
        wanted = np.array([rates[str(source), int(label)] for source, label in zip(sources, labels, strict=True)])
        whole = np.floor(wanted)
        times: np.ndarray = (whole + (random.random(len(wanted)) < wanted - whole)).astype(np.int64)
        return times


def deal(rows: pa.Table, workers: int, seed: int) -> list[pa.Table]:
    """A split's rows, as listed, in as many parts as there are workers, each shuffled by runs of neighbours."""
    random = np.random.default_rng(seed)
    size = max(1, min(_RUN, rows.num_rows // (workers * _MIN_RUNS)))
    starts = np.arange(0, rows.num_rows, size)
    # Of as many runs as there are workers each has one, drawn: what comes by turns must not go by turns.
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
    """The places of the images of each source and class."""
    cells = {}
    for source in sorted(set(sources.tolist())):
        for label in (0, 1):
            if len(members := np.flatnonzero((sources == source) & (labels == label))):
                cells[source, label] = members
    return cells


def _quotas(sizes: Mapping[_Cell, int], balance: str, weights: Mapping[str, float]) -> dict[_Cell, int]:
    """How many images of each cell an epoch shows."""
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
    """A quota of members, each as often as any other, give or take one."""
    rounds = [random.permutation(members) for _ in range(-(-quota // len(members)))]
    return np.concatenate(rounds)[:quota]
