"""Decoded images come in blocks, are held in memory where there is room, and none is mixed up or missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from builders.pictures import make_photos
from crackbatch.datasets.dataset import read_dataset
from crackbatch.datasets.pixels import fits_memory, held_or_streamed, hold, marks_of, number_rows, stream_pixels
from crackbatch.errors import RunError
from crackbatch.images.picture import read_image, to_input
from crackbatch.machine import free_memory


@pytest.fixture
def rows(tmp_path: Path) -> pa.Table:
    """The numbered rows of 24 tiles."""
    return number_rows(read_dataset([str(make_photos(tmp_path / "deck", 6))]).table)


def test_blocks_hold_each_image_with_its_own_label_and_number(rows: pa.Table) -> None:
    paths, labels = rows.column("image_uri").to_pylist(), rows.column("label").to_pylist()
    numbers = []
    for block in stream_pixels(rows, 48):
        numbers += block.numbers.tolist()
        for image, label, number in zip(block.images, block.labels, block.numbers, strict=True):
            assert label == labels[number]
            assert np.array_equal(image, to_input(read_image(Path(paths[number]).read_bytes()), 48))
    assert numbers == list(range(24))


def test_blocks_in_any_order_are_held_in_the_order_of_their_numbers(rows: pa.Table) -> None:
    whole = hold(stream_pixels(rows, 48), marks_of(rows))
    mixed = rows.take(np.random.default_rng(0).permutation(24))
    parts = [block for start in (16, 0, 8) for block in stream_pixels(mixed.slice(start, 8), 48)]
    held = hold(parts, marks_of(mixed))
    for name in ("images", "labels", "numbers", "sources"):
        assert np.array_equal(getattr(held, name), getattr(whole, name)), name
    with pytest.raises(RunError, match="only 16 of 24 images were read; run again"):
        hold(parts[: len(parts) * 2 // 3], marks_of(mixed))


def test_blocks_are_held_where_there_is_room_and_read_again_where_there_is_none(
    rows: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_twice() -> int:
        reads = []
        blocks = held_or_streamed(lambda: reads.append(1) or stream_pixels(rows, 48), marks_of(rows), 48, 1)
        assert [sum(map(len, blocks())) for _ in range(2)] == [24, 24]
        return len(reads)

    assert read_twice() == 1
    monkeypatch.setattr("crackbatch.datasets.pixels.free_memory", lambda: 1 << 10)
    assert read_twice() == 2


def test_an_image_that_can_no_longer_be_read_ends_the_reading(rows: pa.Table) -> None:
    path = Path(rows.column("image_uri")[3].as_py())
    path.write_bytes(b"")
    with pytest.raises(RunError, match=rf"{path.name} could be read when it was listed, but is now \w+; run again"):
        list(stream_pixels(rows, 48))


@pytest.mark.parametrize(("neighbours", "fits"), [(1, True), (3, False)])
def test_neighbours_share_the_memory_of_their_machine(neighbours: int, fits: bool) -> None:
    assert fits_memory(int(0.2 * free_memory() / 3 / 64**2), 64, neighbours) == fits
