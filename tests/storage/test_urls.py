"""Of a URL, only what is known to be no secret is shown, and different images keep different URLs."""

from __future__ import annotations

import time

import pytest

from builders.credentials import KEY, SIGNATURE
from crackbatch.storage.redaction import redact
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


@pytest.mark.parametrize(
    "url",
    [
        f"https://proxy/https://user:{KEY}@inner/x.png", f"https://proxy/https%3A%2F%2Fuser%3A{KEY}%40inner%2Fx",
        f"https://h/x.jpg%3Fsig%3D{KEY}", f"https://h/x.jpg%253Fsig%253D{KEY}", f"https://user%3A{KEY}%40host/x.png",
        f"https://h/x.jpg&sig={KEY}", f"s3://b/x.jpg&X-Amz-Signature={KEY}", f"https://host;token={KEY}/x",
        f"s3://b/x.jpg?sig%3D{KEY}", f"https://user:99999/{KEY}@host/x", f"https://h/x?path=Bearer%20{KEY}",
    ],
)  # fmt: skip
def test_secrets_behind_encoded_delimiters_and_in_inner_urls_are_hidden(url: str) -> None:
    assert KEY not in visible_url(url)
    assert KEY not in identity_url(url)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("http://host:8080/img?id=1&name=photo@2x.jpg", "http://host:8080/img?id=2&name=photo@2x.jpg"),
        ("http://cam:8080/a.jpg?user=me@corp.org", "http://cam:8080/b.jpg?user=me@corp.org"),
        ("https://h/snap.jpg?timestamp=1", "https://h/snap.jpg?timestamp=2"), ("https://h/i?st=17", "https://h/i?st=18"),
        ("https://h/i?x-oss-process=crop,x_0", "https://h/i?x-oss-process=crop,x_9"), ("https://h/v?AbC", "https://h/v?aBc"),
        ("https://h/i?key=a", "https://h/i?key=b"), ("https://h/i?token=1", "https://h/i?token=2"),
        ("s3://b/x;token=1.jpg", "s3://b/x;token=2.jpg"), ("s3://b/x?st=1.jpg", "s3://b/x?st=2.jpg"),
        ("https://h/r;code=1/c;code=2", "https://h/r;code=2/c;code=1"), ("s3://b/x?a=1&b=2", "s3://b/x?b=2&a=1"),
        ("s3://arn:aws:s3:eu-west-1:1:accesspoint/ap/a.jpg", "s3://arn:aws:s3:eu-west-1:1:accesspoint/ap/b.jpg"),
        ("http://[fe80::1%25en-0]/a.jpg", "http://[fe80::1%25en-0]/b.jpg"),
        ("memory://pier 1/a.jpg", "memory://pier 1/b.jpg"),
        ("github://o1:r@main/x", "github://o2:r@main/x"), ("https://h:p:q/a.jpg", "https://h:p:q/b.jpg"),
    ],
)  # fmt: skip
def test_different_images_never_share_a_url(first: str, second: str) -> None:
    assert identity_url(first) != identity_url(second)


@pytest.mark.parametrize(
    "signed",
    [
        "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date={n}&X-Amz-Expires=600&X-Amz-Signature={s}",
        "AWSAccessKeyId=AKIA&Expires={n}&Signature={s}", "GoogleAccessId=a@b.c&Expires={n}&Signature={s}",
        "X-Goog-Date={n}&X-Goog-Signature={s}", "sv=2024-11-04&se=2026-11-{n}&sr=b&sp=r&sig={s}",
        "Expires={n}&Signature={s}&Key-Pair-Id=K", "Policy={s}{n}&Signature={s}&Key-Pair-Id=K",
        "hdnts=exp={n}~hmac={s}",
        "temp_url_sig={s}&temp_url_expires={n}", "q-sign-time={n}&q-signature={s}", "sign={s}&t={n}",
        "auth_key={n}-{s}",
        "verify={n}-{s}", "exp={n}&sig={s}", "__token__={s}", "md5={s}&expires={n}", "ex={n}&is={n}&hm={s}",
        "tempauth={s}", "Authorization={s}", "e={n}&token={s}",
    ],
)  # fmt: skip
def test_a_url_that_is_signed_again_keeps_its_identity(signed: str) -> None:
    nights = {identity_url(f"https://h/a.jpg?{signed.format(n=20 + night, s=f'{night}{KEY}')}") for night in range(3)}
    assert nights == {"https://h/a.jpg"}


def test_long_texts_and_names_are_looked_at_in_no_time() -> None:
    began = time.process_time()
    for text in ("a" * 500_000, "token" * 100_000, "%3b" * 100_000, "a:" * 100_000, "x=" * 100_000, ";a=" * 100_000):
        redact(text)
        redact(f"https://host/{text[:8_000]}")
        identity_url(f"https://host/{text[:8_000]}")
    assert time.process_time() - began < 5
