"""Make text safe to show: names become valid Unicode, and no message, row or file of a run holds a credential."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable

from crackbatch.storage.urls import SECRET_NAME, is_harmless, secrets_of, visible_url

# Control and format characters, separators of lines and paragraphs, and what is no character (Unicode 16, 4.5).
_UNPRINTABLE = ("Cc", "Cf", "Zl", "Zp", "Cs", "Cn")
# Secrets in Azure's connection strings, which also contain URLs.
_CONNECTION_SECRETS = re.compile(
    r"\b(AccountKey|SharedAccessKey|SharedSecret\w*|SharedAccessSignature)=[^;\s'\"]+", re.IGNORECASE
)
_HIDDEN = "***"
_SCHEME = r"(?<![a-z0-9+.-])[a-z][a-z0-9+.-]{0,30}"
_QUOTED = r"\\*'(?:[^'\\]|\\.)*\\*'|\\*\"(?:[^\"\\]|\\.)*\\*\""
_SECRETS = re.compile(
    # The rest of a line behind the name of such a header.
    r"(?P<header>\b(?:proxy-)?authorization\\*['\"]?\s*[:=]|\b(?:set-)?cookies?\\*['\"]?\s*[:=])[^\n]+"
    # A URL ends before the next one.
    rf"|(?P<url>{_SCHEME}://(?:[^/@\n]{{0,200}}@|[^\s@]{{0,500}}@)?(?:(?!{_SCHEME}://)[^\s'\"<>])+)"
    rf"|(?P<encoded>{_SCHEME}(?:%(?:25)*3a|:\\?)(?:%(?:25)*2f|\\?/){{1,2}}\S*?(?:@|%(?:25)*40)\S+)"
    # What looks like a URL's parameter: a URL ends at a space, but names of images hold spaces.
    rf"|(?P<parameter>(?<=[?&;])(?:amp;)?[^=\s&;?'\"]{{1,100}}=)(?P<value>{_QUOTED}|[^\s&;'\"]*)"
    r"|(?P<scheme>\b(?:bearer|basic|negotiate)\s+)(?=[^\s]*\d)[\w+/=.~-]{16,}"
    rf"|(?P<named>(?<![\w/.-])(?:--?)?{SECRET_NAME}(?:\\*['\"]?\s*(?:=>|:=|[=:])\s*|['\"]\s*,\s*(?=b?['\"])|(?<=[a-z])>"
    rf"|(?<=--password)\s+|(?<=--token)\s+|(?<=-key)\s+(?=\S*\d))[\[(]?(?:[bu](?=\\*['\"])|SecretStr\()?)"
    rf"(?:{_QUOTED}|\{{[^}}]*\}}|[^\s&;<>'\"\])}}]*[^\s&;<>'\"\])}},.])"
    r"|(?P<login>(?:(?<=//)|(?<![\w/]))[\w.%+-]{1,64}:)[^\s/@:'\"]{3,}@(?=[\w.\[-])"
    # Keys that are known by their form: private keys, and those of clouds, GitHub, GitLab, Slack and JWT (RFC 7519).
    r"|-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----(?:.*?-----END [A-Z ]*PRIVATE KEY(?: BLOCK)?-----|.*)"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bya29\.[\w.-]+|\bgh[pousr]_\w{30,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}"
    r"|\bhf_\w{20,}|\bAIza[\w-]{30,}|\bxox[abprs]-[\w-]{10,}|\beyJ[\w-]+\.[\w-]+\.[\w-]*",
    re.IGNORECASE | re.DOTALL,
)
# Names of environment variables that hold secrets. $PWD is the current folder.
_SECRET_VARIABLE = re.compile(
    r"SECRET|TOKEN|PASSW|PASSPHRASE|CREDENTIAL|SIGNATURE|_SAS|CONNECTION_STRING|_KEY$|_KEY_ID$|APIKEY|_PWD$|_PASS$"
)
_MISTYPED = re.compile(r"[a-z][a-z0-9+.-]+:/|(?:AccountKey|SharedAccess\w*|SharedSecret\w*)=", re.IGNORECASE)
_SHORTEST = 8  # characters; shorter values may be a part of any word
_MOST_CHARACTERS = 10_000


def redact(text: str, *urls: str) -> str:
    """Return a text without credentials: logins, signatures, keys and tokens, in URLs and elsewhere.

    Secrets of the environment and of the given URLs are hidden wherever they stand. The result is valid Unicode and
    printable: bytes of a file name that are not UTF-8 and control characters, which a terminal would obey, become
    \\xNN. For a location, use `masked`.
    """
    text = as_text(text)[:_MOST_CHARACTERS]
    text = _SECRETS.sub(_hide, _CONNECTION_SECRETS.sub(rf"\1={_HIDDEN}", text))
    known = {*_secrets_of_environment(), *(secret for url in urls for secret in secrets_of(url))}
    for secret in sorted(known, key=len, reverse=True):  # one may begin with another
        text = text.replace(secret, _HIDDEN)
    return printable(text)


def masked(location: str) -> str:
    """Return a path or URL for a message: printable, and without credentials.

    A local path is shown as it is, unless it looks like a mistyped URL or a connection string.
    """
    location = as_text(location)
    if location.startswith(("/", "~", ".")) and not _MISTYPED.search(location):
        return printable(location)
    return printable(visible_url(location)) if "://" in location else redact(location)


def _hide(found: re.Match[str]) -> str:
    if url := found["url"]:
        return visible_url(url)
    if parameter := found["parameter"]:
        return found[0] if is_harmless(parameter[:-1], found["value"]) else parameter + _HIDDEN
    if header := found["header"]:
        return f"{header} {_HIDDEN}"
    if login := found["login"]:
        return f"{login}{_HIDDEN}@"
    name = found["named"] or found["scheme"] or ""
    quote = found[0][-1] if name and found[0][-1] in "'\"" else ""
    return f"{name}{quote}{_HIDDEN}{quote}"


def _secrets_of_environment() -> Iterable[str]:
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _SECRET_VARIABLE.search(name.upper()) and not os.path.exists(value):
            yield value


def printable(text: str) -> str:
    """Return a text with escapes for characters that cannot be printed, also those that turn the writing direction."""
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in _UNPRINTABLE else character
        for character in text
    )


def reason_of(error: BaseException, *urls: str) -> str:
    """Return an error's first line without credentials, also those of the given URLs.

    Azure's further lines are details for its support.
    """
    lines = [line for line in str(error).splitlines() if line.strip()]
    return redact(lines[0].strip() if lines else repr(error), *urls)


def as_text(name: str) -> str:
    """Return a file name as valid Unicode: bytes that are not UTF-8 become \\xNN."""
    return name if name.isascii() else name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def from_text(text: str) -> str:
    """Return the file name of which `as_text` made this text, if no other name gives the same text."""
    return re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), text.encode()).decode(
        "utf-8", "surrogateescape"
    )
