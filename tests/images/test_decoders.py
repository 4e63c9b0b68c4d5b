"""An image is decoded alike in this process and in one of its own, and what it does to the other costs it alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest

from builders.pictures import encode, gradient
from crackbatch.cli.demo import draw_tile
from crackbatch.images.decoders import Decoder, IsolatedDecoder, too_slow


@pytest.fixture
def isolated() -> Iterator[IsolatedDecoder]:
    with IsolatedDecoder(Decoder(64, 1.0), timeout_s=10) as decoder:
        yield decoder


def child_of(decoder: IsolatedDecoder) -> int:
    assert decoder._child is not None
    return decoder._child.pid


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (draw_tile(1, cracked=True), "ok"),
        (encode(gradient(), "PNG"), "ok"),
        (draw_tile(2, cracked=True)[:3000], "truncated"),
        (encode(gradient(1200, 1000), "PNG"), "too_large"),
        (b"", "empty"),
    ],
)
def test_an_image_is_the_same_in_a_process_of_its_own(data: bytes, status: str, isolated: IsolatedDecoder) -> None:
    expected, pixels = Decoder(64, 1.0)(data)
    for _ in range(2):  # by one child
        found, other = isolated(data)
        assert found == expected
        assert found.status == status
        assert found.pixels is None
        assert (pixels is None) == (other is None) == (status != "ok")
        assert pixels is None or (pixels.shape == (64, 64, 3) and np.array_equal(pixels, other))


def test_an_image_whose_decoder_dies_is_crashed_and_the_next_is_decoded(isolated: IsolatedDecoder) -> None:
    tile = draw_tile(1, cracked=True)
    assert isolated(tile)[0].status == "ok"
    os.kill(child_of(isolated), signal.SIGKILL)
    picture, pixels = isolated(tile)
    assert (picture.status, pixels) == ("crashed", None)
    assert "decoding it crashed the decoder process (signal 9" in str(picture.error)
    assert isolated(tile)[0].status == "ok"


def test_an_image_whose_decoder_takes_too_long_has_failed_and_the_next_is_decoded() -> None:
    tile = draw_tile(1, cracked=True)
    with IsolatedDecoder(Decoder(64, 1.0), timeout_s=3) as isolated:
        assert isolated(tile)[0].status == "ok"
        stopped = child_of(isolated)
        os.kill(stopped, signal.SIGSTOP)
        picture, pixels = isolated(tile)
        assert (picture.status, picture.error, pixels) == ("failed", too_slow(3), None)
        assert isolated(tile)[0].status == "ok"
        assert child_of(isolated) != stopped


def test_the_process_of_a_decoder_ends_with_it() -> None:
    with IsolatedDecoder(Decoder(64, 1.0), timeout_s=10) as isolated:
        isolated(b"")
        child = isolated._child
    assert child is not None
    assert child.poll() is not None
