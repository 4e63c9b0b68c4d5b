"""Prints the results of a command for a person at a terminal, or as one JSON object for a system that collects logs."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console, JustifyMethod
from rich.table import Table

from crackbatch import log
from crackbatch.progress import counted, duration
from crackbatch.storage.redaction import masked, printable

if TYPE_CHECKING:
    from crackbatch.datasets.answers import Answers
    from crackbatch.datasets.overview import Overview
    from crackbatch.evaluation.evaluate import Evaluation
    from crackbatch.evaluation.site_check import Figures, SiteCheck
    from crackbatch.models.bundle import Bundle
    from crackbatch.reports.compare_runs import RunComparison
    from crackbatch.reports.exports import Exported
    from crackbatch.reports.report import Report
    from crackbatch.reports.review import Review
    from crackbatch.reports.show import Shown
    from crackbatch.results.cleaning import Cleaning
    from crackbatch.results.states import ListedRun
    from crackbatch.results.summary import RunSummary
    from crackbatch.scoring.nightly import Nights
    from crackbatch.training.compare import Comparison
    from crackbatch.training.train import TrainResult

_SPLITS = ("train", "validation", "test")
_WIDTH = 100  # columns, if the output is not a terminal
_NAME_WIDTH = 40
_SHOWN = 10
_SOURCES_BESIDE = 5  # in 100 columns, with an interval each
_BOUNDS = {"value": "", "low": "_low", "high": "_high"}


def _print_finished(message: str, told: dict[str, Any]) -> None:
    """Print the last line of a command as a JSON object."""
    print(log.line("finished", message, "warning" if told["exit_code"] else "info", **told))


def print_plan(summary: RunSummary) -> None:
    """Print what a dry run found."""
    if log.is_json():
        _print_finished(f"{counted(summary.images, 'image')} found", asdict(summary))
        return
    archives = f", {counted(summary.archives, 'archive')} opened" if summary.archives else ""
    print(f"{counted(summary.images, 'image')}, {_bytes(summary.size_bytes)}{archives}")
    for reason, count in summary.passed_over.items():
        print(f"skipped: {count:,} {reason}")
    for problem in summary.problems:
        print(f"problem: {printable(problem)}")


def print_summary(summary: RunSummary) -> None:
    """Print the summary of a run, and the reason for exit code 3."""
    if log.is_json():
        _print_finished(f"run {summary.run_id}: {counted(summary.added, 'image')}; {summary.findings}", asdict(summary))
        return
    if summary.added:
        speed = f", {_speed(summary.images_per_s)}" if summary.images_per_s else ""
        print(f"run {summary.run_id}: {counted(summary.added, 'image')} in {summary.seconds:,.1f} s{speed}")
    elif summary.stopped_early:
        print(f"run {summary.run_id}: no images scored; rows of {counted(summary.images, 'image')} are there already")
    elif not summary.images:
        print(f"run {summary.run_id}: nothing new, every image already has a row from an earlier run")
    else:
        print(f"run {summary.run_id}: nothing left to do; rows of all {counted(summary.images, 'image')} are there")
    if summary.statuses:
        print(summary.findings)
    if summary.most_probable:
        print("most probable:")
    for likely in summary.most_probable:
        print(f"  {likely.crack_probability:.3f}  {printable(likely.image_uri)}")
    if summary.passed_over:
        print("skipped: " + ", ".join(f"{count:,} {reason}" for reason, count in summary.passed_over.items()))
    for problem in summary.problems:
        print(f"problem: {printable(problem)}")
    if summary.photographs:
        num_tiles = summary.statuses.get("ok", 0) - summary.photographs
        print(
            f"looked at {counted(summary.photographs, 'photograph')} in {summary.windows:,} windows, and at"
            f" {counted(num_tiles, 'tile')}"
        )
    for note in summary.notes:
        print(f"note: {printable(note)}")
    for file in summary.files:
        print(f"table: {printable(file)}")
    if summary.files:
        print(f"a page to look at: crackbatch report {shlex.quote(printable(summary.out))} --run-id {summary.run_id}")
    if summary.retries:
        print(f"retries: storage requests were repeated {summary.retries:,} times")
    if summary.decoder_deaths:
        print(f"decoders: {counted(summary.decoder_deaths, 'process')} ended by an image and started again")
    if why := _why_three(summary):
        print(f"exit code 3: {why}" if summary.exit_code else f"exit code 0, as asked, although {why}")


def _why_three(summary: RunSummary) -> str | None:
    """Return why a run that is published ends with exit code 3, if it does."""
    if summary.stopped_early:
        return (
            "more images failed than --max-errors allows; finished rows are published; to score the rest, run the same"
            " command with a higher --max-errors"
        )
    if summary.error_rate > summary.max_error_rate:
        return (
            f"{summary.error_rate:.1%} of the images have no score, more than --max-error-rate"
            f" {summary.max_error_rate:.1%} allows"
        )
    if summary.problems:
        return "the rows are published, but archives were damaged or not opened, so images may be missing"
    return "the rows are published, but more images failed than --max-errors allows" if summary.exit_code else None


def print_nights(found: Nights) -> None:
    """Print a line for each night, and what is not as in the nights before."""
    if log.is_json():
        nights = [{**asdict(night), "histograms": None} for night in found.nights]  # they are in OUT/nights
        done = f"{counted(len(nights), 'night')}: " + ", ".join(night.date for night in found.nights)
        _print_finished(done, {"nights": nights, "running": found.running, "exit_code": found.exit_code})
        return
    for night in found.nights:
        statuses = {status: count for status, count in night.statuses.items() if status != "ok"}
        failed = ", ".join(f"{status} {count:,}" for status, count in statuses.items())
        said = f"crack {night.cracks:,}, no crack {night.scored - night.cracks:,}"
        print(f"night {night.date}: {counted(night.images, 'image')}, {said}" + (f", {failed}" if failed else ""))
        for note in night.notes:
            print(f"  note: {printable(note)}")
        for drift in night.drift:
            print(f"  not as before, since {drift.since}: {drift.text}")
    for date in found.running:
        print(f"night {date}: another process works on it")
    if found.exit_code == 3:
        print("exit code 3: the rows are published, but too many images failed")
    elif found.exit_code:
        print(f"exit code {found.exit_code}: the rows are published, but a night is not as those before")


def print_training(result: TrainResult) -> None:
    """Print the results of a training."""
    bundle = result.bundle
    best = bundle.training["best"]
    if log.is_json():
        points = {name: asdict(point) for name, point in bundle.operating_points.items()}
        told = {"model_id": bundle.model_id, "model": masked(bundle.location), "operating_points": points}
        _print_finished(f"{bundle.model_id} is trained", {**told, "best": best, "exit_code": 0})
        return
    print(
        f"{bundle.model_id}: epoch {best['epoch']:.0f} of {len(result.history)}, validation loss"
        f" {best['validation_loss']:.4f}, accuracy {best['validation_accuracy']:.4f}, temperature"
        f" {bundle.temperature:.2f}"
    )
    for name, point in bundle.operating_points.items():
        print(
            f"  {name}: threshold {point.threshold:.3f}, precision {point.precision:.3f}, recall {point.recall:.3f},"
            f" false alarms {point.false_alarm_rate:.3f}"
        )
    print(f"model: {masked(bundle.location)}")


def print_overview(overview: Overview) -> None:
    """Print a row for each source and label, then what was left out."""
    counts: dict[tuple[str, str], dict[str, tuple[int, int]]] = {}
    for (source, label, split), found in overview.counts.items():
        counts.setdefault((source, label), {})[split] = found
    table = _table("source", "label", *(f">{split}" for split in _SPLITS))
    for (source, label), by_split in counts.items():
        cells = (by_split.get(split, (0, 0)) for split in _SPLITS)
        table.add_row(source, label, *(f"{images:,} in {counted(groups, 'group')}" for images, groups in cells))
    _print_table(table)
    for line in [*overview.notes, *map(masked, overview.files)]:
        print(line)


def print_evaluation(found: Evaluation) -> None:
    """Print the most important figures for each source; metrics.json has all of them."""
    metrics = found.metrics
    if log.is_json():
        _print_finished(f"{metrics['model_id']} is measured", {"out": masked(found.out), **metrics, "exit_code": 0})
        return
    if "views" in metrics:
        _print_photos(metrics)
        print(f"metrics and photographs: {masked(found.out)}")
        return
    reasons = {
        "train": f"on which {metrics['model_id']}, or a model that it began from, was trained",
        "validation": f"on which {metrics['model_id']}, or a model that it began from, was tuned",
        "same_photos": "that are other parts of the same photos",
        "near_duplicates": "that look the same as these",
    }
    for why, count in metrics["left_out"].items():
        print(f"left out: {counted(count, 'image')} {reasons[why]} (--include-seen keeps them)")
    for line in metrics["notes"]:
        print(line)
    print(f"{metrics['model_id']} at threshold {metrics['threshold']:.3f}, with 95 % intervals")
    shown = ("accuracy", "precision", "recall", "f1", "average_precision", "roc_auc")
    sources = list(metrics["sources"].items())
    for first in range(0, len(sources), _SOURCES_BESIDE):
        some = sources[first : first + _SOURCES_BESIDE]
        table = _table("", *(f">{printable(source)}" for source, _ in some), gap=1)
        for name in ("images", "cracked", "groups"):
            table.add_row(name, *(f"{said[name]:,}" for _, said in some))
        for name in shown:
            label = name.replace("_", " ").replace("roc auc", "ROC AUC")
            table.add_row(label, *(_interval(said["metrics"][name]) for _, said in some))
        _print_table(table)
    for source, said in metrics["sources"].items():
        if at := said.get("precision_at_prevalence"):
            print(f"{source}: if {at['prevalence']:.1%} of images are cracked, precision is {at['precision']:.3f}")
    print(f"metrics, figures and errors: {masked(found.out)}")


def _print_photos(metrics: dict[str, Any]) -> None:
    """Print how well photographs are judged: by cell, then by view at each operating point."""
    print(f"{metrics['model_id']} on {counted(metrics['photographs'], 'photograph')}, with 95 % intervals")
    table = _table("surface", ">cells", ">cracked", ">roc auc", ">average precision")
    for surface, said in metrics["cells"].items():
        figures = (_interval(said[name]) for name in ("roc_auc", "average_precision"))
        table.add_row(surface, f"{said['cells']:,}", f"{said['cracked']:,}", *figures)
    _print_table(table)
    table = _table(
        "surface", ">views", ">cracked", "at", ">threshold", ">recall", ">false alarms", ">per 100 MP", gap=1
    )
    for surface, said in metrics["views"].items():
        counts = (surface, f"{said['views']:,}", f"{said['cracked']:,}")
        named = [reached["threshold"] for point, reached in said["at"].items() if point != "threshold"]
        for point, reached in said["at"].items():
            if point == "threshold" and reached["threshold"] in named:
                continue
            table.add_row(
                *counts,
                "--threshold" if point == "threshold" else point,
                f"{reached['threshold']:.3f}",
                _interval(reached["recall"]),
                _interval(reached["false_alarms_per_100_views"], 1),
                _interval(reached["false_alarms_per_100_megapixels"], 1),
            )
            counts = ("", "", "")
    _print_table(table)
    print("false alarms: per 100 sound views, and per 100 megapixels of sound views")


def print_exported(found: Exported) -> None:
    """Print what was written, and which rows the format cannot hold."""
    for reason, count in found.left_out.items():
        print(f"left out: {counted(count, 'row')} {reason}")
    print(f"{counted(found.rows, 'row')}: {printable(found.file)}")


def print_report(found: Report) -> None:
    """Print where the page is, and what is not on it."""
    for note in found.notes:
        print(f"note: {printable(note)}")
    images, pictures = counted(found.images, "image"), counted(found.pictures, "picture")
    print(f"report of run {found.run_id}, {images}, {pictures}: {printable(found.file)}")


def print_review(found: Review | Answers) -> None:
    """Print where the files of a review are, or which labels its answers gave."""
    from crackbatch.datasets.answers import Answers
    from crackbatch.reports.review import REASONS

    if not isinstance(found, Answers):
        for note in found.notes:
            print(f"note: {printable(note)}")
        images = ", ".join(f"{counted(num, 'image')} {REASONS[reason]}" for reason, num in found.images.items())
        print(f"{images}; left out: {counted(found.similar, 'near-duplicate')}")
        print(f"page: {printable(found.page)}\nlist: {printable(found.csv)}\nLabel Studio: {printable(found.tasks)}")
        return
    for names, what in ((found.contradictory, "has two different answers"), (found.unknown, "is not in the results")):
        for name in names[:_SHOWN]:
            print(f"left out: {printable(name)} {what}")
        if (others := len(names) - _SHOWN) > 0:
            print(f"left out: {counted(others, 'image')} more like it")
    for word, num in found.not_understood.items():
        print(f"not understood: {printable(word)!r}, {counted(num, 'answer')}")
    labels = ", ".join(f"{name.replace('_', ' ')} {num:,}" for name, num in found.labels.items())
    print(f"{labels}, without an answer {found.unanswered:,}\nmanifest: {printable(found.file)}")


def print_photo_settings(bundle: Bundle) -> None:
    """Print how a model judges photographs."""
    assert bundle.photo is not None
    found = bundle.photo.calibration
    print(
        f"{bundle.model_id}: calibrated on {found['views']:,} views of {counted(found['photographs'], 'photograph')},"
        f" {found['cracked_views']:,} of them cracked"
    )
    for name, point in bundle.photo.operating_points.items():
        print(
            f"  {name}: threshold {point.threshold:.3f}, recall {point.recall:.3f}, {point.false_alarms:.1f} false"
            " alarms per 100 sound views"
        )
    print(f"model: {masked(bundle.location)}")


def print_shown(shown: Shown) -> None:
    """Print the pictures that were written, and what could not be shown."""
    for file in shown.files:
        print(f"picture: {printable(masked(file))}")
    for uri, reason in shown.passed_over.items():
        print(f"not shown: {printable(uri)} ({printable(reason)})")


def print_site_check(found: SiteCheck) -> None:
    """Print the figures of a site with their intervals, and the verdict."""
    for reason, num in found.left_out.items():
        print(f"left out: {counted(num, 'image')} that the model knows ({reason.replace('_', ' ')})")
    if found.unreadable:
        print(f"left out: {counted(found.unreadable, 'image')} that cannot be read")
    print(
        f"{found.model_id}; asked: at least {found.min_recall:.0%} of the cracked images found, at most"
        f" {found.max_false_alarms:.0%} of the sound ones flagged"
    )
    table = _table(
        "", ">images", ">cracked", ">groups", ">threshold", ">recall", ">false alarms", ">precision", ">roc auc"
    )
    for kind in found.kinds:
        counts = (f"{kind.images:,}", f"{kind.cracked:,}", f"{kind.groups:,}")
        if kind.as_it_is is None or kind.precision is None or kind.roc_auc is None:
            table.add_row(kind.name, *counts, *["too few"] * 5)
            continue
        ranks = [_interval(asdict(metric)) for metric in (kind.precision, kind.roc_auc)]
        table.add_row(kind.name, *counts, *_rates(kind.as_it_is), *ranks)
        if kind.at_site is not None:
            table.add_row("  threshold of the site", "", "", "", *_rates(kind.at_site))
    _print_table(table)
    for kind in found.kinds:
        if kind.temperature is not None:
            print(f"temperature of the site: {kind.temperature:.3f}")
        print(f"{kind.name}: {kind.verdict}")
    if found.bundle is not None:
        print(f"model: {masked(found.bundle)}")


def _rates(figures: Figures) -> tuple[str, str, str]:
    recall, alarms = (_interval(asdict(rate)) for rate in (figures.recall, figures.false_alarm_rate))
    return f"{figures.threshold:.3f}", recall, alarms


def print_comparison(found: Comparison) -> None:
    """Print one row for each network, the best first."""
    table = _table("network", ">accuracy", ">average precision", ">F1", ">parameters", ">MB", ">images/s", ">training")
    for row in found.rows:
        precision = {bound: row[f"average_precision{end}"] for bound, end in _BOUNDS.items()}
        table.add_row(
            row["network"],
            f"{row['accuracy']:.3f}",
            _interval(precision),
            f"{row['f1']:.3f}",
            f"{row['parameters']:,}",
            f"{row['size_mb']:.1f}",
            f"{row['images_per_s']:.1f}",
            duration(row["training_s"]),
        )
    _print_table(table)
    print(f"table: {masked(found.out)}")


def print_run_comparison(found: RunComparison) -> None:
    """Print how many images changed and how, by folder, and the most probable ones."""
    from crackbatch.reports.compare_runs import CHANGES

    print(f"{found.before} → {found.after}")
    for note in found.notes:
        print(f"note: {printable(note)}")
    counts = found.counts
    print(", ".join(f"{CHANGES[change]} {count:,}" for change, count in counts.items()) + f", the same {found.same:,}")
    if found.changes.empty:
        return
    table = _table("folder", *(f">{change}" for change in CHANGES))
    for folder, row in found.folders.head(_SHOWN).iterrows():
        table.add_row(printable(str(folder)), *(f"{row[change]:,}" for change in CHANGES))
    _print_table(table)
    if (others := len(found.folders) - _SHOWN) > 0:
        print(f"and {counted(others, 'folder')} more")
    for change in ("rose", "fell", "status"):
        for row in found.changes[found.changes["change"] == change].head(_SHOWN).itertuples():
            if change == "status":
                said = f"{row.status_before} → {row.status_after}"
            else:
                said = f"{row.probability_before:.3f} → {row.probability_after:.3f}"
            print(f"{change}: {said}  {printable(row.image_uri)}")


def print_runs(found: Sequence[ListedRun]) -> None:
    """Print a row for each run, newest last: its state, images, duration and details."""
    table = _table("run", "date", "state", ">images", ">duration", "details")
    for run in found:
        took = "" if run.seconds is None else duration(run.seconds)
        table.add_row(run.run_id, run.date, run.state, f"{run.images:,}", took, _details(run))
    _print_table(table)


def print_runs_json(found: Sequence[ListedRun]) -> None:
    """Print the runs as JSON with every field, for programs."""
    print(json.dumps([asdict(run) for run in found], indent=2))


def print_cleaning(found: Cleaning) -> None:
    """Print what was removed of each run, or what would be removed."""
    for run_id, reason in found.passed_over.items():
        print(f"skipped: {run_id} {_one_line(reason)}")
    if not found.leftovers:
        print(f"nothing to remove in {masked(found.out)}")
        return
    table = _table("run", "state", ">files", ">size", ">rows lost")
    for left in found.leftovers:
        table.add_row(left.run_id, left.state, f"{len(left.files):,}", _bytes(left.size_bytes), f"{left.lost_rows:,}")
    _print_table(table)
    size = _bytes(sum(left.size_bytes for left in found.leftovers))
    total = f"{sum(len(left.files) for left in found.leftovers):,} files, {size}"
    lost = sum(left.lost_rows for left in found.leftovers)
    rows = f", including {lost:,} scored rows that are not published" if lost else ""
    if found.removed:
        print(f"removed: {total}{rows}")
        return
    print(f"would remove: {total}{rows}")
    print("nothing was removed; give --yes to remove these files")
    if lost:
        print("to publish these rows instead, run the same `crackbatch score` command again")


def _details(run: ListedRun) -> str:
    """What is known about a run, apart from its state and its number of images."""
    from crackbatch.results.summary import findings

    said = [run.model_id or ""]
    said.append(findings(run.labels, run.statuses))
    if run.published and run.state != "published":
        said.append(f"{run.published:,} rows published earlier")
    if run.since:
        said.append(f"{run.holder} since {run.since}")
    if run.exit_code:
        said.append(f"exit code {run.exit_code}")
    said.append(run.reason or "")
    return _one_line("; ".join(part for part in said if part))


def _one_line(said: str) -> str:
    """Text from a file on one line, without characters that would move the cursor."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in said).split())


