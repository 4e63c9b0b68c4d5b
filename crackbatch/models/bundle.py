"""A model on disk: a folder, here or on any fsspec URL, that holds `model.safetensors` and `model.json`.

Reading one needs no torch, so that a bad model is refused at the door, before anything slow starts; what turns it
into a network is `model.py`. Nothing in a bundle is ever executed or unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from crackbatch.errors import BundleError, OptionError, SourceError
from crackbatch.storage import atomic, locations, ranges
from crackbatch.storage.redaction import redact

FORMAT_VERSION = 1
DEFAULT_MODEL = "concrete-resnet18"
DEFAULT_OPERATING_POINT = "balanced"
WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"

_SHIPPED = Path(__file__).parent
_MAX_DESCRIPTION_BYTES = 4 << 20
_MAX_WEIGHTS_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A named threshold on the probability, and what it reached on the validation split."""

    threshold: float
    precision: float | None = None
    recall: float | None = None
    false_alarm_rate: float | None = None


@dataclass(frozen=True)
class Bundle:
    """What `model.json` says, and where it was read.

    The probability of a crack is `sigmoid(logit / temperature)`; pixels are RGB scaled to [0, 1], then
    `(pixel - mean) / std` for each channel.
    """

    location: str
    name: str
    network: str
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    temperature: float
    operating_points: dict[str, OperatingPoint]
    weights_sha256: str
    classes: tuple[str, str] = ("no_crack", "crack")
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def model_id(self) -> str:
        """`name@` and the first 12 hexadecimal digits of the weights' sha256."""
        return f"{self.name}@{self.weights_sha256[:12]}"

    def draw_line(self, threshold: float | None, operating_point: str | None) -> float:
        """The probability from which an image is a crack: as given, or as the named operating point has it.

        Raises OptionError for what is no probability, BundleError for an operating point that the model does not name.
        """
        if threshold is not None and operating_point is not None:
            raise OptionError("--threshold and --operating-point both draw the line; give one of them")
        if threshold is not None:
            return check_threshold(threshold)
        name = operating_point or DEFAULT_OPERATING_POINT
        if name not in self.operating_points:
            known = ", ".join(sorted(self.operating_points)) or "none"
            raise BundleError(f"model {self.name} has no operating point {name!r}; it has: {known}")
        return self.operating_points[name].threshold


def check_threshold(threshold: float) -> float:
    """The threshold; OptionError for what is no probability."""
    if not 0 <= threshold <= 1:
        raise OptionError(f"--threshold {threshold:g} is no probability; give one from 0 to 1")
    return threshold


def shipped_models() -> list[str]:
    """Names of the models that came with the package."""
    return sorted(path.parent.name for path in _SHIPPED.glob(f"*/{DESCRIPTION}"))


def read_bundle(location: str = DEFAULT_MODEL) -> Bundle:
    """A bundle whose description and weights were found to be in order; raises BundleError."""
    return read_bundle_and_weights(location)[0]


def read_bundle_and_weights(location: str = DEFAULT_MODEL) -> tuple[Bundle, bytes]:
    """Read a bundle's description and its safetensors file and check both; raises BundleError.

    The location of a shipped model stays its name, which means the same on every machine.
    """
    shown = redact(location)
    description = _parse_description(_read(location, DESCRIPTION, _MAX_DESCRIPTION_BYTES), shown)
    weights = _read(location, WEIGHTS, _MAX_WEIGHTS_BYTES)
    _check_safetensors(weights, shown)
    digest = hashlib.sha256(weights).hexdigest()
    stated = description.get("weights_sha256")
    if stated != digest:
        raise BundleError(
            f"model {shown}: {WEIGHTS} is not the file that {DESCRIPTION} describes"
            f" (sha256 {digest[:12]}…, expected {str(stated)[:12]}…); copy the bundle again"
        )
    bundle = _from_description(description, location if location in shipped_models() else resolve(location))
    return bundle, weights


