"""The scoring job: sources → plan → fetch → predict → parts → publish, the middle three as Ray Data stages.

    plan     this process, while Ray starts      plan.py
    fetch    Ray tasks, a fraction of a CPU      fetch.py
    predict  one Ray actor per device            predict.py
    parts    Ray tasks, a fraction of a CPU      results.py
    publish  this process                        results.py

Identity is in every row, so nothing here depends on the order or the grouping of blocks.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from typing import Any

import pyarrow as pa

from crackbatch import results, storage
from crackbatch.bundle import DEFAULT_MODEL, Bundle, read_bundle
from crackbatch.cluster import IO_CPUS, Cluster, cause_of, configure_data
from crackbatch.errors import BundleError, OptionError, RunError, SourceError
from crackbatch.fetch import fetch
from crackbatch.image import DEFAULT_MAX_MEGAPIXELS, EXTENSIONS
from crackbatch.plan import CARRIED, Plan, make_plan, subtract
from crackbatch.progress import Progress
from crackbatch.results import Run
from crackbatch.shards import read_shard, write_shards
from crackbatch.table import schema_with

DEFAULT_OPERATING_POINT = "balanced"
DEFAULT_MAX_ERROR_RATE = 0.05


@dataclass(frozen=True)
class RunSummary:
    """What a run did: as returned by `score` and as it stands in `summary.json`.

    `images` counts all rows of the run, `added` those of this call; `seconds` is the whole call.
    """

    run_id: str
    date: str
    out: str
    model_id: str
    threshold: float
    images: int
    added: int
    statuses: dict[str, int]
    archives: int
    passed_over: dict[str, int]
    problems: list[str]
    files: list[str]
    seconds: float
    images_per_s: float | None
    stages: dict[str, dict[str, float]]
    max_error_rate: float
    exit_code: int

    @property
    def error_rate(self) -> float:
        """Share of the run's images without a score."""
        return 1 - self.statuses.get("ok", 0) / self.images if self.images else 0.0


@dataclass(frozen=True)
class _Request:
    """A checked request: everything that can be known to be wrong before anything is started has been refused."""

    sources: list[str]
    out: str
    bundle: Bundle
    threshold: float
    extensions: frozenset[str]
    max_megapixels: float
    max_error_rate: float
    limit: int | None
    batch_size: int | None
    address: str | None

    @property
    def fingerprint(self) -> str:
        return results.fingerprint_of(
            {
                "sources": sorted(storage.redact(storage.normalize(source)) for source in self.sources),
                "model_id": self.bundle.model_id,
                "threshold": round(self.threshold, 6),
                "extensions": sorted(self.extensions),
                "max_megapixels": self.max_megapixels,
                "limit": self.limit,
            }
        )


def score(
    sources: str | Sequence[str],
    out: str,
    *,
    model: str = DEFAULT_MODEL,
    date: str | None = None,
    run_id: str | None = None,
    threshold: float | None = None,
    operating_point: str | None = None,
    max_error_rate: float = DEFAULT_MAX_ERROR_RATE,
    max_megapixels: float = DEFAULT_MAX_MEGAPIXELS,
    extensions: Sequence[str] = (),
    limit: int | None = None,
    address: str | None = None,
    batch_size: int | None = None,
) -> RunSummary:
    """Score every image in the sources and publish one row for each below `out`; the same call continues a broken run.

    Sources are folders, globs, images, archives (.zip, .tar, .tar.gz, …), Parquet files with an image column, or
    manifests (CSV or Parquet with `image_uri`), here or on any fsspec URL. Raises RequestError before Ray starts where
    the request is wrong, RunError where the run failed.
    """
    started = time.monotonic()
    request = _check(
        sources, out, model, threshold, operating_point, max_error_rate, max_megapixels, extensions, limit, batch_size,
        address,
    )  # fmt: skip
    run = results.choose_run(request.out, request.fingerprint, date, run_id)
    is_new = results.read_json(storage.join(run.folder, "run.json")) is None
    planner = ThreadPoolExecutor(1, thread_name_prefix="plan")
    try:
        any_image = threading.Event()
        planning = planner.submit(_plan, request, run.scratch_folder, any_image)
        planning.add_done_callback(lambda _: any_image.set())
        any_image.wait()
        with Cluster(request.address) as cluster:
            # A new run will surely need Ray, so it starts while the plan is made; another may have nothing left to do.
            if is_new and not _failed(planning):
                cluster.start()
            try:
                plan = planning.result()
                carried = [
                    field.with_name(field.name.removeprefix(CARRIED))
                    for field in plan.table.schema
                    if field.name.startswith(CARRIED)
                ]
                schema = schema_with(carried, _about(request))
            except Exception:
                if is_new:
                    storage.remove(run.folder)
                raise
            return _run(request, run, plan, schema, cluster, started)
    finally:
        planner.shutdown(wait=False, cancel_futures=True)  # nobody who presses Ctrl-C waits for a listing to end


