"""Measures a model for its card, and writes the card: every table and picture, and the prose around them.

    python benchmarks/model_card.py build/final --split build/split/split.parquet --data metu.zip 'sdnet*.tar' \\
        --photos cells.csv --noise build/noise --out crackbatch/models/concrete-resnet18/MODEL_CARD.md

The tiles are those of the test split. `--photos` are photographs that no training has seen, with a label for each cell.
`--noise` is the folder of label_noise.py: its models say which labels of the test split are doubtful.
"""

from __future__ import annotations

import argparse
import io
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageFilter
import pyarrow.parquet as pq
from label_noise import is_suspect, read_scores

import crackbatch
from crackbatch.datasets.dataset import read_dataset, read_encoded, with_given_split
from crackbatch.evaluation.metrics import Metric, Scored, measure
from crackbatch.evaluation.photos import evaluate_photos
from crackbatch.evaluation.plots import plot_reliability
from crackbatch.images.picture import Picture, from_pillow, to_input
from crackbatch.images.sheet import Tile, contact_sheet
from crackbatch.models.bundle import Bundle, calibrated, read_bundle_and_weights
from crackbatch.models.card import photo_section
from crackbatch.models.heat import lay_over
from crackbatch.models.model import Model, one_thread_each

SURFACES = {"metu": "METU", "D": "SDNET2018 decks", "P": "SDNET2018 pavements", "W": "SDNET2018 walls"}
SURFACE = re.compile(r"(?:^|/)([DPW])/[CU][DPW]/")
Change = Callable[[PIL.Image.Image], list[PIL.Image.Image]]


