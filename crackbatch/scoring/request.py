"""A request to score. It checks its own values, so that wrong options are refused before anything starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from crackbatch import __version__
from crackbatch.capacity import Capacity
from crackbatch.cluster import check_address
from crackbatch.errors import OptionError
from crackbatch.images.formats import EXTENSIONS
from crackbatch.machine import library_versions
from crackbatch.models.bundle import Bundle
from crackbatch.models.photo import check_calibrated, check_scale_for, photo_side
from crackbatch.scoring.predictor import Views
from crackbatch.storage import locations
from crackbatch.storage.documents import fingerprint_of
from crackbatch.storage.redaction import masked

# What runs the stages: Ray, this process, or whichever suits the amount of work.
ENGINES = ("auto", "local", "ray")
# How large images are looked at: in windows if they are photographs, shrunk to one picture, or in windows wherever one
# window fits.
VIEWS = ("auto", "whole", "windows")
# What is read of EXIF and XMP: the usual columns, or also those of drones.
EXIF = ("basic", "full")
_MAX_MEGAPIXELS = 100_000  # a JPEG's header can name 4,295


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to score, how, and where the results go; raises OptionError for an invalid value.

    `threshold` is the lowest probability that is labelled a crack, `photo_threshold` that of a photograph which is
    looked at in windows. `decode_timeout` is in seconds, `tile_size` in pixels, `ground_resolution` in millimetres a
    pixel. `out` is empty in a dry run without `--out`.
    """

    sources: list[str]
    out: str
    bundle: Bundle
    threshold: float
    extensions: frozenset[str]
    max_megapixels: float
    decode_timeout: float
    max_error_rate: float
    max_errors: int | None
    new_only: bool
    limit: int | None
    batch_size: int | None
    address: str | None
    photo_threshold: float
    engine: str = "auto"
    only_below: tuple[str, ...] = ()
    view: str = "auto"
    tile_size: float | None = None
    ground_resolution: float | None = None
    maps: bool = False
    exif: str = "basic"
    capacity: Capacity = field(default_factory=Capacity)

    def __post_init__(self) -> None:
        if not 0 <= self.max_error_rate <= 1:
            raise OptionError(f"--max-error-rate must be from 0 to 1, got {self.max_error_rate:g}")
        if self.max_errors is not None and self.max_errors < 0:
            raise OptionError(f"--max-errors must be 0 or more, got {self.max_errors}")
        if not 1 <= self.decode_timeout <= 86_400:
            raise OptionError(f"--decode-timeout must be from 1 to 86,400 seconds, got {self.decode_timeout:g}")
        if not 0 < self.max_megapixels <= _MAX_MEGAPIXELS:
            raise OptionError(
                f"--max-megapixels must be above 0 and at most {_MAX_MEGAPIXELS:,}, got {self.max_megapixels:g}"
            )
        if self.batch_size is not None and self.batch_size < 1:
            raise OptionError(f"--batch-size must be 1 or more, got {self.batch_size}")
        if self.limit is not None and self.limit < 1:
            raise OptionError(f"--limit must be 1 or more, got {self.limit}")

        if not all(self.only_below) or any(prefix.endswith("://") for prefix in self.only_below):
            raise OptionError("--only-below must be a folder or a URL with a host or bucket")
        if self.engine not in ENGINES:
            raise OptionError(f"--engine must be one of {', '.join(ENGINES)}, got {self.engine!r}")
        if self.engine == "local" and self.address:
            raise OptionError("--engine local scores in this process and needs no --address; remove one of them")
        if self.engine == "local" and self.capacity.gpus:
            raise OptionError(
                "--engine local uses the GPU of this machine if it has one; remove --gpus, or --engine local"
            )
        check_address(self.address)
        self._check_view()

    def _check_view(self) -> None:
        if self.exif not in EXIF:
            raise OptionError(f"--exif must be one of {', '.join(EXIF)}, got {self.exif!r}")
        if self.view not in VIEWS:
            raise OptionError(f"--view must be one of {', '.join(VIEWS)}, got {self.view!r}")
        check_scale_for(self.bundle, self.tile_size, self.ground_resolution)
        given = {"--tile-size": self.tile_size, "--ground-resolution": self.ground_resolution, "--maps": self.maps}
        for name in (name for name, value in given.items() if value):
            if self.view == "whole":
                raise OptionError(f"{name} needs photographs that are looked at in windows; remove --view whole")
        if self.maps:
            check_calibrated(self.bundle, "--maps")
        if self.view == "windows":
            check_calibrated(self.bundle, "--view windows")

    @property
    def views(self) -> Views | None:
        """How large images are looked at; None if all images are shrunk to the network's input."""
        settings = self.bundle.photo
        if self.view == "whole" or settings is None:
            return None
        side = photo_side(self.bundle)
        if side is None or self.view == "windows":
            side = max(1, math.ceil(self.tile_size or settings.window))
        return Views(side, self.tile_size, self.ground_resolution, self.maps)

    @property
    def fingerprint(self) -> str:
        """A digest of the sources, the model and the options that change rows: calls with the same one share a run."""
        named = [locations.public(locations.normalize(source)) for source in self.sources]
        return fingerprint_of(
            {
                "sources": named if self.limit else sorted(named),  # a limit takes the first images: order matters
                "model_id": self.bundle.model_id,
                "threshold": round(self.threshold, 6),
                "extensions": sorted(self.extensions),
                "max_megapixels": self.max_megapixels,
                "limit": self.limit,
                **({"new_only": True} if self.new_only else {}),
                **({"only_below": sorted(map(locations.public, self.only_below))} if self.only_below else {}),
                **self._view_options(),
                **({"exif": self.exif} if self.exif != "basic" else {}),
            }
        )

    def _view_options(self) -> dict[str, Any]:
        """The options that say how photographs are looked at."""
        if self.views is None:
            return {"view": self.view} if self.bundle.photo is not None else {}
        options = {"tile_size": self.tile_size, "ground_resolution": self.ground_resolution, "maps": self.maps}
        given = {name: value for name, value in options.items() if value}
        return {**given, "photo_threshold": round(self.photo_threshold, 6), "view": self.view}

    def fails_too_often(self, num_failed: int) -> bool:
        """Whether more images failed than `max_errors` allows."""
        return self.max_errors is not None and num_failed > self.max_errors

    def fails_too_much(self, statuses: Mapping[str, int]) -> bool:
        """Whether more images failed than `max_error_rate` or `max_errors` allows."""
        images = sum(statuses.values())
        failed = images - statuses.get("ok", 0)
        return failed > self.max_error_rate * images or self.fails_too_often(failed)

    def describe(self) -> dict[str, Any]:
        """The content of run.json: the request, and the versions that made it."""
        return {
            "fingerprint": self.fingerprint,
            "created_at": datetime.now(UTC).isoformat(timespec="microseconds"),
            "sources": [masked(source) for source in self.sources],
            "model_id": self.bundle.model_id,
            "threshold": self.threshold,
            **self._view_options(),
            "extensions": sorted(self.extensions),
            "max_megapixels": self.max_megapixels,
            "limit": self.limit,
            "new_only": self.new_only,
            "only_below": [masked(prefix) for prefix in self.only_below],
            "versions": {"crackbatch": __version__, **library_versions("ray", "torch", "torchvision", "pyarrow")},
        }

    def table_metadata(self) -> dict[str, Any]:
        """The metadata of each file of the table."""
        return {
            "version": __version__,
            "model_id": self.bundle.model_id,
            "operating_points": {name: asdict(point) for name, point in self.bundle.operating_points.items()},
            **({"photo": asdict(self.bundle.photo)} if self.bundle.photo is not None else {}),
        }


def image_extensions(added: Sequence[str]) -> frozenset[str]:
    """The default image file extensions plus the added ones (`jp2`, `.jp2`, or several separated by commas)."""
    several = [added] if isinstance(added, str) else added
    words = [word.strip().lower() for item in several for word in item.split(",") if word.strip()]
    return EXTENSIONS | {word if word.startswith(".") else f".{word}" for word in words}