def dry_run(
    sources: str | Sequence[str],
    *,
    extensions: Sequence[str] = (),
    limit: int | None = None,
    out: str | None = None,
) -> Plan:
    """What `score` would read: the plan, made without Ray and without writing anything."""
    names = _check_sources(sources)
    skip = [storage.normalize(out)] if out else []
    return make_plan(names, _check_extensions(extensions), skip, limit=_check_limit(limit))


def _failed(planning: Any) -> bool:
    return bool(planning.done() and planning.exception() is not None)


def _check(
    sources: str | Sequence[str],
    out: str,
    model: str,
    threshold: float | None,
    operating_point: str | None,
    max_error_rate: float,
    max_megapixels: float,
    extensions: Sequence[str],
    limit: int | None,
    batch_size: int | None,
    address: str | None,
) -> _Request:
    names = _check_sources(sources)
    if threshold is not None and operating_point is not None:
        raise OptionError("--threshold and --operating-point both draw the line; give one of them")
    if threshold is not None and not 0 <= threshold <= 1:
        raise OptionError(f"--threshold {threshold:g} is no probability; give one from 0 to 1")
    if not 0 <= max_error_rate <= 1:
        raise OptionError(f"--max-error-rate {max_error_rate:g} is no share; give one from 0 to 1")
    if not max_megapixels > 0:
        raise OptionError(f"--max-megapixels {max_megapixels:g}: give a number above 0")
    if batch_size is not None and batch_size < 1:
        raise OptionError(f"--batch-size {batch_size}: give a number above 0")
    checked_extensions = _check_extensions(extensions)
    checked_limit = _check_limit(limit)
    bundle = read_bundle(model)
    if threshold is None:
        threshold = bundle.threshold(operating_point or DEFAULT_OPERATING_POINT)
    location = storage.normalize(out)
    storage.check_writable(location)
    return _Request(
        names, location, bundle, threshold, checked_extensions, max_megapixels, max_error_rate, checked_limit,
        batch_size, address,
    )  # fmt: skip


def _check_sources(sources: str | Sequence[str]) -> list[str]:
    names = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    if not names:
        raise SourceError("nothing to score: name a folder, an archive, an image or a manifest")
    if not all(map(os.fspath, names)):
        raise SourceError("a source is an empty name; write . for this folder")
    return [os.fspath(name) for name in names]


def _check_extensions(extensions: Sequence[str]) -> frozenset[str]:
    added = [extension.strip().lower() for item in extensions for extension in item.split(",") if extension.strip()]
    return EXTENSIONS | {extension if extension.startswith(".") else f".{extension}" for extension in added}


def _check_limit(limit: int | None) -> int | None:
    if limit is not None and limit < 1:
        raise OptionError(f"--limit {limit}: give a number above 0")
    return limit


def _about(request: _Request) -> dict[str, Any]:
    return {
        "version": installed_version("crackbatch"),
        "model_id": request.bundle.model_id,
        "operating_points": {name: asdict(point) for name, point in request.bundle.operating_points.items()},
    }


def _plan(request: _Request, scratch: str, any_image: threading.Event) -> Plan:
    return make_plan(request.sources, request.extensions, [request.out], scratch, request.limit, any_image)


