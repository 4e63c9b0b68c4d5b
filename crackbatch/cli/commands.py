"""The command line: one command for each public function, with no logic of its own.

The options of a command have the names and defaults of the function's parameters, and are passed to it unchanged.

Exit codes: 0 done; 1 failed, run again to continue; 2 the request is wrong; 3 published, but more images failed than
allowed or an archive was damaged or not opened; 130 interrupted, run again to continue.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any

import typer

from crackbatch import __version__
from crackbatch.cli import options
from crackbatch.cli.interruption import interruptible
from crackbatch.cli.output import (
    print_cleaning,
    print_comparison,
    print_evaluation,
    print_exported,
    print_overview,
    print_photo_settings,
    print_plan,
    print_report,
    print_review,
    print_run_comparison,
    print_runs,
    print_runs_json,
    print_shown,
    print_site_check,
    print_summary,
    print_training,
)
from crackbatch.errors import CrackbatchError, Interrupted, OptionError, RunError
from crackbatch.storage.redaction import masked, redact
from crackbatch.storage.retry import giving_up

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Find cracked concrete in archives of inspection images. Write one Parquet row for each image.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"crackbatch {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version, and stop.")
    ] = False,
    config: Annotated[
        str | None, typer.Option(help="A TOML file with a table of options for each command, such as [score].")
    ] = None,
) -> None:
    if config is not None:
        from crackbatch.cli.config import read_config

        commands: dict[str, Any] = context.command.commands  # type: ignore[attr-defined]
        context.default_map = read_config(config, {name: _names(command) for name, command in commands.items()})


def _names(command: Any) -> dict[str, str]:
    """Return the names of a command's options and arguments, and the parameter of each."""
    return {
        option.lstrip("-").replace("_", "-"): parameter.name
        for parameter in command.params
        for option in (*parameter.opts, parameter.name)
        if parameter.name != "help"
    }


@app.command()
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
    max_error_rate: Annotated[
        float, typer.Option(help="Exit with code 3 if a larger share of the images fails.")
    ] = 0.05,
    max_errors: Annotated[
        int | None, typer.Option(help="Stop with exit code 3 when more images than this have failed.")
    ] = None,
    max_megapixels: Annotated[float, typer.Option(help="Do not decode larger images.")] = 200.0,
    decode_timeout: Annotated[float, typer.Option(help="Give up decoding an image after this many seconds.")] = 120.0,
    new_only: Annotated[
        bool, typer.Option("--new-only", help="Skip images that any published run in --out has scored with this model.")
    ] = False,
    extensions: Annotated[
        list[str] | None, typer.Option(help="More image file extensions, such as .jp2; may be repeated.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Score only the first N images of the sources.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be read, and stop.")] = False,
    address: options.Address = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per forward pass [default: 8 on CPUs, 256 on GPUs].")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="Score with Ray (ray), in this process (local), or as suits the work (auto).")
    ] = "auto",
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
    maps: Annotated[
        bool, typer.Option("--maps", help="Also publish the probability of each window, below OUT/maps.")
    ] = False,
    exif: Annotated[
        str, typer.Option(help="full adds columns that drones write: angles of the camera, altitude.")
    ] = "basic",
    csv: Annotated[str | None, typer.Option(help="Also write the run's rows to this .csv file.")] = None,
    xlsx: Annotated[str | None, typer.Option(help="Also write the run's rows to this .xlsx file, for Excel.")] = None,
) -> None:
    """Score every image in the sources. Run the same command again to continue an interrupted run."""
    with interruptible("finished work is kept; run the same command to continue"):
        from crackbatch.scoring import score as scoring

        summary = scoring.score(**_given(context))
    if dry_run:
        print_plan(summary)
        return
    print_summary(summary)
    sys.exit(summary.exit_code)


