"""Connect to Ray or start it, read its devices, and set up Ray Data.

Ray is imported only when a run needs it, because importing and starting it take longer than all checks of a request.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent import futures
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crackbatch.errors import Interrupted, OptionError, RunError
from crackbatch.machine import num_cores
from crackbatch.storage.redaction import masked, redact

# Reading and writing mostly wait, so they need less than one CPU.
IO_CPUS = 0.25
MAX_BLOCK_BYTES = 32 << 20
# Where the network of an actor or worker that holds a GPU runs.
GPU_DEVICE = "cuda"
# Ray Data reserves this share of all CPUs for its stages, in equal parts, beginning with the first stages. With its
# default of one half, reading would get it all, and the actors would leave no CPU for writing: no row would be kept
# before the last image was read.
_RESERVED_SHARE = 0.1
_NO_MEMORY = "due to the node running low on memory"
# Of a folder for temporary files: Ray makes sockets below it, and a path of a socket has at most 107.
_MOST_CHARACTERS = 24
_NO_ERRORS = (Interrupted, KeyboardInterrupt, GeneratorExit)
_WRAPPERS = ("SystemException", "UserCodeException")
# Ray Data appends to a stage's error how often it tried and how to allow more tries.
_ADVICE = re.compile(r"\nFailed to [^\n]* after \d+/\d+ attempts.*", re.DOTALL)
_DIRECT_CAUSE = "\n\nThe above exception was the direct cause of the following exception:"
# A run should not fail because a machine dies while an actor starts on it.
_MAX_ACTOR_STARTS = 3
_ANSWER_S = 10.0
# After Ctrl-C while Ray starts: by then its first process has answered.
_STARTING_S = 1.0


def check_address(address: str | None) -> None:
    """Raise OptionError for an address of Ray Client, which runs this process outside of the cluster."""
    given = address or os.environ.get("RAY_ADDRESS", "")
    if given.startswith("ray://"):
        name = "--address" if address else "RAY_ADDRESS"
        raise OptionError(
            f"{name} {given} would read this machine's files on the cluster; submit the command as a job instead:"
            f" ray job submit --address http://{given.removeprefix('ray://').rpartition(':')[0]}:8265 -- crackbatch …"
        )


def is_at_hand(address: str | None) -> bool:
    """Return whether a run would find a Ray that runs: in this process, at an address, or started on this machine."""
    ray = sys.modules.get("ray")
    if address or os.environ.get("RAY_ADDRESS") or (ray is not None and ray.is_initialized()):
        return True
    # `ray start` writes its address into this file, and Ray itself looks for it there. The file can be old. Another
    # user's file may lead to a cluster of that user, where this run's code and credentials do not belong.
    temporary = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    try:
        file = Path(temporary, "ray", "ray_current_cluster")
        if file.stat().st_uid not in (os.getuid(), 0):
            return False
        _check_answers(file.read_text().strip())
    except (OSError, RunError):
        return False
    return True


class Cluster:
    """The Ray that a run uses: one that this process already uses, one at an address, or a new one.

    If `start` connected to Ray or started it, the end of the block disconnects from it or stops it. `is_own` says that
    it started it.
    """

    def __init__(self, address: str | None) -> None:
        self._address = address
        self._is_ours = self.is_own = False
        self._ending = ExitStack()
        self._folder = ""
        self.is_started = False
        self._starting: futures.Future[Any] | None = None
        # Ray starts in a thread for two reasons. Ctrl-C then cannot interrupt the start, where Python loses the
        # exception of a signal handler (whenever it forks). And Ray then sets no handler for SIGTERM, which would end
        # the process without a message. The thread is kept: if it ended, Linux would end the processes it started.
        self._starter = futures.ThreadPoolExecutor(1, thread_name_prefix="start ray")

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._is_ours:
            import ray

            ray.shutdown()
        self._ending.close()
        if self._starting is not None:  # interrupted: without its folder, Ray would stop all threads for 30 s
            futures.wait([self._starting], _STARTING_S)
        if self._folder and (kind is None or issubclass(kind, _NO_ERRORS)):  # after an error, Ray's logs stay
            shutil.rmtree(self._folder, ignore_errors=True)
        self._starter.shutdown(wait=False)

    def start(self) -> None:
        """Connect to Ray or start it; does nothing if called again. Raises RunError if that fails."""
        if self.is_started:
            return
        self.is_started = True
        # Ray writes notes for its developers to the user's terminal. Errors still arrive as exceptions.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        # Ray stops idle workers beyond the number of CPUs and starts new ones seconds later. Each start takes 2 s of
        # CPU; on a small machine, this cost a fifth of the speed.
        os.environ.setdefault("RAY_num_workers_soft_limit", str(num_cores() + 16))
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # Importing Ray Data takes as long as starting Ray's processes, so both run at the same time.
        importing = threading.Thread(target=_import_ray_data, name="import ray.data")
        import ray

        if ray.is_initialized():
            return
        self.is_own = not is_at_hand(self._address)
        options: dict[str, Any] = {"address": self._address}
        if self.is_own:
            self._ending.enter_context(_on_this_machine_only())
            self._folder = _private_folder()
            options = {"address": "local", "_temp_dir": self._folder}
        address = self._address or os.environ.get("RAY_ADDRESS", "")
        _check_answers(address)
        importing.start()
        logging.getLogger("ray").setLevel(logging.ERROR)
        try:
            with _quiet_stderr():
                self._starting = self._starter.submit(
                    ray.init,
                    include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
                    **options, **_without_folder(),
                )  # fmt: skip
                self._starting.result()
                self._starting = None
            _restore_handlers()
            _hide_token()
        except Exception as error:  # Ray also raises plain `Exception`
            what = f"connect to the Ray cluster at {address}" if address else "start Ray on this machine"
            raise RunError(f"cannot {what}: {cause_of(error)}") from None
        self._is_ours = True
        importing.join()  # not reached after Ctrl-C, so that the user does not wait for the import

    def node_resources(self) -> list[dict[str, float]]:
        """Return the resources of each live node."""
        import ray

        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        return [node["Resources"] for node in nodes if node["Alive"]]

    def free_resources(self) -> dict[str, float]:
        """Return the resources of the cluster that no job holds."""
        import ray

        free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
        return free


@dataclass(frozen=True)
class Seen:
    """The local folders that the driver reads, and its node; all other nodes must see the folders too."""

    node: str
    roots: Sequence[str]

    @classmethod
    def from_here(cls, roots: Sequence[str]) -> Seen:
        return cls(_this_node(), roots)

    def check(self) -> None:
        """Raise RunError on a node that lacks a source; else all of the source's images would be reported missing."""
        if _this_node() == self.node:
            return
        for root in self.roots:
            if not os.path.lexists(root):
                raise _not_seen(masked(root), "give sources as URLs or as paths that all nodes share")