def _run(request: _Request, run: Run, plan: Plan, schema: pa.Schema, cluster: Cluster, started: float) -> RunSummary:
    """Score what the results do not hold yet, publish, and say what was done."""
    published, parts = results.read_done(run)
    expected = subtract(plan.table, published)
    stages: dict[str, dict[str, float]] = {}
    added = expected.num_rows
    if added:
        results.begin(run, _describe(request))
        todo = subtract(expected, parts)
        if todo.num_rows:
            cluster.start()
            with Progress(expected.num_rows, expected.num_rows - todo.num_rows) as progress:
                stages = _score_rows(request, run, todo, cluster, progress)
        results.publish(run, expected, schema)
    statuses = results.count_statuses(run)
    seconds = time.monotonic() - started
    summary = RunSummary(
        run_id=run.run_id,
        date=run.date,
        out=storage.redact(run.out),
        model_id=request.bundle.model_id,
        threshold=request.threshold,
        images=sum(statuses.values()),
        added=added,
        statuses=statuses,
        archives=plan.num_archives,
        passed_over=dict(plan.listing.passed_over.most_common()),
        problems=plan.listing.problems,
        files=[storage.redact(file) for file in results.published_files(run)],
        seconds=round(seconds, 3),
        images_per_s=round(added / seconds, 2) if added else None,
        stages=stages,
        max_error_rate=request.max_error_rate,
        exit_code=_exit_code(statuses, plan.listing.problems, request.max_error_rate),
    )
    if added or results.read_json(storage.join(run.folder, "summary.json")) is None:
        results.finish(run, asdict(summary))
    else:
        storage.remove(run.scratch_folder)
    return summary


def _exit_code(statuses: dict[str, int], problems: list[str], max_error_rate: float) -> int:
    images = sum(statuses.values())
    failed = images - statuses.get("ok", 0)
    return 3 if problems or failed > max_error_rate * images else 0


def _describe(request: _Request) -> dict[str, Any]:
    """run.json: what was asked, by what."""
    return {
        "fingerprint": request.fingerprint,
        "created_at": datetime.now(UTC).isoformat(timespec="microseconds"),
        "sources": [storage.redact(source) for source in request.sources],
        "model_id": request.bundle.model_id,
        "threshold": request.threshold,
        "extensions": sorted(request.extensions),
        "max_megapixels": request.max_megapixels,
        "limit": request.limit,
        "versions": {
            **{name: installed_version(name) for name in ("crackbatch", "ray", "torch", "torchvision", "pyarrow")},
            "python": platform.python_version(),
        },
    }


def _score_rows(
    request: _Request, run: Run, todo: pa.Table, cluster: Cluster, progress: Progress
) -> dict[str, dict[str, float]]:
    """Run the three Ray Data stages over the rows; returns seconds of work by stage."""
    storage.remove(run.plan_folder)
    num_shards = write_shards(todo, run.plan_folder)
    stages: Counter[str] = Counter()
    begun = time.monotonic()
    for part in _pipeline(request, run, todo.num_rows, num_shards, cluster):
        progress.add(part["rows"], part["failed"])
        for stage in ("fetch", "predict", "write"):
            stages[stage] += part[f"{stage}_seconds"]
    wall = time.monotonic() - begun
    return {
        "pipeline": {"seconds": round(wall, 3), "images_per_s": round(todo.num_rows / wall, 2)},
        **{
            stage: {"seconds": round(seconds, 3), "images_per_s": round(todo.num_rows / max(seconds, 1e-9), 2)}
            for stage, seconds in stages.items()
        },
    }


