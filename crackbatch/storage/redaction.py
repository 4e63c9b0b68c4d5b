"""What may be shown: names as valid Unicode, and no credential in a message, a row or a file of a run."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

AZURE = ("az", "abfs", "abfss")
_SECRET_PARAMETERS = re.compile(
    r"signature|credential|token|secret|passw|^pwd$|^pass$|api_?key|access_?key|key-pair|^policy$|^sig$|^sas$|^jwt$"
    r"|^code$|^auth",
    re.IGNORECASE,
)
# What stands in Azure's connection strings, which hold URLs in their turn.
_CONNECTION_SECRETS = re.compile(r"\b(AccountKey|SharedAccessKey|SharedAccessSignature)=[^;\s'\"]+", re.IGNORECASE)
# A URL, whose parts are looked at, or the name of a secret (groups 1 and 2) and the secret itself.
_URLS_AND_SECRETS = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]*://(?:[^\s/@]*@)?[^\s'\"]+"
    r"|(\b(?:sig|access_token|refresh_token|id_token|client_secret)=|\bBearer )[^&;\s'\"]{16,}"
    r"|(?<=['\"])((?:access_token|refresh_token|id_token|client_secret|private_key)['\"]:\s*['\"])[^'\"]+",
    re.IGNORECASE,
)


def redact(shown: str) -> str:
    """The same text with credentials taken out: user names, passwords, signatures, keys and tokens, in URLs and beside.

    What is shown is valid Unicode: bytes of a file name that are not UTF-8 become \\xNN.
    """
    shown = _CONNECTION_SECRETS.sub(r"\1=***", as_text(shown))
    return _URLS_AND_SECRETS.sub(_hide, shown)


def reason_of(error: BaseException) -> str:
    """Why a storage refused, in one line without credentials; what follows in Azure's messages is for its support."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return redact(lines[0].strip() if lines else repr(error))


def as_text(name: str) -> str:
    """A file name as valid Unicode: bytes that are none are shown as \\xNN."""
    return name if name.isascii() else name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def redact_url(url: str) -> str:
    """A URL without credentials: no user or password, no parameter whose name is that of a secret."""
    if "::" in url:
        return "::".join(redact_url(part) if "://" in part else part for part in url.split("::"))
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    if "@" not in parts.netloc and not parts.query and not parts.fragment:
        return url
    if parts.scheme in ("http", "https"):
        parts = parts._replace(fragment="")  # never sent to the server, sometimes a token
    host = parts.netloc
    if "@" in host:
        user, _, host = host.rpartition("@")
        if parts.scheme in AZURE:  # there, container@account is no credential
            host = f"{user.partition(':')[0]}@{host}"
    kept = [pair for pair in parse_qsl(parts.query, keep_blank_values=True) if not _SECRET_PARAMETERS.search(pair[0])]
    if len(kept) == len(parse_qsl(parts.query, keep_blank_values=True)):
        return urlunsplit(parts._replace(netloc=host))
    return urlunsplit(parts._replace(netloc=host, query=urlencode(kept)))


def _hide(match: re.Match[str]) -> str:
    name = match[1] or match[2]
    return f"{name}***" if name else redact_url(match[0])
