"""The options that several commands share, with name, type and `--help` text, and how commands hand options on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from crackbatch import log
from crackbatch.errors import OptionError

Data = Annotated[
    list[str],
    typer.Argument(
        metavar="DATA...",
        help="Labelled images, in any source that score reads. Labels are folder or archive names, or in a manifest.",
    ),
]
MaybeData = Annotated[
    list[str] | None,
    typer.Argument(metavar="[DATA]...", help="Labelled images, as for train."),
]
Address = Annotated[
    str | None, typer.Option(help="Address of a Ray cluster [default: the current one, else Ray on this machine].")
]
Out = Annotated[str, typer.Argument(metavar="OUT", help="The --out of score: a folder or URL.")]
Model = Annotated[str, typer.Option(help="Name of a shipped model, or path or URL of a bundle.")]
MaxErrorRate = Annotated[float, typer.Option(help="Exit with code 3 if a larger share of the images fails.")]
Extensions = Annotated[
    list[str] | None, typer.Option(help="More image file extensions, such as .jp2; may be repeated.")
]
Engine = Annotated[
    str, typer.Option(help="Score with Ray (ray), in this process (local), or as suits the work (auto).")
]
Maps = Annotated[bool, typer.Option("--maps", help="Also publish the probability of each window, below OUT/maps.")]
RunModel = Annotated[str, typer.Option(help="The model of the run, which shows where in a tile the crack is.")]
ExitZero = Annotated[
    bool,
    typer.Option("--exit-zero-when-published", help="Exit with 0 instead of 3 or 4, for schedulers that try again."),
]
Split = Annotated[str | None, typer.Option(help="A split.parquet to use, or a model to take the split from.")]
Threshold = Annotated[float | None, typer.Option(help="Lowest probability that is labelled crack.")]
OperatingPoint = Annotated[str | None, typer.Option(help="A named threshold of the model [default: balanced].")]
TileSize = Annotated[
    float | None, typer.Option(help="Pixels of a photograph that one window covers [default: the model's].")
]
GroundResolution = Annotated[float | None, typer.Option(help="Millimetres of the surface in a pixel.")]
Init = Annotated[
    str, typer.Option(help="Initial weights: imagenet, none (random), a shipped model, a bundle or a state dict.")
]
Epochs = Annotated[int, typer.Option(help="Number of passes over the training images.")]
BatchSize = Annotated[int, typer.Option(help="Images per step, over all workers together.")]
ImageSize = Annotated[int, typer.Option(help="Width and height of the network's input, in pixels.")]
Seed = Annotated[
    int,
    typer.Option(
        help="Random seed. The same seed and machine give the same weights if the images fit in memory in both runs,"
        " or in neither."
    ),
]
Workers = Annotated[int, typer.Option(help="Number of Ray Train workers; 0 trains in this process.")]
Positive = Annotated[
    list[str] | None, typer.Option(help="Folder names (globs) of cracked images; may be repeated [default: crack, …].")
]
Negative = Annotated[
    list[str] | None, typer.Option(help="Folder names (globs) of sound images; may be repeated [default: no_crack, …].")
]
GroupPattern = Annotated[
    str | None, typer.Option(help="Regular expression for the part of a path that names the photo of a tile.")
]
GroupColumn = Annotated[str, typer.Option(help="Manifest column that names the photo of a tile.")]
LearningRate = Annotated[float | None, typer.Option(help="Peak learning rate [default: depends on other options].")]
Freeze = Annotated[bool, typer.Option("--freeze", help="Train only the last layer.")]
Balance = Annotated[
    str, typer.Option(help="none, class (cracked and sound images equally often) or source (also all sources).")
]
Weights = Annotated[
    list[str] | None,
    typer.Option("--weight", help="SOURCE=W: show the images of SOURCE W times as often; may be repeated."),
]
Augmentation = Annotated[
    str,
    typer.Option(
        help="Random changes to pictures: full, or light (nearly whole pictures). With +lines, such as full+lines, also"
        " lines that are no cracks."
    ),
]
Gpus = Annotated[
    int | None,
    typer.Option(help="GPUs to work on; 0 works on CPUs only [default: the GPUs that are there, else CPUs]."),
]
MaxWait = Annotated[float, typer.Option(help="Wait so many minutes for nodes or GPUs that other jobs use.")]
LogFormat = Annotated[
    str,
    typer.Option(
        help="text, or json: one object a line, for systems that collect logs.",
        callback=log.set_format,
        expose_value=False,
    ),
]
MaxFailures = Annotated[int, typer.Option(help="Number of worker failures to recover from.")]


def given(context: typer.Context) -> dict[str, Any]:
    """Return the options of a command by name, without those that are None: the function has defaults for them."""
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
