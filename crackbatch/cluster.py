"""The Ray that a run works on: found or started, asked for its devices, and set up for Ray Data.

Ray is imported when a run needs it, never before: importing and starting it take longer than all checks of a request.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from crackbatch.errors import RunError
from crackbatch.storage.redaction import redact

# Reading and writing wait more than they compute.
IO_CPUS = 0.25
MAX_BLOCK_BYTES = 32 << 20
# Ray Data reserves this share of all CPUs for its stages in equal parts, the first stages first. Its own half would go
# to reading, leave nothing for writing beside the actors, and no row would be kept before the last image was read.
_RESERVED_SHARE = 0.1
_WRAPPERS = ("SystemException", "UserCodeException")
# Ray Data appends to what a stage raised how often it was tried and how to try it more often.
_ADVICE = re.compile(r"\nFailed to [^\n]* after \d+/\d+ attempts.*", re.DOTALL)
_DIRECT_CAUSE = "\n\nThe above exception was the direct cause of the following exception:"
# An actor whose machine dies while it starts is no reason to give a run up.
_MAX_ACTOR_STARTS = 3
_ANSWER_S = 10.0


class Cluster:
    """The Ray that the run works on: the caller's, the one it runs in, or one started here and stopped at the end."""

    def __init__(self, address: str | None) -> None:
        self._address = address
        self._is_ours = False
        self._is_started = False
        # Ray starts in a thread, so that Ctrl-C never falls into the midst of it, where Python loses what a handler
        # raises (whenever it forks), and so that it sets no handler of SIGTERM, which would end the process without a
        # word. The thread is kept: with it Linux would end the processes that it started.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="start ray")

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_ours:
            import ray

            ray.shutdown()
        self._starter.shutdown(wait=False)

    def start(self) -> None:
        """Connect or start, once."""
        if self._is_started:
            return
        self._is_started = True
        # Ray writes notes for its developers to the user's terminal; errors reach us as exceptions all the same.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        # Ray ends idle workers beyond the number of CPUs and starts new ones seconds later, at 2 s of CPU each: on a
        # small machine that cost a fifth of the whole speed.
        os.environ.setdefault("RAY_num_workers_soft_limit", str((os.cpu_count() or 1) + 16))
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # Ray Data's modules take as long to import as Ray's processes take to come up.
        importing = threading.Thread(target=_import_ray_data, name="import ray.data")
        import ray

        if ray.is_initialized():
            return
        _check_answers(self._address or os.environ.get("RAY_ADDRESS", ""))
        importing.start()
        logging.getLogger("ray").setLevel(logging.ERROR)
        try:
            with _quiet_stderr():
                starting = self._starter.submit(
                    ray.init,
                    address=self._address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
                )  # fmt: skip
                starting.result()
        except Exception as error:  # Ray raises bare ones as well
            where = f"the Ray cluster at {self._address}" if self._address else "Ray on this machine"
            raise RunError(f"cannot reach {where}: {cause_of(error)}") from None
        self._is_ours = True
        importing.join()  # but not where Ctrl-C ended the start: nobody waits for an import then

    def node_resources(self) -> list[dict[str, float]]:
        """The resources of each node that is alive."""
        import ray

        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        return [node["Resources"] for node in nodes if node["Alive"]]

    def train_device(self, workers: int) -> str:
        """Where to train: on GPUs where there is one for each worker; RunError where not even CPUs are."""
        import ray

        there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        if there.get("GPU", 0) >= workers:
            return "cuda"
        if there.get("CPU", 0) < workers + IO_CPUS:
            raise RunError(
                f"{workers} workers need a CPU each, and reading needs a share of one; the cluster has"
                f" {there.get('CPU', 0):g} CPUs: give fewer --workers, or 0 to train in this process"
            )
        return "cpu"


@contextmanager
def data_context(ahead: int | None = None) -> Iterator[None]:
    """Datasets made inside are quiet, never drop a block, and hold at most `ahead` bytes in the object store.

    The caller's own settings of Ray Data stay as they were.
    """
    from ray.data.context import DataContext

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of its own fields, which copying reads
        context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = 0
    context.execution_no_progress_timeout_s = -1  # a run may wait for another's devices, or for one slow image
    context.max_consecutive_actor_init_deaths = _MAX_ACTOR_STARTS
    context.target_max_block_size = MAX_BLOCK_BYTES
    context.op_resource_reservation_ratio = _RESERVED_SHARE
    if ahead is not None:
        limits = context.execution_options.resource_limits
        context.execution_options.resource_limits = limits.copy(object_store_memory=ahead)
    with DataContext.current(context):
        yield


def cause_of(error: BaseException) -> str:
    """What went wrong first, on one line: of nested errors the innermost that is not one of Ray's wrappers."""
    nested: list[BaseException] = [error]
    while (inner := getattr(nested[-1], "cause", None) or nested[-1].__cause__) is not None and inner not in nested:
        nested.append(inner)
    told = [cause for cause in nested if str(cause) and type(cause).__name__ not in _WRAPPERS]
    error = told[-1] if told else error
    # What a stage raised comes back as text alone, before the wrapper that Ray Data raised of it.
    text, is_text, _ = redact(str(error)).partition(_DIRECT_CAUSE)
    lines = [line.strip() for line in _ADVICE.sub("", text).splitlines() if line.strip()]
    if is_text:
        return lines[-1].removeprefix("crackbatch.errors.")
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"


def _check_answers(address: str) -> None:
    """Raise RunError where nobody listens at a cluster's address: Ray itself goes on asking for minutes."""
    if (found := re.fullmatch(r"(?:ray://)?\[?(.+?)\]?:(\d+)", address)) is None:  # auto, local: Ray knows where
        return
    try:
        socket.create_connection((found[1], int(found[2])), timeout=_ANSWER_S).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise RunError(
            f"no Ray cluster answers at {address} ({error}); give the address of its head node as --address or in"
            " RAY_ADDRESS, or none to start Ray on this machine"
        ) from None


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Keep what native code writes to standard error off the terminal: Ray announces its log level there."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _import_ray_data() -> None:
    import ray.data  # noqa: F401

    for name in ("ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
