"""A contact sheet shows every picture under its section's title, six in a row, with lines that fit below it."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image

from crackbatch.images.sheet import Tile, contact_sheet


def drawn(*sections: list[Tile]) -> np.ndarray:
    data = contact_sheet({f"section {number}": tiles for number, tiles in enumerate(sections)})
    return np.asarray(PIL.Image.open(io.BytesIO(data))).astype(int)


def is_of(sheet: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (np.abs(sheet - np.array(colour)) < 8).all(axis=2)


def test_every_picture_is_shown_six_in_a_row() -> None:
    colours = [(25 * number, 0, 250 - 25 * number) for number in range(7)]
    sheet = drawn([Tile(PIL.Image.new("RGB", (448, 224), colour), []) for colour in colours])
    places = [np.argwhere(is_of(sheet, colour)) for colour in colours]
    assert [len(place) for place in places] == [224 * 112] * 7, "each is scaled to the width of a place"
    tops, lefts = zip(*(place.min(axis=0).tolist() for place in places), strict=True)
    assert len(set(tops[:6])) == 1
    assert list(lefts[:6]) == sorted(set(lefts))
    assert tops[6] > tops[0]
    assert lefts[6] == lefts[0]


def test_a_section_without_pictures_has_its_place_and_a_long_line_stays_below_its_picture() -> None:
    white = PIL.Image.new("RGB", (150, 150), "white")
    empty, short, long = drawn([]), drawn([Tile(white, ["a.jpg"])]), drawn([Tile(white, ["x" * 400 + "/a.jpg"])])
    assert empty.shape == short.shape == long.shape
    below = np.argwhere((long != short).any(axis=2))
    assert len(below)
    assert below[:, 1].max() < 8 + 224
    assert drawn([], []).shape[0] > empty.shape[0]