@contextmanager
def on_all_nodes(option: str, folder: str) -> Iterator[None]:
    """Raise RunError if a file below `folder`, which the option names, does not exist on this node."""
    try:
        yield
    except FileNotFoundError:
        mend = f"give {option} as a URL or a path that all nodes share"
        raise _not_seen(f"the run's folder {masked(folder)}", mend) from None


def _not_seen(what: str, mend: str) -> RunError:
    return RunError(f"node {socket.gethostname()} cannot find {what}; {mend}")


def _this_node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def gpus_of_this_node() -> int:
    """Return how many GPUs the node of this task or actor offers, at least 1."""
    import ray

    here = _this_node()
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return max(1, *(int(node["Resources"].get("GPU", 0)) for node in nodes if node["NodeID"] == here))


@contextmanager
def data_context(ahead: int | None = None) -> Iterator[None]:
    """Set up Ray Data: datasets made inside are quiet, never drop a block, and respect `ahead`.

    `ahead` is the most bytes that a dataset may hold in the object store. The caller's own settings do not change.
    """
    from ray.data.context import DataContext

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # copying reads deprecated fields
        context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = 0
    context.execution_no_progress_timeout_s = -1  # a run may wait for busy devices or one slow image
    context.max_consecutive_actor_init_deaths = _MAX_ACTOR_STARTS
    context.target_max_block_size = MAX_BLOCK_BYTES
    context.op_resource_reservation_ratio = _RESERVED_SHARE
    if ahead is not None:
        limits = context.execution_options.resource_limits
        context.execution_options.resource_limits = limits.copy(object_store_memory=ahead)
    with DataContext.current(context):
        yield