@app.command()
def train(
    context: typer.Context,
    sources: options.Data,
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or URL for the model.")] = "",
    name: Annotated[str | None, typer.Option(help="Name of the model [default: last part of --out].")] = None,
    network: Annotated[str, typer.Option(help="A torchvision classifier, such as resnet50 or vit_b_16.")] = "resnet18",
    init: options.Init = "imagenet",
    freeze: options.Freeze = False,
    epochs: options.Epochs = 10,
    batch_size: options.BatchSize = 64,
    learning_rate: options.LearningRate = None,
    image_size: options.ImageSize = 224,
    seed: options.Seed = 0,
    balance: options.Balance = "none",
    weights: options.Weights = None,
    augmentation: options.Augmentation = "full",
    positive: options.Positive = None,
    negative: options.Negative = None,
    group_pattern: options.GroupPattern = None,
    group_column: options.GroupColumn = "group",
    split: options.Split = None,
    workers: options.Workers = 1,
    max_failures: options.MaxFailures = 3,
    address: options.Address = None,
) -> None:
    """Train a network on labelled images. Run the same command again to continue an interrupted training."""
    from crackbatch.training import train as training

    with interruptible("run the same command to continue from the last epoch's checkpoint"):
        result = training.train(**_given(context))
    if not result.trained:
        print(f"{masked(out)} already holds this finished training; give another --out or --seed to train again")
    print_training(result)


@app.command()
def dataset(
    context: typer.Context,
    sources: options.Data,
    out: Annotated[
        str, typer.Option("--out", "-o", help="Folder or URL for the split and a sheet of pictures.")
    ] = "dataset",
    positive: options.Positive = None,
    negative: options.Negative = None,
    group_pattern: options.GroupPattern = None,
    group_column: options.GroupColumn = "group",
    split: options.Split = None,
    seed: Annotated[int, typer.Option(help="Seed of the split; train draws the same split with the same seed.")] = 0,
) -> None:
    """Check labelled data before training. Show counts, duplicates, contradictory labels and pictures."""
    from crackbatch.datasets.overview import describe_dataset

    print_overview(describe_dataset(**_given(context)))


@app.command()
def evaluate(
    context: typer.Context,
    sources: options.MaybeData = None,
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or URL for metrics, figures and errors.")] = "",
    photos: Annotated[
        str | None, typer.Option(help="Measure on photographs: a CSV file with a label for each cell.")
    ] = None,
    model: options.Model = "concrete-resnet18",
    predictions: Annotated[
        str | None, typer.Option(help="Measure the rows that score published in this folder or URL.")
    ] = None,
    run_id: Annotated[str | None, typer.Option(help="With --predictions: measure only this run.")] = None,
    threshold: options.Threshold = None,
    operating_point: options.OperatingPoint = None,
    prevalence: Annotated[
        float | None,
        typer.Option(help="Expected share of cracked images in use; shows the precision at that share."),
    ] = None,
    include_seen: Annotated[
        bool, typer.Option("--include-seen", help="Also measure on images that the model was trained or tuned on.")
    ] = False,
    positive: options.Positive = None,
    negative: options.Negative = None,
    group_pattern: options.GroupPattern = None,
    group_column: options.GroupColumn = "group",
    address: options.Address = None,
) -> None:
    """Measure a model on labelled images that it has not seen. Show the images that it gets wrong."""
    from crackbatch.evaluation import evaluate as evaluation

    print_evaluation(evaluation.evaluate(**_given(context)))


@app.command()
def show(
    context: typer.Context,
    images: Annotated[
        list[str] | None, typer.Argument(metavar="[IMAGE]...", help="Paths or URLs of images, as in image_uri.")
    ] = None,
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or URL for the pictures.")] = "",
    results: Annotated[
        str | None, typer.Option("--from", help="Show the most probable rows of this --out of score instead.")
    ] = None,
    top: Annotated[int, typer.Option(help="With --from: how many rows to show.")] = 20,
    run_id: Annotated[str | None, typer.Option(help="With --from: only rows of this run.")] = None,
    model: options.Model = "concrete-resnet18",
    tile_size: options.TileSize = None,
    ground_resolution: options.GroundResolution = None,
) -> None:
    """Draw images with their crack maps and worst regions."""
    from crackbatch.reports import show as pictures

    print_shown(pictures.show(**_given(context)))


