"""A training gives the same weights whatever stops it on its way, and a model that scores."""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from builders.processes import wait_for
from builders.trainings import SMALL, command, weights
from crackbatch import load_model, train
from crackbatch.datasets.dataset import read_dataset, with_split
from crackbatch.datasets.pixels import number_rows, stream_pixels
from crackbatch.errors import HeldError, OptionError, RunError, SourceError
from crackbatch.models.bundle import read_bundle
from crackbatch.storage.lease import Holding
from crackbatch.training.initial import initial_network, learnt_before


def test_a_bundle_says_how_it_was_made_and_scores(trained: Path, photos: str) -> None:
    bundle = read_bundle(str(trained))
    assert set(bundle.operating_points) == {"balanced", "recall_99", "precision_95", "false_alarms_1pct"}
    dataset = with_split(read_dataset([photos]))
    assert bundle.training["split_digest"] == dataset.digest
    assert bundle.training["images"] == {name: dataset.part(name).num_rows for name in ("train", "validation", "test")}
    assert bundle.training["data"] == ["deck"]
    card = (trained / "MODEL_CARD.md").read_text()
    assert "| split | drawn with seed 0, by group: photos named in paths |" in card
    assert f"| split digest | {dataset.digest} |" in card
    file = next(Path(photos).rglob("*.jpg"))
    assert 0 <= load_model(str(trained)).predict([file])[0].probability <= 1
    history = pq.read_table(trained / "metrics.parquet").to_pylist()
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert bundle.training["best"]["validation_loss"] == min(row["validation_loss"] for row in history)
    assert sorted(path.name for path in trained.iterdir()) == [
        "MODEL_CARD.md", "metrics.parquet", "model.json", "model.safetensors", "seen.parquet", "split.parquet",
        "training.png",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    trained: Path, photos: str, tmp_path: Path
) -> None:
    train(photos, str(tmp_path / "again"), name="small", workers=0, **SMALL)
    train(photos, str(tmp_path / "other"), name="small", workers=0, **SMALL, seed=1)
    assert weights(tmp_path / "again") == weights(trained) != weights(tmp_path / "other")


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_weights(trained: Path, photos: str, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    process = subprocess.Popen(command(photos, out, "--workers=0"), stderr=subprocess.DEVNULL)
    wait_for((out / "training" / "epoch-0001.pt").exists, process)
    process.kill()
    process.wait()
    assert not (out / "model.json").exists()
    again = subprocess.run(command(photos, out, "--workers=0"), capture_output=True, text=True, check=True)
    assert "epoch 1 of 3" not in again.stderr
    assert weights(out) == weights(trained)
    assert not (out / "training").exists()


@pytest.mark.slow
def test_a_training_from_a_bucket_into_a_bucket_goes_on_from_its_checkpoint_there(
    trained: Path, photos: str, tmp_path: Path, s3: str
) -> None:
    import boto3

    bucket, prefix = boto3.client("s3", endpoint_url=s3), f"{tmp_path.name}/model"
    for file in Path(photos).rglob("*.jpg"):
        key = f"{tmp_path.name}/deck/{file.relative_to(photos)}"
        bucket.put_object(Bucket="inspections", Key=key, Body=file.read_bytes())

    def there() -> set[str]:
        listed = bucket.list_objects_v2(Bucket="inspections", Prefix=prefix).get("Contents", [])
        return {entry["Key"].removeprefix(f"{prefix}/") for entry in listed}

    source, out = f"s3://inspections/{tmp_path.name}/deck", f"s3://inspections/{prefix}"
    train_there = command(source, out, "--workers=0")
    process = subprocess.Popen(train_there, stderr=subprocess.DEVNULL)
    wait_for(lambda: "training/epoch-0001.pt" in there(), process)
    process.kill()
    process.wait()
    assert "model.json" not in there()
    again = subprocess.run(train_there, capture_output=True, text=True, check=True)
    assert "epoch 1 of 3" not in again.stderr
    assert there() == {path.name for path in trained.iterdir()}
    file = next(Path(photos).rglob("*.jpg"))
    assert 0 <= load_model(out).predict([file])[0].probability <= 1


def test_two_trainings_into_one_place_do_not_meet(photos: str, tmp_path: Path) -> None:
    with Holding(str(tmp_path / "out" / "training"), "it"), pytest.raises(HeldError, match="has been working on"):
        train(photos, str(tmp_path / "out"), **SMALL)


def test_a_finished_training_is_not_repeated_and_another_is_refused(trained: Path, photos: str) -> None:
    before = (trained / "model.json").stat().st_mtime_ns
    left = trained / "training" / "epoch-003.pt"  # of a process that was killed as soon as the bundle was written
    left.parent.mkdir()
    left.write_bytes(b"x")
    assert not train(photos, str(trained), workers=0, **SMALL).trained
    assert not left.parent.exists()
    with pytest.raises(OptionError, match="other data or options"):
        train(photos, str(trained), workers=0, **{**SMALL, "epochs": 4})
    assert (trained / "model.json").stat().st_mtime_ns == before


def test_corrected_labels_are_another_training(trained: Path, photos: str, tmp_path: Path) -> None:
    deck = Path(shutil.copytree(photos, tmp_path / "deck"))
    split = str(trained / "split.parquet")
    assert not train(str(deck), str(trained), workers=0, split=split, **SMALL).trained
    (deck / "D" / "CD" / "7000-0.jpg").rename(deck / "D" / "UD" / "7000-0.jpg")
    with pytest.raises(OptionError, match="other data or options"):
        train(str(deck), str(trained), workers=0, split=split, **SMALL)


@pytest.mark.slow
def test_a_disk_that_is_full_ends_with_the_cause_and_the_training_goes_on_later(
    trained: Path, photos: str, tmp_path: Path
) -> None:
    def no_large_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50 << 20, 50 << 20))  # a checkpoint takes more

    out = tmp_path / "full"
    failed = subprocess.run(
        command(photos, out, "--workers=0"), capture_output=True, text=True, preexec_fn=no_large_files
    )
    assert failed.returncode == 1
    assert "run the same command to continue" in failed.stderr.splitlines()[-1]
    assert "Traceback" not in failed.stderr
    subprocess.run(command(photos, out, "--workers=0"), capture_output=True, check=True)
    assert weights(out) == weights(trained)


