"""Every row of a block has its own image's answer, in the block's order, or the status that says why it has none."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import crackbatch
from builders.archives import write_files
from builders.pictures import draw_photo, encode
from builders.plans import plan_of
from builders.runs import rows, score
from crackbatch.decoding.decoders import Decoders
from crackbatch.models.model import Model, load_model
from crackbatch.results.table import COLUMNS
from crackbatch.scoring.predictor import Predictor, Stamp
from crackbatch.sources.fetch import fetch

STAMP = Stamp("night", "model@1", 0.5, 0.5)


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model()


@pytest.fixture
def block(tmp_path: Path, tiles: dict[str, bytes]) -> pa.Table:
    """Images of a manifest: twelve tiles, one that is none, one that is gone."""
    write_files(tmp_path, {**tiles, "bad.jpg": b"%PDF-1.7"})
    lines = [f"{name},pier {number}" for number, name in enumerate([*tiles, "bad.jpg", "gone.jpg"])]
    (tmp_path / "m.csv").write_text("\n".join(["image_uri,pier", *lines]))
    return pa.concat_tables(fetch(plan_of(tmp_path / "m.csv").table))


def test_each_row_has_its_own_images_answer(block: pa.Table, model: Model, tiles: dict[str, bytes]) -> None:
    with Decoders(model.bundle.input_size, batch_size=8) as decoders:
        found = Predictor(lambda: model, STAMP, decoders)(block)
    assert found.schema.names == [*COLUMNS.names, "pier"]
    assert found.column("image_uri").equals(block.column("image_uri"))
    paths = found.column("image_uri").to_pylist()
    for row, expected in zip(found.to_pylist(), model.predict(paths), strict=True):
        name = Path(row["image_uri"]).name
        if name in tiles:
            assert row["status"] == "ok"
            assert row["crack_probability"] == pytest.approx(expected.probability, abs=1e-5)
            assert row["label"] == ("crack" if row["crack_probability"] >= 0.5 else "no_crack")
            assert row["sha256"] == hashlib.sha256(tiles[name]).hexdigest()
        else:
            assert row["status"] == {"bad.jpg": "not_an_image", "gone.jpg": "missing"}[name]
            assert row["crack_probability"] is row["crack_logit"] is row["label"] is expected.probability is None
        assert (row["run_id"], row["model_id"], row["threshold"]) == ("night", "model@1", 0.5)


def test_threads_that_score_at_once_mix_nothing_up(block: pa.Table, model: Model) -> None:
    with Decoders(model.bundle.input_size, batch_size=3, num_batches=3) as decoders:
        predict = Predictor(lambda: model, STAMP, decoders)
        expected = predict(block)
        with ThreadPoolExecutor(6) as threads:  # more than there is memory for
            found = list(threads.map(predict, [block.slice(first) for first in range(10)]))
    for first, table in enumerate(found):
        mine, its = (rows.drop_columns(["scored_at", "crack_logit", "crack_probability"])
                     for rows in (table, expected.slice(first)))  # fmt: skip
        assert mine.equals(its)
        logits = [np.array(rows.column("crack_logit").to_pylist(), float) for rows in (table, expected.slice(first))]
        assert np.allclose(*logits, atol=1e-4, equal_nan=True)


def test_a_block_without_any_image_has_rows_too(block: pa.Table, model: Model) -> None:
    with Decoders(model.bundle.input_size) as decoders:
        predict = Predictor(lambda: model, STAMP, decoders)
        assert predict(block.slice(13)).column("status").to_pylist() == ["missing"]
        assert predict(block.slice(12, 1)).column("status").to_pylist() == ["not_an_image"]
        assert predict(block.slice(0, 0)).num_rows == 0


def test_an_image_for_which_the_network_gives_no_number_is_failed(
    block: pa.Table, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = model.logits

    def without_some(pixels: np.ndarray) -> np.ndarray:
        logits = given(pixels)
        logits[:2] = np.nan, np.inf
        return logits

    monkeypatch.setattr(model, "logits", without_some)
    with Decoders(model.bundle.input_size, batch_size=20) as decoders:
        rows = Predictor(lambda: model, STAMP, decoders)(block).to_pylist()
    for row in rows[:2]:
        assert (row["status"], row["error"]) == ("failed", "the network gives no number for it")
        assert row["crack_probability"] is row["crack_logit"] is row["label"] is None
    assert [row["status"] for row in rows[2:12]] == ["ok"] * 10
    assert all(0 <= row["crack_probability"] <= 1 for row in rows[2:12])


def write_photos(folder: Path) -> None:
    """The same photograph at each EXIF orientation, and at half and twice its size; a tile."""
    upright = draw_photo(cracked=(2, 3, 4))
    turns = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # what Pillow does to the upright picture to store it
    lines = ["image_uri,ground_resolution"]
    folder.mkdir()
    for orientation, turn in turns.items():
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        stored = upright if turn is None else upright.transpose(PIL.Image.Transpose(turn))
        stored.save(folder / f"turned-{orientation}.jpg", quality=95, exif=exif)
        lines.append(f"turned-{orientation}.jpg,")
    for scale in (0.5, 2):
        size = (round(upright.width * scale), round(upright.height * scale))
        upright.resize(size, PIL.Image.Resampling.BICUBIC).save(folder / f"scaled-{scale:g}.jpg", quality=95)
        lines.append(f"scaled-{scale:g}.jpg,{0.25 / scale}")
    draw_photo(cracked=(), seed=1).save(folder / "sound.jpg", quality=95)
    upright.crop((512, 512, 768, 768)).save(folder / "tile.jpg", quality=95)
    upright.save(folder / "no-scale.jpg", quality=95)
    lines += ["sound.jpg,", "tile.jpg,", "no-scale.jpg,-1"]
    (folder / "photos.csv").write_text("\n".join(lines))


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.slow)], indirect=True)
def test_a_crack_is_found_at_its_place_at_every_orientation_and_scale(tmp_path: Path, engine: str) -> None:
    write_photos(tmp_path / "in")
    summary = score(tmp_path / "in" / "photos.csv", tmp_path / "out", engine=engine, maps=True)
    found = {Path(row["image_uri"]).stem: row for row in rows(tmp_path / "out").to_dict("records")}
    assert len(found) == 13
    assert summary.statuses == {"ok": 12, "failed": 1}
    assert (summary.photographs, summary.windows) == (11, 11 * 29 * 43)
    maps = pq.read_table(tmp_path / "out" / "maps")
    assert sorted(maps["image_uri"].to_pylist()) == sorted(
        row["image_uri"] for row in found.values() if not np.isnan(row["tiles"])
    )
    for name, row in found.items():
        if name.startswith(("turned", "scaled")):
            scale = float(name.rpartition("-")[2]) if name.startswith("scaled") else 1.0
            assert (row["width"], row["height"]) == (1792 * scale, 1280 * scale)
            assert row["label"] == "crack"
            x, y, width, height = (row[f"box_{side}"] / scale for side in "xywh")
            assert x <= 576, name
            assert y <= 640, name
            assert 1216 <= x + width <= 1536, name
            assert 640 <= y + height <= 1024, name
            assert row["crack_tiles"] > 50
    assert found["sound"]["label"] == "no_crack"
    assert np.isnan(found["sound"]["box_x"])
    assert np.isnan(found["tile"]["tiles"])
    assert found["tile"]["threshold"] != found["sound"]["threshold"]
    assert found["no-scale"]["error"] == "its ground_resolution is '-1'; it must be a number above 0"
    logits = np.array([row["crack_logit"] for row in found.values()])
    expected = crackbatch.load_model().probability(logits)
    assert np.allclose(expected, [row["crack_probability"] for row in found.values()], equal_nan=True)


def test_a_photograph_is_shrunk_or_looked_at_in_windows_as_asked(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    draw_photo(3, 2, cracked=(0, 1)).save(folder / "photo.png")
    draw_photo(1, 1, cracked=()).save(folder / "tile.png")
    (folder / "cut.jpg").write_bytes(encode(draw_photo(3, 2), "JPEG")[:20_000])
    (folder / "broken.png").write_bytes(encode(draw_photo(3, 2), "PNG")[:200_000])
    tiles = {}
    for view in ("auto", "whole", "windows"):
        score(folder, tmp_path / view, view=view, engine="local")
        table = rows(tmp_path / view)
        assert dict(zip(table["image_uri"].map(lambda uri: Path(uri).name), table["status"], strict=True)) == {
            "photo.png": "ok", "tile.png": "ok", "cut.jpg": "truncated", "broken.png": "truncated"
        }  # fmt: skip
        ok = table[table["status"] == "ok"].fillna({"tiles": 0})
        tiles[view] = {Path(uri).stem: int(num) for uri, num in zip(ok["image_uri"], ok["tiles"], strict=True)}
    assert tiles == {
        "auto": {"photo": 8 * 15, "tile": 0},
        "whole": {"photo": 0, "tile": 0},
        "windows": {"photo": 8 * 15, "tile": 1},
    }
    score(folder / "photo.png", tmp_path / "coarse", tile_size=400, engine="local")
    assert rows(tmp_path / "coarse")["tiles"].tolist() == [3 * 7]
    scored = rows(tmp_path / "auto").set_index("image_uri")["crack_probability"]
    paths = [str(folder / f"{name}.png") for name in ("photo", "tile", "broken")]
    *found, nothing = crackbatch.load_model().predict(paths)
    assert [said.probability for said in found] == pytest.approx([scored[path] for path in paths[:2]], abs=1e-5)
    assert [said.is_photograph for said in found] == [True, False]
    assert (nothing.probability, nothing.status) == (None, "truncated")


def test_it_is_said_where_the_size_of_cracks_is_a_guess_or_too_small(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    PIL.Image.new("RGB", (9500, 450), "grey").save(tmp_path / "in" / "wide.png")
    (note,) = score(tmp_path / "in", tmp_path / "guessed", engine="local").notes
    assert note.startswith("1 photograph more than twice as wide as those that the model knows (4,608 pixels)")
    PIL.Image.new("RGB", (500, 450), "grey").save(tmp_path / "in" / "wide.png")
    (note,) = score(tmp_path / "in", tmp_path / "coarse", ground_resolution=0.4, engine="local").notes
    assert note.startswith("at 0.4 mm a pixel, a crack of 0.3 mm is narrower than a pixel")
    assert score(tmp_path / "in", tmp_path / "fine", ground_resolution=0.25, engine="local").notes == []