@app.command()
def export(
    context: typer.Context,
    out: options.Out,
    file: Annotated[
        str, typer.Option("--out", "-o", help="File or URL to write: .csv, .xlsx, .geojson or .json (Label Studio).")
    ] = "",
    run_id: Annotated[
        str | None, typer.Option(help="Only rows of this run [default: newest row of each image].")
    ] = None,
    date: Annotated[str | None, typer.Option(help="Only rows of this day, YYYY-MM-DD.")] = None,
    min_probability: Annotated[float | None, typer.Option(help="Only images with at least this probability.")] = None,
    label: Annotated[str | None, typer.Option(help="Only images with this label: crack or no_crack.")] = None,
    all_columns: Annotated[
        bool, typer.Option("--all-columns", help="Write every column, not only the ten most useful ones.")
    ] = False,
) -> None:
    """Write rows as a list: CSV, Excel, GeoJSON, Label Studio."""
    from crackbatch.reports import exports

    print_exported(exports.export(**_given(context)))


@app.command()
def report(
    context: typer.Context,
    out: options.Out,
    file: Annotated[str, typer.Option("--out", "-o", help="File or URL of the page to write, .html.")] = "report.html",
    run_id: Annotated[str | None, typer.Option(help="Report on this run [default: the newest published one].")] = None,
    top: Annotated[int, typer.Option(help="Pictures of so many images with the highest probability.")] = 100,
    model: Annotated[
        str, typer.Option(help="The model of the run, which shows where in a tile the crack is.")
    ] = "concrete-resnet18",
    maps: Annotated[
        bool, typer.Option("--maps", help="Make the crack maps of photographs that score did not publish (slow).")
    ] = False,
) -> None:
    """Write a page about a run: counts, pictures, folders, failures, changes."""
    from crackbatch.reports import report as reporting

    print_report(reporting.report(**_given(context)))


@app.command()
def review(
    context: typer.Context,
    out: Annotated[str | None, typer.Argument(metavar="[OUT]", help="The --out of score: a folder or URL.")] = None,
    folder: Annotated[
        str, typer.Option("--out", "-o", help="Folder or URL for the page and lists; with --import a .csv to write.")
    ] = "",
    run_id: Annotated[str | None, typer.Option(help="Only images of this run [default: newest row of each].")] = None,
    num: Annotated[int, typer.Option(help="How many images to look at.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed for the images that are drawn at random.")] = 0,
    model: Annotated[
        str, typer.Option(help="The model of the run, which shows where in a tile the crack is.")
    ] = "concrete-resnet18",
    answers: Annotated[
        str | None,
        typer.Option("--import", help="Make a manifest of answers: .csv, .json (Label Studio, COCO) or .xml (CVAT)."),
    ] = None,
) -> None:
    """Choose images that a person should look at. Turn the answers into labels."""
    from crackbatch.reports import review as reviewing

    print_review(reviewing.review(**_given(context)))


@app.command()
def calibrate(
    context: typer.Context,
    cells: Annotated[
        str, typer.Argument(metavar="CELLS", help="A CSV file with a label for each cell of photographs.")
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or URL for the calibrated model.")] = "",
    model: options.Model = "concrete-resnet18",
    tile_size: Annotated[
        float | None, typer.Option(help="Pixels of these photographs that one window covers [default: a cell].")
    ] = None,
    ground_resolution: options.GroundResolution = None,
) -> None:
    """Choose how a model judges photographs, on labelled ones. Write the model with these settings."""
    from crackbatch.evaluation import photo_calibration

    print_photo_settings(photo_calibration.calibrate(**_given(context)))


@app.command()
def site_check(
    context: typer.Context,
    sources: options.Data,
    model: options.Model = "concrete-resnet18",
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", help="Folder or URL for a copy of the model, calibrated on the site's tiles."),
    ] = None,
    threshold: options.Threshold = None,
    operating_point: options.OperatingPoint = None,
    min_recall: Annotated[float, typer.Option(help="The share of the cracked images that must be found.")] = 0.9,
    max_false_alarms: Annotated[float, typer.Option(help="The share of the sound images that may be flagged.")] = 0.1,
    positive: options.Positive = None,
    negative: options.Negative = None,
    group_pattern: options.GroupPattern = None,
    group_column: options.GroupColumn = "group",
) -> None:
    """Say whether a model works at a site, from 50 to 200 labelled images of it."""
    from crackbatch.evaluation import site_check as checking

    print_site_check(checking.site_check(**_given(context)))


