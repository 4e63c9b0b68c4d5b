"""Which images a model was trained and tuned on: kept in its bundle, so that nobody measures it on them unawares."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crackbatch import storage
from crackbatch.bundle import resolve
from crackbatch.errors import BundleError
from crackbatch.redaction import redact

FILE = "seen.parquet"
# What the model that a training began with had seen, beside what the training itself has.
BEFORE_FILE = "seen_before.parquet"
# A model that was trained on an image has seen it, and one that was tuned on it too.
LEARNT = ("train", "validation")


def write_seen(
    location: str, sha256: Sequence[str], splits: Sequence[str], before: Mapping[int, str] | None = None
) -> None:
    """Write the first 64 bits of each image's sha256 and its split into a bundle: enough to know an image again.

    `before` is what the model that the training began with has learnt from, as `read_learnt` gives it.
    """
    own = dict(zip(map(_code, sha256), splits, strict=True))
    if further := {image: split for image, split in (before or {}).items() if own.get(image) not in LEARNT}:
        _write(location, BEFORE_FILE, further)
    _write(location, FILE, own)


def read_seen(location: str) -> dict[int, str]:
    """Code of an image → its split, of a bundle; empty for one that does not say."""
    return _read(location, FILE)


def read_learnt(location: str) -> dict[int, str]:
    """Code of an image → `train` or `validation`, of a bundle and of those that its training began with."""
    own = {image: split for image, split in read_seen(location).items() if split in LEARNT}
    return {**_read(location, BEFORE_FILE), **own}


def _write(location: str, name: str, seen: Mapping[int, str]) -> None:
    images = np.array(sorted(seen), np.uint64)
    splits = pa.array([seen[image] for image in images.tolist()], pa.string()).dictionary_encode()
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"image": images, "split": splits}), sink, compression="zstd")
    storage.write_whole(storage.join(location, name), sink.getvalue().to_pybytes())


def _read(location: str, name: str) -> dict[int, str]:
    try:
        table = pq.read_table(io.BytesIO(storage.read_bytes(storage.join(resolve(location), name))))
        return dict(zip(table.column("image").to_pylist(), table.column("split").to_pylist(), strict=True))
    except FileNotFoundError:
        return {}
    except (pa.ArrowException, KeyError) as error:
        raise BundleError(f"model {redact(location)}: {name} cannot be read ({error})") from None


def splits_of(sha256: Sequence[str], seen: dict[int, str]) -> list[str | None]:
    """The split that each image had when the model was made, None for an image that was not there."""
    return [seen.get(_code(digest)) for digest in sha256]


def _code(digest: str) -> int:
    return int(digest[:16], 16)
