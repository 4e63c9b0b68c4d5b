"""The stages of a scoring run in this process, without Ray: fetch → predict → parts.

Starting Ray takes longer than scoring some hundred images. So small runs on one machine are scored by threads of this
process and its decoder processes. Rows, parts and errors are the same as with Ray.

    threads that fetch ─ blocks ─► threads that predict, one per core ─ rows ─► parts, written by the caller's thread
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from queue import Empty, Full, Queue
from typing import Any, NamedTuple

import pyarrow as pa

from crackbatch.cluster import cause_of
from crackbatch.decoding.decoders import Decoders
from crackbatch.errors import BundleError, CrackbatchError, RunError
from crackbatch.machine import num_cores
from crackbatch.models.model import (
    CPU_BATCH_SIZE,
    CUDA_BATCH_SIZE,
    Model,
    default_device,
    load_model,
    one_thread_each,
    photo_threads,
)
from crackbatch.results.parts import count_part, rows_per_part, write_part
from crackbatch.results.run import Run
from crackbatch.scoring.predictor import Predictor, Stamp
from crackbatch.scoring.request import Request
from crackbatch.sources.fetch import fetch
from crackbatch.sources.shards import shard_sizes
from crackbatch.storage import locations

# Of what Ray needs to start, two cores score some hundred tiles. Ray's gain begins with several machines, and with work
# so long that a process which dies should not end it.
MOST_IMAGES = 20_000
_MOST_BYTES = 20 << 30
_REMOTE_READERS = 4
_CUDA_THREADS = 4
# A killed run should lose little, also if few rows come.
_PART_S = 10.0
_LOOK_S = 0.2


class _Scored(NamedTuple):
    rows: pa.Table
    fetch_seconds: float
    predict_seconds: float


def is_small(num_images: int, size_bytes: int = 0) -> bool:
    """Whether starting Ray for this work would take longer than it could save."""
    return num_images <= MOST_IMAGES and size_bytes <= _MOST_BYTES


def score_here(request: Request, run: Run, todo: pa.Table) -> Generator[dict[str, Any]]:
    """Score the planned rows and give one dictionary of counts for each part, as it is written.

    Raises RunError if a stage fails.
    """
    stages = _Stages(request, run, todo)
    try:
        yield from stages.parts()
    except Exception as error:
        why = error if isinstance(error, CrackbatchError) else cause_of(error)
        raise RunError(f"the run stopped ({why}); run the same command to continue") from error
    finally:
        stages.stop()


class _Stages:
    """The threads of a run, and the queues between them."""

    def __init__(self, request: Request, run: Run, todo: pa.Table) -> None:
        self._request, self._run, self._todo = request, run, todo
        device = "cpu" if request.capacity.gpus == 0 else default_device()
        lanes = _CUDA_THREADS if device == "cuda" else num_cores()
        self._decoders = Decoders(
            request.bundle.input_size,
            max_megapixels=request.max_megapixels,
            timeout_s=request.decode_timeout,
            batch_size=request.batch_size or (CUDA_BATCH_SIZE if device == "cuda" else CPU_BATCH_SIZE),
            num_batches=2 * lanes,
            photo_side=request.views.side if request.views else None,
        )
        self._shards = _shards(todo)
        self._next = threading.Lock()
        self._blocks: Queue[tuple[pa.Table, float]] = Queue(lanes + 1)
        self._done: Queue[_Scored | BaseException] = Queue()
        self._stopped = threading.Event()
        self._fetching = _REMOTE_READERS if _any_remote(todo) else 1
        self._model: Future[Model] = Future()
        stamp = Stamp(run.run_id, request.bundle.model_id, request.threshold, request.photo_threshold)
        self._ending = ExitStack()
        self._predict = Predictor(
            self._model.result,
            stamp,
            self._decoders,
            request.views,
            photo_threads(device, lanes),
            request.exif == "full",
        )
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
            for name, num, work in (
                ("load model", 1, lambda: self._load(device)),
                ("fetch", self._fetching, self._fetch),
                ("predict", lanes, self._score),
            )
            for _ in range(num)
        ]
        for thread in self._threads:
            thread.start()

    def parts(self) -> Iterator[dict[str, Any]]:
        """Write the rows to parts as they come, and yield the counts of each part."""
        left, most = self._todo.num_rows, rows_per_part(self._todo.num_rows)
        held: list[_Scored] = []
        since = time.monotonic()
        while left:
            with suppress(Empty):
                scored = self._done.get(timeout=_LOOK_S)
                if isinstance(scored, BaseException):
                    raise scored
                held.append(scored)
                left -= scored.rows.num_rows
            num = sum(item.rows.num_rows for item in held)
            if num >= most or (num and (not left or time.monotonic() - since > _PART_S)):
                yield self._write(held)
                held, since = [], time.monotonic()

    def stop(self) -> None:
        """End the threads and the decoder processes."""
        self._stopped.set()
        self._model.cancel()
        self._decoders.close()
        for thread in self._threads:
            thread.join()
        self._predict.close()
        self._ending.close()

    def _write(self, held: list[_Scored]) -> dict[str, Any]:
        started = time.perf_counter()
        rows = pa.concat_tables(item.rows for item in held)
        write_part(self._run, rows)
        return {
            **count_part(rows),
            "fetch_seconds": sum(item.fetch_seconds for item in held),
            "predict_seconds": sum(item.predict_seconds for item in held),
            "write_seconds": time.perf_counter() - started,
            "retries": 0,  # of this process, which counts them itself
            "decoder_deaths": self._decoders.take_deaths(),
        }

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._done.put(error)

    def _load(self, device: str) -> None:
        self._ending.enter_context(one_thread_each())
        location, model_id = self._request.bundle.location, self._request.bundle.model_id
        try:
            model = load_model(location, device)
            if model.bundle.model_id != model_id:
                raise BundleError(f"model {location} has changed: it is {model.bundle.model_id}, and was {model_id}")
        except BaseException as error:
            self._model.set_exception(error)
            raise
        self._model.set_result(model)

    def _fetch(self) -> None:
        while (shard := self._take_shard()) is not None:
            started = time.perf_counter()
            for block in fetch(shard):
                self._put((block, time.perf_counter() - started))
                started = time.perf_counter()

    def _take_shard(self) -> pa.Table | None:
        with self._next:
            return None if self._stopped.is_set() else next(self._shards, None)

    def _put(self, block: tuple[pa.Table, float]) -> None:
        while not self._stopped.is_set():
            with suppress(Full):
                self._blocks.put(block, timeout=_LOOK_S)
                return

    def _score(self) -> None:
        while not self._stopped.is_set():
            with suppress(Empty):
                block, fetch_seconds = self._blocks.get(timeout=_LOOK_S)
                started = time.perf_counter()
                rows = self._predict(block)
                self._done.put(_Scored(rows, fetch_seconds, time.perf_counter() - started))


def _shards(todo: pa.Table) -> Iterator[pa.Table]:
    start = 0
    for size in shard_sizes(todo):
        yield todo.slice(start, size)
        start += size


def _any_remote(todo: pa.Table) -> bool:
    """Whether any image lies in a remote store, which answers several requests at a time."""
    return any(not locations.is_local(uri) for uri in todo.column("image_uri").slice(0, 1).to_pylist())
