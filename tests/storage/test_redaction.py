"""No credential is in what is shown, and what is none stays."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import pytest

from builders.credentials import KEY, SIGNATURE, TOKEN
from crackbatch.storage.redaction import masked, redact


@pytest.mark.parametrize(
    ("shown", "left"),
    [
        ("s3://bucket/a.jpg", "s3://bucket/a.jpg"),
        ("s3://bucket/sig=1/token=2/a.jpg", "s3://bucket/sig=1/token=2/a.jpg"),
        (f"s3://{KEY}@bucket/a.jpg", "s3://bucket/a.jpg"),
        (f"https://user:{KEY}@host/a.jpg", "https://host/a.jpg"),
        (f"https://o'{KEY}@host/a.jpg", "https://host/a.jpg"),
        (f"https://host/a.jpg?X-Amz-Signature={SIGNATURE}&size=2", "https://host/a.jpg?size=2"),
        (f"https://host/a b.jpg?X-Amz-Signature={SIGNATURE}", "https://host/a b.jpg?X-Amz-Signature=***"),
        (f"https://user:my {KEY}@host/a.jpg", "https://host/a.jpg"),
        (f"zip://m.jpg::https://host/a.zip?sig={SIGNATURE}&sv=1", "zip://m.jpg::https://host/a.zip"),
        (f"abfs://c/a.jpg?sv=2024&sig={SIGNATURE}", "abfs://c/a.jpg"),
        ("abfss://c@account.dfs.core.windows.net/a.jpg", "abfss://c@account.dfs.core.windows.net/a.jpg"),
        ("az://c@account.blob.core.windows.net/a.jpg", "az://c@account.blob.core.windows.net/a.jpg"),
        (f"abfs://c:{KEY}@account.dfs.core.windows.net/a", "abfs://c@account.dfs.core.windows.net/a"),
        (f"gs://bucket/a.jpg?access_token={TOKEN}", "gs://bucket/a.jpg"),
        (f"refused: AccountName=a;AccountKey={KEY}==;X=1", "refused: AccountName=a;AccountKey=***;X=1"),
        (f"BlobEndpoint=https://a.net/;SharedAccessSignature=sv=1&sig={SIGNATURE};", None),
        (f"SharedAccessSignature=sv=2024&sig={SIGNATURE}", "SharedAccessSignature=***"),
        (f"no container for ?sv=2024&sig={SIGNATURE}&se=2", "no container for ?sv=***&sig=***&se=***"),
        (f"401, Authorization: Bearer {TOKEN}", "401, Authorization: ***"),
        (f"Authorization: Basic {KEY}", "Authorization: ***"),
        (f"x-api-key: {KEY}, then 403", "x-api-key: ***, then 403"),
        (f"AWS_SECRET_ACCESS_KEY={KEY} crackbatch", "AWS_SECRET_ACCESS_KEY=*** crackbatch"),
        (f"GET https://host/a.jpg?ticket={KEY} failed (403)", "GET https://host/a.jpg failed (403)"),
        (f"the server says {TOKEN} is too old", "the server says *** is too old"),
        ("no such key: pier/7.jpg", "no such key: pier/7.jpg"),
        ("/data/token=2/span;sig=3/a.jpg", "/data/token=2/span;sig=***"),
        (f"{{'access_token': '{TOKEN}', 'expires': 3}}", "{'access_token': '***', 'expires': 3}"),
        (f'{{"private_key": "-----BEGIN PRIVATE KEY-----\\n{KEY}\\n"}}', '{"private_key": "***"}'),
    ],
)
def test_credentials_are_taken_out_of_what_is_shown(shown: str, left: str | None) -> None:
    found = redact(shown)
    assert not any(secret in found for secret in (KEY, SIGNATURE, TOKEN))
    if left is not None:
        assert found == left


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("pier\x1b[2Jhidden.jpg", "pier\\x1b[2Jhidden.jpg"),
        ("two\nlines\r.zip", "two\\nlines\\r.zip"),
        ("photo\u202egpj.exe", "photo\\u202egpj.exe"),
        ("c1\x9b31m", "c1\\x9b31m"),
        ("Brücke 橋\u3000✓.jpg", "Brücke 橋\u3000✓.jpg"),
    ],
)
def test_what_is_shown_can_be_printed(name: str, shown: str) -> None:
    assert redact(name) == shown


def test_secrets_of_the_environment_and_of_the_urls_at_hand_are_hidden_wherever_they_stand(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MINIO_ROOT_PASSWORD", KEY)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path))
    assert redact(f"refused {KEY} of {tmp_path}") == f"refused *** of {tmp_path}"
    url = f"https://user:pa%20ss{SIGNATURE}@host/a b.jpg?visitor={TOKEN[5:]}"
    told = f"cannot decode {unquote('pa%20ss' + SIGNATURE)} or {TOKEN[5:]}"
    assert redact(told, url) == "cannot decode *** or ***"


@pytest.mark.parametrize(
    "text",
    [
        f"tried https://h/a,https://u:{KEY}@h/b", f"[https://h/a](https://u:{KEY}@h/b)", f"Server=h;Password='{KEY}';",
        f'?token="{KEY}"', f'{{\\"password\\": \\"{KEY}\\"}}', f"{{b'x-api-key': b'{KEY}'}}", f"('x-api-key', '{KEY}')",
        f"<SecretAccessKey>{KEY}</SecretAccessKey>", f"--password {KEY}", f"password => {KEY}", f"password := {KEY}",
        f"MYSQL_PWD={KEY}", f"x_sig={KEY}", f"DB_PASS={KEY}", f"x-functions-key: {KEY}", f"user:{KEY}@host",
        f"//user:{KEY}@host/x", f"https:/user:{KEY}@h/x", f"https%3A%2F%2Fu%3A{KEY}%40h", f"token=SecretStr('{KEY}')",
        f"Password={{ab;{KEY}}};",
    ],
)  # fmt: skip
def test_credentials_in_other_forms_are_hidden_too(text: str) -> None:
    assert KEY not in redact(text)


def test_a_secret_that_begins_with_another_is_hidden_whole_and_in_every_spelling() -> None:
    assert redact("says abcdefgh1234", "https://h/x?code=abcd&pin=abcdefgh1234") == "says ***"
    for told in ("a+b/secret", "a%2Bb%2Fsecret", "a+b%2fsecret"):
        assert "secret" not in redact(f"sig {told}", "https://h/x?sig=a%2Bb%2Fsecret")


@pytest.mark.parametrize(
    "harmless",
    [
        "digest 0123456789abcdef0123456789abcdef differs", "Basic understanding-of-images", "no such key: pier/7.jpg",
        "the zip member does not match its checksum (CRC-32)", "photo 7 of /data/R and D/pier.jpg",
    ],
)  # fmt: skip
def test_harmless_texts_stay(harmless: str) -> None:
    assert redact(harmless) == harmless


@pytest.mark.parametrize(
    "path", ["/data/R&D=2024/pier.jpg", "/data/what?pos=3.jpg", "/data/a;pos=3.jpg", "/d/token=2/x"]
)
def test_local_paths_are_shown_as_they_are(path: str) -> None:
    assert masked(path) == path
