"""Read and write whole JSON documents and Parquet tables on any storage, and compute the digest of a request."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crackbatch.errors import OutputError
from crackbatch.storage import atomic, objects
from crackbatch.storage.redaction import masked


def fingerprint_of(request: dict[str, Any]) -> str:
    """Return the SHA-256 of a request (sources, model, options): two runs with equal digests are the same run."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def read_json(location: str) -> dict[str, Any] | None:
    """Read a JSON object; return None if the file does not exist, raise OutputError if it holds anything else."""
    try:
        value = json.loads(objects.read_bytes(location))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise OutputError(f"{masked(location)} is damaged ({error}); remove it and run again") from None
    if not isinstance(value, dict):
        raise OutputError(f"{masked(location)} is damaged (not a JSON object); remove it and run again")
    return value


def write_json(location: str, value: dict[str, Any]) -> None:
    """Write a JSON object atomically."""
    atomic.write_whole(location, json.dumps(value, indent=2, default=str).encode() + b"\n")


def read_table(location: str, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file, all or some columns. Raise ArrowInvalid if it is damaged; storage errors are not caught."""
    data = objects.read_bytes(location)
    try:
        return pq.read_table(pa.BufferReader(data), columns=columns)
    except OSError as error:  # PyArrow raises it if bytes cannot be decompressed
        raise pa.ArrowInvalid(str(error)) from None


def write_table(location: str, table: pa.Table) -> None:
    """Write a table as Parquet, atomically."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    atomic.write_whole(location, sink.getvalue().to_pybytes())
