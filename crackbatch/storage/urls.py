"""What of a URL may be shown: its scheme, host and path, and the parameters that are known to hold no secret.

The rest is hidden, because nobody can list the names of all secrets. So different URLs can look alike, and
`identity_url` keeps them apart by a digest.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from urllib.parse import unquote_plus

AZURE = ("az", "abfs", "abfss")
WEB = ("http", "https")
# Names of parameters that say which image, or which rendering of it.
_HARMLESS = frozenset(
    """
    album alt angle archive asset author band bbox block bridge bucket camera cell channel chunk col collection
    color column container crop crs date dataset day dir direction directory document download dpi element end
    epoch ext extension file fileid filename fit folder fmt format frame from generation group h height hour id
    image image_id imageid imagename img index inline inspection item kind lang lat layer layers level limit line
    lng locale lon mode month n name no num number object objectid offset orientation page part partnumber path
    photo photo_id photoid pic picture picture_id pier pixel position prefix profile project q quality r raw
    record region rev revision room rotate rotation row run sample scale scene section seq sequence series service
    set site size snapshot span split srs start stop structure style styles subset tile time title to tunnel type
    v variant ver version versionid view visit volume w width x y year z zoom
    """.split()  # noqa: SIM905  # a list would take 140 lines
)
# Parameters that change with every signature. They are not part of an image's identity.
_SIGNED = re.compile(
    r"x-(amz|goog|oss|cos|obs|tos|ms|bce|upyun)-.*|sig|signature|expires|policy|key-pair-id|credential|.*accesskeyid"
    r"|googleaccessid|s[vetprsi]|srt|spr|sip|ske|skt|sks|skv|skoid|sktid|sdd|rs[cd][cdelt]|.*token|jwt|hdn(ts|ea|tl)"
    r"|(x-)?(api|subscription|access)[_-]?key|hmac|ticket|nonce|timestamp|session_?id|.*passw(or)?d|pwd|.*secret",
    re.IGNORECASE,
)
# Names of secrets, for places where most names are harmless: keys of objects, and texts.
SECRET_NAME = (
    r"[\w.-]*(?:secret|token|passw|passphrase|\bpwd|credential|signature|hmac|hdnts|\bjwt|\bsas\b|\bsig\b|key-pair"
    r"|(?:api|access|account|private|subscription|shared|encryption|auth|security|storage|client|host)[ _-]?key"
    r"|session[_-]?id|sessid|ticket|cookie)[\w.-]*"
)
_IS_SECRET = re.compile(SECRET_NAME, re.IGNORECASE)
_CHAIN = re.compile(r"::(?=[a-z][a-z0-9+.-]*://)", re.IGNORECASE)
_MEMBERS = ("zip", "tar", "parquet")
_PARTS = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#(.*))?", re.IGNORECASE | re.DOTALL)
_HOST = re.compile(r"(?:[^\s:@\[\]\\]*|\[[0-9a-f:.]+(?:%\w+)?\])(?::\d{0,5})?", re.IGNORECASE)
_SEPARATORS = re.compile(r"(&amp;|[&;])")
_MAX_VALUE = 200
_PARTIAL = re.compile(r"(.*)(#id=[0-9a-f]{16})", re.DOTALL)


@dataclass
class _Shown:
    """A URL as it may be shown, and what was taken out of it: secrets of logins, and (name, value) of parameters."""

    text: str
    logins: list[str] = field(default_factory=list)
    hidden: list[tuple[str, str]] = field(default_factory=list)


def visible_url(url: str) -> str:
    """Return a URL without user, password, and parameters that may be secrets."""
    return "::".join(_shown(part).text for part in _CHAIN.split(url))


def identity_url(url: str) -> str:
    """Return the visible URL; if parameters are hidden, a digest of them follows, except of signatures.

    Two images whose URLs look alike differ in it. A URL that is signed again gets the same one.
    """
    if found := _PARTIAL.fullmatch(url):
        return visible_url(found[1]) + found[2]
    shown = [_shown(part) for part in _CHAIN.split(url)]
    kept = sorted(f"{name}={value}" for part in shown for name, value in part.hidden if not _SIGNED.fullmatch(name))
    text = "::".join(part.text for part in shown)
    return f"{text}#id={hashlib.sha256('&'.join(kept).encode()).hexdigest()[:16]}" if kept else text


def is_partial(url: str) -> bool:
    """Whether `identity_url` has hidden a parameter of this URL, so that it does not open the image any more."""
    return _PARTIAL.fullmatch(url) is not None


def secrets_of(url: str) -> list[str]:
    """Return what a URL holds and must not be shown, as it is written and decoded, for messages that quote it."""
    found = set[str]()
    for part in map(_shown, _CHAIN.split(url)):
        found.update(part.logins, (value for _, value in part.hidden))
    return sorted({form for secret in found for form in (secret, unquote_plus(secret)) if len(form) > 3})


def is_harmless(name: str, value: str) -> bool:
    """Whether a parameter is known to hold no secret; its value must not hold another URL, a login or a parameter."""
    if _plain(name) not in _HARMLESS:
        return False
    plain = unquote_plus(unquote_plus(value))
    return len(plain) <= _MAX_VALUE and not re.search(r"://|[@=?&;]|^eyJ", plain)


def _plain(name: str) -> str:
    return unquote_plus(unquote_plus(name)).strip().lower()


def _shown(url: str) -> _Shown:
    found = _PARTS.fullmatch(url)
    if found is None or found[1].lower() in (*_MEMBERS, "file", "local"):
        return _Shown(url)
    scheme, authority, path, query, fragment = found.groups()
    is_web = scheme.lower() in WEB
    login, at, host = authority.rpartition("@")
    behind = (query or "") + (fragment or "") if ":" in host and not at else ""
    if not _HOST.fullmatch(host) or "@" in behind:  # a password with one of / # ? [ @
        login, at, rest = url.partition("://")[2].rpartition("@")
        again = _PARTS.fullmatch(f"{scheme}://{rest}")
        if not at or again is None or not _HOST.fullmatch(again[2]):
            return _Shown(f"{scheme}://***", [url.partition("://")[2]])
        _, host, path, query, fragment = again.groups()
    shown = _Shown("", _secrets_of_login(login, scheme.lower()) if at else [])
    container = login.partition(":")[0]
    if at and container and scheme.lower() in AZURE:  # container@account is not a credential
        host = f"{container}@{host}"
    text = f"{scheme}://{host}{_without_parameters(path, is_web, shown)}"
    if query is not None:
        kept = _visible_query(query, is_web, shown)
        text += f"?{kept}" if kept or not query else ""
    if fragment is not None and not is_web:  # a part of the name; on the web never sent, and sometimes a token
        text += "#" + _visible_query(fragment, is_web, shown)
    shown.text = text
    return shown


def _secrets_of_login(login: str, scheme: str) -> list[str]:
    _, colon, password = login.partition(":")
    found = [password] if colon else []
    return found if scheme in AZURE else [*found, login]


def _without_parameters(path: str, is_web: bool, shown: _Shown) -> str:
    """Return a path without its parameters (RFC 3986, 3.3); names of objects may hold `;`, so secrets only there."""

    def hide(found: re.Match[str]) -> str:
        name, value = found[1], found[2]
        if is_harmless(name, value) or not (is_web or _IS_SECRET.fullmatch(_plain(name))):
            return found[0]
        shown.hidden.append((_plain(name), value))
        return ""

    return re.sub(r"(?:;|%3b)([^/;=]*?)(?:=|%3d)([^/;]*)", hide, path, flags=re.IGNORECASE)


def _visible_query(query: str, is_web: bool, shown: _Shown) -> str:
    """Return a query without its hidden parameters; elsewhere than on the web, text without `=` belongs to the name."""
    kept, is_whole = [], True
    for piece in _SEPARATORS.split(query)[::2]:
        name, is_pair, value = piece.partition("=")
        if (is_pair and is_harmless(name, value)) or not piece or (not is_pair and not is_web):
            kept.append(piece)
        else:
            shown.hidden.append((_plain(name), value))
            is_whole = False
    return query if is_whole else "&".join(filter(None, kept))
