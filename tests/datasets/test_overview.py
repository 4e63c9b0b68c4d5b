"""An overview counts every image, draws some, and says what told the groups."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow.parquet as pq

from builders.pictures import make_photos
from crackbatch import describe_dataset
from crackbatch.cli.demo import draw_tile


def test_an_overview_counts_every_image_and_draws_them(tmp_path: Path) -> None:
    overview = describe_dataset(str(make_photos(tmp_path / "deck")), str(tmp_path / "out"))
    assert sum(images for images, _ in overview.counts.values()) == 48
    sheet = np.asarray(PIL.Image.open(tmp_path / "out" / "dataset.png"))
    assert sheet.std() > 10
    train = [
        groups for (_, label, split), (_, groups) in overview.counts.items() if (label, split) == ("crack", "train")
    ]
    table = pq.read_table(tmp_path / "out" / "split.parquet").to_pandas()
    assert train == [table[(table["split"] == "train") & (table["label"] == 1)]["group"].nunique()]


def test_an_overview_says_what_told_the_groups(tmp_path: Path) -> None:
    make_photos(tmp_path / "site" / "deck")
    assert describe_dataset(str(tmp_path / "site"), str(tmp_path / "known")).notes == [
        "48 images are grouped by photos named in paths"
    ]
    for index in range(4):
        (tmp_path / "site" / "deck" / "D" / "UD" / f"{index}.jpg").write_bytes(draw_tile(500 + index, cracked=False))
    known, guessed = describe_dataset(str(tmp_path / "site"), str(tmp_path / "guessed")).notes
    assert known == "48 images are grouped by photos named in paths"
    assert re.fullmatch(
        r"4 images are grouped by blocks of neighbouring names, .* a guess \(see --group-pattern\)", guessed
    )