def _pipeline(
    request: _Request, run: Run, num_rows: int, num_shards: int, cluster: Cluster
) -> Iterator[dict[str, Any]]:
    """One dictionary of counts for each part, as parts are written."""
    from ray.data import ActorPoolStrategy
    from ray.exceptions import RayError

    import ray

    devices = cluster.devices()
    configure_data()
    labels = {"run_id": run.run_id, "model_id": request.bundle.model_id, "threshold": request.threshold}
    # Items and not a reader, whose tasks would each ask for the whole CPU that is not there, nor Arrow tables, for
    # whose sizes Ray asks a worker, and waits seconds for it to start.
    dataset = (
        ray.data.from_items([{"shard": index} for index in range(num_shards)], override_num_blocks=num_shards)
        .map_batches(
            _fetch_shards,  # type: ignore[arg-type]  # Ray's stubs know no fn_kwargs
            batch_size=None,
            batch_format="pyarrow",
            fn_kwargs={"folder": run.plan_folder},
            num_cpus=IO_CPUS,
        )
        .map_batches(
            _Scorer,
            batch_size=None,
            batch_format="pyarrow",
            fn_constructor_kwargs={
                "location": request.bundle.location,
                "labels": labels,
                "max_megapixels": request.max_megapixels,
                "batch_size": request.batch_size,
                "device": devices.kind,
                "threads": devices.threads,
            },
            compute=ActorPoolStrategy(
                size=devices.num_actors,
                max_concurrent_calls_per_actor=devices.calls,
                max_tasks_in_flight_per_actor=2 * devices.calls,
                enable_true_multi_threading=True,
            ),
            num_cpus=devices.num_cpus,
            num_gpus=1 if devices.kind == "cuda" else 0,
        )
        .map_batches(
            _write_parts,  # type: ignore[arg-type]
            batch_size=max(256, min(8192, num_rows // 256)),
            batch_format="pyarrow",
            fn_kwargs={"run": run},
            num_cpus=IO_CPUS,
        )
    )
    try:
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from pa.table(batch).to_pylist()
    except RayError as error:
        raise RunError(f"the run broke off ({cause_of(error)}); the same command continues it") from error


def _fetch_shards(batch: pa.Table, folder: str) -> Iterator[pa.Table]:
    for index in batch.column("shard").to_pylist():
        started = time.perf_counter()
        for block in fetch(read_shard(folder, index)):
            yield _timed(block, "_fetch_seconds", time.perf_counter() - started)
            started = time.perf_counter()


def _timed(block: pa.Table, name: str, seconds: float) -> pa.Table:
    """The block with its share of the time written on each row, since blocks are cut and joined on their way."""
    share = seconds / max(block.num_rows, 1)
    return block.append_column(name, pa.array([share] * block.num_rows, pa.float64()))


class _Scorer:
    """The actor: one bundle on one device, called by several threads at once on CPUs."""

    def __init__(
        self,
        location: str,
        labels: dict[str, Any],
        max_megapixels: float,
        batch_size: int | None,
        device: str,
        threads: int,
    ) -> None:
        import torch

        from crackbatch.model import Model
        from crackbatch.predict import Labels, Predictor

        torch.set_num_threads(1)
        bundle = read_bundle(location)
        if bundle.model_id != labels["model_id"]:
            raise BundleError(f"model {location} is {bundle.model_id} on this machine, not {labels['model_id']}")
        model = Model(bundle, device)
        model.batch_size = batch_size or model.batch_size
        decode_threads = threads if device == "cuda" else 1
        self._predict = Predictor(model, Labels(**labels), max_megapixels, decode_threads)

    def __call__(self, block: pa.Table) -> pa.Table:
        started = time.perf_counter()
        rows = self._predict(block)
        rows = rows.append_column("_fetch_seconds", block.column("_fetch_seconds"))
        return _timed(rows, "_predict_seconds", time.perf_counter() - started)


def _write_parts(rows: pa.Table, run: Run) -> pa.Table:
    started = time.perf_counter()
    finished = rows.drop_columns(["_fetch_seconds", "_predict_seconds"])
    results.write_part(run, finished)
    counts = Counter(finished.column("status").to_pylist())
    return pa.table(
        {
            "rows": [finished.num_rows],
            "failed": [finished.num_rows - counts["ok"]],
            "fetch_seconds": [sum(rows.column("_fetch_seconds").to_pylist())],
            "predict_seconds": [sum(rows.column("_predict_seconds").to_pylist())],
            "write_seconds": [time.perf_counter() - started],
        }
    )