def cause_of(error: BaseException) -> str:
    """Return the first cause in one line: the innermost nested error that has a text and is not a Ray wrapper."""
    nested: list[BaseException] = [error]
    while (inner := getattr(nested[-1], "cause", None) or nested[-1].__cause__) is not None and inner not in nested:
        nested.append(inner)
    told = [cause for cause in nested if str(cause) and type(cause).__name__ not in _WRAPPERS]
    error = told[-1] if told else error
    # A stage's error comes back only as text, in front of the text of Ray Data's wrapper.
    text, is_text, _ = str(error).partition(_DIRECT_CAUSE)
    if _NO_MEMORY in text:  # Ray's report lists the commands of all processes
        return "a machine ran out of memory, so Ray ended a worker on it; use machines with more memory for each CPU"
    lines = [line.strip() for line in _ADVICE.sub("", text).splitlines() if line.strip()]
    if is_text:
        return redact(lines[-1].removeprefix("crackbatch.errors."))
    return f"{type(error).__name__}: {redact(lines[-1]) if lines else 'no message'}"


def _private_folder() -> str:
    """Make a folder for the files of a Ray that starts here. Those in /tmp/ray can be changed by every user."""
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(folder) > _MOST_CHARACTERS and os.access("/tmp", os.W_OK):
        folder = "/tmp"
    return tempfile.mkdtemp(prefix="cb-", dir=folder)


def _hide_token() -> None:
    """Let nobody else read the token that Ray asks its clients for: Ray writes it for all users to read."""
    with suppress(OSError, RuntimeError):  # there is none, or no home
        file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        if file.stat().st_uid == os.getuid():
            file.chmod(0o600)


def _restore_handlers() -> None:
    """Put Python's handlers back for the signals that end a run: Ray's write a native trace before."""
    if threading.current_thread() is threading.main_thread():  # only it may
        for number in (signal.SIGTERM, signal.SIGINT):
            if (handler := signal.getsignal(number)) is not None:
                signal.signal(number, handler)


def _check_answers(address: str) -> None:
    """Raise RunError if no process listens at a cluster's address: Ray itself would retry for minutes."""
    if (found := re.fullmatch(r"\[?(.+?)\]?:(\d+)", address)) is None:  # "auto", "local"
        return
    try:
        socket.create_connection((found[1], int(found[2])), timeout=_ANSWER_S).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise RunError(
            f"no Ray cluster answers at {address} ({error}); give its head node's address as --address or in"
            " RAY_ADDRESS, or remove both to start Ray on this machine"
        ) from None


def _without_folder() -> dict[str, Any]:
    """Return the arguments of `ray.init` that leave the current folder out of the modules of Ray's workers.

    An archive in which a user works may hold a file torch.py. A submitted job brings its folder on purpose.
    """
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
    from ray.job_config import JobConfig

    if RAY_JOB_CONFIG_JSON_ENV_VAR in os.environ:
        return {}
    return {"job_config": JobConfig(_client_job=True)}  # Ray adds no folder for one of its remote clients


@contextmanager
def _on_this_machine_only() -> Iterator[None]:
    """Let a Ray that starts inside listen on the loopback interface only, as it always does on Windows and macOS."""
    from ray._private import ray_constants

    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR  # for Ray's processes; this process has read it already
    before, given = ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(name)
    ray_constants.ENABLE_RAY_CLUSTER, os.environ[name] = False, "0"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        os.environ.pop(name)
        if given is not None:
            os.environ[name] = given


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Hide what native code writes to standard error: Ray prints its log level there."""
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
