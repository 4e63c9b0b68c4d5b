"""The archive that `make demo` draws is the same every time, and holds tiles and odd files."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image

from builders.plans import plan_of
from crackbatch.cli.demo import TILE, draw_archive, draw_tile
from crackbatch.images.picture import read_image


def test_the_drawn_archive_is_the_same_every_time_and_holds_odd_files_too(tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        draw_archive(tmp_path / name, 8)
    with zipfile.ZipFile(tmp_path / "a.zip") as first, zipfile.ZipFile(tmp_path / "b.zip") as second:
        drawn = {name: first.read(name) for name in first.namelist() if "/tile-" in name}
        assert drawn == {name: second.read(name) for name in drawn}
        odd = {
            name.rpartition("/")[2]: read_image(first.read(name)).status
            for name in first.namelist()
            if name not in drawn
        }
    assert len(drawn) == 8
    assert {read_image(data).status for data in drawn.values()} == {"ok"}
    assert (odd["interrupted.jpg"], odd["empty.jpg"], odd["renamed.jpg"]) == ("truncated", "empty", "not_an_image")
    assert plan_of(tmp_path / "a.zip").table.num_rows == 8 + 3
    assert dict(plan_of(tmp_path / "a.zip").listing.passed_over) == {"hidden files": 1, ".txt files": 1}


def test_a_cracked_tile_has_a_dark_line_and_a_sound_one_has_none() -> None:
    for seed in range(10):
        cracked, sound = (PIL.Image.open(io.BytesIO(draw_tile(seed, cracked))) for cracked in (True, False))
        assert cracked.size == sound.size == (TILE, TILE)
        assert np.asarray(cracked.convert("L")).min() < 100 < np.asarray(sound.convert("L")).min()