def _table(*columns: str, gap: int = 2) -> Table:
    """A table without lines. A column name that begins with `>` means numbers. Text that is too wide is folded."""
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="none")
    for place, name in enumerate(columns):
        justify: JustifyMethod = "right" if name.startswith(">") else "left"
        width = None if place else _NAME_WIDTH
        table.add_column(name.removeprefix(">"), justify=justify, overflow="fold", max_width=width)
    return table


def _print_table(table: Table) -> None:
    """Print a table as wide as the terminal, or 100 columns wide without a terminal."""
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = _WIDTH
    console.print(table)


def _interval(metric: dict[str, float | None], digits: int = 3) -> str:
    """A value, and its interval on the next line."""
    value, low, high = (metric[name] for name in ("value", "low", "high"))
    if value is None or not math.isfinite(value):
        return "not defined"
    if low is None or high is None or not math.isfinite(low):
        return f"{value:.{digits}f}\n(one group)"
    return f"{value:.{digits}f}\n{low:.{digits}f}-{high:.{digits}f}"


def _speed(images_per_s: float) -> str:
    """Photographs take seconds each."""
    return f"{images_per_s:,.1f} images/s" if images_per_s >= 1 else f"{1 / images_per_s:,.1f} s an image"


def _bytes(size: int) -> str:
    value, unit = float(size), "bytes"
    for unit in ("bytes", "KB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"