@app.command()
def compare(
    context: typer.Context,
    sources: options.Data,
    networks: Annotated[
        list[str] | None, typer.Option(help="Torchvision classifiers, separated by commas; may be repeated.")
    ] = None,
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or URL for the models and the table.")] = "",
    init: options.Init = "imagenet",
    freeze: options.Freeze = False,
    epochs: options.Epochs = 10,
    batch_size: options.BatchSize = 64,
    learning_rate: options.LearningRate = None,
    image_size: options.ImageSize = 224,
    seed: options.Seed = 0,
    balance: options.Balance = "none",
    weights: options.Weights = None,
    augmentation: options.Augmentation = "full",
    threshold: options.Threshold = None,
    positive: options.Positive = None,
    negative: options.Negative = None,
    group_pattern: options.GroupPattern = None,
    group_column: options.GroupColumn = "group",
    split: options.Split = None,
    workers: options.Workers = 1,
    max_failures: options.MaxFailures = 3,
    address: options.Address = None,
) -> None:
    """Train several networks on the same split and compare them."""
    from crackbatch.training import compare as comparison

    with interruptible("run the same command to continue from the last epoch's checkpoint"):
        found = comparison.compare(**_given(context))
    print_comparison(found)


@app.command()
def compare_runs(
    context: typer.Context,
    before: Annotated[str, typer.Argument(metavar="A", help="A run: OUT/runs/RUN_ID, or OUT for its newest run.")],
    after: Annotated[
        str | None, typer.Argument(metavar="[B]", help="The later run; without it, the two newest runs in OUT.")
    ] = None,
    csv: Annotated[str | None, typer.Option(help="Also write each image that changed to this .csv file.")] = None,
) -> None:
    """Show what changed from one run to another. Count by folder."""
    from crackbatch.reports import compare_runs as comparing

    print_run_comparison(comparing.compare_runs(**_given(context)))


@app.command()
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


@app.command()
def clean(
    out: options.Out,
    yes: Annotated[bool, typer.Option("--yes", help="Remove the files; without --yes they are only shown.")] = False,
    run_id: Annotated[str | None, typer.Option(help="Clean up after this run only.")] = None,
) -> None:
    """Remove files that interrupted and failed runs left in OUT. Published rows and running runs are kept."""
    from crackbatch.results import cleaning

    with interruptible("removed files are gone; run the same command to remove the rest"):
        print_cleaning(cleaning.clean(out, yes=yes, run_id=run_id))


@app.command()
def models() -> None:
    """List the models that come with the package."""
    from crackbatch.models.bundle import DEFAULT_MODEL, read_bundle, shipped_models

    for name in shipped_models():
        bundle = read_bundle(name)
        points = ", ".join(f"{key} {point.threshold:g}" for key, point in bundle.operating_points.items())
        default = " (default)" if name == DEFAULT_MODEL else ""
        print(f"{bundle.model_id}{default}: {bundle.network}, {bundle.input_size} px; operating points: {points}")


def main() -> None:
    """Entry point of the `crackbatch` command. An error is one line on standard error and an exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with giving_up(lambda why: RunError(f"storage failed ({why}); run again")):
            _run_app()
    except Interrupted as error:  # its message was printed when it happened
        os._exit(error.exit_code)  # do not wait for a listing thread that still works
    except CrackbatchError as error:
        print(f"crackbatch: {redact(str(error))}", file=sys.stderr)
        if any(not thread.daemon for thread in threading.enumerate()[1:]):  # do not wait here either
            with suppress(OSError):
                sys.stdout.flush()
            os._exit(error.exit_code)
        sys.exit(error.exit_code)


def _run_app() -> None:
    try:
        app()
    except BrokenPipeError:  # `crackbatch … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _given(context: typer.Context) -> dict[str, Any]:
    """The options of a command by name, without those that are None: the function has its own defaults for them."""
    given = {name: value for name, value in context.params.items() if value is not None}
    if "weights" in given:
        given["weights"] = _parse_weights(given["weights"])
    return given


def _parse_weights(weights: Sequence[str]) -> dict[str, float]:
    parsed = {}
    for weight in weights:
        name, _, value = weight.rpartition("=")
        try:
            parsed[name] = float(value)
        except ValueError:
            name = ""
        if not name:
            raise OptionError(f"--weight must be written as SOURCE=0.5, got {weight!r}")
    return parsed
