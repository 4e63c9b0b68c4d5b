"""Retry requests to a storage, with growing random pauses, and decide which errors are worth a retry.

The cloud libraries' own retries are few, differ from each other, and cannot be counted. The retries here are the same
for all storages, and the summary of a run says how many there were.
"""

from __future__ import annotations

import errno
import io
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from crackbatch.errors import CrackbatchError
from crackbatch.storage.redaction import reason_of

T = TypeVar("T")

# Ten tries have pauses of one minute on average and two at most. A busy store accepts requests again sooner than that.
# Each pause is random between zero and a bound that doubles ("full jitter", Brooker, AWS Architecture Blog, 2015).
MAX_TRIES = 10
# For the first request to a location: a user who mistyped a server's name should not wait for a minute.
FIRST_TRIES = 4
_FIRST_PAUSE_S = 0.25
_MAX_PAUSE_S = 30.0

_TRANSIENT_STATUSES = frozenset([408, 425, 429])
_TRANSIENT_CODES = frozenset(
    ["ConditionalRequestConflict", "RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "ServerBusy"]
)
_FINAL_ERRNOS = frozenset([errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP])
_FINAL = (
    FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError, io.UnsupportedOperation,
)  # fmt: skip
_NETWORK_LIBRARIES = ("aiohttp", "aiobotocore", "azure", "botocore", "fsspec", "gcsfs", "google", "requests", "urllib3")
# Errors of the stores and their libraries that refuse the caller, not one object.
_CREDENTIAL_CODES = frozenset(
    [
        "AuthenticationFailed", "ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId",
        "InvalidAuthenticationInfo", "InvalidClientTokenId", "InvalidToken", "NoAuthenticationInformation",
        "RequestTimeTooSkewed", "SignatureDoesNotMatch", "TokenRefreshRequired",
    ]
)  # fmt: skip
_CREDENTIAL_ERRORS = frozenset(
    [
        "ClientAuthenticationError", "CredentialRetrievalError", "DefaultCredentialsError", "NoCredentialsError",
        "PartialCredentialsError", "RefreshError", "SSOTokenLoadError", "TokenRetrievalError",
        "UnauthorizedSSOTokenError",
    ]
)  # fmt: skip

_lock = threading.Lock()
_num_retries = 0


def num_retries() -> int:
    """Return how many retries this process has made."""
    return _num_retries


def retrying(call: Callable[[], T], max_tries: int = MAX_TRIES) -> T:
    """Return what the call returns; retry it after transient errors. Raises the call's last error."""
    global _num_retries
    for number in range(1, max_tries):
        try:
            return call()
        except Exception as error:  # each storage has its own exceptions
            if not is_transient(error):
                raise
        with _lock:
            _num_retries += 1
        time.sleep(random.uniform(0, min(_MAX_PAUSE_S, _FIRST_PAUSE_S * 2**number)))
    return call()


@contextmanager
def giving_up(told: Callable[[str], CrackbatchError]) -> Iterator[None]:
    """Turn a storage's error in the block into `told(reason)`, with the reason as text; other errors pass unchanged."""
    try:
        yield
    except Exception as error:  # each storage has its own exceptions
        if not is_storage_error(error):
            raise
        raise told(reason_of(error)) from error


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    if is_credential(error):
        return False
    for cause in _chain(error):
        if (code := _code(cause)) in _TRANSIENT_CODES:
            return True
        if (status := _status(cause)) is not None:
            return status in _TRANSIENT_STATUSES or status >= 500
        if _is_final(cause):
            return cause.__cause__ is not None and is_transient(cause.__cause__)
        if code is not None:
            return False
    return is_storage_error(error)


def _is_final(error: BaseException) -> bool:
    """Whether the system refused for good, or a library did in an OSError of its own (gcsfs, for what is forbidden)."""
    if not isinstance(error, OSError) or isinstance(error, _FINAL):
        return isinstance(error, _FINAL)
    return error.errno in _FINAL_ERRNOS or (type(error) is OSError and error.errno is None)


def is_storage_error(error: BaseException) -> bool:
    """Whether a storage or the network raised this, as an OSError or as an exception of a cloud's library."""
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in _NETWORK_LIBRARIES


def is_answer(error: BaseException) -> bool:
    """Whether the error is a server's answer. It is not if the server was never reached."""
    return any(_status(cause) is not None for cause in _chain(error))


def is_credential(error: BaseException) -> bool:
    """Whether the storage refuses the caller's credentials, so that every other request would fail too."""
    return any(
        _code(cause) in _CREDENTIAL_CODES
        or type(cause).__name__ in _CREDENTIAL_ERRORS
        or (type(cause).__module__.startswith("gcsfs") and _status(cause) == 401)
        for cause in _chain(error)
    )


def lacks_credentials(error: BaseException) -> bool:
    """Whether a cloud's library found no credentials at all."""
    return any(type(cause).__name__ in ("NoCredentialsError", "DefaultCredentialsError") for cause in _chain(error))


def is_unexplained(error: BaseException) -> bool:
    """Whether a store refused a HEAD request. The answer to such a request has no body that says why."""
    return any(_status(cause) in (400, 401, 403) and (_code(cause) or "").isdigit() for cause in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and its causes, the outermost first."""
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__


def _status(error: BaseException) -> int | None:
    """Return the HTTP status in an error of botocore, aiohttp, gcsfs or azure-core, None if it has none."""
    response: Any = getattr(error, "response", None)
    found = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    # aiohttp sets `code` itself when an answer is broken; it is not the server's status.
    names = ("status",) if type(error).__module__.startswith("aiohttp") else ("status_code", "code")
    for name in names:
        found = found or getattr(error, name, None)
    try:
        return int(found) if found is not None else None
    except (TypeError, ValueError):
        return None


def _code(error: BaseException) -> str | None:
    """Return the store's own code for the error, None if it has none."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Code") or "") or None
    code = getattr(error, "error_code", None)
    return None if code is None else str(getattr(code, "value", code))
