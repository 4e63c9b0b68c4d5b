"""No credential is in what is shown, and what is none stays."""

from __future__ import annotations

import pytest

from builders.credentials import KEY, SIGNATURE, TOKEN
from crackbatch.storage.redaction import redact


@pytest.mark.parametrize(
    ("shown", "left"),
    [
        ("s3://bucket/a.jpg", "s3://bucket/a.jpg"),
        ("s3://bucket/sig=1/token=2/a.jpg", "s3://bucket/sig=1/token=2/a.jpg"),
        (f"s3://{KEY}@bucket/a.jpg", "s3://bucket/a.jpg"),
        (f"https://user:{KEY}@host/a.jpg", "https://host/a.jpg"),
        (f"https://o'{KEY}@host/a.jpg", "https://host/a.jpg"),
        (f"https://host/a.jpg?X-Amz-Signature={SIGNATURE}&size=2", "https://host/a.jpg?size=2"),
        (f"zip://m.jpg::https://host/a.zip?sig={SIGNATURE}&sv=1", "zip://m.jpg::https://host/a.zip?sv=1"),
        (f"abfs://c/a.jpg?sv=2024&sig={SIGNATURE}", "abfs://c/a.jpg?sv=2024"),
        ("abfss://c@account.dfs.core.windows.net/a.jpg", "abfss://c@account.dfs.core.windows.net/a.jpg"),
        ("az://c@account.blob.core.windows.net/a.jpg", "az://c@account.blob.core.windows.net/a.jpg"),
        (f"abfs://c:{KEY}@account.dfs.core.windows.net/a", "abfs://c@account.dfs.core.windows.net/a"),
        (f"gs://bucket/a.jpg?access_token={TOKEN}", "gs://bucket/a.jpg"),
        (f"refused: AccountName=a;AccountKey={KEY}==;X=1", "refused: AccountName=a;AccountKey=***;X=1"),
        (f"BlobEndpoint=https://a.net/;SharedAccessSignature=sv=1&sig={SIGNATURE};", None),
        (f"SharedAccessSignature=sv=2024&sig={SIGNATURE}", "SharedAccessSignature=***"),
        (f"no container for ?sv=2024&sig={SIGNATURE}&se=2", "no container for ?sv=2024&sig=***&se=2"),
        (f"401, Authorization: Bearer {TOKEN}", "401, Authorization: Bearer ***"),
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
