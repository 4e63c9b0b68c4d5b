"""Finds training tiles whose label is probably wrong, by predictions of models that were not trained on them.

    python benchmarks/label_noise.py folds build/split/split.parquet --out build/noise
    crackbatch train … --split build/noise/fold-0.parquet --out build/noise/model-0      (the same with 1)
    crackbatch score … --model build/noise/model-0 --out build/noise/scores-0            (the same with 1)
    python benchmarks/label_noise.py suspects build/noise --share 0.02

Two halves of the training photographs predict each other. A tile is a suspect if the model of the other half is as
sure of the other label as it is on average of tiles that have that label: confident learning (Northcutt, Jiang & Chuang
2021, Journal of Artificial Intelligence Research 70, 1373-1411). `suspects` writes a list, a contact sheet of the worst
hundred, and for each source a manifest without the suspects, with a split that fits them.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq

import crackbatch
from crackbatch.datasets.split import write_split
from crackbatch.images.sheet import Tile, contact_sheet
from crackbatch.sources.image import open_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    folds = commands.add_parser("folds")
    folds.add_argument("split", type=Path)
    folds.add_argument("--out", type=Path, required=True)
    folds.set_defaults(run=write_folds)
    suspects = commands.add_parser("suspects")
    suspects.add_argument("folder", type=Path)
    suspects.add_argument("--share", type=float, default=1.0, help="most suspects, as a share of the training tiles")
    suspects.set_defaults(run=find_suspects)
    arguments = parser.parse_args()
    arguments.run(arguments)


def half_of(group: str) -> int:
    """Return 0 or 1, the half that a photograph belongs to."""
    return hashlib.sha256(group.encode()).digest()[0] % 2


def write_folds(arguments: argparse.Namespace) -> None:
    """Write two splits that hold one half of the training photographs out."""
    table = pq.read_table(arguments.split)
    arguments.out.mkdir(parents=True, exist_ok=True)
    groups, splits = (table.column(name).to_pylist() for name in ("group", "split"))
    for half in (0, 1):
        drawn = [
            "test" if split == "train" and half_of(group) == half else split
            for group, split in zip(groups, splits, strict=True)
        ]
        changed = table.set_column(table.column_names.index("split"), "split", pa.array(drawn))
        write_split(changed, str(arguments.out / f"fold-{half}.parquet"))
        print(f"fold {half}: {Counter(drawn)}")
    write_split(table, str(arguments.out / "split.parquet"))


def read_scores(folder: Path) -> list[pd.Series]:
    """Return the probabilities that the model of each half gave, by the sha256 of the tile."""
    return [
        crackbatch.read_predictions(folder / f"scores-{half}", columns=["sha256", "crack_probability"])
        .drop_duplicates("sha256")
        .set_index("sha256")["crack_probability"]
        for half in (0, 1)
    ]


def is_suspect(probabilities: np.ndarray, cracked: np.ndarray) -> np.ndarray:
    """Return which labels are probably wrong (tiles,) bool."""
    sure_of_crack, sure_of_sound = probabilities[cracked].mean(), (1 - probabilities[~cracked]).mean()
    print(f"mean probability of the own label: cracked {sure_of_crack:.3f}, sound {sure_of_sound:.3f}")
    found: np.ndarray = np.where(cracked, 1 - probabilities >= sure_of_sound, probabilities >= sure_of_crack)
    return found


def find_suspects(arguments: argparse.Namespace) -> None:
    """List the suspects, draw the worst hundred, and write manifests without them."""
    folder: Path = arguments.folder
    table = pq.read_table(folder / "split.parquet").to_pandas()
    scored = read_scores(folder)
    table["half"] = table["group"].map(half_of)
    table["p"] = np.where(table["half"] == 0, *(table["sha256"].map(known) for known in scored))
    training = table[table["split"] == "train"].dropna(subset=["p"])
    found = training[is_suspect(training["p"].to_numpy(), training["label"].to_numpy() == 1)].copy()
    found["p_of_label"] = np.where(found["label"] == 1, found["p"], 1 - found["p"])
    found = found.sort_values("p_of_label").head(round(arguments.share * len(training)))
    print(f"{len(found):,} suspects of {len(training):,} training tiles: {Counter(found['label'])}")
    found[["image_uri", "label", "p"]].to_csv(folder / "suspects.csv", index=False)
    draw(found.head(100), folder / "suspects.png")
    write_clean(table[~table["sha256"].isin(set(found["sha256"]))], folder)


def draw(rows: pd.DataFrame, file: Path) -> None:
    """Write a contact sheet of tiles, by their published label."""
    pictures = dict(open_images([(uri, None) for uri in rows["image_uri"]]))
    sections: dict[str, list[Tile]] = {"labelled as cracked": [], "labelled as sound": []}
    for place, row in enumerate(rows.itertuples()):
        picture = PIL.Image.open(io.BytesIO(pictures[place])).convert("RGB")
        title = "labelled as cracked" if row.label else "labelled as sound"
        sections[title].append(Tile(picture, [f"{row.p:.3f}", row.image_uri.partition("::")[0].rpartition("//")[2]]))
    file.write_bytes(contact_sheet(sections))


def write_clean(table: pd.DataFrame, folder: Path) -> None:
    """Write a manifest of each source, and the split of the tiles that are left."""
    for name in ("metu", "sdnet"):
        rows = table[table["image_uri"].str.contains(f"/{name}[^/]*$")]
        with open(folder / f"{name}.csv", "w", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(["image_uri", "label", "group"])
            lines.writerows(rows[["image_uri", "label", "group"]].itertuples(index=False))
    columns = ["image_uri", "label", "group", "split", "sha256"]
    write_split(pa.Table.from_pandas(table[columns], preserve_index=False), str(folder / "clean.parquet"))


if __name__ == "__main__":
    main()
