"""A part that cannot be read is done again."""

from __future__ import annotations

from pathlib import Path

from builders.runs import begin, write_part
from crackbatch.results.parts import read_done
from crackbatch.results.run import Run
from crackbatch.storage import atomic, locations, objects


def test_an_unreadable_part_is_done_again(tmp_path: Path) -> None:
    run = Run(str(tmp_path), "r", "2026-01-01")
    atomic.write_whole(locations.join(run.parts_folder, "x.part"), b"PAR1 half a part")
    _, parts = read_done(run)
    assert parts.num_rows == 0
    assert not objects.list_files(run.parts_folder)


def test_a_part_that_cannot_be_decompressed_is_done_again(tmp_path: Path) -> None:
    run = begin(str(tmp_path), "r")
    write_part(run, [f"image-{number}" for number in range(500)])
    (part,) = (tmp_path / "runs/r/parts").iterdir()
    data = bytearray(part.read_bytes())
    data[40:400] = bytes(360)
    part.write_bytes(data)
    assert read_done(run)[1].num_rows == 0
    assert not part.exists()
