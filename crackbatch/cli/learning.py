"""The commands that make and measure models."""

from __future__ import annotations

from typing import Annotated

import typer

from crackbatch.cli import options
from crackbatch.cli.interruption import interruptible
from crackbatch.cli.options import given
from crackbatch.cli.output import (
    print_comparison,
    print_evaluation,
    print_overview,
    print_photo_settings,
    print_site_check,
    print_training,
)
from crackbatch.progress import say
from crackbatch.storage.redaction import masked


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
    gpus: options.Gpus = None,
    max_wait: options.MaxWait = 30.0,
    log_format: options.LogFormat = "text",
) -> None:
    """Train a network on labelled images. Run the same command again to continue an interrupted training."""
    from crackbatch.training import train as training

    with interruptible("run the same command to continue from the last epoch's checkpoint"):
        result = training.train(**given(context))
    if not result.trained:
        say(f"{masked(out)} already holds this finished training; give another --out or --seed to train again")
    print_training(result)


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

    print_overview(describe_dataset(**given(context)))


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
    log_format: options.LogFormat = "text",
) -> None:
    """Measure a model on labelled images that it has not seen. Show the images that it gets wrong."""
    from crackbatch.evaluation import evaluate as evaluation

    print_evaluation(evaluation.evaluate(**given(context)))


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

    print_photo_settings(photo_calibration.calibrate(**given(context)))


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

    print_site_check(checking.site_check(**given(context)))


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
    gpus: options.Gpus = None,
    max_wait: options.MaxWait = 30.0,
) -> None:
    """Train several networks on the same split and compare them."""
    from crackbatch.training import compare as comparison

    with interruptible("run the same command to continue from the last epoch's checkpoint"):
        found = comparison.compare(**given(context))
    print_comparison(found)


def models() -> None:
    """List the models that come with the package."""
    from crackbatch.models.bundle import DEFAULT_MODEL, read_bundle, shipped_models

    for name in shipped_models():
        bundle = read_bundle(name)
        points = ", ".join(f"{key} {point.threshold:g}" for key, point in bundle.operating_points.items())
        default = " (default)" if name == DEFAULT_MODEL else ""
        print(f"{bundle.model_id}{default}: {bundle.network}, {bundle.input_size} px; operating points: {points}")
