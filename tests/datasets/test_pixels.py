"""Decoded images are held in memory where there is room."""

from __future__ import annotations

import pytest

from crackbatch.datasets.pixels import fits_memory
from crackbatch.machine import free_memory


@pytest.mark.parametrize(("neighbours", "fits"), [(1, True), (3, False)])
def test_neighbours_share_the_memory_of_their_machine(neighbours: int, fits: bool) -> None:
    assert fits_memory(int(0.2 * free_memory() / 3 / 64**2), 64, neighbours) == fits
