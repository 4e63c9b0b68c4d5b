"""What of a URL may be shown: its scheme, host and path, and the parameters that are known to hold no secret.

The rest is hidden, because nobody can list the names of all secrets. So different URLs can look alike, and
`identity_url` keeps them apart by a digest.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, unquote_plus

AZURE = ("az", "abfs", "abfss")
WEB = ("http", "https")
_LIKE_WEB = (*WEB, "webdav", "webdavs", "dav", "davs")  # their URLs have the same parts
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
# Parameters of signatures, which are new each time a URL is signed, and passwords: no part of an image's identity.
_SIGNATURE = re.compile(
    r"x-(amz|goog|oss|cos|obs|tos|ms|bce|upyun)-(?!.*process).*|x-id|signature|credential|awsaccesskeyid|key-pair-id"
    r"|googleaccessid|ossaccesskeyid|accesskeyid|hdn(ts|ea|tl)|__token__|__gda__|__cld_token__|temp_url_(sig|expires)"
    r"|q-(sign-algorithm|ak|sign-time|key-time|header-list|url-param-list|signature)|tempauth|authorization|auth_key"
    r"|(x-)?(api|subscription|access)[_-]?key|.*passw(or)?d|passwd|pass|pwd|.*secret",
    re.IGNORECASE,
)
# Names that others use too: they belong to a signature only if they are long, as no name or number of an image is.
_PROOF = re.compile(r"sig|sign|hmac|md5|hm|jwt|verify|ticket|session_?id|nonce|policy|.*token|key", re.IGNORECASE)
_LONG = 16  # characters
# And these only beside a proof or signature: times and scopes.
_SCOPE = re.compile(
    r"s[vetprsi]|srt|spr|sip|ske|skt|sks|skv|skoid|sktid|sdd|rs[cd][cdelt]|scid|saoid|suoid|ses|expires?|exp|ex|is|e|t"
    r"|timestamp|policy",
    re.IGNORECASE,
)
# Names of secrets, for places where most names are harmless: keys of objects, and texts.
SECRET_NAME = (
    r"[\w.-]{0,64}?(?:secret|token|passw|passphrase|(?<![a-z])(?:pass|pwd|jwt|sas|sig)(?![a-z])|credential|signature|hmac"
    r"|hdnts|key-pair|(?:api|access|account|private|subscription|shared|encryption|auth|security|storage|client|host"
    r"|signing|master|functions|customer)[ _-]?key(?!s?tr)|session[_-]?id|sessid|ticket|cookie)[\w.-]{0,64}"
)
_IS_SECRET = re.compile(SECRET_NAME, re.IGNORECASE)
_CHAIN = re.compile(r"::(?=[a-z][a-z0-9+.-]{0,30}://)", re.IGNORECASE)
MEMBERS = ("zip", "tar", "parquet")  # schemes of images in archives, as in the table
_PARTS = re.compile(r"([a-z][a-z0-9+.-]{0,30})://([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#(.*))?", re.IGNORECASE | re.DOTALL)
_PORT = r"(?::\d{0,5})?"
_WEB_HOST = re.compile(rf"(?:[\w.-]*|\[[0-9a-f:.]+(?:%[\w.~-]+)?\]){_PORT}", re.IGNORECASE)
_HOST = re.compile(rf"(?:[^:@\[\]\\]*|arn:[\w:-]+|\[[0-9a-f:.]+(?:%[\w.~-]+)?\]){_PORT}", re.IGNORECASE)
# Delimiters in a path, plain or encoded, once or several times.
_PAIR = re.compile(
    r"(?:[&;]|%(?:25)*(?:3f|26|3b))([^/=&;?]{1,60}?)(?:=|%(?:25)*3d)([^/&;]*?)(?=[/&;]|%(?:25)*(?:26|3b)|$)",
    re.IGNORECASE,
)
_INNER_URL = re.compile(r"[a-z][a-z0-9+.-]{0,30}(?::|%(?:25)*3a)(?:/|%(?:25)*2f){2}", re.IGNORECASE)
_SEPARATORS = re.compile(r"&amp;|[&;]")
_MAX_VALUE = 200
_UNSAFE_VALUE = re.compile(r"://|[=?&;\x00-\x1f]|:[^/@]*@|^eyJ|bearer|^\w+:(?!\d)", re.IGNORECASE)
_PARTIAL = re.compile(r"(.*)(#id=[0-9a-f]{16})", re.DOTALL)


@dataclass
class _Shown:
    """A URL as it may be shown, the same with all that identifies the image, and the secrets of its login."""

    text: str
    whole: str = ""
    logins: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)  # values
    is_partial: bool = False


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
    text = "::".join(part.text for part in shown)
    if not any(part.is_partial for part in shown):
        return text
    return with_digest(text, "::".join(part.whole for part in shown))


def with_digest(text: str, whole: str) -> str:
    """Return what is shown of a URL with a digest of all that identifies it."""
    return f"{text}#id={hashlib.sha256(whole.encode(errors='surrogateescape')).hexdigest()[:16]}"


def is_partial(url: str) -> bool:
    """Whether `identity_url` has hidden a parameter of this URL, so that it does not open the image any more."""
    return _PARTIAL.fullmatch(url) is not None


def secrets_of(url: str) -> list[str]:
    """Return what a URL holds and must not be shown, in the spellings of messages that quote it; longest first."""
    found = set[str]()
    for part in map(_shown, _CHAIN.split(url)):
        found.update(part.logins, part.hidden)
    plain = {form for secret in found for form in (secret, unquote(secret), unquote_plus(secret))}
    spelled = {
        form
        for secret in plain
        for form in (secret, quote(secret, safe=""), quote(secret, safe="+"), quote(secret), json.dumps(secret)[1:-1])
    }
    lower = {re.sub(r"%[0-9A-F]{2}", lambda code: code[0].lower(), form) for form in spelled}
    return sorted((form for form in {*spelled, *lower} if len(form) > 3), key=len, reverse=True)


def is_harmless(name: str, value: str) -> bool:
    """Whether a parameter is known to hold no secret; its value must not hold another URL, a login or a parameter."""
    plain = _plain(value)
    return _plain(name).strip().lower() in _HARMLESS and len(plain) <= _MAX_VALUE and not _UNSAFE_VALUE.search(plain)


def _plain(text: str) -> str:
    """Return a text decoded as often as it was encoded, within reason."""
    for _ in range(5):
        text, before = unquote_plus(text), text
        if text == before:
            break
    return text


def _is_signed(name: str, value: str, has_proof: bool) -> bool:
    name = _plain(name).strip().lower()
    if _SIGNATURE.fullmatch(name) or (_PROOF.fullmatch(name) and len(value) >= _LONG):
        return True
    return has_proof and _SCOPE.fullmatch(name) is not None


def _is_proof(name: str, value: str) -> bool:
    name = _plain(name).strip().lower()
    return bool(_SIGNATURE.fullmatch(name) or _PROOF.fullmatch(name)) and len(value) >= _LONG


def _shown(url: str) -> _Shown:
    found = _PARTS.fullmatch(url)
    if found is None or found[1].lower() in (*MEMBERS, "file", "local"):
        return _Shown(url, url)
    scheme, authority, path, query, fragment = found.groups()
    is_web = scheme.lower() in _LIKE_WEB
    host_form = _WEB_HOST if is_web else _HOST
    login, at, host = authority.rpartition("@")
    # Before a slash, an `@` behind `?` or `#` ends a password; later, it belongs to a name.
    behind = (query or "") + (fragment or "") if ":" in host and not at and not path else ""
    if not host_form.fullmatch(host) or "@" in behind or _has_wrong_port(host):
        rest = url.partition("://")[2]
        login, at, rest = rest.rpartition("@")
        again = _PARTS.fullmatch(f"{scheme}://{rest}")
        if not at or again is None or not host_form.fullmatch(again[2]):
            return _Shown(f"{scheme}://***", f"{scheme}://{rest}", [url.partition("://")[2]], is_partial=True)
        _, host, path, query, fragment = again.groups()
    shown = _Shown("", "", _secrets_of_login(login, scheme.lower()) if at else [])
    container = login.partition(":")[0]
    if at and scheme.lower() == "github":  # org:repo@branch
        host, shown.logins = f"{login}@{host}", []
    elif at and container and scheme.lower() in AZURE:  # container@account is not a credential
        host = f"{container}@{host}"
    start = f"{scheme}://{host}"
    text, whole = _visible_path(path, is_web, shown)
    if query is not None:
        seen, kept = _visible_query(query, is_web, shown)
        text += f"?{seen}" if seen or (not query and not is_web) else ""
        whole += f"?{kept}" if kept else ""
    if fragment is not None and not is_web:  # a part of the name; on the web never sent, and sometimes a token
        seen, kept = _visible_query(fragment, is_web, shown)
        text, whole = f"{text}#{seen}", f"{whole}#{kept}"
    shown.text, shown.whole = start + text, start + whole
    return shown


def _has_wrong_port(host: str) -> bool:
    port = re.search(r":(\d+)$", host)
    return port is not None and int(port[1]) > 65_535


def _secrets_of_login(login: str, scheme: str) -> list[str]:
    user, colon, password = login.partition(":")
    found = [password] if colon else []
    return found if scheme in AZURE or not user else [*found, login]


def _visible_path(path: str, is_web: bool, shown: _Shown) -> tuple[str, str]:
    """Return a path without parameters (RFC 3986, 3.3) and URLs in it, and the same without signatures only.

    Names of objects may hold `;` and `&`; there, only what has the name of a secret is hidden.
    """
    tail = ""
    if is_web and (inner := _INNER_URL.search(path)):
        path, tail = path[: inner.start()], path[inner.start() :]
        shown.hidden.append(tail)
        shown.is_partial = True
    has_proof = any(_is_proof(pair[1], pair[2]) for pair in _PAIR.finditer(path))
    hidden: list[tuple[int, int, bool]] = []
    for pair in _PAIR.finditer(path):
        if _is_hidden(pair[1], pair[2], is_web, has_proof):
            is_signed = _is_signed(pair[1], pair[2], has_proof)
            hidden.append((pair.start(), pair.end(), is_signed))
            shown.hidden.append(pair[2])
            shown.is_partial |= not is_signed
    text = whole = path
    for start, end, is_signed in reversed(hidden):
        text = text[:start] + text[end:]
        whole = whole[:start] + whole[end:] if is_signed else whole
    return text, whole + tail


def _is_hidden(name: str, value: str, is_web: bool, has_proof: bool) -> bool:
    if is_web:
        return not is_harmless(name, value)
    return _IS_SECRET.fullmatch(_plain(name)) is not None or _is_signed(name, value, has_proof)


def _visible_query(query: str, is_web: bool, shown: _Shown) -> tuple[str, str]:
    """Return a query without its hidden parameters, and the same without signatures only.

    Elsewhere than on the web, `?` may be in a name, and only what has the name of a secret is hidden.
    """
    pieces = [(piece, *re.split("=|%(?:25)*3[dD]", piece, maxsplit=1)) for piece in _SEPARATORS.split(query)]
    pairs = [(piece, name, rest[0] if rest else "", bool(rest)) for piece, name, *rest in pieces]
    has_proof = any(_is_proof(name, value) for _, name, value, is_pair in pairs if is_pair)
    seen, kept, is_whole = [], [], True
    for piece, name, value, is_pair in pairs:
        is_shown = not piece or (not _is_hidden(name, value, is_web, has_proof) if is_pair else not is_web)
        is_signed = is_pair and not is_shown and _is_signed(name, value, has_proof)
        if is_shown:
            seen.append(piece)
        else:
            shown.hidden.append(value if is_pair else piece)
            shown.is_partial |= not is_signed
            is_whole = False
        if not is_signed:
            kept.append(piece)
    if is_whole:
        return query, query
    return "&".join(filter(None, seen)), "&".join(sorted(filter(None, kept)) if is_web else kept)
