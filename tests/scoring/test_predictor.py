"""Every row of a block has its own image's answer, in the block's order, or the status that says why it has none."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from builders.archives import write_files
from builders.plans import plan_of
from crackbatch.images.decoders import Decoder
from crackbatch.models.model import Model, load_model
from crackbatch.results.table import COLUMNS
from crackbatch.scoring.predictor import Predictor, Stamp
from crackbatch.sources.fetch import fetch

STAMP = Stamp("night", "model@1", 0.5)


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
    found = Predictor(model, STAMP, Decoder(model.bundle.input_size, 100.0))(block)
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


def test_threads_that_decode_ahead_mix_nothing_up(block: pa.Table, model: Model) -> None:
    decoder = Decoder(model.bundle.input_size, 100.0)
    one, several = (Predictor(model, STAMP, decoder, threads)(block).drop_columns("scored_at") for threads in (1, 4))
    assert one.drop_columns(["crack_logit", "crack_probability"]).equals(
        several.drop_columns(["crack_logit", "crack_probability"])
    )
    logits = [np.array(table.column("crack_logit").to_pylist(), float) for table in (one, several)]
    assert np.allclose(*logits, atol=1e-4, equal_nan=True)
