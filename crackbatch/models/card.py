"""MODEL_CARD.md of a bundle: how the model was trained, how good it is on its validation split, how not to use it."""

from __future__ import annotations

import re

from crackbatch.models.bundle import Bundle
from crackbatch.storage import atomic, locations

FILE = "MODEL_CARD.md"
PHOTO_TITLE = "## Photographs"
_MODEL_ID = re.compile(r"`[\w.-]+@[0-9a-f]{12}`")


def write_card(bundle: Bundle) -> None:
    """Write the card next to the bundle's other files."""
    atomic.write_whole(locations.join(bundle.location, FILE), draw_card(bundle).encode())


def draw_card(bundle: Bundle) -> str:
    """Return the card as Markdown."""
    training, best = bundle.training, bundle.training["best"]
    return f"""# {bundle.name}

`{bundle.model_id}`: {bundle.network} with two classes. It gives the probability that a tile of concrete, scaled to
{bundle.input_size} pixels, shows a crack.

**Do not use it** to decide that a structure is safe, to measure a crack, or on pictures that are unlike its training
images. It selects candidates for an inspector.

## Training

Trained by `crackbatch train` {training["versions"]["crackbatch"]} (torch {training["versions"]["torch"]}):

{_table(_made_by(bundle))}

## Results on its validation split

Loss {best["validation_loss"]:.4f} and accuracy {best["validation_accuracy"]:.4f} at a threshold of 0.5. The
probabilities are calibrated on this split, with a temperature of {bundle.temperature:.3f}. `crackbatch evaluate`
measures the model on images that it has not seen.

{_table(_operating_points(bundle))}
"""


def with_section(card: str, bundle: Bundle, title: str, text: str) -> str:
    """Return the card of another bundle for this one, with a section (`## Site`) that replaces one of this title."""
    before, found, after = _MODEL_ID.sub(f"`{bundle.model_id}`", card, count=1).partition(title)
    rest = after[after.index("\n## ") :] if found and "\n## " in after else ""
    return f"{before.rstrip()}\n\n{title}\n\n{text}\n{rest}"


def photo_section(bundle: Bundle) -> str:
    """Return how the bundle judges photographs, as Markdown."""
    photo = bundle.photo
    assert photo is not None
    points = [["operating point", "threshold", "recall", "false alarms per 100 sound views"]]
    for name, point in photo.operating_points.items():
        points.append([f"`{name}`", f"{point.threshold:.4f}", f"{point.recall:.3f}", f"{point.false_alarms:.1f}"])
    found = photo.calibration
    cut = f"{photo.cut:g}"
    return f"""A photograph is looked at in overlapping windows of {photo.window:g} pixels. Windows with a logit of at
least {cut} that touch each other are a region. The strength of a region is log(1 + s), where s is the sum of what its
logits have above {cut}. The strongest region gives the probability of the photograph:
sigmoid({photo.intercept:.3f} + {photo.slope:.3f} * strength). Without any region, the strength is the highest logit
less {cut}.

This was fitted on {found["views"]:,} views of about 7 by 6 windows, {found["megapixels"]:,g} megapixels together. They
were cut from {found["photographs"]:,} photographs, and {found["cracked_views"]:,} of them have a cell that is labelled
as cracked. The operating points were chosen on the same views. They reached there:

{_table(points)}

A large photograph shows more than a view, so it raises more alarms. `crackbatch evaluate --photos` also counts the
false alarms per 100 megapixels."""


def _made_by(bundle: Bundle) -> list[list[str]]:
    training, recipe = bundle.training, bundle.training["recipe"]
    kept = training["best"]["epoch"]
    weights = [f"{name} {weight:g}" for name, weight in recipe["weights"].items()]
    steps = f"learning rate {recipe['learning_rate']:g}, batches of {recipe['batch_size']}"
    return [
        ["", ""],
        ["data", ", ".join(training["data"])],
        ["images", ", ".join(f"{split} {count:,}" for split, count in training["images"].items())],
        ["split", training["split"]],
        ["split digest", training["split_digest"]],
        ["started from", recipe["init"]],
        ["epochs", f"{recipe['epochs']}; epoch {kept:.0f} was kept (lowest validation loss)"],
        ["optimizer", f"{recipe['optimizer']}, {steps}"],
        ["label smoothing", f"{recipe['label_smoothing']:g}"],
        ["balance", recipe["balance"]],
        ["source weights", ", ".join(weights) or "-"],
        ["augmentation", recipe["augmentation"]],
        ["seed", str(recipe["seed"])],
        ["weights", "moving average of the trained weights, stored as float16"],
    ]


def _operating_points(bundle: Bundle) -> list[list[str]]:
    shown = [["operating point", "threshold", "precision", "recall", "false alarms"]]
    for name, point in bundle.operating_points.items():
        reached = (point.precision, point.recall, point.false_alarm_rate)
        shown.append([f"`{name}`", f"{point.threshold:.4f}", *(f"{value:.3f}" for value in reached)])
    return shown


def _table(rows: list[list[str]]) -> str:
    header, *others = rows
    lines = [header, ["---"] * len(header), *others]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
