"""Compares two runs image by image: what is new or gone, and what is judged in another way."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crackbatch.errors import OptionError, OutputError
from crackbatch.reports.exports import check_file, columns_of, write_csv
from crackbatch.reports.folders import folder_of
from crackbatch.results.predictions import read_predictions
from crackbatch.results.run import RUN_ID
from crackbatch.results.states import published_runs
from crackbatch.storage import atomic, locations
from crackbatch.storage.redaction import masked

if TYPE_CHECKING:
    import pandas as pd

# What can happen to an image from one run to the next, in the order in which it is told.
CHANGES = {
    "rose": "rose above the threshold",
    "fell": "fell below the threshold",
    "status": "changed status",
    "new": "new",
    "gone": "gone",
}
_OF_IMAGES = ["image_uri", "archive", "status", "label", "crack_probability"]
_OF_RUNS = ["version", "threshold", "model_id", "tiles"]


@dataclass(frozen=True, eq=False)
class RunComparison:
    """Two runs beside each other.

    `changes` has a row for each image that changed: `change` (a key of `CHANGES`), `image_uri`, `folder`, and of both
    runs `status_before`, `status_after`, `probability_before`, `probability_after`. `folders` counts the changes of
    each folder or archive. `notes` says what else differs between the runs, such as the model.
    """

    before: str
    after: str
    same: int
    changes: pd.DataFrame
    folders: pd.DataFrame
    notes: list[str]

    @property
    def counts(self) -> dict[str, int]:
        """The number of images for each change."""
        found = self.changes["change"].value_counts()
        return {change: int(found.get(change, 0)) for change in CHANGES}


def compare_runs(
    before: locations.Location, after: locations.Location | None = None, *, csv: locations.Location | None = None
) -> RunComparison:
    """Compare two runs, each given as `OUT/runs/RUN_ID`, or as OUT for its newest published run.

    With only an OUT, its two newest published runs are compared. The changes are also written to the file `csv`. Raises
    RequestError.
    """
    file = None if csv is None else check_file(csv, ".csv")
    runs = _two_newest(os.fspath(before)) if after is None else [_run(os.fspath(run)) for run in (before, after)]
    tables = [_read(*run) for run in runs]
    changes, same = _changes(*tables)
    found = RunComparison(runs[0][1], runs[1][1], same, changes, _by_folder(changes), _notes(*tables))
    if file is not None:
        with atomic.new_file(file) as opened:
            write_csv(changes.columns, zip(*columns_of(changes, changes.columns), strict=True), opened)
    return found


def _two_newest(out: str) -> list[tuple[str, str]]:
    runs = published_runs(out)[-2:]
    if len(runs) < 2:
        raise OptionError(f"{masked(out)} has {len(runs)} published runs; two are needed, or give two OUT/runs/RUN_ID")
    return [(out, run.run_id) for run in runs]


def _run(given: str) -> tuple[str, str]:
    """Return the OUT and the id of a run."""
    above, _, run_id = given.rstrip("/").rpartition("/")
    if above.rpartition("/")[2] == "runs" and RUN_ID.fullmatch(run_id):
        return above.rpartition("/")[0] or ".", run_id
    if not (runs := published_runs(given)):
        raise OutputError(f"no published run in {masked(given)}")
    return given, runs[-1].run_id


def _read(out: str, run_id: str) -> pd.DataFrame:
    """Return the rows of a run. Members of an archive can have one name; `same_name` numbers them."""
    rows = read_predictions(out, run_id=run_id, columns=[*_OF_IMAGES, *_OF_RUNS]).sort_values("version", kind="stable")
    rows["same_name"] = rows.groupby("image_uri").cumcount()
    return rows


def _changes(before: pd.DataFrame, after: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Return the images that changed, the most probable first, and how many did not."""
    import numpy as np

    names = [*_OF_IMAGES, "same_name"]
    keys, suffixes = ["image_uri", "same_name"], ("_before", "_after")
    both = before[names].merge(after[names], "outer", keys, suffixes=suffixes, indicator="side")
    were, are = both["label_before"] == "crack", both["label_after"] == "crack"
    scored = (both["status_before"] == "ok") & (both["status_after"] == "ok")
    both["change"] = np.select(
        [
            both["side"] == "right_only",
            both["side"] == "left_only",
            both["status_before"] != both["status_after"],
            scored & are & ~were,
            scored & were & ~are,
        ],
        ["new", "gone", "status", "rose", "fell"],
        "",
    )
    changed = both[both["change"] != ""].copy()
    archives = changed["archive_after"].where(changed["archive_after"].notna(), changed["archive_before"])
    changed["folder"] = [folder_of(uri, archive) for uri, archive in zip(changed["image_uri"], archives, strict=True)]
    changed = changed.rename(columns=lambda name: name.replace("crack_probability", "probability"))
    changed["order"] = changed["change"].map({change: at for at, change in enumerate(CHANGES)})
    changed = changed.sort_values(["order", "probability_after", "image_uri"], ascending=[True, False, True])
    names = ["change", "image_uri", "folder", "status_before", "status_after", "probability_before"]
    return changed[[*names, "probability_after"]].reset_index(drop=True), len(both) - len(changed)


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _by_folder(changes: pd.DataFrame) -> pd.DataFrame:
    """Return the number of each change in each folder, the folders with most changes first."""
    import pandas as pd

    found = pd.crosstab(changes["folder"], changes["change"]).reindex(columns=list(CHANGES), fill_value=0)
    return found.loc[found.sum(axis=1).sort_values(ascending=False, kind="stable").index]


def _notes(before: pd.DataFrame, after: pd.DataFrame) -> list[str]:
    """Say what else differs. Photographs have a threshold of their own, so a run without any has one less."""
    kinds = [
        ("models", *(table["model_id"] for table in (before, after))),
        ("thresholds", *(table["threshold"][table["tiles"].isna()] for table in (before, after))),
        ("thresholds for photographs", *(table["threshold"][table["tiles"].notna()] for table in (before, after))),
    ]
    notes = []
    for what, *columns in kinds:
        old, new = (sorted(map(_text, column.dropna().unique())) for column in columns)
        if old and new and old != new:
            notes.append(f"the runs have other {what}: {', '.join(old)} before, {', '.join(new)} after")
    return notes