def write_bundle(bundle: Bundle, weights: bytes) -> Bundle:
    """Write weights (safetensors bytes) and description to `bundle.location`, the description last."""
    bundle = Bundle(**{**_fields(bundle), "weights_sha256": hashlib.sha256(weights).hexdigest()})
    atomic.write_whole(locations.join(bundle.location, WEIGHTS), weights)
    description = {"format_version": FORMAT_VERSION, **asdict(bundle)}
    del description["location"]
    text = json.dumps(description, indent=2).encode() + b"\n"
    atomic.write_whole(locations.join(bundle.location, DESCRIPTION), text)
    return bundle


def _fields(bundle: Bundle) -> dict[str, Any]:
    return {name: getattr(bundle, name) for name in bundle.__dataclass_fields__}


def resolve(location: str) -> str:
    """Where a bundle lies: the folder of a shipped model, or the location itself."""
    if "/" not in location and (_SHIPPED / location / DESCRIPTION).is_file():
        return str(_SHIPPED / location)
    return locations.normalize(location)


def absolute(location: str, words: Sequence[str] = ()) -> str:
    """A location that means the same in any working directory; words, and names of shipped models, stay as they are."""
    return location if location in (*words, *shipped_models()) else locations.normalize(location)


def _read(location: str, name: str, limit: int) -> bytes:
    shown = redact(location)
    try:
        with ranges.open_file(locations.join(resolve(location), name)) as file:
            data = file.read(limit + 1)
    except (FileNotFoundError, NotADirectoryError):
        shipped = ", ".join(shipped_models()) or "none"
        raise BundleError(f"no model at {shown}: it has no {name} (shipped models: {shipped})") from None
    except SourceError as error:
        raise BundleError(f"model {error}") from None
    except Exception as error:  # each cloud library raises its own
        raise BundleError(f"model {shown} cannot be read: {redact(str(error) or repr(error))}") from None
    if len(data) > limit:
        raise BundleError(f"model {shown}: {name} is larger than {limit:,} bytes, which no model of ours is")
    return data


def _parse_description(data: bytes, shown: str) -> dict[str, Any]:
    try:
        description = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"model {shown}: {DESCRIPTION} is not JSON ({error})") from None
    if not isinstance(description, dict) or description.get("format_version") != FORMAT_VERSION:
        found = description.get("format_version") if isinstance(description, dict) else None
        raise BundleError(
            f"model {shown}: {DESCRIPTION} has format_version {found!r}, this crackbatch reads {FORMAT_VERSION}"
        )
    return description


def _check_safetensors(weights: bytes, shown: str) -> None:
    """The header of a safetensors file: its length in 8 bytes, then JSON; anything else (a pickle, say) is refused."""
    length = struct.unpack("<Q", weights[:8])[0] if len(weights) >= 8 else 0
    if not 2 <= length <= len(weights) - 8 or weights[8:9] != b"{":
        raise BundleError(f"model {shown}: {WEIGHTS} is not a safetensors file; export it again with crackbatch")


def _from_description(description: dict[str, Any], location: str) -> Bundle:
    try:
        low, high = map(str, description["classes"])
        bundle = Bundle(
            location=location,
            name=str(description["name"]),
            network=str(description["network"]),
            input_size=int(description["input_size"]),
            mean=_triple(description["mean"]),
            std=_triple(description["std"]),
            temperature=float(description["temperature"]),
            operating_points={name: OperatingPoint(**point) for name, point in description["operating_points"].items()},
            weights_sha256=str(description["weights_sha256"]),
            classes=(low, high),
            training=description.get("training", {}),
        )
        _check_values(bundle)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BundleError(f"model {redact(location)}: {DESCRIPTION} is incomplete or wrong ({error!r})") from None
    return bundle


def _check_values(bundle: Bundle) -> None:
    if not 16 <= bundle.input_size <= 4096:
        raise ValueError(f"input_size {bundle.input_size} is not from 16 to 4096")
    if not (math.isfinite(bundle.temperature) and bundle.temperature > 0):
        raise ValueError(f"temperature {bundle.temperature} is not above 0")
    if not all(math.isfinite(value) and value > 0 for value in bundle.std):
        raise ValueError(f"std {bundle.std} is not above 0")
    for name, point in bundle.operating_points.items():
        if not isinstance(point.threshold, (int, float)) or not 0 <= point.threshold <= 1:
            raise ValueError(f"threshold {point.threshold!r} of {name} is no probability")


def _triple(values: list[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
