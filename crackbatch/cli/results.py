"""The commands that show results: pictures, lists, pages, comparisons."""

from __future__ import annotations

from typing import Annotated

import typer

from crackbatch.cli import options
from crackbatch.cli.options import given
from crackbatch.cli.output import (
    print_exported,
    print_report,
    print_review,
    print_run_comparison,
    print_shown,
)


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

    print_shown(pictures.show(**given(context)))


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

    print_exported(exports.export(**given(context)))


def report(
    context: typer.Context,
    out: options.Out,
    file: Annotated[str, typer.Option("--out", "-o", help="File or URL of the page to write, .html.")] = "report.html",
    run_id: Annotated[str | None, typer.Option(help="Report on this run [default: the newest published one].")] = None,
    top: Annotated[int, typer.Option(help="Pictures of so many images with the highest probability.")] = 100,
    model: options.RunModel = "concrete-resnet18",
    maps: Annotated[
        bool, typer.Option("--maps", help="Make the crack maps of photographs that score did not publish (slow).")
    ] = False,
) -> None:
    """Write a page about a run: counts, pictures, folders, failures, changes."""
    from crackbatch.reports import report as reporting

    print_report(reporting.report(**given(context)))


def review(
    context: typer.Context,
    out: Annotated[str | None, typer.Argument(metavar="[OUT]", help="The --out of score: a folder or URL.")] = None,
    folder: Annotated[
        str, typer.Option("--out", "-o", help="Folder or URL for the page and lists; with --import a .csv to write.")
    ] = "",
    run_id: Annotated[str | None, typer.Option(help="Only images of this run [default: newest row of each].")] = None,
    num: Annotated[int, typer.Option(help="How many images to look at.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed for the images that are drawn at random.")] = 0,
    model: options.RunModel = "concrete-resnet18",
    answers: Annotated[
        str | None,
        typer.Option("--import", help="Make a manifest of answers: .csv, .json (Label Studio, COCO) or .xml (CVAT)."),
    ] = None,
) -> None:
    """Choose images that a person should look at. Turn the answers into labels."""
    from crackbatch.reports import review as reviewing

    print_review(reviewing.review(**given(context)))


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

    print_run_comparison(comparing.compare_runs(**given(context)))
