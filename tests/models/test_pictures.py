"""Whatever people have of an image becomes the same picture: a file, a URI of a table, an array, a Pillow image."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import crackbatch
from builders.archives import archive_of, write_files, zip_with
from builders.runs import rows, score
from crackbatch.models.pictures import decode, decode_one, to_pillow


def pixels_of(image: object) -> np.ndarray:
    picture = decode_one(image)  # type: ignore[arg-type]
    assert picture.status == "ok", picture.error
    return np.asarray(picture.pixels)


def test_every_form_of_an_image_has_the_same_pixels(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    data = tiles["tile-00.jpg"]
    (tmp_path / "a.jpg").write_bytes(data)
    picture = PIL.Image.open(io.BytesIO(data)).convert("RGB")
    expected = np.asarray(picture)
    clear = np.dstack([expected, np.full(expected.shape[:2], 255, np.uint8)])
    for image in (
        tmp_path / "a.jpg", str(tmp_path / "a.jpg"), (tmp_path / "a.jpg").as_uri(), picture, expected,
        expected / 255, (expected / 255).astype(np.float32), np.ascontiguousarray(expected[::-1])[::-1], clear,
    ):  # fmt: skip
        assert np.array_equal(pixels_of(image), expected)
    grey = expected[..., 1]
    for image in (grey, grey[..., None], grey / 255):
        assert np.array_equal(pixels_of(image), np.dstack([grey] * 3))


def test_every_uri_of_a_table_is_predicted_as_it_was_scored(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    names = list(tiles)
    write_files(tmp_path / "in", {
        "a b.jpg": tiles[names[0]], "lot.zip": zip_with(8, {name: tiles[name] for name in names[1:4]}),
        "lot.tar": archive_of("tar", {name: tiles[name] for name in names[4:6]}, tmp_path), "broken.jpg": b"nothing",
    })  # fmt: skip
    score(tmp_path / "in", tmp_path / "out", engine="local")
    table = rows(tmp_path / "out")
    found = crackbatch.load_model().predict(list(table["image_uri"]))
    assert [said.status for said in found] == list(table["status"])
    scored = table["status"] == "ok"
    assert [said.label for said in found if said.status == "ok"] == list(table["label"][scored])
    probabilities = [said.probability for said in found if said.probability is not None]
    assert probabilities == pytest.approx(list(table["crack_probability"][scored]), abs=1e-5)


def test_many_files_come_in_order_also_where_some_are_missing(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    write_files(tmp_path, {"lot.zip": zip_with(0, tiles)})
    names = [f"zip://{name}::{tmp_path}/lot.zip" for name in tiles]
    paths = write_files(tmp_path / "loose", {f"{number}-{name}": data for number in range(5)
                                             for name, data in tiles.items()})  # fmt: skip
    mixed = [*names, "gone.jpg", *map(str, sorted(paths.iterdir())), str(tmp_path / "lot.zip")]
    assert len(mixed) > 64
    together = list(decode(mixed, 224, None, 8))
    alone = [decode_one(name) for name in mixed]
    assert [picture.status for picture in together] == [picture.status for picture in alone]
    assert together[len(names)].status == "missing"
    for many, one in zip(together, alone, strict=True):
        if one.pixels is not None and many.pixels is not None:
            scaled = np.asarray(one.pixels.resize((224, 224), PIL.Image.Resampling.BILINEAR))
            assert np.array_equal(np.asarray(many.pixels), scaled)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 224, 224), np.uint8), r"\(height, width\) or \(height, width, 3\), got \(3, 224, 224\)"),
        (np.zeros((0, 4, 3), np.uint8), r"got \(0, 4, 3\)"),
        (np.full((4, 4), 255.0), "floats must have numbers from 0 to 1"),
        (np.full((4, 4), np.nan), "floats must have numbers from 0 to 1"),
        (np.zeros((4, 4), np.int64), "is uint8, or floats from 0 to 1, got int64"),
    ],
)
def test_an_array_that_is_no_image_says_what_it_should_be(image: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_pillow(image)


def test_what_is_no_image_at_all_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="a path, a URI, an array or a Pillow image, not dict"):
        decode_one({})  # type: ignore[arg-type]
