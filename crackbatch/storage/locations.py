"""Locations: how a local path or URL is spelled, what it names, and which version of an object a storage says there is.

A *location* is a local path or any fsspec URL. Local paths are kept as plain absolute paths, everything else keeps
its scheme, so that `fsspec.open(location)` works on what stands in the table.
"""

from __future__ import annotations

import os
import re
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from crackbatch.storage.redaction import AZURE, as_text, redact_url

Location = str | os.PathLike[str]
S3 = ("s3", "s3a")
# Schemes of clouds, and the extra of crackbatch that brings the library of each.
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
GONE = (404, 410)  # what a web server says of a file that it does not have


def scheme(location: str) -> str:
    """The URL scheme, `file` for a local path."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", location)
    return match[1].lower() if match else "file"


def is_local(location: str) -> bool:
    """Whether the location is a path on this machine."""
    return scheme(location) in ("file", "local")


def is_web(location: str) -> bool:
    """Whether the location is the URL of a web server."""
    return scheme(location) in ("http", "https")


def normalize(location: str) -> str:
    """The one spelling of a location: absolute if local, no trailing slash, the scheme in small letters."""
    location = re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*(?=://)", lambda found: found[0].lower(), location)
    if is_local(location):
        return os.path.abspath(os.path.expanduser(re.sub(r"^(file|local)://", "", location)))
    return location.rstrip("/") if "?" not in location else location


def join(location: str, *parts: str) -> str:
    """A location below another."""
    return "/".join([location.rstrip("/"), *parts])


def file_name(location: str) -> str:
    """The last part of a location, without the query of an HTTP URL."""
    path = without_query(location)
    return PurePosixPath(path.partition("://")[2].partition("/")[2] if is_web(location) else path).name


def without_query(location: str) -> str:
    """A location without the query of an HTTP URL, whose slashes and dots are no part of names."""
    return re.split("[?#]", location)[0] if is_web(location) else location


def locate(path: str, like: str) -> str:
    """The location of a path that the filesystem of the location `like` gave, on the same account."""
    if scheme(path) != "file":  # and not wherever `://` stands, which names of objects may hold
        return path
    kind = scheme(like)
    if kind == "memory":
        return f"memory://{path}"
    host = urlsplit(like).netloc if kind in AZURE else ""
    if "@" in host:  # abfss://container@account.dfs.core.windows.net/path, where the path is container/path
        return f"{kind}://{host}/{path.lstrip('/').partition('/')[2]}"
    if host.endswith(".core.windows.net"):
        return f"{kind}://{host}/{path.lstrip('/')}"
    host = urlsplit(like).netloc if kind not in EXTRAS else ""  # ftp://host/path, where the path is /path
    inner = path.lstrip("/")
    return f"{kind}://{inner}" if not host or f"{inner}/".startswith(f"{host}/") else f"{kind}://{host}/{inner}"


def version(info: dict[str, Any]) -> str:
    """What changes when an object does: its ETag, else modification time and size."""
    for key in ("ETag", "etag", "md5Hash", "content_md5"):
        if info.get(key):
            return str(info[key]).strip('"')
    size = info.get("size")
    for key in ("mtime", "LastModified", "last_modified", "Last-Modified", "updated", "created"):
        moment = info.get(key)
        if isinstance(moment, datetime):
            return f"{moment.isoformat()}-{size}"
        if moment is not None:
            return f"{moment}-{size}"
    return str(size)


def lists_versions(location: str) -> bool:
    """Whether listing names the same version of an object as asking for the object does; servers of files need not.

    A web page of links names no versions, so that each file was asked for its own.
    """
    return scheme(location) in (*EXTRAS, "http", "https")


def local_version(status: os.stat_result) -> str:
    """`version` of a local file, to the nanosecond."""
    return f"{status.st_mtime_ns}-{status.st_size}"


def public(location: str) -> str:
    """A location without credentials, as it stands in a table: the text between spaces is part of its name."""
    return as_text(location) if is_local(location) else redact_url(as_text(location))


def is_temporary(location: str) -> bool:
    """Whether the name is that of a local file still being written."""
    name = location.rsplit("/", 1)[-1]
    return name.startswith(".") and name.endswith(".tmp")
