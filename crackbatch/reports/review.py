"""Chooses the images that a person should look at, shows them on a page for answers, and reads the answers."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from crackbatch.datasets.answers import Answers, import_answers
from crackbatch.datasets.duplicates import clusters
from crackbatch.errors import OptionError
from crackbatch.models.bundle import DEFAULT_MODEL
from crackbatch.progress import Step, counted
from crackbatch.reports.exports import harmless, place, records, write_csv, write_tasks
from crackbatch.reports.page import Pictured, render
from crackbatch.reports.thumbnails import COLUMNS, Thumbnail, draw_thumbnails, model_of
from crackbatch.results.predictions import read_predictions
from crackbatch.storage import atomic, locations
from crackbatch.storage.redaction import masked

if TYPE_CHECKING:
    import pandas as pd

MOST_IMAGES = 500
REASONS = {"random": "drawn at random", "near": "near the threshold"}
# Of five images, one is drawn at random: they show how often the model is right, which the others do not.
_RANDOM_SHARE = 5
# So many times more images than asked for are looked at, since near-duplicates are left out.
_SPARE = 1.5
_LISTED = ["reason", "file", "archive", "label", "crack_probability", "similar", "answer", "image_uri", "version"]


@dataclass(frozen=True)
class Review:
    """The files for a review, and the images in them by reason. `similar` counts near-duplicates that are left out."""

    page: str
    csv: str
    tasks: str
    images: dict[str, int]
    similar: int
    notes: list[str]


class _Chosen(NamedTuple):
    row: dict[str, Any]
    reason: str


class Item(NamedTuple):
    """An image to look at, why, and how many others look the same."""

    pictured: Pictured
    reason: str
    similar: int


def review(
    out: locations.Location | None = None,
    folder: locations.Location = "",
    *,
    run_id: str | None = None,
    num: int = 100,
    seed: int = 0,
    model: locations.Location = DEFAULT_MODEL,
    answers: locations.Location | None = None,
) -> Review | Answers:
    """Write to a folder what a person should look at: a page for answers, a CSV, and tasks for Label Studio.

    Four of five images are those nearest to the threshold, of which the model is least sure; the others are drawn at
    random. Of near-duplicates only one is shown. With `answers`, a file of answers of this page or of a labelling tool
    becomes a manifest: `folder` is then the .csv file to write, and names are looked up in the results, if `out` is
    given. Raises RequestError.
    """
    if answers is not None:
        uris = None if out is None else read_predictions(out, run_id=run_id, columns=["image_uri"])["image_uri"]
        return import_answers(answers, folder, uris)
    if out is None:
        raise OptionError("give the --out of score, or --import with a file of answers")
    if not 1 <= num <= MOST_IMAGES:
        raise OptionError(f"--num must be from 1 to {MOST_IMAGES}, got {num}")
    location = atomic.check_output(os.fspath(folder))
    rows = read_predictions(out, run_id=run_id, columns=[*COLUMNS, "model_id"])
    chosen = _choose(rows[rows["status"] == "ok"], num, seed)
    notes: list[str] = []
    network = model_of({item.row["model_id"] for item in chosen}, model, notes)
    with Step("drawing", lambda: f" {counted(len(chosen), 'picture')}"):
        thumbnails = dict(draw_thumbnails([item.row for item in chosen], {}, network, photo_maps=False))
    kept = _fold(chosen, [thumbnails[number] for number in range(len(chosen))], num)
    return _write(location, kept, notes)


def _choose(scored: pd.DataFrame, num: int, seed: int) -> list[_Chosen]:
    """Return candidates, those drawn at random first; some more than asked for."""
    num_random = min(len(scored), -(-num // _RANDOM_SHARE))
    drawn = random.Random(seed).sample(range(len(scored)), min(len(scored), round(_SPARE * num_random)))
    distance = (scored["crack_probability"] - scored["threshold"]).abs().reset_index(drop=True)
    near = distance.drop(drawn[:num_random]).nsmallest(round(_SPARE * num)).index
    found = [(row, "random") for row in drawn] + [(row, "near") for row in near if row not in set(drawn)]
    taken = records(scored.iloc[[row for row, _ in found]])
    return [_Chosen(row, reason) for row, (_, reason) in zip(taken, found, strict=True)]


def _fold(chosen: Sequence[_Chosen], thumbnails: Sequence[Thumbnail], num: int) -> list[Item]:
    """Return at most `num` images, the first of each set of near-duplicates."""
    looks = [bytes.fromhex(thumbnail.looks) if thumbnail.looks else None for thumbnail in thumbnails]
    num_random, kept, of = -(-num // _RANDOM_SHARE), dict[int, list[int]](), 0
    for number, cluster in enumerate(clusters(looks).tolist()):
        if cluster in kept:
            kept[cluster].append(number)
            continue
        is_random = chosen[number].reason == "random"
        if len(kept) < num and not (is_random and of == num_random):
            kept[cluster] = [number]
            of += is_random
    return [
        Item(Pictured(chosen[first].row, thumbnails[first]), chosen[first].reason, len(others))
        for first, *others in kept.values()
    ]


def _write(location: str, kept: list[Item], notes: list[str]) -> Review:
    import pandas as pd

    files = [locations.join(location, name) for name in ("review.html", "review.csv", "tasks.json")]
    lines = [
        {**row, **place(row["image_uri"], row["archive"]), "reason": reason, "similar": similar, "answer": ""}
        for (row, _), reason, similar in kept
    ]
    listed = [[line[name] for name in _LISTED] for line in lines]
    cells = [["" if cell is None else harmless(cell) for cell in line] for line in listed]
    saved = {"columns": _LISTED, "rows": cells}
    atomic.write_whole(files[0], render("review.html", kept=kept, reasons=REASONS, notes=notes, lines=saved))
    with atomic.new_file(files[1]) as opened:
        write_csv(_LISTED, listed, opened)
    loose = [line for line in lines if line["archive"] is None]
    table = pd.DataFrame(loose, columns=list(lines[0]))
    if num := len(lines) - len(table):
        notes.append(f"not among the tasks for Label Studio, which cannot open archives: {counted(num, 'image')}")
    with atomic.new_file(files[2]) as opened:
        write_tasks(table, False, opened)
    counts = {reason: sum(item.reason == reason for item in kept) for reason in REASONS}
    page, listed_in, tasks = map(masked, files)
    return Review(page, listed_in, tasks, counts, sum(item.similar for item in kept), notes)
