"""What can be known to be wrong with a request is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

import crackbatch
from builders.credentials import KEY, SIGNATURE
from crackbatch.errors import OptionError
from crackbatch.images.formats import EXTENSIONS
from crackbatch.models.bundle import read_bundle
from crackbatch.scoring.request import Request, image_extensions


def checked(sources: list[str], **changed: object) -> Request:
    """A request of these sources, with all else as it is by default."""
    bundle = read_bundle()
    options: dict[str, object] = {
        "out": "", "bundle": bundle, "threshold": 0.5, "photo_threshold": 0.5, "extensions": EXTENSIONS,
        "max_megapixels": 300.0, "decode_timeout": 60.0, "max_error_rate": 0.05, "max_errors": None, "new_only": False,
        "limit": None, "batch_size": None, "address": None,
    }  # fmt: skip
    return Request(**{**options, "sources": sources, **changed})  # type: ignore[arg-type]


def test_the_same_images_by_the_same_model_are_one_request(tmp_path: Path) -> None:
    one, other = str(tmp_path / "a"), str(tmp_path / "b")
    request = checked([one, other])
    for same in (checked([other, one]), checked([one, f"{other}/"]), checked([one, other], max_error_rate=1.0)):
        assert same.fingerprint == request.fingerprint
    limited = checked([one, other], limit=3)
    others = [
        checked([one]), checked([one, other], threshold=0.9),
        checked([one, other], extensions=image_extensions(["xyz"])),
        checked([one, other], new_only=True), limited, checked([other, one], limit=3),
    ]  # fmt: skip
    assert len({request.fingerprint, *(another.fingerprint for another in others)}) == 1 + len(others)


def test_extensions_are_added_however_they_are_written() -> None:
    for given in ("jp2,.XYZ", ["jp2", ".xyz"], [" .jp2 , xyz "]):
        assert image_extensions(given) - EXTENSIONS == {".xyz"} | {".jp2"} - EXTENSIONS


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"decode_timeout": 0.5}, "--decode-timeout must be from 1 to 86,400 seconds, got 0.5"),
        ({"decode_timeout": float("nan")}, "--decode-timeout .* got nan"),
        ({"max_megapixels": float("nan")}, "--max-megapixels .* got nan"),
        ({"max_error_rate": float("nan")}, "--max-error-rate must be from 0 to 1, got nan"),
        ({"max_errors": -1}, "--max-errors must be 0 or more, got -1"),
        ({"limit": 0}, "--limit must be 1 or more, got 0"),
        ({"batch_size": 0}, "--batch-size must be 1 or more, got 0"),
    ],
)
def test_a_number_that_means_nothing_is_refused_by_its_option(option: dict[str, float], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        checked(["a"], **option)


@pytest.mark.parametrize("option", [{"threshold": float("nan")}, {"max_errors": -1}])
def test_a_wrong_number_is_refused_before_a_source_is_looked_for(option: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=f"--{next(iter(option)).replace('_', '-')}"):
        crackbatch.score("nowhere", str(tmp_path / "out"), **option)  # type: ignore[arg-type]


def test_what_a_request_describes_shows_no_credential() -> None:
    request = checked([f"https://host/a.zip?sig={SIGNATURE}", f"https://user:{KEY}@host/b.zip"])
    described = request.describe()
    assert described["fingerprint"] == request.fingerprint
    assert described["sources"] == ["https://host/a.zip", "https://host/b.zip"]
    assert request.sources[1].count(KEY) == 1, "what is read is what was given"
