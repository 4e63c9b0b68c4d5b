"""Each photograph of a run has one map, whenever the run is killed, and it is where its row says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import crackbatch
from builders.pictures import draw_photo, encode
from builders.runs import rows, score
from crackbatch.errors import OptionError, OutputError
from crackbatch.models.photo import CrackMap
from crackbatch.results.maps import MAP, SCHEMA, pack_maps
from crackbatch.results.parts import write_part
from crackbatch.results.publish import publish
from crackbatch.results.run import MAPS, Run
from crackbatch.results.table import COLUMNS


def with_maps(uris: str, maps: list[CrackMap | None]) -> pa.Table:
    found = [{"image_uri": uri, "version": "1", "status": "ok", "run_id": "r"} for uri in uris]
    return pa.Table.from_pylist(found, COLUMNS).append_column(MAP, pack_maps(maps))


def a_map(value: float) -> CrackMap:
    logits = np.full((3, 5), value, np.float32)
    logits[1, 4] = -value
    return CrackMap(logits, 352, 288, (32.0, 32.0), (224.0, 224.0), temperature=0.5)


def planned(uris: str) -> pa.Table:
    return pa.table({"image_uri": list(uris), "version": ["1"] * len(uris)})


def test_each_map_is_published_once_and_none_of_images_that_are_not_planned(tmp_path: Path) -> None:
    run = Run(str(tmp_path / "out"), "r", "2026-01-01")
    write_part(run, with_maps("abx", [a_map(1), None, a_map(7)]))
    write_part(run, with_maps("ac", [a_map(1), a_map(2)]))  # a task that was repeated with other images
    (file,) = publish(run, planned("abc"), COLUMNS)
    assert pq.read_schema(file).names == COLUMNS.names
    (maps,) = run.published_files(MAPS)
    assert Path(maps).parent == tmp_path / "out" / "maps" / "date=2026-01-01"
    assert pq.read_schema(maps).names == SCHEMA.names
    assert sorted(pq.read_table(maps)["image_uri"].to_pylist()) == ["a", "c"]
    found = crackbatch.read_map(tmp_path / "out", "c")
    assert np.allclose(found.probabilities, a_map(2).probabilities, atol=1e-6)
    assert (found.width, found.height, found.step, found.window) == (352, 288, (32, 32), (224, 224))


def test_a_run_killed_after_its_maps_were_published_publishes_them_once(tmp_path: Path) -> None:
    run = Run(str(tmp_path / "out"), "r", "2026-01-01")
    write_part(run, with_maps("ab", [a_map(1), a_map(2)]))
    (file,) = publish(run, planned("ab"), COLUMNS)
    Path(file).unlink()  # as if it had been killed before its rows were visible
    write_part(run, with_maps("c", [a_map(3)]))
    publish(run, planned("abc"), COLUMNS)
    found = [uri for maps in run.published_files(MAPS) for uri in pq.read_table(maps)["image_uri"].to_pylist()]
    assert sorted(found) == ["a", "b", "c"]


def test_a_run_with_maps_is_as_one_without_and_its_maps_are_those_of_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "photo.png").write_bytes(encode(draw_photo(3, 2, cracked=(0, 1)), "PNG"))
    (folder / "tile.png").write_bytes(encode(draw_photo(1, 1, cracked=()), "PNG"))
    score(folder, tmp_path / "with", maps=True, engine="local")
    score(folder, tmp_path / "without", engine="local")
    columns = ["image_uri", "crack_probability", "tiles", "crack_tiles", "box_x", "box_y", "box_w", "box_h"]
    assert rows(tmp_path / "with")[columns].equals(rows(tmp_path / "without")[columns])
    photo, tile = (f"{folder}/{name}.png" for name in ("photo", "tile"))
    found = crackbatch.read_map(tmp_path / "with", photo)
    expected = crackbatch.load_model().map(photo)
    assert np.abs(found.probabilities - expected.probabilities).max() < 1e-5
    assert found.step == pytest.approx(expected.step)
    assert found.window == pytest.approx(expected.window)
    with pytest.raises(OptionError, match=r"no map of .*tile\.png"):
        crackbatch.read_map(tmp_path / "with", tile)
    with pytest.raises(OutputError, match=r"no maps in .*--maps first"):
        crackbatch.read_map(tmp_path / "without", photo)
    assert score(folder, tmp_path / "with", maps=True, engine="local").added == 0
    assert not list((tmp_path / "with" / "runs").rglob("*.maps"))
