"""The pictures show the crack under the colour, and what cannot be shown is said."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import crackbatch
from builders.pictures import draw_photo, encode
from builders.runs import score
from crackbatch.errors import OptionError
from crackbatch.models.photo import Box, CrackMap
from crackbatch.reports.overlay import draw_overlay


def redness(picture: np.ndarray) -> np.ndarray:
    """How much redder than blue each pixel is: concrete is grey, the map yellow to red."""
    return picture[..., 0].astype(int) - picture[..., 2]


def test_the_colour_and_the_box_are_where_the_crack_is(tmp_path: Path) -> None:
    photo = draw_photo(7, 5, cracked=(2, 3, 4))
    photo.save(tmp_path / "pier 3.jpg", quality=95)
    (tmp_path / "bad.jpg").write_bytes(b"%PDF-1.7")
    images = [tmp_path / "pier 3.jpg", tmp_path / "bad.jpg", "gone.jpg"]
    shown = crackbatch.show([str(image) for image in images], tmp_path / "pictures")
    (file,) = shown.files
    assert Path(file).name == "001-pier_3.jpg"
    assert list(shown.passed_over) == [str(tmp_path / "bad.jpg"), "gone.jpg"]
    assert shown.passed_over[str(tmp_path / "bad.jpg")].startswith("not_an_image: ")
    drawn = PIL.Image.open(file).convert("RGB")
    ratio = drawn.width / photo.width
    assert max(drawn.size) <= 2000
    red = redness(np.asarray(drawn)) > 40
    cell = round(256 * ratio)
    assert red[round(2.4 * cell) : round(2.6 * cell), 3 * cell : 4 * cell].mean() > 0.9
    assert red[:cell].mean() < 0.01
    blue = redness(np.asarray(drawn)) < -100
    rows, columns = np.nonzero(blue)
    assert 1.5 * cell < rows.min() < 2.5 * cell < rows.max() < 3.5 * cell
    assert columns.min() < 2.3 * cell
    assert 4.7 * cell < columns.max() < 6 * cell


def test_the_most_probable_rows_of_a_run_are_shown_also_members_of_archives(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr("sound.png", encode(draw_photo(2, 2, cracked=()), "PNG"))
        archive.writestr("a/cracked.png", encode(draw_photo(3, 3, cracked=(0, 1, 2)), "PNG"))
        archive.writestr("bad.jpg", b"")
    score(tmp_path / "in.zip", tmp_path / "out", engine="local")
    shown = crackbatch.show(results=tmp_path / "out", out=tmp_path / "pictures", top=1, ground_resolution=0.25)
    assert [Path(file).name for file in shown.files] == ["001-cracked.jpg"]
    shown = crackbatch.show(results=tmp_path / "out", out=tmp_path / "pictures")
    assert [Path(file).name for file in shown.files] == ["001-cracked.jpg", "002-sound.jpg"]
    assert not shown.passed_over


def test_a_map_reaches_the_borders_and_a_tiny_picture_is_enlarged() -> None:
    crack_map = CrackMap(np.full((1, 1), 5, np.float32), 20, 10, (2.0, 1.0), (20.0, 10.0))
    with PIL.Image.new("RGB", (20, 10), "grey") as picture:
        drawn = draw_overlay(picture, crack_map, Box(0, 0, 20, 10), ["crack 0.99"])
    with PIL.Image.open(io.BytesIO(drawn)) as found:
        assert found.width == 640
        assert (redness(np.asarray(found))[20:300, 20:620] > 40).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give images to show, or --from"),
        ({"images": ["a.jpg"], "results": "out"}, "give images to show, or --from"),
        ({"images": ["a.jpg"], "top": 0}, "--top must be 1 or more"),
        ({"images": ["a.jpg"], "run_id": "r"}, "--run-id selects a run of --from"),
        ({"images": ["a.jpg"], "tile_size": 300.0, "ground_resolution": 1.0}, "give only one of them"),
    ],
)
def test_wrong_requests_are_refused(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        crackbatch.show(**{"out": tmp_path / "pictures", **options})  # type: ignore[arg-type]
