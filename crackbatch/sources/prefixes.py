"""Prefixes restrict what a run may read, for services that score sources and manifests of others (--only-below)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from urllib.parse import unquote

from crackbatch.archives.members import Object
from crackbatch.storage import locations
from crackbatch.storage.redaction import masked

# Servers and libraries may resolve steps up, and drop control characters before.
_STEPS = re.compile(r"(?:^|[/\\])\.{1,2}(?:[/\\?#;]|$)|[\\\x00-\x1f\x7f]")
_MOST_DECODED = 6


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
            locations.is_local(location) or not any(map(_STEPS.search, _decoded(place.partition("://")[2])))
        ):
            return None
        return f"it is not below {' or '.join(map(masked, self._prefixes))} (--only-below)"

    def check(self, found: Object) -> Object:
        """Return the object, as `unreadable` if it may not be read."""
        why = self.refusal(found.location)
        return found if why is None else Object(found.location, None, "", found.kind, "unreadable", why)


def _decoded(text: str) -> Iterator[str]:
    """Yield a text as it is, and decoded as often as it was encoded; a dot first, if that never ends."""
    for _ in range(_MOST_DECODED):
        yield text
        text, before = unquote(text), text
        if text == before:
            return
    yield "."


def _real(location: str) -> str:
    return os.path.realpath(location) if locations.is_local(location) else location


ANYWHERE = Prefixes()