def blurred(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Return a picture as if the camera had moved by five pixels, from left to right."""
    pixels = np.asarray(picture, np.float32)
    padded = np.pad(pixels, ((0, 0), (2, 2), (0, 0)), mode="edge")
    moved = np.mean([padded[:, at : at + pixels.shape[1]] for at in range(5)], axis=0)
    return PIL.Image.fromarray(moved.round().astype(np.uint8))


def compressed(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Return a picture after JPEG at quality 50."""
    target = io.BytesIO()
    picture.save(target, "JPEG", quality=50)
    return PIL.Image.open(target).convert("RGB")


def coarser(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Return a picture with half the resolution."""
    return picture.resize((picture.width // 2, picture.height // 2), PIL.Image.Resampling.BOX)


def quarters(picture: PIL.Image.Image) -> list[PIL.Image.Image]:
    """Return the four quarters of a picture: what four windows see from half the distance."""
    half = (picture.width // 2, picture.height // 2)
    return [picture.crop((x, y, x + half[0], y + half[1])) for x in (0, half[0]) for y in (0, half[1])]


CHANGES: dict[str, Change] = {
    "as it is": lambda picture: [picture],
    "half the resolution": lambda picture: [coarser(picture)],
    "twice as near (the highest of four quarters)": quarters,
    "JPEG at quality 50": lambda picture: [compressed(picture)],
    "motion blur of 5 pixels": lambda picture: [blurred(picture)],
    "half the brightness": lambda picture: [picture.point(lambda value: value // 2)],
    "twice the brightness": lambda picture: [picture.point(lambda value: min(255, 2 * value))],
}


class Tiles:
    """The tiles of the test split: their pictures, labels, groups and surfaces."""

    def __init__(self, data: list[str], split: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            rows = with_given_split(read_dataset(data, scratch=scratch), str(split)).part("test")
            encoded = [image.data or b"" for batch in read_encoded(rows) for image in batch]
        self.pictures = [PIL.Image.open(io.BytesIO(image)).convert("RGB") for image in encoded]
        self.labels = np.asarray(rows.column("label")).astype(np.int64)
        self.groups = np.asarray(rows.column("group").to_pylist(), dtype=object).astype(str)
        self.digests = rows.column("sha256").to_pylist()
        self.names = [uri.partition("::")[0].partition("://")[2] for uri in rows.column("image_uri").to_pylist()]
        found = [SURFACE.search(name) for name in self.names]
        self.surfaces = np.array([surface[1] if surface else "metu" for surface in found])

    def scored(self, probabilities: np.ndarray, chosen: np.ndarray) -> Scored:
        """Return some of the tiles with their probabilities."""
        return Scored(probabilities, self.labels, self.groups).where(chosen)

    def by_surface(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the name of each surface, and which tiles are of it; then all of them."""
        for key, name in SURFACES.items():
            yield name, self.surfaces == key
        yield "all", np.ones(len(self.labels), bool)


def logits_of(model: Model, pictures: list[PIL.Image.Image], change: Change) -> np.ndarray:
    """Return the logit of each picture after a change; of several pictures, the highest."""
    found = []
    with one_thread_each():
        for picture in pictures:
            inputs = [to_input(from_pillow(changed), model.bundle.input_size) for changed in change(picture)]
            found.append(float(model.logits(np.stack(inputs)).max()))
    return np.array(found, np.float32)


def doubtful(tiles: Tiles, noise: Path) -> np.ndarray:
    """Return which labels of the test split two models that have not seen it find wrong (label_noise.py)."""
    mean = np.mean([known.reindex(tiles.digests).to_numpy(float) for known in read_scores(noise)], axis=0)
    return is_suspect(mean, tiles.labels == 1)


def interval(metric: Metric) -> str:
    """Return a value with its interval."""
    if metric.low != metric.low:
        return f"{metric.value:.3f}"
    return f"{metric.value:.3f} ({metric.low:.3f}-{metric.high:.3f})"


def table(rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def results(tiles: Tiles, probabilities: np.ndarray, line: float, kept: np.ndarray) -> str:
    """Return the metrics by surface."""
    names = ("accuracy", "precision", "recall", "average_precision", "roc_auc", "ece")
    rows = [["", "tiles", "groups", *(name.replace("_", " ").replace("roc auc", "ROC AUC") for name in names)]]
    for surface, chosen in tiles.by_surface():
        part = tiles.scored(probabilities, chosen & kept)
        found = measure(part, line)
        counts = [f"{len(part.labels):,}", f"{len(set(part.groups.tolist())):,}"]
        rows.append([surface, *counts, *(interval(found[name]) for name in names)])
    return table(rows)


def points(tiles: Tiles, probabilities: np.ndarray, bundle: Bundle) -> str:
    """Return precision, recall and false alarms of each operating point, by surface."""
    rows = [["", *(f"`{name}`" for name in bundle.operating_points)]]
    for surface, chosen in tiles.by_surface():
        cells = []
        for point in bundle.operating_points.values():
            part = tiles.scored(probabilities, chosen)
            flagged, cracked = part.probabilities >= np.float32(point.threshold), part.labels == 1
            precision = (flagged & cracked).sum() / max(1, flagged.sum())
            cells.append(f"{precision:.2f} / {flagged[cracked].mean():.2f} / {flagged[~cracked].mean():.2f}")
        rows.append([surface, *cells])
    return table(rows)


def robustness(tiles: Tiles, model: Model, line: float) -> tuple[str, np.ndarray]:
    """Return what changes of the pictures do to the results, and the logits of the pictures as they are."""
    bundle = model.bundle
    rows = [["", *(f"ROC AUC, {name}" for name in SURFACES.values()), "recall", "false alarms"]]
    plain = np.empty(0, np.float32)
    for name, change in CHANGES.items():
        logits = logits_of(model, tiles.pictures, change)
        plain = logits if not len(plain) else plain
        probabilities = calibrated(logits, bundle.temperature)
        ranks = [
            measure(tiles.scored(probabilities, tiles.surfaces == key), line, repeats=1)["roc_auc"] for key in SURFACES
        ]
        flagged, cracked = probabilities >= np.float32(line), tiles.labels == 1
        rows.append([name, *(f"{rank.value:.3f}" for rank in ranks), f"{flagged[cracked].mean():.2f}",
                     f"{flagged[~cracked].mean():.2f}"])  # fmt: skip
        print(rows[-1], flush=True)
    return table(rows), plain


def alarms_of_photos(metrics: dict) -> str:  # type: ignore[type-arg]
    """Return recall and false alarms of photographs, by surface and operating point."""
    rows = [["", "photographs", "views (cracked)", "at", "recall", "false alarms per 100 sound views",
             "per 100 megapixels"]]  # fmt: skip
    for surface, said in metrics["views"].items():
        for point, reached in said["at"].items():
            if point == "threshold":
                continue
            counts = [str(said["photographs"]), f"{said['views']} ({said['cracked']})"]
            cells = []
            for name, digits in (
                ("recall", 2),
                ("false_alarms_per_100_views", 0),
                ("false_alarms_per_100_megapixels", 1),
            ):
                value, low, high = (reached[name][bound] for bound in ("value", "low", "high"))
                if value is None or value != value:
                    cells.append("-")
                else:
                    bounds = "" if low is None or low != low else f" ({low:.{digits}f}-{high:.{digits}f})"
                    cells.append(f"{value:.{digits}f}{bounds}")
            rows.append([surface, *counts, f"`{point}`", *cells])
    return table(rows)


def cells_of_photos(metrics: dict) -> str:  # type: ignore[type-arg]
    """Return how well the maps tell cracked cells from sound ones."""
    rows = [["", "photographs", "cells (cracked)", "ROC AUC", "average precision"]]
    for surface, said in metrics["cells"].items():
        ranks = [Metric(**{key: float("nan") if value is None else value for key, value in said[name].items()})
                 for name in ("roc_auc", "average_precision")]  # fmt: skip
        rows.append([surface, str(said["photographs"]), f"{said['cells']:,} ({said['cracked']:,})",
                     *("-" if rank.value != rank.value else interval(rank) for rank in ranks)])  # fmt: skip
    return table(rows)


def draw_errors(tiles: Tiles, probabilities: np.ndarray, line: float, model: Model, folder: Path) -> None:
    """Write a sheet of the worst misses and false alarms, each beside what looked like a crack."""
    sections = {}
    for title, label in (("the worst misses", 1), ("the worst false alarms", 0)):
        wrong = np.flatnonzero((tiles.labels == label) & ((probabilities >= np.float32(line)) != bool(label)))
        wrong = wrong[np.argsort(probabilities[wrong] * (1 if label else -1), kind="stable")][:9]
        shown = []
        for place in wrong.tolist():
            picture = tiles.pictures[place]
            crack_map = model.map_tile(to_input(Picture(pixels=picture), model.bundle.input_size), *picture.size)
            shown += [Tile(picture, [f"crack {probabilities[place]:.3f}", tiles.names[place]]),
                      Tile(lay_over(picture, *picture.size, crack_map, None), ["what looks like a crack"])]  # fmt: skip
        sections[title] = shown
    sheet = PIL.Image.open(io.BytesIO(contact_sheet(sections))).convert("RGB")
    sheet.save(folder / "errors.jpg", quality=80)


def draw_maps(cells: Path, model: str, folder: Path) -> None:
    """Write a sheet of the photographs with their crack maps."""
    with tempfile.TemporaryDirectory() as scratch:
        photos = sorted(path for path in cells.parent.glob("*.jpg"))
        shown = crackbatch.show(list(map(str, photos)), scratch, model=model, ground_resolution=0.25)
        pictures = [PIL.Image.open(file).convert("RGB") for file in shown.files]
        small = [picture.resize((700, round(700 * picture.height / picture.width))) for picture in pictures]
        height = max(picture.height for picture in small)
        sheet = PIL.Image.new("RGB", (1400, height * -(-len(small) // 2)), "black")
        for place, picture in enumerate(small):
            sheet.paste(picture, (700 * (place % 2), height * (place // 2)))
        sheet.save(folder / "maps.jpg", quality=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--noise", type=Path, required=True)
    parser.add_argument("--prose", type=Path, default=Path(__file__).parent / "model_card.md")
    parser.add_argument("--pictures", type=Path, default=Path("docs/model"))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    bundle, weights = read_bundle_and_weights(arguments.model)
    model, line = Model(bundle, weights), bundle.draw_line(None, None)
    tiles = Tiles(arguments.data, arguments.split)
    changed, logits = robustness(tiles, model, line)
    probabilities = calibrated(logits, bundle.temperature)
    suspects = doubtful(tiles, arguments.noise)
    everything = np.ones(len(tiles.labels), bool)
    arguments.pictures.mkdir(parents=True, exist_ok=True)
    draw_errors(tiles, probabilities, line, model, arguments.pictures)
    draw_maps(arguments.photos, arguments.model, arguments.pictures)
    surfaces = {name: tiles.scored(probabilities, chosen) for name, chosen in tiles.by_surface()}
    (arguments.pictures / "reliability.png").write_bytes(plot_reliability(surfaces))
    with tempfile.TemporaryDirectory() as scratch:
        _, photos = evaluate_photos(str(arguments.photos), scratch, arguments.model, None, None)
    splits = pq.read_table(arguments.split, columns=["split"]).column("split").to_pylist()
    chosen_points = [["", "threshold", "precision", "recall", "false alarms"]]
    for name, point in bundle.operating_points.items():
        reached = (point.precision, point.recall, point.false_alarm_rate)
        chosen_points.append([f"`{name}`", f"{point.threshold:.4f}", *(f"{value:.3f}" for value in reached)])
    recipe = bundle.training["recipe"]
    values = {
        "model_id": bundle.model_id,
        "input_size": bundle.input_size,
        "temperature": f"{bundle.temperature:.3f}",
        "line": f"{line:.3f}",
        "torch": bundle.training["versions"]["torch"],
        "seed": recipe["seed"],
        **{f"num_{name}": f"{splits.count(name):,}" for name in ("train", "validation", "test")},
        "results": results(tiles, probabilities, line, everything),
        "num_doubtful": f"{int(suspects.sum()):,}",
        "results_kept": results(tiles, probabilities, line, ~suspects),
        "chosen_points": table(chosen_points),
        "points": points(tiles, probabilities, bundle),
        "robustness": changed,
        "photo_section": photo_section(bundle),
        "cells": cells_of_photos(photos),
        "alarms": alarms_of_photos(photos),
    }
    text = arguments.prose.read_text()
    for name, value in values.items():
        text = text.replace(f"{{{{ {name} }}}}", str(value))
    assert "{{" not in text, re.findall(r"\{\{.*?\}\}", text)
    arguments.out.write_text(text)


if __name__ == "__main__":
    main()
