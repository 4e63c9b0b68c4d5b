"""What can be known to be wrong with a request is refused before anything starts."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import crackbatch
from builders.credentials import KEY, SIGNATURE
from crackbatch.errors import OptionError
from crackbatch.images.formats import EXTENSIONS
from crackbatch.models.bundle import DEFAULT_MODEL
from crackbatch.scoring.request import Request, check_request, describe


def test_fewer_errors_than_allowed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--max-errors -1"):
        crackbatch.score("nowhere", str(tmp_path / "out"), max_errors=-1)


def checked(sources: list[str], **changed: object) -> Request:
    """A request of these sources, with all else as it is by default."""
    options = dict.fromkeys(inspect.signature(check_request).parameters, None) | {
        "out": "", "model": DEFAULT_MODEL, "max_error_rate": 0.05, "max_megapixels": 300.0, "decode_timeout": 60.0,
        "new_only": False, "extensions": (), "dry_run": True,
    }  # fmt: skip
    return check_request(**{**options, "sources": sources, **changed})  # type: ignore[arg-type]


def test_the_same_images_by_the_same_model_are_one_request(tmp_path: Path) -> None:
    one, other = str(tmp_path / "a"), str(tmp_path / "b")
    request = checked([one, other])
    for same in (checked([other, one]), checked([one, f"{other}/"]), checked([one, other], max_error_rate=1.0)):
        assert same.fingerprint == request.fingerprint
    limited = checked([one, other], limit=3)
    others = [
        checked([one]), checked([one, other], threshold=0.9), checked([one, other], extensions=["jp2"]),
        checked([one, other], new_only=True), limited, checked([other, one], limit=3),
    ]  # fmt: skip
    assert len({request.fingerprint, *(another.fingerprint for another in others)}) == 1 + len(others)


def test_extensions_are_added_however_they_are_written() -> None:
    for given in ("jp2,.XYZ", ["jp2", ".xyz"], [" .jp2 , xyz "]):
        assert checked(["a"], extensions=given).extensions - EXTENSIONS == {".xyz"} | {".jp2"} - EXTENSIONS


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"decode_timeout": 0.5}, "--decode-timeout 0.5"),
        ({"decode_timeout": float("nan")}, "--decode-timeout nan"),
        ({"max_megapixels": float("nan")}, "--max-megapixels nan"),
        ({"max_error_rate": float("nan")}, "--max-error-rate nan"),
        ({"threshold": float("nan")}, "--threshold nan"),
    ],
)
def test_a_number_that_means_nothing_is_refused_by_its_option(option: dict[str, float], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        checked(["a"], **option)


def test_what_a_request_describes_shows_no_credential() -> None:
    request = checked([f"https://host/a.zip?sig={SIGNATURE}", f"https://user:{KEY}@host/b.zip"])
    described = describe(request)
    assert described["fingerprint"] == request.fingerprint
    assert described["sources"] == ["https://host/a.zip", "https://host/b.zip"]
    assert request.sources[1].count(KEY) == 1, "what is read is what was given"
