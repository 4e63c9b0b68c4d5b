"""The scoring job: sources → plan → fetch → predict → parts → publish.

    plan     this process, while Ray starts                      sources/plan.py
    fetch    Ray tasks, or threads (scoring/local.py)            sources/fetch.py
    predict  one Ray actor for each device, or threads           scoring/predictor.py
    parts    Ray tasks, or this process                          results/parts.py
    publish  this process                                        results/publish.py

Ray Data runs the middle three (`scoring/pipeline.py`). For small runs on one machine, threads of this process do.

Every row carries its image's identity, so nothing depends on the order or the size of blocks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from crackbatch import log
from crackbatch.capacity import DEFAULT_MAX_WAIT, Capacity
from crackbatch.cluster import Cluster, is_at_hand
from crackbatch.errors import HeldError, LeaseLostError, OutputError, RequestError, RunError
from crackbatch.images.picture import DEFAULT_MAX_MEGAPIXELS
from crackbatch.models.bundle import DEFAULT_MODEL, read_bundle
from crackbatch.progress import Progress, Step, counted, say
from crackbatch.reports.exports import check_file, export
from crackbatch.results.parts import count_failed, read_done, read_scored
from crackbatch.results.publish import publish
from crackbatch.results.run import Run, check_names, choose_run
from crackbatch.results.summary import Counts, Photos, RunSummary, count_rows
from crackbatch.results.table import schema_with
from crackbatch.scoring.local import MOST_IMAGES, is_small, score_here
from crackbatch.scoring.meters import STAGES, Meters
from crackbatch.scoring.pipeline import score_on_ray
from crackbatch.scoring.request import Request, image_extensions
from crackbatch.sources.listing import check_sources
from crackbatch.sources.plan import Plan, Tally, intersect, make_plan, subtract
from crackbatch.sources.prefixes import Prefixes
from crackbatch.storage import atomic, locations, objects
from crackbatch.storage.lease import Holding
from crackbatch.storage.redaction import masked
from crackbatch.storage.retry import giving_up, num_retries

_SHOWN_NOTES = 5
# Photographs this much wider than those of the training were probably taken at another scale.
_MUCH_WIDER = 2
# Codes limit the width of cracks in reinforced concrete to 0.3 mm (EN 1992-1-1, table 7.1N).
_THIN_CRACK_MM = 0.3


@dataclass(frozen=True)
class Start:
    """When a call began, and how many storage retries this process had made by then."""

    moment: float = field(default_factory=time.monotonic)
    retries: int = field(default_factory=num_retries)


@dataclass(frozen=True)
class Work:
    """What the stages did in this call: rows, seconds and images/s by stage, retries, whether they stopped."""

    rows: int = 0
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    retries: int = 0
    decoder_deaths: int = 0
    stopped_early: bool = False


def score(
    sources: locations.Location | Sequence[locations.Location],
    out: locations.Location,
    *,
    model: locations.Location = DEFAULT_MODEL,
    date: str | None = None,
    run_id: str | None = None,
    threshold: float | None = None,
    operating_point: str | None = None,
    max_error_rate: float = 0.05,
    max_errors: int | None = None,
    max_megapixels: float = DEFAULT_MAX_MEGAPIXELS,
    decode_timeout: float = 120.0,
    new_only: bool = False,
    extensions: Sequence[str] = (),
    limit: int | None = None,
    dry_run: bool = False,
    address: str | None = None,
    batch_size: int | None = None,
    engine: str = "auto",
    only_below: Sequence[locations.Location] = (),
    view: str = "auto",
    tile_size: float | None = None,
    ground_resolution: float | None = None,
    maps: bool = False,
    exif: str = "basic",
    csv: locations.Location | None = None,
    xlsx: locations.Location | None = None,
    exit_zero_when_published: bool = False,
    gpus: int | None = None,
    max_wait: float = DEFAULT_MAX_WAIT,
) -> RunSummary:
    """Score every image in the sources and publish one row for each below `out`.

    The same call again continues an interrupted run. Sources are folders, globs, images, archives (.zip, .tar, .tar.gz,
    …), Parquet files with an image column, or manifests (CSV or Parquet with `image_uri`), as local paths or fsspec
    URLs. A dry run lists them and writes nothing. With `new_only`, the run skips images that any published run in `out`
    has scored with this model. When more than `max_errors` images have failed, the run stops and publishes the rows it
    has. With `only_below`, images that are not below one of these locations are not read; their rows are `unreadable`.
    Photographs are looked at in windows (`view`), each of which covers `tile_size` pixels; `ground_resolution` is how
    many millimetres of the surface a pixel shows. With `maps`, the probabilities of all windows are published too. With
    `exif` "full", the table also has what drones write: the camera's angles and the altitude. The rows of the run are
    also written to the files `csv` and `xlsx`, as `export` writes them. With `exit_zero_when_published`, the exit code
    is 0 instead of 3, for schedulers that would try again. The run works on `gpus` GPUs (0: CPUs only; None: the GPUs
    that are there, else CPUs), and waits for a free one for at most `max_wait` minutes.
    Raises RequestError if the request is wrong, RunError if the run failed.
    """
    start = Start()
    lists = [check_file(file, ending) for ending, file in ((".csv", csv), (".xlsx", xlsx)) if file is not None]
    bundle = read_bundle(os.fspath(model))
    request = Request(
        sources=check_sources(sources),
        out=locations.normalize(os.fspath(out)) if out else "",
        bundle=bundle,
        threshold=bundle.draw_line(threshold, operating_point),
        photo_threshold=bundle.draw_photo_line(threshold, operating_point),
        extensions=image_extensions(extensions),
        max_megapixels=max_megapixels,
        decode_timeout=decode_timeout,
        max_error_rate=max_error_rate,
        max_errors=max_errors,
        new_only=new_only,
        limit=limit,
        batch_size=batch_size,
        address=address,
        engine=engine,
        only_below=tuple(os.fspath(prefix) for prefix in only_below),
        view=view,
        tile_size=tile_size,
        ground_resolution=ground_resolution,
        maps=maps,
        exif=exif,
        capacity=Capacity(gpus, max_wait),
    )
    objects.follow_redirects(not request.only_below)
    if dry_run:
        check_names(date, run_id)
        return _dry_run(request, start)
    atomic.check_output(request.out)
    run = _choose_run(request, date, run_id)
    made = atomic.missing_folders(run.folder)
    log.tell_about(run_id=run.run_id)
    broken_off = giving_up(lambda why: RunError(f"the run stopped ({why}); run the same command to continue"))
    try:
        with broken_off, Holding(run.folder, f"run {run.run_id}") as holding:
            summary = _score(request, run, holding, start)
            for file in lists if summary.files else ():
                export(request.out, file, run_id=run.run_id)
            return replace(summary, exit_code=0) if exit_zero_when_published else summary
    except (RequestError, HeldError, LeaseLostError):
        raise
    except RunError as error:
        run.fail(str(error))
        raise
    finally:
        atomic.remove_folders(made)  # only if empty: a refused request leaves nothing behind


def _dry_run(request: Request, start: Start) -> RunSummary:
    """List what would be read; write nothing."""
    skip, prefixes = [request.out] if request.out else [], Prefixes(request.only_below)
    plan = make_plan(request.sources, request.extensions, skip, limit=request.limit, prefixes=prefixes)
    _schema(request, plan)
    new = _new(request, plan.table)
    return _summarize(request, None, plan, new.num_rows, start, num_scored_before=plan.table.num_rows - new.num_rows)


def _schema(request: Request, plan: Plan) -> pa.Schema:
    """Return the schema of the results, and say how sources were understood. Raises SourceError for a taken name."""
    for note in plan.listing.notes[:_SHOWN_NOTES]:
        say(note)
    return schema_with(plan.carried_fields, request.table_metadata(), request.exif == "full")


def _choose_run(request: Request, date: str | None, run_id: str | None) -> Run:
    with giving_up(lambda why: OutputError(f"cannot read the runs in {masked(request.out)}: {why}")):
        return choose_run(request.out, request.fingerprint, date, run_id)


def _new(request: Request, planned: pa.Table) -> pa.Table:
    """The planned images that this request scores, including those that this run has already scored."""
    if not request.new_only or not request.out:
        return planned
    return subtract(planned, read_scored(request.out, request.bundle.model_id))


def _score(request: Request, run: Run, holding: Holding, start: Start) -> RunSummary:
    """Plan, and for a large run start Ray meanwhile; then score and publish what is missing."""
    is_new = not run.is_begun
    planner = ThreadPoolExecutor(1, thread_name_prefix="plan")
    tally = Tally(1 if _wants_ray(request) else MOST_IMAGES + 1)
    try:
        planning = planner.submit(_plan, request, run.scratch_folder, tally)
        planning.add_done_callback(lambda _: tally.close())
        with Step("planning", lambda: f" {counted(tally.num, 'image')} found" if tally.num else ""):
            tally.wait()
        with Cluster(request.address) as cluster:
            # A new run needs Ray, so Ray starts during planning. A run that continues may have nothing left to do.
            if is_new and tally.is_reached and _may_use_ray(request) and not _failed(planning):
                _start(cluster)
            try:
                with (
                    Step("planning", lambda: f" {counted(tally.num, 'image')} found")
                    if not planning.done()
                    else nullcontext()
                ):
                    plan = planning.result()
                schema = _schema(request, plan)
            except Exception:
                if is_new:
                    holding.check()
                    objects.remove(run.scratch_folder)
                raise
            return _run(request, run, holding, plan, schema, cluster, start)
    finally:
        planner.shutdown(wait=False, cancel_futures=True)  # Ctrl-C must not wait for a listing to end


def _wants_ray(request: Request) -> bool:
    """Whether Ray scores also the smallest work."""
    return request.engine == "ray" or (
        request.engine == "auto" and (bool(request.capacity.gpus) or is_at_hand(request.address))
    )


def _may_use_ray(request: Request) -> bool:
    """Whether Ray scores if there is much work."""
    return request.engine != "local" and (request.limit is None or not is_small(request.limit) or _wants_ray(request))


def _start(cluster: Cluster) -> None:
    with Step("starting Ray"):
        cluster.start()


def _failed(planning: Any) -> bool:
    return bool(planning.done() and planning.exception() is not None)


def _plan(request: Request, scratch: str, tally: Tally) -> Plan:
    return make_plan(
        request.sources, request.extensions, [request.out], scratch, request.limit, tally,
        prefixes=Prefixes(request.only_below),
    )  # fmt: skip


def _run(
    request: Request,
    run: Run,
    holding: Holding,
    plan: Plan,
    schema: pa.Schema,
    cluster: Cluster,
    start: Start,
) -> RunSummary:
    """Score the images without rows, publish, and return the summary."""
    published, parts = read_done(run)
    without_rows = subtract(plan.table, published)
    expected = _new(request, without_rows)
    num_scored_before = without_rows.num_rows - expected.num_rows
    work, meters = Work(), Meters(run.run_id)
    is_unfinished = not run.is_finished
    if expected.num_rows or (is_unfinished and not run.published_files()):
        holding.check()
        run.begin(request.describe())
        todo = subtract(expected, parts)
        if todo.num_rows:
            work = _score_rows(request, run, holding, todo, expected.num_rows, cluster, meters)
        if work.stopped_early:
            expected = intersect(expected, read_done(run)[1])
        holding.check()
        publish(run, expected, schema)
    added = expected.num_rows
    summary = _summarize(request, run, plan, added, start, work, num_scored_before)
    if added or is_unfinished or work.stopped_early:
        run.finish(asdict(summary))
    else:
        run.tidy()
    meters.finish(summary)
    return summary


def _summarize(
    request: Request,
    run: Run | None,
    plan: Plan,
    num_rows: int,
    start: Start,
    work: Work | None = None,
    num_scored_before: int = 0,
) -> RunSummary:
    """The summary of a run that added `num_rows` rows, or of a dry run that would add them.

    Earlier runs have scored `num_scored_before` of the images, which `--new-only` skips.
    """
    work = work or Work()
    passed_over = dict(plan.listing.passed_over.most_common())
    if num_scored_before:
        passed_over["images that an earlier run has scored (--new-only)"] = num_scored_before
    counts = count_rows(run, _widest(request)) if run else Counts()
    statuses, photos = counts.statuses, counts.photos
    seconds = time.monotonic() - start.moment
    return RunSummary(
        run_id=run.run_id if run else "",
        date=run.date if run else "",
        out=masked(request.out),
        model_id=request.bundle.model_id,
        threshold=request.threshold,
        images=sum(statuses.values()) if run else num_rows,
        added=num_rows if run else 0,
        size_bytes=plan.size_bytes,
        statuses=statuses,
        labels=counts.labels,
        quantiles=counts.quantiles,
        most_probable=counts.most_probable,
        archives=plan.num_archives,
        passed_over=passed_over,
        problems=plan.listing.problems,
        notes=_notes(request, photos),
        photographs=photos.num,
        windows=photos.windows,
        files=[masked(file) for file in run.published_files()] if run else [],
        seconds=round(seconds, 3),
        images_per_s=round(work.rows / seconds, 2) if work.rows else None,
        stages=work.stages,
        max_error_rate=request.max_error_rate,
        retries=work.retries + num_retries() - start.retries,
        decoder_deaths=work.decoder_deaths,
        stopped_early=work.stopped_early,
        exit_code=3 if plan.listing.problems or request.fails_too_much(statuses) else 0,
    )


def _widest(request: Request) -> float | None:
    """Return the width in pixels beyond which the scale of a photograph is a guess; None if it is known."""
    settings = request.bundle.photo
    if settings is None or settings.width is None:
        return None
    scale_is_known = request.tile_size is not None or request.ground_resolution is not None
    return None if scale_is_known else _MUCH_WIDER * settings.width


def _notes(request: Request, photos: Photos) -> list[str]:
    """What to doubt in the results of photographs."""
    notes = []
    settings = request.bundle.photo
    if photos.guessed and settings is not None:
        notes.append(
            f"{counted(photos.guessed, 'photograph')} more than twice as wide as those that the model knows"
            f" ({settings.width:,} pixels): the size of cracks in them is a guess; give --ground-resolution or"
            " --tile-size"
        )
    coarsest = max(photos.coarsest, request.ground_resolution or 0.0)
    if photos.num and coarsest > _THIN_CRACK_MM:
        notes.append(
            f"at {coarsest:g} mm a pixel, a crack of {_THIN_CRACK_MM:g} mm is narrower than a pixel, so thin cracks"
            " cannot be seen"
        )
    return notes


def _score_rows(
    request: Request,
    run: Run,
    holding: Holding,
    todo: pa.Table,
    num_expected: int,
    cluster: Cluster,
    meters: Meters,
) -> Work:
    """Run the three stages over all rows, or until too many images have failed."""
    seconds = dict.fromkeys(STAGES, 0.0)
    rows, retries, deaths, begun, stopped_early = 0, 0.0, 0.0, time.monotonic(), False
    failed = count_failed(run) if request.max_errors is not None else 0
    if request.fails_too_often(failed):
        return Work(stopped_early=True)
    parts = _stages(request, run, todo, cluster)
    meters.begin(todo.num_rows)
    with Progress(num_expected, num_expected - todo.num_rows) as progress, closing(parts):
        for part in parts:
            holding.check()
            progress.add(part["rows"], part["failed"])
            meters.add(part)
            rows, failed = rows + part["rows"], failed + part["failed"]
            retries, deaths = retries + part["retries"], deaths + part["decoder_deaths"]
            for stage in seconds:
                seconds[stage] += part[f"{stage}_seconds"]
            if request.fails_too_often(failed):
                stopped_early = rows < todo.num_rows
                break
    seconds = {"pipeline": time.monotonic() - begun, **seconds}
    stages = {
        stage: {"seconds": round(spent, 3), "images_per_s": round(rows / max(spent, 1e-9), 2)}
        for stage, spent in seconds.items()
    }
    return Work(rows, stages, round(retries), round(deaths), stopped_early)


def _stages(request: Request, run: Run, todo: pa.Table, cluster: Cluster) -> Generator[dict[str, Any]]:
    """Score in this process or with Ray, and give the counts of each part."""
    small = is_small(todo.num_rows, pc.sum(todo.column("size_bytes")).as_py() or 0)
    if request.engine == "local" or (small and not cluster.is_started and not _wants_ray(request)):
        return score_here(request, run, todo)
    _start(cluster)
    return score_on_ray(request, run, todo, cluster)
