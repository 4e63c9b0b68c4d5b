"""Locations: spell and split local paths and URLs, and read an object's version from what its storage reports.

A *location* is a local path or any fsspec URL. A local path is kept as a plain absolute path. Everything else
keeps its scheme, so that `fsspec.open(location)` works on the locations in the table.
"""

from __future__ import annotations

import hashlib
import os
import re
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from crackbatch.storage.redaction import as_text
from crackbatch.storage.urls import AZURE, WEB, identity_url

Location = str | os.PathLike[str]
S3 = ("s3", "s3a")
# The schemes of the clouds, and the extra of crackbatch that installs the library for each.
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
_FILE_URL = re.compile(r"^(?:file|local)://(?:localhost(?=/))?|^file:(?=/(?!/))", re.IGNORECASE)
_MAX_VERSION = 256  # characters
GONE = (404, 410)  # HTTP statuses for a file that does not exist


def scheme(location: str) -> str:
    """Return the URL scheme in lower case, `file` for a local path."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", location)
    return match[1].lower() if match else "file"


def is_local(location: str) -> bool:
    """Whether the location is a path on this machine."""
    return scheme(location) in ("file", "local")


def is_web(location: str) -> bool:
    """Whether the location is the URL of a web server."""
    return scheme(location) in WEB


def normalize(location: str) -> str:
    """Return the one spelling of a location: absolute if local, no trailing slash, scheme in lower case.

    A file URL (RFC 8089) may be written with `%20` for a space, or as fsspec does, with the name as it is.
    """
    location = re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*(?=://)", lambda found: found[0].lower(), location)
    if is_local(location):
        path = _FILE_URL.sub("", location)
        if path != location and "%" in path and not os.path.lexists(path):
            path = unquote(path)
        return os.path.abspath(os.path.expanduser(path))
    return location.rstrip("/") if "?" not in location else location


def join(location: str, *parts: str) -> str:
    """Return the location of `parts` below a location."""
    return "/".join([location.rstrip("/"), *parts])


def file_name(location: str) -> str:
    """Return the last part of a location, without the query of an HTTP URL."""
    path = without_query(location)
    return PurePosixPath(path.partition("://")[2].partition("/")[2] if is_web(location) else path).name


def without_query(location: str) -> str:
    """Return a location without the query of an HTTP URL: slashes and dots in a query do not belong to names."""
    return re.split("[?#]", location)[0] if is_web(location) else location


def locate(path: str, like: str) -> str:
    """Return the location of a path that the filesystem of the location `like` gave, on the same account."""
    if scheme(path) != "file":  # not just any `://`: names of objects may contain it
        return path
    kind = scheme(like)
    if kind == "memory":
        return f"memory://{path}"
    host = urlsplit(like).netloc if kind in AZURE else ""
    if "@" in host:  # abfss://container@account.dfs.core.windows.net/path: the path is container/path
        return f"{kind}://{host}/{path.lstrip('/').partition('/')[2]}"
    if host.endswith(".core.windows.net"):
        return f"{kind}://{host}/{path.lstrip('/')}"
    host = urlsplit(like).netloc if kind not in EXTRAS else ""  # ftp://host/path: the path is /path
    inner = path.lstrip("/")
    return f"{kind}://{inner}" if not host or f"{inner}/".startswith(f"{host}/") else f"{kind}://{host}/{inner}"


def version(info: dict[str, Any]) -> str:
    """Return a text that changes when the object changes: ETag or MD5, else modification time and size, else size."""
    for key in ("ETag", "etag", "md5Hash", "content_md5"):
        if info.get(key):
            return _plain(str(info[key]).strip('"'))
    size = info.get("size")
    for key in ("mtime", "LastModified", "last_modified", "Last-Modified", "updated", "created"):
        moment = info.get(key)
        if isinstance(moment, datetime):
            return f"{moment.isoformat()}-{size}"
        if moment is not None:
            return f"{moment}-{size}"
    return str(size)


def _plain(text: str) -> str:
    """Return what a server calls a version as valid Unicode of limited length, without NUL."""
    plain = as_text(text).replace("\0", "\\x00").replace("#", "\\x23")  # `#2` marks a second member
    return plain if len(plain) <= _MAX_VERSION else hashlib.sha256(plain.encode()).hexdigest()


def lists_versions(location: str) -> bool:
    """Whether a listing gives the same version of an object as a request for the object does.

    Clouds do; file servers need not. A web page of links has no versions, so each file was asked for its own.
    """
    return scheme(location) in (*EXTRAS, "http", "https")


def local_version(status: os.stat_result) -> str:
    """Return the version of a local file: modification time in nanoseconds and size."""
    return f"{status.st_mtime_ns}-{status.st_size}"


def public(location: str) -> str:
    """Return a location without credentials, as in a table; a digest keeps URLs apart that would look alike."""
    return as_text(location) if is_local(location) else identity_url(as_text(location))


def is_temporary(location: str) -> bool:
    """Whether the name is that of a temporary file that is still being written."""
    name = location.rsplit("/", 1)[-1]
    return name.startswith(".") and name.endswith(".tmp")
