"""The options that several commands have: what each is called, its type, and what `--help` says of it."""

from __future__ import annotations

from typing import Annotated

import typer

Data = Annotated[
    list[str],
    typer.Argument(
        metavar="DATA...",
        help="Labelled images, in sources as for score: folders or archives named after their label, or manifests.",
    ),
]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster to use [default: the one this runs in, else this machine].")
]
Out = Annotated[str, typer.Argument(metavar="OUT", help="Where score put its results: a folder or URL.")]
Model = Annotated[str, typer.Option(help="A shipped model's name, or a bundle's path or URL.")]
Split = Annotated[str | None, typer.Option(help="A split.parquet to use again, or a model whose split it is.")]
Threshold = Annotated[float | None, typer.Option(help="Probability from which an image is labelled crack.")]
OperatingPoint = Annotated[str | None, typer.Option(help="A threshold that the model names [default: balanced].")]
Init = Annotated[
    str, typer.Option(help="Weights to start from: imagenet, none, a shipped model's name, a bundle or state dict.")
]
Epochs = Annotated[int, typer.Option(help="Times to go through the training images.")]
BatchSize = Annotated[int, typer.Option(help="Images in a step, of all workers together.")]
ImageSize = Annotated[int, typer.Option(help="Width and height of the network's input, in pixels.")]
Seed = Annotated[
    int,
    typer.Option(
        help="The same seed on the same machine gives the same weights, if memory holds the images both times or never."
    ),
]
Workers = Annotated[int, typer.Option(help="Workers of Ray Train; 0 trains in this process.")]
Positive = Annotated[
    list[str] | None, typer.Option(help="Folder names (globs) of cracked images; may be repeated [default: crack, …].")
]
Negative = Annotated[
    list[str] | None, typer.Option(help="Folder names (globs) of sound images; may be repeated [default: no_crack, …].")
]
GroupPattern = Annotated[
    str | None, typer.Option(help="Regular expression that finds in a path which photo a tile was cut from.")
]
GroupColumn = Annotated[str, typer.Option(help="A manifest's column that says the same.")]
LearningRate = Annotated[float | None, typer.Option(help="Its peak [default: by network and --init].")]
Freeze = Annotated[bool, typer.Option("--freeze", help="Train the last layer alone.")]
Balance = Annotated[
    str, typer.Option(help="Show cracked and sound images equally often (class), and all sources too (source).")
]
Weights = Annotated[
    list[str] | None,
    typer.Option("--weight", help="SOURCE=W: show a source's images W times as often; may be repeated."),
]
Augmentation = Annotated[
    str, typer.Option(help="How much pictures are changed: full, or light for a last training on what will be met.")
]
MaxFailures = Annotated[int, typer.Option(help="Failures of workers to recover from.")]
