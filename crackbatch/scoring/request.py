"""A request to score, checked at the door: what can be known to be wrong before anything starts is refused here."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from typing import Any

from crackbatch import __version__
from crackbatch.errors import OptionError
from crackbatch.images.formats import EXTENSIONS
from crackbatch.models.bundle import Bundle, read_bundle
from crackbatch.sources.listing import check_sources
from crackbatch.storage import atomic, locations
from crackbatch.storage.documents import fingerprint_of
from crackbatch.storage.redaction import redact

DEFAULT_MAX_ERROR_RATE = 0.05
DEFAULT_DECODE_TIMEOUT_S = 120.0
_MAX_MEGAPIXELS = 100_000  # a JPEG's header can name 4,295


@dataclass(frozen=True)
class Request:
    """A checked request: everything that can be known to be wrong before anything is started has been refused."""

    sources: list[str]
    out: str
    bundle: Bundle
    threshold: float
    extensions: frozenset[str]
    max_megapixels: float
    decode_timeout_s: float
    max_error_rate: float
    max_errors: int | None
    new_only: bool
    limit: int | None
    batch_size: int | None
    address: str | None

    @property
    def fingerprint(self) -> str:
        named = [redact(locations.normalize(source)) for source in self.sources]
        return fingerprint_of(
            {
                "sources": named if self.limit else sorted(named),  # of whose order a limited run has the first
                "model_id": self.bundle.model_id,
                "threshold": round(self.threshold, 6),
                "extensions": sorted(self.extensions),
                "max_megapixels": self.max_megapixels,
                "limit": self.limit,
                **({"new_only": True} if self.new_only else {}),
            }
        )

    def fails_too_often(self, num_failed: int) -> bool:
        """Whether more images failed than `max_errors` allows."""
        return self.max_errors is not None and num_failed > self.max_errors


def check_request(
    sources: locations.Location | Sequence[locations.Location],
    out: str,
    model: str,
    threshold: float | None,
    operating_point: str | None,
    max_error_rate: float,
    max_errors: int | None,
    max_megapixels: float,
    decode_timeout: float,
    new_only: bool,
    extensions: Sequence[str],
    limit: int | None,
    batch_size: int | None,
    address: str | None,
    dry_run: bool,
) -> Request:
    names = check_sources(sources)
    if not 0 <= max_error_rate <= 1:
        raise OptionError(f"--max-error-rate {max_error_rate:g} is no share; give one from 0 to 1")
    if max_errors is not None and max_errors < 0:
        raise OptionError(f"--max-errors {max_errors}: give 0 or a number above it")
    if not 1 <= decode_timeout <= 86_400:
        raise OptionError(f"--decode-timeout {decode_timeout:g}: give seconds, 1 or more")
    if not 0 < max_megapixels <= _MAX_MEGAPIXELS:
        raise OptionError(f"--max-megapixels {max_megapixels:g}: give a number above 0, {_MAX_MEGAPIXELS:,} at most")
    if batch_size is not None and batch_size < 1:
        raise OptionError(f"--batch-size {batch_size}: give a number above 0")
    checked_extensions = _check_extensions(extensions)
    checked_limit = _check_limit(limit)
    bundle = read_bundle(model)
    line = bundle.draw_line(threshold, operating_point)
    location = atomic.check_output(out) if not dry_run else locations.normalize(out) if out else ""
    return Request(
        names, location, bundle, line, checked_extensions, max_megapixels, decode_timeout, max_error_rate, max_errors,
        new_only, checked_limit, batch_size, address,
    )  # fmt: skip


def _check_extensions(extensions: Sequence[str]) -> frozenset[str]:
    several = [extensions] if isinstance(extensions, str) else extensions
    added = [extension.strip().lower() for item in several for extension in item.split(",") if extension.strip()]
    return EXTENSIONS | {extension if extension.startswith(".") else f".{extension}" for extension in added}


def _check_limit(limit: int | None) -> int | None:
    if limit is not None and limit < 1:
        raise OptionError(f"--limit {limit}: give a number above 0")
    return limit


def describe(request: Request) -> dict[str, Any]:
    """run.json: what was asked, by what."""
    return {
        "fingerprint": request.fingerprint,
        "created_at": datetime.now(UTC).isoformat(timespec="microseconds"),
        "sources": [redact(source) for source in request.sources],
        "model_id": request.bundle.model_id,
        "threshold": request.threshold,
        "extensions": sorted(request.extensions),
        "max_megapixels": request.max_megapixels,
        "limit": request.limit,
        "new_only": request.new_only,
        "versions": {
            "crackbatch": __version__,
            **{name: installed_version(name) for name in ("ray", "torch", "torchvision", "pyarrow")},
            "python": platform.python_version(),
        },
    }
