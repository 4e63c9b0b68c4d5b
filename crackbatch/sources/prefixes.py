"""Prefixes restrict what a run may read, for services that score sources and manifests of others (--only-below)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from urllib.parse import unquote

from crackbatch.archives.members import Object
from crackbatch.storage import locations
from crackbatch.storage.redaction import redact

_STEPS = re.compile(r"(?:^|[/\\])\.{1,2}(?:[/\\?#]|$)|\\")  # servers and libraries may resolve them


class Prefixes:
    """Locations below which all images must lie; without any, all locations are allowed."""

    def __init__(self, prefixes: Iterable[str] = ()) -> None:
        self._prefixes = tuple(_real(locations.normalize(prefix)) for prefix in prefixes)

    def __bool__(self) -> bool:
        return bool(self._prefixes)

    def refusal(self, location: str) -> str | None:
        """Return why a normalized location may not be read, None if it may; follows symbolic links, reads nothing."""
        if not self._prefixes:
            return None
        place = _real(location)
        if any(place == prefix or place.startswith(f"{prefix.rstrip('/')}/") for prefix in self._prefixes) and (
            locations.is_local(location) or not _STEPS.search(unquote(unquote(place.partition("://")[2])))
        ):
            return None
        return f"it is not below {' or '.join(map(redact, self._prefixes))} (--only-below)"

    def check(self, found: Object) -> Object:
        """Return the object, as `unreadable` if it may not be read."""
        why = self.refusal(found.location)
        return found if why is None else Object(found.location, None, "", found.kind, "unreadable", why)


def _real(location: str) -> str:
    return os.path.realpath(location) if locations.is_local(location) else location
