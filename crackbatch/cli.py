"""The command line: one command for each public function, no logic of its own.

Exit codes: 0 done; 1 failed, run again to continue; 2 the request is wrong; 3 published, but more failed than allowed
or an archive was damaged; 130 interrupted, run again to continue.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from crackbatch.errors import CrackbatchError, Interrupted

if TYPE_CHECKING:
    from crackbatch.summary import RunSummary

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Find cracked concrete in archives of inspection images; one Parquet row for each image.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root() -> None:
    pass


@app.command()
def score(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Folders, globs, images, .zip, .tar(.gz, .bz2, .xz), .parquet or manifests (.csv); paths or URLs.",
        ),
    ],
    out: Annotated[str, typer.Option(help="Where the results go: a folder or URL.")] = "",
    model: Annotated[
        str, typer.Option(help="A shipped model's name, or a bundle's path or URL.")
    ] = "concrete-resnet18",
    date: Annotated[str | None, typer.Option(help="Date of the run, YYYY-MM-DD [default: today, UTC].")] = None,
    run_id: Annotated[str | None, typer.Option(help="Name of the run [default: date and fingerprint].")] = None,
    threshold: Annotated[float | None, typer.Option(help="Probability from which an image is labelled crack.")] = None,
    operating_point: Annotated[
        str | None, typer.Option(help="A threshold that the model names [default: balanced].")
    ] = None,
    max_error_rate: Annotated[
        float, typer.Option(help="Share of images that may fail before the exit code is 3.")
    ] = 0.05,
    max_megapixels: Annotated[float, typer.Option(help="Larger images are not decoded.")] = 200.0,
    extensions: Annotated[
        list[str] | None, typer.Option(help="Further image extensions, such as .jp2; may be repeated.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Score the first N images only.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be read, and stop.")] = False,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to use [default: the one this runs in, else this machine].")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images in a forward pass [default: 8 on CPUs, 256 on GPUs].")
    ] = None,
) -> None:
    """Score every image in the sources; the same command continues a run that was broken off."""
    from crackbatch import scoring

    try:
        summary = scoring.score(
            sources,
            out,
            model=model,
            date=date,
            run_id=run_id,
            threshold=threshold,
            operating_point=operating_point,
            max_error_rate=max_error_rate,
            max_megapixels=max_megapixels,
            extensions=extensions or (),
            limit=limit,
            dry_run=dry_run,
            address=address,
            batch_size=batch_size,
        )
    except KeyboardInterrupt:
        raise Interrupted("interrupted; what is done is kept, and the same command continues the run") from None
    if dry_run:
        _print_plan(summary)
        return
    print_summary(summary)
    sys.exit(summary.exit_code)


@app.command()
def models() -> None:
    """List the models that came with the package."""
    from crackbatch.bundle import DEFAULT_MODEL, read_bundle, shipped_models

    for name in shipped_models():
        bundle = read_bundle(name)
        points = ", ".join(f"{key} {point.threshold:g}" for key, point in bundle.operating_points.items())
        default = " (default)" if name == DEFAULT_MODEL else ""
        print(f"{bundle.model_id}{default}: {bundle.network}, {bundle.input_size} px; operating points: {points}")


def main() -> None:
    """Entry point of the `crackbatch` command: errors are one line on standard error and an exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except Interrupted as error:
        print(f"crackbatch: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)  # a listing thread that is still at work must not hold the process
    except CrackbatchError as error:
        print(f"crackbatch: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `crackbatch … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _print_plan(summary: RunSummary) -> None:
    archives = f", {summary.archives:,} archives opened" if summary.archives else ""
    print(f"{summary.images:,} images, {_bytes(summary.size_bytes)}{archives}")
    for reason, count in summary.passed_over.items():
        print(f"passed over: {count:,} {reason}")
    for problem in summary.problems:
        print(f"damaged: {problem}")


def _bytes(size: int) -> str:
    value, unit = float(size), "bytes"
    for unit in ("bytes", "KB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"


def print_summary(summary: RunSummary) -> None:
    """What a person wants to know of a run."""
    if summary.added:
        speed = f", {summary.images_per_s:,.1f} images/s" if summary.images_per_s else ""
        print(f"run {summary.run_id}: {summary.added:,} images in {summary.seconds:,.1f} s{speed}")
    else:
        print(f"run {summary.run_id}: nothing left to do, all {summary.images:,} images have their rows")
    print("status: " + ", ".join(f"{name} {count:,}" for name, count in summary.statuses.items()))
    if summary.passed_over:
        print("passed over: " + ", ".join(f"{count:,} {reason}" for reason, count in summary.passed_over.items()))
    for problem in summary.problems:
        print(f"damaged: {problem}")
    for file in summary.files:
        print(f"table: {file}")
    if summary.error_rate > summary.max_error_rate:
        print(
            f"exit code 3: {summary.error_rate:.1%} of the images have no score,"
            f" more than --max-error-rate {summary.max_error_rate:.1%} allows"
        )
    elif summary.problems:
        print("exit code 3: the rows are published, but archives were damaged and images may be missing")


if __name__ == "__main__":
    main()
