"""Finds pictures that look the same: clusters of similar hashes (`picture_hash` in `images/picture.py`)."""

from __future__ import annotations

import numpy as np

HASH_BYTES = 32
# Of 256 bits. If real tiles are saved again as JPEG of quality 50, nine of ten differ from the original in fewer bits;
# different pictures differ in about 128. In METU and SDNET2018, 290 pairs differ in at most 12 bits, 351 in at most 24
# and 355 in at most 32. So there is a gap, and the limit is in it.
_MAX_DISTANCE = 24
# 16 bands of 16 bits. Hashes that differ in at most 15 bits always share a band. Hashes that differ in 24 bits share
# one with a probability of 97 %.
_BANDS = 16
# Tens of thousands of different pictures may share a band, so each is compared with only this many that follow it.
_MAX_STEPS = 2000


def clusters(hashes: list[bytes | None]) -> np.ndarray:
    """Return (pictures,) int64: for each picture, the index of the first picture in its cluster.

    Two pictures share a cluster if their hashes differ in at most 24 of 256 bits, or if a chain of such pictures links
    them. A few such pairs may be missed (see `_BANDS` and `_MAX_STEPS`). A blank picture is alone.
    """
    first = np.arange(len(hashes))
    there = np.array([index for index, value in enumerate(hashes) if value is not None], dtype=np.int64)
    known = np.frombuffer(b"".join(value for value in hashes if value is not None), np.uint64)
    # A camera that does not move gives thousands of equal hashes. Their pairs would not fit in memory,
    # so equal hashes are merged first.
    different, which = np.unique(known.reshape(-1, HASH_BYTES // known.itemsize), axis=0, return_inverse=True)
    _, starts, codes = np.unique(_joined(different)[which.ravel()], return_index=True, return_inverse=True)
    first[there] = there[starts[codes]]
    return first


def components(links: np.ndarray, num: int) -> np.ndarray:
    """Return (num,): the number of each node's connected component, from links (links, 2) between nodes."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(links), np.int8), (links[:, 0], links[:, 1])), shape=(num, num))
    found: np.ndarray = connected_components(graph, directed=False)[1]
    return found


def _joined(words: np.ndarray) -> np.ndarray:
    """Return (hashes,): numbers that are equal for near-duplicates, for distinct hashes (hashes, 4) uint64."""
    bands = words.view(np.uint16)
    joined = np.arange(len(words))
    for band in range(_BANDS):
        # Also sort by the next two bands, so that similar hashes are close together.
        order = np.lexsort([bands[:, (band + further) % _BANDS] for further in (2, 1, 0)])
        joined[order] = _join_neighbours(words[order], bands[order, band], joined[order])
    return joined


def _join_neighbours(words: np.ndarray, band: np.ndarray, joined: np.ndarray) -> np.ndarray:
    """Return `joined` after comparing each hash with the next ones in its band; all arguments are sorted by band."""
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
        if num_links > len(words):  # joined hashes are not compared again and need no further links
            joined, links, num_links = components(np.concatenate(links), len(words))[joined], links[:1], 0
    joined_further: np.ndarray = components(np.concatenate(links), len(words))[joined]
    return joined_further
