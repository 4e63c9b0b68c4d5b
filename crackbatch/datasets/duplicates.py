"""Pictures that are the same, or nearly: hashes of what a picture looks like, and those that lie close."""

from __future__ import annotations

import numpy as np
import PIL.Image

from crackbatch.images.picture import Picture

HASH_BYTES = 32
# Of 256 bits. Nine of ten real tiles saved again as JPEG of quality 50 differ in fewer; other pictures in about 128.
# Of METU and SDNET2018, 290 pairs differ in 12 bits or fewer, 351 in 24, 355 in 32: there is a gap, and it is here.
_MAX_DISTANCE = 24
# 16 bands of 16 bits. Hashes that differ in 15 bits surely have a band in common, in 24 with a probability of 97 %.
_BANDS = 16
# Fewer grey levels between the darkest and the lightest spot are noise, whose hash says nothing.
_MIN_CONTRAST = 4
# Distinct pictures may share a band by the ten thousands: each is compared with as many that stand next to it.
_MAX_STEPS = 2000


def picture_hash(picture: Picture) -> bytes | None:
    """A difference hash of 16x16 bits: whether each spot is lighter than its neighbour; None for a blank picture."""
    assert picture.pixels is not None
    small = picture.pixels.convert("L").resize((17, 16), PIL.Image.Resampling.BOX)
    spots = np.asarray(small).astype(np.int16)
    if np.ptp(spots) < _MIN_CONTRAST:
        return None
    return np.packbits(spots[:, 1:] > spots[:, :-1]).tobytes()


def clusters(hashes: list[bytes | None]) -> np.ndarray:
    """(pictures,) int64: the index of the first picture of each one's cluster, which is its own where it is alone.

    Two share a cluster if their hashes differ in at most 24 of 256 bits, or if a chain of such pictures links them.
    """
    first = np.arange(len(hashes))
    there = np.array([index for index, value in enumerate(hashes) if value is not None], dtype=np.int64)
    known = np.frombuffer(b"".join(value for value in hashes if value is not None), np.uint64)
    # A camera that does not move gives thousands of equal hashes, whose pairs nobody could hold.
    different, which = np.unique(known.reshape(-1, HASH_BYTES // known.itemsize), axis=0, return_inverse=True)
    _, starts, codes = np.unique(_joined(different)[which.ravel()], return_index=True, return_inverse=True)
    first[there] = there[starts[codes]]
    return first


def components(links: np.ndarray, num: int) -> np.ndarray:
    """(num,) the number of the connected component that each node is in, by links (links, 2) between nodes."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(links), np.int8), (links[:, 0], links[:, 1])), shape=(num, num))
    found: np.ndarray = connected_components(graph, directed=False)[1]
    return found


def _joined(words: np.ndarray) -> np.ndarray:
    """(hashes,) what is the same for near-duplicates, of different hashes (hashes, 4) uint64."""
    bands = words.view(np.uint16)
    joined = np.arange(len(words))
    for band in range(_BANDS):
        # By the bands that follow as well: those that look alike stand close.
        order = np.lexsort([bands[:, (band + further) % _BANDS] for further in (2, 1, 0)])
        joined[order] = _join_neighbours(words[order], bands[order, band], joined[order])
    return joined


def _join_neighbours(words: np.ndarray, band: np.ndarray, joined: np.ndarray) -> np.ndarray:
    """What is joined, with each hash compared to those that follow it with the same band; all are sorted by it."""
    ends = np.searchsorted(band, band, side="right")
    rows, links, num_links = np.arange(len(words)), [np.empty((0, 2), np.int64)], 0
    for step in range(1, _MAX_STEPS + 1):
        rows = rows[rows + step < ends[rows]]
        if not len(rows):
            break
        apart = rows[joined[rows] != joined[rows + step]]
        differing = np.bitwise_count(words[apart] ^ words[apart + step]).sum(axis=1, dtype=np.int64)
        near = apart[differing <= _MAX_DISTANCE]
        links.append(np.stack([joined[near], joined[near + step]], axis=1))
        num_links += len(near)
        if num_links > len(words):  # what is joined now is compared no more, and needs no more links
            joined, links, num_links = components(np.concatenate(links), len(words))[joined], links[:1], 0
    joined_further: np.ndarray = components(np.concatenate(links), len(words))[joined]
    return joined_further
