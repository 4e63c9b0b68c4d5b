"""JSON documents on any storage, and the digest of a request."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from crackbatch.errors import OutputError
from crackbatch.storage import objects
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
    objects.write_whole(location, json.dumps(value, indent=2, default=str).encode() + b"\n")
