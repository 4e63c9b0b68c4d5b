"""Random numbers that depend only on a key for each image, and ranges of values drawn with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def between(limits: Sequence[float], shares: np.ndarray) -> np.ndarray:
    """Return values between two limits, for numbers from 0 to 1."""
    return limits[0] + (limits[1] - limits[0]) * shares


def log_between(limits: Sequence[float], shares: np.ndarray) -> np.ndarray:
    """Return the same with all ratios equally often."""
    found: np.ndarray = limits[0] * (limits[1] / limits[0]) ** shares
    return found


def uniforms(key: Sequence[int | np.ndarray], num: int) -> np.ndarray:
    """(num, batch) float64 from 0 to 1: SplitMix64 (Steele et al. 2014) from a key for each image.

    numpy's generators would take 12 us an image to start, these take 1 us for all numbers of an image.
    """
    state = np.zeros(1, np.uint64)
    for word in key:
        state = _mixed(state + _GAMMA ^ np.asarray(word).astype(np.uint64))
    steps = np.arange(1, num + 1, dtype=np.uint64)[:, None] * _GAMMA
    shares: np.ndarray = (_mixed(state + steps) >> np.uint64(11)) * 2.0**-53
    return shares


_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _mixed(bits: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64; products keep their lowest 64 bits."""
    bits = (bits ^ bits >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ bits >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = bits ^ bits >> np.uint64(31)
    return mixed