def test_an_unfinished_training_with_other_options_is_kept(photos: str, tmp_path: Path) -> None:
    (tmp_path / "out" / "training").mkdir(parents=True)
    (tmp_path / "out" / "training" / "request.json").write_text('{"fingerprint": "of another"}')
    (tmp_path / "out" / "training" / "epoch-0001.pt").write_bytes(b"what it has learnt")
    with pytest.raises(OptionError, match="unfinished training"):
        train(photos, str(tmp_path / "out"), workers=0, **SMALL)


def test_a_loss_that_is_no_number_in_a_later_epoch_keeps_what_was_learnt_before(photos: str, tmp_path: Path) -> None:
    out, best = tmp_path / "out", tmp_path / "out" / "training" / "best-0001.pt"
    with pytest.raises(
        RunError, match=rf"the loss is nan in epoch 2: .*--learning-rate.*another --out; --init {best} "
    ):
        train(photos, str(out), workers=0, **{**SMALL, "batch_size": 64}, learning_rate=12)
    assert {path.name for path in best.parent.glob("*.pt")} == {"best-0001.pt", "epoch-0001.pt"}
    kept = initial_network("resnet18", str(best), 64).network.state_dict()
    assert all(torch.isfinite(value).all() for value in kept.values())
    split = with_split(read_dataset([photos])).table.column("split").to_pylist()
    assert Counter(learnt_before(str(best)).values()) == Counter(part for part in split if part != "test")


def test_weights_that_validate_as_no_number_are_not_kept_and_other_options_take_their_place(
    photos: str, tmp_path: Path
) -> None:
    one_step = {**SMALL, "batch_size": 96, "epochs": 1}
    with pytest.raises(RunError, match=r"the loss is nan in epoch 1: give a lower --learning-rate$"):
        train(photos, str(tmp_path / "out"), workers=0, **one_step, learning_rate=1e30)
    assert {path.name for path in (tmp_path / "out" / "training").iterdir()} == {"request.json", "seen.parquet"}
    assert train(photos, str(tmp_path / "out"), workers=0, **one_step, learning_rate=0.01).trained


def test_a_weight_for_an_unknown_source_names_the_known_ones(photos: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="deck/D"):
        train(photos, str(tmp_path / "out"), workers=0, **SMALL, weights={"decks": 2.0})


def test_an_unknown_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file or folder"):
        train("nowhere", str(tmp_path / "out"), workers=0, **SMALL)


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v3_small",
        "mnasnet0_5",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("resnet34", "resnet50", "efficientnet_b0", "convnext_tiny", "vit_b_16", "googlenet")
        ),
    ],
)
def test_a_network_trains_a_step_and_is_saved_and_loaded(name: str, photos: str, tmp_path: Path) -> None:
    out = str(tmp_path / name)
    result = train(photos, out, workers=0, network=name, init="none", image_size=64, batch_size=64, epochs=1)
    model = load_model(out)
    assert model.bundle.network == name == result.bundle.network
    rows = number_rows(with_split(read_dataset([photos])).part("test"))
    assert all(np.isfinite(model.logits(block.images)).all() for block in stream_pixels(rows, 64))


def test_freezing_trains_the_head_alone_and_few_errors_are_said(
    trained: Path, photos: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = {**SMALL, "init": str(trained), "epochs": 1, "split": str(trained)}
    train(photos, str(tmp_path / "frozen"), workers=0, **options, freeze=True)
    assert "| split | given by small |" in (tmp_path / "frozen" / "MODEL_CARD.md").read_text()
    before, after = (safetensors.torch.load(weights(folder)) for folder in (trained, tmp_path / "frozen"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"fc.weight", "fc.bias"}
    said = capfd.readouterr().err
    assert re.search(r"only \d+ validation images .* too few to calibrate", said)
    assert re.search(r"before \(small@\w+\) and \S+ after: .* the model that you began with", said)
    assert read_bundle(str(tmp_path / "frozen")).training["recipe"]["init"] == read_bundle(str(trained)).model_id
