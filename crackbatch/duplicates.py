"""Pictures that are the same, or nearly: hashes of what a picture looks like, and the pairs that lie close."""

from __future__ import annotations

import numpy as np
import PIL.Image

from crackbatch.image import Picture

HASH_BYTES = 32
# Of 256 bits. Nine of ten real tiles saved again as JPEG of quality 50 differ in fewer; other pictures in about 128.
# Of METU and SDNET2018, 290 pairs differ in 12 bits or fewer, 351 in 24, 355 in 32: there is a gap, and it is here.
_MAX_DISTANCE = 24
# 16 bands of 16 bits. Hashes that differ in 15 bits surely have a band in common, in 24 with a probability of 97 %.
_BANDS = 16
# Fewer grey levels between the darkest and the lightest spot are noise, whose hash says nothing.
_MIN_CONTRAST = 4
_MAX_BUCKET = 2000


def picture_hash(picture: Picture) -> bytes | None:
    """A difference hash of 16x16 bits: whether each spot is lighter than its neighbour; None for a blank picture."""
    assert picture.pixels is not None
    small = picture.pixels.convert("L").resize((17, 16), PIL.Image.Resampling.BOX)
    spots = np.asarray(small).astype(np.int16)
    if np.ptp(spots) < _MIN_CONTRAST:
        return None
    return np.packbits(spots[:, 1:] > spots[:, :-1]).tobytes()


def near_pairs(hashes: list[bytes | None]) -> np.ndarray:
    """(pairs, 2) indices of pictures whose hashes differ in at most 24 of 256 bits."""
    there = np.array([index for index, value in enumerate(hashes) if value is not None], dtype=np.int64)
    if len(there) < 2:
        return np.empty((0, 2), np.int64)
    bits = np.frombuffer(b"".join(value for value in hashes if value is not None), np.uint8).reshape(-1, HASH_BYTES)
    bands, words = bits.copy().view(np.uint16), bits.copy().view(np.uint64)
    found = [np.empty((0, 2), np.int64)]
    for band in range(_BANDS):
        order = np.argsort(bands[:, band], kind="stable")
        starts = np.flatnonzero(np.diff(bands[order, band], prepend=-1))
        for bucket in np.split(order, starts[1:]):
            found.extend(_close(part, words) for part in _pieces(bucket))
    pairs = np.unique(np.concatenate(found), axis=0)
    return there[pairs]


def _pieces(bucket: np.ndarray) -> list[np.ndarray]:
    """A bucket in pieces that can be compared all with all; only a band that many pictures share is cut."""
    return [bucket[start : start + _MAX_BUCKET] for start in range(0, len(bucket), _MAX_BUCKET)]


def _close(members: np.ndarray, words: np.ndarray) -> np.ndarray:
    if len(members) < 2:
        return np.empty((0, 2), np.int64)
    mine = words[members]
    distance = np.zeros((len(members), len(members)), np.int16)
    for word in range(mine.shape[1]):
        distance += np.bitwise_count(mine[:, None, word] ^ mine[None, :, word]).astype(np.int16)
    first, second = np.nonzero(np.triu(distance <= _MAX_DISTANCE, 1))
    return np.sort(np.stack([members[first], members[second]], axis=1), axis=1)
