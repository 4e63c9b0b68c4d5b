"""The columns of the results table. Every program that reads the Parquet files depends on them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from crackbatch.errors import SourceError

SCHEMA_VERSION = 1
LABELS = ("crack", "no_crack")
STATUSES = [
    "ok",
    "empty",
    "not_an_image",
    "unsupported",
    "truncated",
    "corrupt",
    "too_large",
    "missing",
    "changed",
    "unreadable",
    "encrypted",
    "crashed",
    "failed",
]

COLUMNS = pa.schema(
    [
        ("image_uri", pa.string()),
        ("archive", pa.string()),
        ("version", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("crack_probability", pa.float32()),
        ("crack_logit", pa.float32()),
        ("label", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("format", pa.string()),
        ("tiles", pa.int32()),
        ("crack_tiles", pa.int32()),
        ("box_x", pa.int32()),
        ("box_y", pa.int32()),
        ("box_w", pa.int32()),
        ("box_h", pa.int32()),
        ("size_bytes", pa.int64()),
        ("sha256", pa.string()),
        ("captured_at", pa.timestamp("us")),
        ("latitude", pa.float64()),
        ("longitude", pa.float64()),
        ("camera", pa.string()),
        ("model_id", pa.string()),
        ("threshold", pa.float32()),
        ("run_id", pa.string()),
        ("scored_at", pa.timestamp("us", tz="UTC")),
    ]
)
# The columns that `--exif full` adds: the camera's angles in degrees, the altitude above the start in metres.
FLIGHT = pa.schema(
    [
        ("gimbal_yaw", pa.float64()),
        ("gimbal_pitch", pa.float64()),
        ("gimbal_roll", pa.float64()),
        ("relative_altitude", pa.float64()),
    ]
)
# The statuses of images that could not be read. A later run may be able to read them.
WITHOUT_BYTES = ["missing", "changed", "unreadable"]
RESERVED = frozenset([*COLUMNS.names, "date"])


def schema_with(
    carried: Iterable[pa.Field], about: Mapping[str, Any] | None = None, full_exif: bool = False
) -> pa.Schema:
    """Return the schema with a manifest's columns and `about` as metadata; raise SourceError if a name is reserved."""
    carried = list(carried)
    own = [*COLUMNS, *(FLIGHT if full_exif else ())]
    reserved = RESERVED | {field.name for field in own}
    seen = {name.lower(): name for name in reserved}
    for name in (field.name for field in carried):  # for DuckDB and others, upper and lower case are the same
        if (other := seen.setdefault(name.lower(), name)) is not name:
            whose = "a column of the results" if name.lower() in reserved else f"its column {other!r}"
            raise SourceError(
                f"the manifest's column {name!r} has the same name as {whose}; rename it in the manifest"
                " (upper and lower case do not count)"
            )
    metadata = {"crackbatch.schema_version": str(SCHEMA_VERSION)}
    for name, value in (about or {}).items():
        metadata[f"crackbatch.{name}"] = value if isinstance(value, str) else json.dumps(value)
    return pa.schema([*own, *carried]).with_metadata(metadata)
