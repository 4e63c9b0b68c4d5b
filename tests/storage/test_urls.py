"""Of a URL, only what is known to be no secret is shown, and different images keep different URLs."""

from __future__ import annotations

import pytest

from builders.credentials import KEY, SIGNATURE
from crackbatch.storage.urls import identity_url, is_partial, visible_url

HIDDEN = [
    "api-key", "key", "x-api-key", "subscription-key", "hmac", "ticket", "sessionid", "hdnts", "%73ig", "%2573ig",
    "amp;sig", "code", "pin", "X-Amz-Signature", "X-Goog-Credential", "AWSAccessKeyId", "visitor",
]  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("form", ["?{}", "?size=2&{}", "?size=2&amp;{}", "?size=2;{}", ";{}"])
def test_parameters_that_are_not_known_to_be_harmless_are_hidden(name: str, form: str) -> None:
    url = f"https://host/a b.jpg{form.format(f'{name}={KEY}')}"
    assert KEY not in visible_url(url)
    assert visible_url(url).startswith("https://host/a b.jpg")
    assert KEY not in identity_url(f"zip://in side.jpg::{url}")


@pytest.mark.parametrize(
    "password", ["plain", "with space", "sl/ash", "ha#sh", "quest?ion", "bra[cket", "c:olon", "a@t", "12#3", "%40"]
)
@pytest.mark.parametrize("host", ["host", "[::1]", "host:8080", "[2001:db8::1]:443", "bucket.example.org"])
@pytest.mark.parametrize("scheme", ["http", "https", "ftp", "sftp", "s3"])
def test_passwords_of_any_characters_are_hidden(password: str, host: str, scheme: str) -> None:
    assert visible_url(f"{scheme}://user:{password}@{host}/x.png") == f"{scheme}://{host}/x.png"


@pytest.mark.parametrize(
    "value",
    [f"https://user:{KEY}@inner/y.png", f"https%3A%2F%2Finner%2Fy%3Fsig%3D{KEY}", f"2%26sig%3D{KEY}", "eyJhbGciOi"],
)
def test_harmless_parameters_that_hold_urls_or_tokens_are_hidden(value: str) -> None:
    assert visible_url(f"https://host/x.png?path={value}&page=3") == "https://host/x.png?page=3"


@pytest.mark.parametrize("scheme", ["https", "HTTPS", "s3", "custom+x"])
def test_what_is_no_url_is_hidden_whole(scheme: str) -> None:
    assert visible_url(f"{scheme}://user:{KEY}:x/y.png") == f"{scheme}://***"


@pytest.mark.parametrize(
    "url",
    [
        "https://host/a.jpg?page=2&author=me", "https://host/photo@2x.jpg", "http://minio:9000/b/photo@2x.jpg",
        "s3://bucket/a b#c%20?.jpg", "s3://bucket/k.jpg?versionId=3", "s3://bucket/sig=1/token=2/a.jpg",
        "gs://bucket/semi;colon&+.jpg", "zip://a@b?c=d.jpg::s3://bucket/a.zip", "https://[::1]:8000/x.png?id=4",
    ],
)  # fmt: skip
def test_what_is_harmless_stays_as_it_is(url: str) -> None:
    assert visible_url(url) == identity_url(url) == url
    assert not is_partial(url)


def test_images_whose_urls_look_alike_keep_different_ones_and_a_new_signature_changes_none() -> None:
    first, second = (identity_url(f"https://host/image?code={number}") for number in (1, 2))
    assert first != second
    assert is_partial(first)
    assert identity_url(first) == first
    nights = (f"https://host/a.jpg?code=1&sv=3&se=2026-11-{day}&sig={SIGNATURE}{day}" for day in (20, 21))
    assert len(set(map(identity_url, nights))) == 1
    assert identity_url("https://host/i?code=1&pin=2") == identity_url("https://host/i?pin=2&code=1")
