"""The lines that a command writes while it works: text for people, or JSON objects for systems that collect logs."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

from crackbatch.errors import OptionError

FORMATS = ("text", "json")


class _State:
    """How this command writes its lines, and what they all tell."""

    is_json = False
    about: dict[str, str] = {}  # noqa: RUF012  # replaced, never changed


def set_format(name: str) -> None:
    """Choose how lines are written: `text` or `json`. Raises OptionError for another name."""
    if name not in FORMATS:
        raise OptionError(f"--log-format must be {' or '.join(FORMATS)}, got {name!r}")
    _State.is_json, _State.about = name == "json", {}


def is_json() -> bool:
    """Return whether lines are JSON objects."""
    return _State.is_json


def tell_about(**names: str) -> None:
    """Add these fields, such as the run's id, to all JSON lines that follow."""
    _State.about = {**_State.about, **names}


def line(event: str, message: str, level: str = "info", **fields: Any) -> str:
    """Return a line, without its end: the message, or a JSON object with time, level, event, message and all fields."""
    if not _State.is_json:
        return f"crackbatch: {message}" if level == "error" else message
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    told = {"time": now, "level": level, "event": event, "message": message, **_State.about, **fields}
    return json.dumps(_finite(told), ensure_ascii=False)


def _finite(value: Any) -> Any:
    """The value without NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {str(name): _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
