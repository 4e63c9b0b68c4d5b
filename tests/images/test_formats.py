"""What is no picture, or of a format that is not decoded, is told by its first bytes."""

from __future__ import annotations

import pytest

from crackbatch.images.picture import read_image


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", "empty"),
        (b"%PDF-1.7 not a picture", "not_an_image"),
        (b"<html><body>404</body></html>" * 9, "not_an_image"),
        (b"\0" * 5000, "not_an_image"),
        (b"8BPS" + b"\0" * 64, "unsupported"),
        (b"\xff\x0a" + b"\0" * 64, "unsupported"),
    ],
)
def test_what_is_no_picture_says_so(data: bytes, status: str) -> None:
    picture = read_image(data)
    assert picture.status == status
    assert picture.error
    assert picture.pixels is None
