"""Which images a model was trained and tuned on: kept in its bundle, so that nobody measures it on them unawares."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crackbatch import storage
from crackbatch.bundle import resolve
from crackbatch.errors import BundleError
from crackbatch.redaction import redact

FILE = "seen.parquet"


def write_seen(location: str, sha256: Sequence[str], splits: Sequence[str]) -> None:
    """Write the first 64 bits of each image's sha256 and its split into a bundle: enough to know an image again."""
    codes = np.array([_code(digest) for digest in sha256], np.uint64)
    order = np.argsort(codes)
    names = pa.array([splits[row] for row in order], pa.string()).dictionary_encode()
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"image": codes[order], "split": names}), sink, compression="zstd")
    storage.write_whole(storage.join(location, FILE), sink.getvalue().to_pybytes())


def read_seen(location: str) -> dict[int, str]:
    """Code of an image → its split, of a bundle; empty for one that does not say."""
    try:
        table = pq.read_table(io.BytesIO(storage.read_bytes(storage.join(resolve(location), FILE))))
        return dict(zip(table.column("image").to_pylist(), table.column("split").to_pylist(), strict=True))
    except FileNotFoundError:
        return {}
    except (pa.ArrowException, KeyError) as error:
        raise BundleError(f"model {redact(location)}: {FILE} cannot be read ({error})") from None


def splits_of(sha256: Sequence[str], seen: dict[int, str]) -> list[str | None]:
    """The split that each image had when the model was made, None for an image that was not there."""
    return [seen.get(_code(digest)) for digest in sha256]


def _code(digest: str) -> int:
    return int(digest[:16], 16)
