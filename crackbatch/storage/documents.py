"""JSON documents and Parquet tables as whole files on any storage, and the digest of a request."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crackbatch.errors import OutputError
from crackbatch.storage import atomic, objects
from crackbatch.storage.redaction import redact


def fingerprint_of(request: dict[str, Any]) -> str:
    """A digest of what makes two runs the same: sources, model and options."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def read_json(location: str) -> dict[str, Any] | None:
    """A JSON object, None where there is none; raises OutputError where there is something else."""
    try:
        value = json.loads(objects.read_bytes(location))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise OutputError(f"{redact(location)} is damaged ({error}); remove it and run again") from None
    if not isinstance(value, dict):
        raise OutputError(f"{redact(location)} is damaged (no JSON object); remove it and run again")
    return value


def write_json(location: str, value: dict[str, Any]) -> None:
    """Write a JSON object, whole or not at all."""
    atomic.write_whole(location, json.dumps(value, indent=2, default=str).encode() + b"\n")


def read_table(location: str, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file, all of it or some columns; raises what the storage raises, ArrowInvalid where it is damaged."""
    data = objects.read_bytes(location)
    try:
        return pq.read_table(pa.BufferReader(data), columns=columns)
    except OSError as error:  # PyArrow's, of bytes that cannot be decompressed
        raise pa.ArrowInvalid(str(error)) from None


def write_table(location: str, table: pa.Table) -> None:
    """Write a table as Parquet, whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    atomic.write_whole(location, sink.getvalue().to_pybytes())
