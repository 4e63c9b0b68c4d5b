"""A bundle: a model's folder, local or at any fsspec URL, that holds `model.safetensors` and `model.json`.

Reading a bundle does not need torch, so that a bad model is rejected before anything slow starts. `models/model.py`
turns a bundle into a network. Nothing in a bundle is ever executed or unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crackbatch.errors import BundleError, OptionError, SourceError
from crackbatch.storage import atomic, locations, ranges
from crackbatch.storage.redaction import masked, redact

FORMAT_VERSION = 1
DEFAULT_MODEL = "concrete-resnet18"
DEFAULT_OPERATING_POINT = "balanced"
WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"

_SHIPPED = Path(__file__).parent
_NAME = re.compile(r"\w[\w.-]{0,127}")
_MAX_DESCRIPTION_BYTES = 4 << 20
_MAX_WEIGHTS_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A named threshold on the probability, with the metrics that it reached on the validation split."""

    threshold: float
    precision: float | None = None
    recall: float | None = None
    false_alarm_rate: float | None = None


@dataclass(frozen=True, slots=True)
class PhotoPoint:
    """A named threshold for photographs, with what it reached on views that were cut from photographs.

    `recall` is of the cracked views. `false_alarms` are counted per 100 sound views.
    """

    threshold: float
    recall: float | None = None
    false_alarms: float | None = None


