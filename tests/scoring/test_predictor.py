"""Every row of a block has its own image's answer, in the block's order, or the status that says why it has none."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from builders.archives import write_files
from builders.plans import plan_of
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
            assert row["crack_probability"] == pytest.approx(expected, abs=1e-5)
            assert row["label"] == ("crack" if row["crack_probability"] >= 0.5 else "no_crack")
            assert row["sha256"] == hashlib.sha256(tiles[name]).hexdigest()
        else:
            assert row["status"] == {"bad.jpg": "not_an_image", "gone.jpg": "missing"}[name]
            assert row["crack_probability"] is row["crack_logit"] is row["label"] is expected is None
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
