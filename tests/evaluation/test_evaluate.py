"""An evaluation measures what was scored, leaves out what the model has seen, and shows where it is wrong."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from builders.pictures import make_mislabelled, make_photos
from crackbatch import evaluate, load_model, score, train
from crackbatch.cli.commands import app
from crackbatch.cli.demo import draw_tile
from crackbatch.datasets.dataset import read_dataset, with_given_split
from crackbatch.errors import OptionError, OutputError, SourceError
from crackbatch.results.table import schema_with
from crackbatch.training.initial import learnt_before


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mislabelled(tmp_path_factory.mktemp("photos") / "deck")


@pytest.fixture(scope="module")
def evaluated(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluated") / "out"
    evaluate(str(photos), str(out), threshold=0.5, prevalence=0.02)
    return out


def test_figures_are_those_of_scoring_each_image(photos: Path, evaluated: Path) -> None:
    files = sorted(photos.rglob("*.jpg"))
    labels = np.array([file.parent.name == "CD" for file in files])
    alarms = np.array([said.probability for said in load_model().predict(files)]) >= 0.5
    said = json.loads((evaluated / "metrics.json").read_text())["sources"]["deck/D"]
    assert said["confusion"] == {
        "hits": int((alarms & labels).sum()),
        "false_alarms": int((alarms & ~labels).sum()),
        "misses": int((~alarms & labels).sum()),
        "correct_rejections": int((~alarms & ~labels).sum()),
    }
    assert said["metrics"]["accuracy"]["value"] == pytest.approx((alarms == labels).mean())
    assert said["groups"] == 21
    assert said["metrics"]["accuracy"]["low"] < said["metrics"]["accuracy"]["value"]
    assert 0 <= said["precision_at_prevalence"]["precision"] <= 1


def test_each_source_and_all_of_them_are_measured(tmp_path: Path) -> None:
    sources = [str(make_photos(tmp_path / name, num, seed=1000 * num)) for name, num in (("north", 6), ("south", 9))]
    said = evaluate(sources, str(tmp_path / "out"), threshold=0.5).metrics["sources"]
    assert {name: part["images"] for name, part in said.items()} == {"north/D": 24, "south/D": 36, "all": 60}
    for count in ("images", "cracked", "groups"):
        assert said["all"][count] == said["north/D"][count] + said["south/D"][count]
    for count, num in said["all"]["confusion"].items():
        assert num == said["north/D"]["confusion"][count] + said["south/D"]["confusion"][count]
    parts = [said[name]["metrics"]["accuracy"]["value"] * said[name]["images"] for name in ("north/D", "south/D")]
    assert said["all"]["metrics"]["accuracy"]["value"] == pytest.approx(sum(parts) / 60)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["sources"].keys() == said.keys()


def test_wrong_labels_stand_first_among_the_errors(photos: Path, evaluated: Path) -> None:
    errors = pq.read_table(evaluated / "errors.parquet").to_pandas()
    wrong = {"deck/D/CD/7900-1.jpg", "deck/D/UD/7900-2.jpg"}
    assert wrong <= set(errors["path"])
    sure = np.where(errors["label"] == "crack", 1 - errors["crack_probability"], errors["crack_probability"])
    assert (np.diff(sure) <= 0).all()
    counts = errors["kind"].value_counts()
    said = json.loads((evaluated / "metrics.json").read_text())["sources"]["deck/D"]["confusion"]
    assert (counts["miss"], counts["false alarm"]) == (said["misses"], said["false_alarms"])


@pytest.mark.parametrize("name", ["confusion.png", "ranking.png", "reliability.png", "errors.png"])
def test_figures_are_pictures(evaluated: Path, name: str) -> None:
    picture = np.asarray(PIL.Image.open(evaluated / name).convert("L"))
    assert min(picture.shape) >= 200
    assert picture.std() > 5


@pytest.mark.usefixtures("without_ray")
def test_published_rows_are_measured_without_scoring_again(photos: Path, evaluated: Path, tmp_path: Path) -> None:
    score(str(photos), str(tmp_path / "results"), threshold=0.75)
    assert evaluate(photos, tmp_path / "own", predictions=tmp_path / "results").metrics["threshold"] == 0.75
    found = evaluate(str(photos), str(tmp_path / "out"), predictions=str(tmp_path / "results"), threshold=0.5)
    before = json.loads((evaluated / "metrics.json").read_text())["sources"]["deck/D"]
    assert found.metrics["sources"]["deck/D"]["confusion"] == before["confusion"]
    (photos / "D" / "CD" / "7999-1.jpg").write_bytes(draw_tile(7999, cracked=True))
    try:
        with pytest.raises(SourceError, match="1 of 83 labelled images have no score from concrete-resnet18@"):
            evaluate(str(photos), str(tmp_path / "out"), predictions=str(tmp_path / "results"))
    finally:
        (photos / "D" / "CD" / "7999-1.jpg").unlink()


def test_published_rows_of_a_model_are_found_also_where_another_scored_the_images_later(
    photos: Path, evaluated: Path, tmp_path: Path
) -> None:
    files = sorted(photos.rglob("*.jpg"))
    model = load_model()
    found = [said.probability for said in model.predict(files)]
    for day, (model_id, probabilities) in enumerate(
        [(model.bundle.model_id, found), ("other@0", [0.5] * len(files))], 1
    ):
        rows = [
            {
                "image_uri": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "status": "ok",
                "crack_probability": probability, "model_id": model_id, "run_id": f"run-{day}",
                "scored_at": datetime(2026, 1, day, tzinfo=UTC), "threshold": 0.25 if number else 0.75,
            }
            for number, (file, probability) in enumerate(zip(files, probabilities, strict=True))
        ]  # fmt: skip
        folder = tmp_path / "results" / "predictions" / f"date=2026-01-0{day}"
        folder.mkdir(parents=True)
        schema = schema_with([])
        columns = {name: [row.get(name) for row in rows] for name in schema.names}
        pq.write_table(pa.table(columns, schema=schema), folder / "part.parquet")
    measured = evaluate(str(photos), str(tmp_path / "out"), predictions=str(tmp_path / "results"), threshold=0.5)
    before = json.loads((evaluated / "metrics.json").read_text())["sources"]["deck/D"]
    assert measured.metrics["sources"]["deck/D"]["confusion"] == before["confusion"]
    with pytest.raises(OptionError, match=r"several thresholds \(0.25, 0.75\); choose one with --threshold"):
        evaluate(str(photos), str(tmp_path / "out"), predictions=str(tmp_path / "results"))


def test_a_model_is_not_measured_on_what_it_was_trained_on(photos: Path, tmp_path: Path) -> None:
    model = str(tmp_path / "model")
    train(str(photos), model, workers=0, init="none", image_size=64, epochs=1, batch_size=16)
    found = evaluate(str(photos), str(tmp_path / "out"), model=model)
    images = load_model(model).bundle.training["images"]
    assert found.metrics["left_out"] == {"train": images["train"], "validation": images["validation"]}
    assert found.metrics["images"] == images["test"]
    everything = evaluate(str(photos), str(tmp_path / "all"), model=model, include_seen=True)
    assert everything.metrics["images"] == sum(images.values())
    train_only = tmp_path / "seen"
    split = pq.read_table(tmp_path / "model" / "split.parquet").to_pandas()
    for uri in split[split["split"] == "train"]["image_uri"]:
        target = train_only / Path(uri).relative_to(photos)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(Path(uri).read_bytes())
    with pytest.raises(SourceError, match="--include-seen"):
        evaluate(str(train_only), str(tmp_path / "none"), model=model)


def test_a_near_duplicate_of_what_a_model_has_seen_says_nothing_of_it_either(photos: Path, tmp_path: Path) -> None:
    model, again = tmp_path / "model", tmp_path / "again" / "crack"
    train(str(photos), str(model), workers=0, init="none", image_size=64, epochs=1, batch_size=16)
    again.mkdir(parents=True)
    split = pq.read_table(model / "split.parquet").to_pandas()
    twins = split[split["label"] == 1].groupby("split").first()["image_uri"]
    for name, uri in twins.items():  # saved anew: other bytes, the same picture
        PIL.Image.open(uri).save(again / f"{name}.jpg", quality=70)
    found = evaluate([str(photos), str(again.parent)], str(tmp_path / "out"), model=str(model)).metrics
    images = load_model(str(model)).bundle.training["images"]
    assert found["left_out"] == {"train": images["train"], "validation": images["validation"], "near_duplicates": 2}
    assert found["images"] == images["test"] + 1, "only the test split's own twin is one to measure on"
    arguments = ["evaluate", str(photos), str(again.parent), "--model", str(model), "--out", str(tmp_path / "out")]
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False).output
    assert "left out: 2 images that look the same as these" in shown


def test_other_tiles_of_a_photo_that_a_model_has_seen_say_nothing_of_it_either(photos: Path, tmp_path: Path) -> None:
    model, deck = tmp_path / "model", tmp_path / "deck"
    train(str(photos), str(model), workers=0, init="none", image_size=64, epochs=1, batch_size=16)
    split = pq.read_table(model / "split.parquet").to_pandas()
    shutil.copytree(photos, deck)
    for number, uri in enumerate(split.groupby("split").first()["image_uri"]):  # one more tile of one photo of each
        photo = Path(uri).name.partition("-")[0]
        (deck / "D" / "CD" / f"{photo}-99.jpg").write_bytes(draw_tile(8000 + number, cracked=True))
    found = evaluate(str(deck), str(tmp_path / "out"), model=str(model)).metrics
    images = load_model(str(model)).bundle.training["images"]
    assert found["left_out"] == {"train": images["train"], "validation": images["validation"], "same_photos": 2}
    assert found["images"] == images["test"] + 1


@pytest.mark.slow
def test_what_the_model_that_a_training_began_with_has_seen_stays_seen(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = {"workers": 0, "network": "mobilenet_v3_small", "image_size": 32, "epochs": 1, "batch_size": 64}
    others = make_photos(tmp_path / "others", seed=5000)
    first, second, third, fourth = (str(tmp_path / name) for name in ("first", "second", "third", "fourth"))
    train(str(photos), first, init="none", **options)
    train(str(others), second, init=first, **options)
    train(str(photos), fourth, init=first, split=first, **options)
    assert "have trained" not in capfd.readouterr().err
    train(str(photos), third, init=second, seed=1, **options)  # which draws another split
    held_out = _images_of(third, "validation", "test")
    num = len(held_out & _images_of(first, "train"))
    warned = f"warning: {num} of {len(held_out)} held-out images were used to train {second}"
    assert re.search(rf"^{re.escape(warned)}.*--split {re.escape(second)}, ", capfd.readouterr().err, re.MULTILINE)

    found = evaluate([str(photos), str(others)], str(tmp_path / "out"), model=third).metrics
    seen = set.union(*(_images_of(model, "train", "validation") for model in (first, second, third)))
    assert found["images"] == 82 + 48 - len(seen)
    assert sum(found["left_out"].values()) == len(seen)
    assert with_given_split(read_dataset([str(photos)]), third), "its split is of the images that it was given itself"
    assert learnt_before(f"{third}/model.safetensors") == learnt_before(third), "the weights are those of the bundle"
    assert len(learnt_before(third)) == len(seen)


def _images_of(model: str, *splits: str) -> set[str]:
    table = pq.read_table(Path(model) / "split.parquet").to_pandas()
    return set(table[table["split"].isin(splits)]["sha256"])


def test_a_source_of_one_class_has_what_can_be_measured(tmp_path: Path) -> None:
    for index in range(6):
        path = tmp_path / "site" / "sound" / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(draw_tile(index, cracked=False))
    evaluate(str(tmp_path / "site"), str(tmp_path / "out"))
    said = json.loads((tmp_path / "out" / "metrics.json").read_text())["sources"]["site"]["metrics"]
    assert said["roc_auc"]["value"] is None
    assert said["accuracy"]["value"] is not None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"prevalence": 2.0}, OptionError, "--prevalence must be above 0 and below 1, got 2"),
        ({"threshold": -1.0}, OptionError, "--threshold must be from 0 to 1, got -1"),
        ({"threshold": 0.5, "operating_point": "balanced"}, OptionError, "give only one of them"),
        ({"predictions": "nowhere"}, OutputError, "no predictions in"),
        ({"run_id": "2026-01-01-night"}, OptionError, "--run-id .* --predictions"),
    ],
)
def test_a_wrong_request_is_one_line(photos: Path, tmp_path: Path, options, error, message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        evaluate(str(photos), str(tmp_path / "out"), **options)
    assert "\n" not in str(raised.value)
