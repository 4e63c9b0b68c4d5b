"""Pictures that look alike are one cluster, however many they are; others are not."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from crackbatch.datasets.duplicates import HASH_BYTES, clusters


def make_hashes(num: int, seed: int = 0) -> np.ndarray:
    """Hashes of different pictures, as (num, 256) bits."""
    return np.random.default_rng(seed).integers(0, 2, (num, 8 * HASH_BYTES), dtype=np.uint8)


def flip(bits: np.ndarray, num_flipped: int, seed: int = 0) -> np.ndarray:
    """The same hashes with some bits of each flipped, others in each."""
    places = np.random.default_rng(seed).random(bits.shape).argsort(axis=1)[:, :num_flipped]
    flipped = bits.copy()
    np.put_along_axis(flipped, places, 1 - np.take_along_axis(bits, places, axis=1), axis=1)
    return flipped


def as_bytes(bits: np.ndarray) -> list[bytes | None]:
    return [row.tobytes() for row in np.packbits(bits, axis=1)]


@pytest.mark.parametrize("num_flipped", [0, 5])
def test_thousands_of_alike_pictures_are_one_cluster_in_little_memory(num_flipped: int) -> None:
    hashes = as_bytes(flip(np.repeat(make_hashes(1), 3000, axis=0), num_flipped))
    clusters(hashes[:2])  # imports what it needs
    tracemalloc.start()
    found = clusters(hashes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert set(found.tolist()) == {0}
    assert peak < 1000 * len(hashes)


@pytest.mark.parametrize("num_shared", [0, 16, 64])
def test_of_many_pictures_that_share_some_bits_each_finds_its_twin_and_no_other(num_shared: int) -> None:
    pictures = make_hashes(3000)
    pictures[:, :num_shared] = 0  # of a sky, say
    twins = flip(pictures, 12)
    assert clusters(as_bytes(np.concatenate([pictures, twins]))).tolist() == 2 * list(range(3000))


def test_near_duplicates_are_those_of_at_most_24_bits_and_what_is_chained_by_them() -> None:
    one = make_hashes(1)
    chain = np.concatenate([one, one, one, one])
    chain[1, :24] ^= 1
    chain[2, :48] ^= 1
    chain[3, :73] ^= 1
    assert clusters(as_bytes(chain)).tolist() == [0, 0, 0, 3]


def test_blank_pictures_are_near_duplicates_of_none() -> None:
    one = as_bytes(make_hashes(1))
    assert clusters([None, *one, None, *one]).tolist() == [0, 1, 2, 1]
    assert clusters([None, None]).tolist() == [0, 1]
    assert clusters([]).tolist() == []
