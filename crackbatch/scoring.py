"""The scoring job: sources → plan → fetch → predict → parts → publish, the middle three as Ray Data stages.

    plan     this process, while Ray starts      plan.py
    fetch    Ray tasks, a fraction of a CPU      fetch.py
    predict  one Ray actor per device            predict.py
    parts    Ray tasks, a fraction of a CPU      results.py
    publish  this process                        results.py

Identity is in every row, so nothing here depends on the order or the grouping of blocks.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import version as installed_version
from typing import Any

import pyarrow as pa

from crackbatch import results, storage
from crackbatch.bundle import DEFAULT_MODEL
from crackbatch.cluster import Cluster
from crackbatch.errors import RunError
from crackbatch.image import DEFAULT_MAX_MEGAPIXELS
from crackbatch.pipeline import run_pipeline
from crackbatch.plan import Plan, make_plan, subtract
from crackbatch.progress import Progress
from crackbatch.request import DEFAULT_MAX_ERROR_RATE, Request, check_request, describe
from crackbatch.results import Run
from crackbatch.shards import write_shards
from crackbatch.summary import RunSummary
from crackbatch.table import CARRIED, schema_with


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
    dry_run: bool = False,
    address: str | None = None,
    batch_size: int | None = None,
) -> RunSummary:
    """Score every image in the sources and publish one row for each below `out`; the same call continues a broken run.

    Sources are folders, globs, images, archives (.zip, .tar, .tar.gz, …), Parquet files with an image column, or
    manifests (CSV or Parquet with `image_uri`), here or on any fsspec URL. A dry run lists them and writes nothing.
    Raises RequestError before Ray starts where the request is wrong, RunError where the run failed.
    """
    started = time.monotonic()
    request = check_request(
        sources, out, model, threshold, operating_point, max_error_rate, max_megapixels, extensions, limit, batch_size,
        address, dry_run,
    )  # fmt: skip
    if dry_run:
        plan = make_plan(request.sources, request.extensions, [request.out] if request.out else [], limit=request.limit)
        return _summarize(request, None, plan, plan.table.num_rows, started)
    try:
        return _score(request, results.choose_run(request.out, request.fingerprint, date, run_id), started)
    except OSError as error:  # a full disk, a storage that went away: what is done is kept
        reason = storage.redact(str(error) or repr(error))
        raise RunError(f"the run broke off ({reason}); the same command continues it") from error


def _score(request: Request, run: Run, started: float) -> RunSummary:
    """Plan and, at the same time, start Ray; then score and publish what is not there yet."""
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


def _failed(planning: Any) -> bool:
    return bool(planning.done() and planning.exception() is not None)


def _about(request: Request) -> dict[str, Any]:
    return {
        "version": installed_version("crackbatch"),
        "model_id": request.bundle.model_id,
        "operating_points": {name: asdict(point) for name, point in request.bundle.operating_points.items()},
    }


def _plan(request: Request, scratch: str, any_image: threading.Event) -> Plan:
    return make_plan(request.sources, request.extensions, [request.out], scratch, request.limit, any_image)


def _run(request: Request, run: Run, plan: Plan, schema: pa.Schema, cluster: Cluster, started: float) -> RunSummary:
    """Score what the results do not hold yet, publish, and say what was done."""
    published, parts = results.read_done(run)
    expected = subtract(plan.table, published)
    stages: dict[str, dict[str, float]] = {}
    added = expected.num_rows
    if added:
        results.begin(run, describe(request))
        todo = subtract(expected, parts)
        if todo.num_rows:
            cluster.start()
            with Progress(expected.num_rows, expected.num_rows - todo.num_rows) as progress:
                stages = _score_rows(request, run, todo, cluster, progress)
        results.publish(run, expected, schema)
    summary = _summarize(request, run, plan, added, started, stages)
    if added or results.read_json(storage.join(run.folder, "summary.json")) is None:
        results.finish(run, asdict(summary))
    else:
        storage.remove(run.scratch_folder)
    return summary


def _summarize(
    request: Request,
    run: Run | None,
    plan: Plan,
    num_rows: int,
    started: float,
    stages: dict[str, dict[str, float]] | None = None,
) -> RunSummary:
    """The summary of a run that added `num_rows`, or of a dry run that would."""
    statuses = results.count_statuses(run) if run else {}
    seconds = time.monotonic() - started
    return RunSummary(
        run_id=run.run_id if run else "",
        date=run.date if run else "",
        out=storage.redact(request.out),
        model_id=request.bundle.model_id,
        threshold=request.threshold,
        images=sum(statuses.values()) if run else num_rows,
        added=num_rows if run else 0,
        size_bytes=plan.size_bytes,
        statuses=statuses,
        archives=plan.num_archives,
        passed_over=dict(plan.listing.passed_over.most_common()),
        problems=plan.listing.problems,
        files=[storage.redact(file) for file in results.published_files(run)] if run else [],
        seconds=round(seconds, 3),
        images_per_s=round(num_rows / seconds, 2) if run and num_rows else None,
        stages=stages or {},
        max_error_rate=request.max_error_rate,
        exit_code=_exit_code(statuses, plan.listing.problems, request.max_error_rate),
    )


def _exit_code(statuses: dict[str, int], problems: list[str], max_error_rate: float) -> int:
    images = sum(statuses.values())
    failed = images - statuses.get("ok", 0)
    return 3 if problems or failed > max_error_rate * images else 0


def _score_rows(
    request: Request, run: Run, todo: pa.Table, cluster: Cluster, progress: Progress
) -> dict[str, dict[str, float]]:
    """Run the three Ray Data stages over the rows; returns seconds of work by stage."""
    storage.remove(run.plan_folder)
    num_shards = write_shards(todo, run.plan_folder)
    stages: Counter[str] = Counter()
    begun = time.monotonic()
    for part in run_pipeline(request, run, todo.num_rows, num_shards, cluster):
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
