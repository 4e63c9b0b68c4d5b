"""The commands that score: a run, the runs in a folder, and what interrupted runs left there."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from crackbatch.cli import options
from crackbatch.cli.interruption import interruptible
from crackbatch.cli.options import given
from crackbatch.cli.output import (
    print_cleaning,
    print_nights,
    print_plan,
    print_runs,
    print_runs_json,
    print_summary,
)


def score(
    context: typer.Context,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Paths or URLs: folders, globs, images, .zip, .tar(.gz, .bz2, .xz), .parquet or manifests (.csv).",
        ),
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or URL for the results.")] = "",
    model: options.Model = "concrete-resnet18",
    date: Annotated[str | None, typer.Option(help="Date of the run, YYYY-MM-DD [default: today in UTC].")] = None,
    run_id: Annotated[str | None, typer.Option(help="Name of the run [default: date and fingerprint].")] = None,
    threshold: options.Threshold = None,
    operating_point: options.OperatingPoint = None,
    max_error_rate: options.MaxErrorRate = 0.05,
    max_errors: Annotated[
        int | None, typer.Option(help="Stop with exit code 3 when more images than this have failed.")
    ] = None,
    max_megapixels: Annotated[float, typer.Option(help="Do not decode larger images.")] = 200.0,
    decode_timeout: Annotated[float, typer.Option(help="Give up decoding an image after this many seconds.")] = 120.0,
    new_only: Annotated[
        bool, typer.Option("--new-only", help="Skip images that any published run in --out has scored with this model.")
    ] = False,
    extensions: options.Extensions = None,
    limit: Annotated[int | None, typer.Option(help="Score only the first N images of the sources.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be read, and stop.")] = False,
    address: options.Address = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per forward pass [default: 8 on CPUs, 256 on GPUs].")
    ] = None,
    engine: options.Engine = "auto",
    only_below: Annotated[
        list[str] | None, typer.Option(help="Read no image outside of this folder or URL; may be repeated.")
    ] = None,
    view: Annotated[
        str,
        typer.Option(help="Photographs: in windows if large enough (auto), always (windows), or shrunk (whole)."),
    ] = "auto",
    tile_size: options.TileSize = None,
    ground_resolution: Annotated[
        float | None,
        typer.Option(help="Millimetres of the surface in a pixel; or a manifest column of that name."),
    ] = None,
    maps: options.Maps = False,
    exif: Annotated[
        str, typer.Option(help="full adds columns that drones write: angles of the camera, altitude.")
    ] = "basic",
    csv: Annotated[str | None, typer.Option(help="Also write the run's rows to this .csv file.")] = None,
    xlsx: Annotated[str | None, typer.Option(help="Also write the run's rows to this .xlsx file, for Excel.")] = None,
    exit_zero_when_published: options.ExitZero = False,
    gpus: options.Gpus = None,
    max_wait: options.MaxWait = 30.0,
    log_format: options.LogFormat = "text",
) -> None:
    """Score every image in the sources. Run the same command again to continue an interrupted run."""
    with interruptible("finished work is kept; run the same command to continue"):
        from crackbatch.scoring import score as scoring

        summary = scoring.score(**given(context))
    if dry_run:
        print_plan(summary)
        return
    print_summary(summary)
    sys.exit(summary.exit_code)


def nightly(
    context: typer.Context,
    inbox: Annotated[
        list[str],
        typer.Option(help="Sources of a night; {date} becomes its date, {date:%Y/%m/%d} as here; may be repeated."),
    ],
    date: Annotated[str, typer.Option(help="The night: YYYY-MM-DD, or yesterday (UTC).")],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or URL for the results of all nights.")] = "",
    since: Annotated[str | None, typer.Option(help="Also score nights from this one on that were missed.")] = None,
    model: options.Model = "concrete-resnet18",
    threshold: options.Threshold = None,
    operating_point: options.OperatingPoint = None,
    max_error_rate: options.MaxErrorRate = 0.05,
    max_errors: Annotated[int | None, typer.Option(help="Stop a night when more images than this have failed.")] = None,
    extensions: options.Extensions = None,
    address: options.Address = None,
    engine: options.Engine = "auto",
    maps: options.Maps = False,
    exit_zero_when_published: options.ExitZero = False,
    gpus: options.Gpus = None,
    max_wait: options.MaxWait = 30.0,
    log_format: options.LogFormat = "text",
) -> None:
    """Score what a night brought. Compare it with the nights before."""
    with interruptible("finished work is kept; run the same command to continue"):
        from crackbatch.scoring import nightly as nights

        found = nights.nightly(**given(context))
    print_nights(found)
    sys.exit(found.exit_code)


def runs(
    out: options.Out, as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False
) -> None:
    """List the runs in OUT, newest last. Show state, images by status, model and duration."""
    from crackbatch.results.states import list_runs

    found = list_runs(out)
    if as_json:
        print_runs_json(found)
        return
    print_runs(found)


def clean(
    out: options.Out,
    yes: Annotated[bool, typer.Option("--yes", help="Remove the files; without --yes they are only shown.")] = False,
    run_id: Annotated[str | None, typer.Option(help="Clean up after this run only.")] = None,
) -> None:
    """Remove files that interrupted and failed runs left in OUT. Published rows and running runs are kept."""
    from crackbatch.results import cleaning

    with interruptible("removed files are gone; run the same command to remove the rest"):
        print_cleaning(cleaning.clean(out, yes=yes, run_id=run_id))
