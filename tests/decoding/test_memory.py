"""Photographs decoded at their own size come whole, in order and upright, within a limited amount of memory."""

from __future__ import annotations

import gc
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from builders.pictures import encode, gradient
from builders.poison import POISON
from crackbatch.decoding.decoders import Decoders
from crackbatch.decoding.memory import Budget
from crackbatch.images.picture import PHOTO, read_image

SIZES = [(400, 300), (300, 640), (500, 500), (301, 300)]


def turned(width: int, height: int, orientation: int) -> bytes:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return encode(gradient(width, height), "JPEG", quality=95, exif=exif)


def num_memories() -> int:
    """How many memories this process shares with decoders."""
    gc.collect()
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found += "crackbatch pixels" in os.readlink(f"/proc/self/fd/{name}")
    return found


PHOTOS = [(turned(*size, 1 + number % 8), size[0] * size[1]) for number, size in enumerate(SIZES * 4)]


def test_of_an_image_with_two_long_sides_only_the_header_is_read_first() -> None:
    images = [turned(400, 300, 6), turned(400, 299, 1), encode(gradient(300, 300), "PNG"), b"%PDF", b""]
    with Decoders(64, num_processes=1, photo_side=300) as decoders:
        (decoded,) = decoders.decode([images])
    assert decoded.facts["status"] == [PHOTO, "ok", PHOTO, "not_an_image", "empty"]
    assert len(decoded.pixels) == 1
    assert decoded.facts["width"][0] * decoded.facts["height"][0] == 400 * 300


def test_photographs_come_in_order_and_upright_with_the_pixels_of_their_file() -> None:
    with Decoders(64, num_processes=2, photo_side=300) as decoders:
        seen = 0
        for (image, _), photo in zip(PHOTOS, decoders.decode_photos(PHOTOS), strict=True):
            expected = read_image(image)
            assert photo.pixels is not None
            assert np.array_equal(photo.pixels, np.asarray(expected.pixels))
            assert (photo.facts["width"], photo.facts["height"]) == (expected.width, expected.height)
            photo.release()
            seen += 1
    assert seen == len(PHOTOS)


def test_a_damaged_photograph_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(POISON)
    monkeypatch.syspath_prepend(str(tmp_path))
    photos = [*PHOTOS[:6]]
    photos[2] = (photos[2][0] + b"POISON: abort", photos[2][1])
    photos[4] = (photos[4][0][:3000], photos[4][1])
    photos[5] = (photos[5][0], photos[5][1] - 1)  # as if its header had told another size
    with Decoders(64, num_processes=2, photo_side=300) as decoders:
        found = []
        for photo in decoders.decode_photos(photos):
            found.append(photo.facts["status"])
            assert (photo.pixels is None) == (found[-1] != "ok")
            photo.release()
    assert found == ["ok", "ok", "crashed", "ok", "truncated", "failed"]


def test_callers_share_the_memory_and_give_it_back_also_when_they_stop_in_the_middle() -> None:
    with Decoders(64, num_processes=1, photo_side=300) as decoders:
        list(decoders.decode([[b""]]))  # it has started
        before = num_memories()
        decoders._photo_bytes = Budget(3 * 500 * 500)  # one of them at a time

        def read(num: int) -> int:
            for number, photo in enumerate(decoders.decode_photos(PHOTOS)):
                photo.release()
                if number == num:
                    break
            return num

        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(read, [3, 16, 0, 7, 16, 5])) == [3, 16, 0, 7, 16, 5]
        assert decoders._photo_bytes.take(3 * 500 * 500, wait=False)
        assert num_memories() == before


def test_a_photograph_larger_than_the_budget_is_decoded_alone() -> None:
    budget = Budget(100)
    assert budget.take(250, wait=False)
    assert not budget.take(1, wait=False)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(budget.take, 60, wait=True)
        assert not budget.take(1, wait=False)
        budget.give(250)
        assert waiting.result(timeout=20)
    assert not budget.take(41, wait=False)
    assert budget.take(40, wait=False)
