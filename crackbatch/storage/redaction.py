"""Make text safe to show: names become valid Unicode, and no message, row or file of a run holds a credential."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

# Control and format characters, separators of lines and paragraphs, and what is no character (Unicode 16, 4.5).
_UNPRINTABLE = ("Cc", "Cf", "Zl", "Zp", "Cs", "Cn")
AZURE = ("az", "abfs", "abfss")
_SECRET_PARAMETERS = re.compile(
    r"signature|credential|token|secret|passw|^pwd$|^pass$|api_?key|access_?key|key-pair|^policy$|^sig$|^sas$|^jwt$"
    r"|^code$|^auth",
    re.IGNORECASE,
)
# Secrets in Azure's connection strings. These strings also contain URLs, so both patterns are applied.
_CONNECTION_SECRETS = re.compile(r"\b(AccountKey|SharedAccessKey|SharedAccessSignature)=[^;\s'\"]+", re.IGNORECASE)
# A URL, which `redact_url` examines, or the name of a secret (groups 1 and 2) with the secret.
_URLS_AND_SECRETS = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]*://(?:[^\s/@]*@)?[^\s'\"]+"
    r"|(\b(?:sig|access_token|refresh_token|id_token|client_secret)=|\bBearer )[^&;\s'\"]{16,}"
    r"|(?<=['\"])((?:access_token|refresh_token|id_token|client_secret|private_key)['\"]:\s*['\"])[^'\"]+",
    re.IGNORECASE,
)


def redact(shown: str) -> str:
    """Return the text without credentials: user names, passwords, signatures, keys and tokens, in URLs and elsewhere.

    The result is valid Unicode and printable: bytes of a file name that are not UTF-8 and control characters, which a
    terminal would obey, become \\xNN.
    """
    shown = _CONNECTION_SECRETS.sub(r"\1=***", as_text(shown))
    return printable(_URLS_AND_SECRETS.sub(_hide, shown))


def printable(text: str) -> str:
    """Return a text with escapes for characters that cannot be printed, also those that turn the writing direction."""
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in _UNPRINTABLE else character
        for character in text
    )


def reason_of(error: BaseException) -> str:
    """Return an error's first line without credentials. Azure's further lines are details for its support."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return redact(lines[0].strip() if lines else repr(error))


def as_text(name: str) -> str:
    """Return a file name as valid Unicode: bytes that are not UTF-8 become \\xNN."""
    return name if name.isascii() else name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def from_text(text: str) -> str:
    """Return the file name of which `as_text` made this text, if no other name gives the same text."""
    return re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), text.encode()).decode(
        "utf-8", "surrogateescape"
    )


def redact_url(url: str) -> str:
    """Return a URL without credentials: no user, no password, and no parameter with the name of a secret."""
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
        if parts.scheme in AZURE:  # in Azure URLs, container@account is not a credential
            host = f"{user.partition(':')[0]}@{host}"
    kept = [pair for pair in parse_qsl(parts.query, keep_blank_values=True) if not _SECRET_PARAMETERS.search(pair[0])]
    if len(kept) == len(parse_qsl(parts.query, keep_blank_values=True)):
        return urlunsplit(parts._replace(netloc=host))
    return urlunsplit(parts._replace(netloc=host, query=urlencode(kept)))


def _hide(match: re.Match[str]) -> str:
    name = match[1] or match[2]
    return f"{name}***" if name else redact_url(match[0])