@dataclass(frozen=True, slots=True)
class PhotoSettings:
    """How a photograph is looked at in windows, and how their logits become its probability (`models/photo.py`).

    A window covers `window` pixels of a photograph like those that the model was trained on. These show
    `mm_per_pixel` of the surface in a pixel, and are `width` pixels wide. A window with a logit of at least `cut`
    belongs to a region.
    """

    window: float
    cut: float
    intercept: float
    slope: float
    operating_points: dict[str, PhotoPoint]
    mm_per_pixel: float | None = None
    width: int | None = None
    calibration: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Bundle:
    """The content of `model.json`, and the location of the bundle.

    The probability of a crack is `sigmoid(logit / temperature)`. Pixels are RGB, scaled to [0, 1], then
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
    photo: PhotoSettings | None = None

    @property
    def model_id(self) -> str:
        """`name@` and 12 hexadecimal digits of the sha256 of all that changes an answer: the weights and the settings.

        The operating points do not belong to it: each row of a table has its threshold.
        """
        settings: list[Any] = [self.network, self.input_size, self.mean, self.std, self.temperature, self.classes]
        if self.photo is not None:
            settings.append([self.photo.window, self.photo.cut, self.photo.intercept, self.photo.slope])
        answers = f"{self.weights_sha256} {json.dumps(settings)}"
        return f"{self.name}@{hashlib.sha256(answers.encode()).hexdigest()[:12]}"

    def draw_line(self, threshold: float | None, operating_point: str | None) -> float:
        """Return the given threshold, or the threshold of the given operating point, or of `balanced` if none is given.

        An image with at least this probability is labelled as a crack. If only photographs have the operating point,
        return the threshold of `balanced`. Raises OptionError if both are given or if the threshold is not from 0 to 1,
        BundleError if the model does not have the operating point.
        """
        if threshold is not None and operating_point is not None:
            raise OptionError("--threshold and --operating-point both set the threshold; give only one of them")
        if threshold is not None:
            return check_threshold(threshold)
        for name in (operating_point or DEFAULT_OPERATING_POINT, DEFAULT_OPERATING_POINT):
            if name in self.operating_points:
                return self.operating_points[name].threshold
            if self.photo is None or name not in self.photo.operating_points:
                break
        raise self._lacks(name)

    def draw_photo_line(self, threshold: float | None, operating_point: str | None) -> float:
        """Return the same for photographs that are looked at in windows; `draw_line` has checked the values."""
        if threshold is not None:
            return threshold
        points = self.photo.operating_points if self.photo else {}
        for name in (operating_point or DEFAULT_OPERATING_POINT, DEFAULT_OPERATING_POINT):
            if name in points:
                return points[name].threshold
        return self.draw_line(threshold, operating_point)

    def _lacks(self, name: str) -> BundleError:
        of_photos = self.photo.operating_points if self.photo else {}
        known = ", ".join(sorted({*self.operating_points, *of_photos})) or "none"
        return BundleError(f"model {self.name} has no operating point {name!r}; it has: {known}")


def check_threshold(threshold: float) -> float:
    """Return the threshold. Raises OptionError if it is not from 0 to 1."""
    if not 0 <= threshold <= 1:
        raise OptionError(f"--threshold must be from 0 to 1, got {threshold:g}")
    return threshold


def calibrated(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Return the probability of a crack, float32, for logits of any shape: sigmoid(logit / temperature)."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    with np.errstate(over="ignore"):  # exp overflows for a logit far below 0; the result is still 0
        return (1 / (1 + np.exp(-scaled))).astype(np.float32)


def uncalibrated(probabilities: np.ndarray) -> np.ndarray:
    """Return the logits, float64, of probabilities of any shape at temperature 1; those of 0 and 1 are finite."""
    likely = np.clip(probabilities.astype(np.float64), 1e-7, 1 - 1e-7)
    logits: np.ndarray = np.log(likely / (1 - likely))
    return logits


def shipped_models() -> list[str]:
    """Return the names of the models that come with the package."""
    return sorted(path.parent.name for path in _SHIPPED.glob(f"*/{DESCRIPTION}"))


def read_bundle(location: str = DEFAULT_MODEL) -> Bundle:
    """Read a bundle and check its description and weights. Raises BundleError."""
    return read_bundle_and_weights(location)[0]


def read_bundle_and_weights(location: str = DEFAULT_MODEL) -> tuple[Bundle, bytes]:
    """Read a bundle and the bytes of its safetensors file, and check both. Raises BundleError.

    A shipped model keeps its name as its location, because the name is valid on every machine.
    """
    shown = masked(location)
    description = _parse_description(_read(location, DESCRIPTION, _MAX_DESCRIPTION_BYTES), shown)
    weights = _read(location, WEIGHTS, _MAX_WEIGHTS_BYTES)
    _check_safetensors(weights, shown)
    digest = hashlib.sha256(weights).hexdigest()
    stated = description.get("weights_sha256")
    if stated != digest:
        raise BundleError(
            f"model {shown}: {WEIGHTS} does not match {DESCRIPTION}"
            f" (sha256 {digest[:12]}…, expected {str(stated)[:12]}…); copy the bundle again"
        )
    bundle = _from_description(description, location if location in shipped_models() else resolve(location))
    return bundle, weights


def write_bundle(bundle: Bundle, weights: bytes) -> Bundle:
    """Write weights (safetensors bytes), then the description, to `bundle.location`; return the bundle as written."""
    bundle = Bundle(**{**_fields(bundle), "weights_sha256": hashlib.sha256(weights).hexdigest()})
    atomic.write_whole(locations.join(bundle.location, WEIGHTS), weights)
    description = {"format_version": FORMAT_VERSION, **asdict(bundle)}
    del description["location"]
    if bundle.photo is None:
        del description["photo"]
    text = json.dumps(description, indent=2).encode() + b"\n"
    atomic.write_whole(locations.join(bundle.location, DESCRIPTION), text)
    return bundle


def _fields(bundle: Bundle) -> dict[str, Any]:
    return {name: getattr(bundle, name) for name in bundle.__dataclass_fields__}


def resolve(location: str) -> str:
    """Return where a bundle is: the folder of a shipped model, or the location itself, normalized."""
    if "/" not in location and (_SHIPPED / location / DESCRIPTION).is_file():
        return str(_SHIPPED / location)
    return locations.normalize(location)


def absolute(location: str, words: Sequence[str] = ()) -> str:
    """Return a location that is valid in any working directory; `words` and names of shipped models do not change."""
    return location if location in (*words, *shipped_models()) else locations.normalize(location)


def _read(location: str, name: str, limit: int) -> bytes:
    shown = masked(location)
    try:
        with ranges.open_file(locations.join(resolve(location), name)) as file:
            data = ranges.read_at_most(file, limit)
    except (FileNotFoundError, NotADirectoryError):
        shipped = ", ".join(shipped_models()) or "none"
        raise BundleError(f"no model at {shown}: {name} is missing (shipped models: {shipped})") from None
    except SourceError as error:
        raise BundleError(f"model {error}") from None
    except Exception as error:  # each cloud library raises its own exceptions
        raise BundleError(f"model {shown} cannot be read: {redact(str(error) or repr(error), location)}") from None
    if len(data) > limit:
        raise BundleError(f"model {shown}: {name} must have at most {limit:,} bytes, but is larger")
    return data


def _parse_description(data: bytes, shown: str) -> dict[str, Any]:
    try:
        description = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"model {shown}: {DESCRIPTION} is not valid JSON ({error})") from None
    if not isinstance(description, dict) or description.get("format_version") != FORMAT_VERSION:
        found = description.get("format_version") if isinstance(description, dict) else None
        raise BundleError(
            f"model {shown}: {DESCRIPTION} has format_version {found!r}; this crackbatch reads only {FORMAT_VERSION}"
        )
    return description


def _check_safetensors(weights: bytes, shown: str) -> None:
    """Raise BundleError if the bytes (a pickle, say) do not start with a safetensors header: its length, then JSON."""
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
            photo=_photo_settings(description["photo"]) if "photo" in description else None,
        )
        _check_values(bundle)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BundleError(f"model {masked(location)}: {DESCRIPTION} has a missing or wrong value ({error!r})") from None
    return bundle


def _photo_settings(description: dict[str, Any]) -> PhotoSettings:
    points = {name: PhotoPoint(**point) for name, point in description["operating_points"].items()}
    photo = PhotoSettings(**{**description, "operating_points": points})
    for name in ("window", "cut", "intercept", "slope"):
        if not math.isfinite(getattr(photo, name)):
            raise ValueError(f"photo.{name} must be a number, got {getattr(photo, name)!r}")
    if not (photo.window >= 1 and photo.slope > 0):
        raise ValueError("photo.window must be 1 or more, and photo.slope above 0")
    if photo.mm_per_pixel is not None and not 0 < photo.mm_per_pixel < math.inf:
        raise ValueError(f"photo.mm_per_pixel must be above 0, got {photo.mm_per_pixel!r}")
    return photo


def _check_values(bundle: Bundle) -> None:
    if not 16 <= bundle.input_size <= 4096:
        raise ValueError(f"input_size must be from 16 to 4096, got {bundle.input_size}")
    if not (math.isfinite(bundle.temperature) and bundle.temperature > 0):
        raise ValueError(f"temperature must be finite and above 0, got {bundle.temperature}")
    if bundle.classes != ("no_crack", "crack"):
        raise ValueError(f"classes must be no_crack and crack, in this order, got {bundle.classes}")
    if not _NAME.fullmatch(bundle.name):
        raise ValueError(f"name must be 1 to 128 letters, digits, '.', '_' and '-', got {bundle.name!r}")
    if not all(math.isfinite(value) for value in bundle.mean):
        raise ValueError(f"mean must be finite, got {bundle.mean}")
    if not all(math.isfinite(value) and value > 0 for value in bundle.std):
        raise ValueError(f"std must be finite and above 0, got {bundle.std}")
    points = [*bundle.operating_points.items(), *(bundle.photo.operating_points.items() if bundle.photo else ())]
    for name, point in points:
        if not isinstance(point.threshold, (int, float)) or not 0 <= point.threshold <= 1:
            raise ValueError(f"the threshold of {name} must be from 0 to 1, got {point.threshold!r}")


def _triple(values: list[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
