"""A training gives the same weights whatever stops it on its way, and a model that scores."""

from __future__ import annotations

import errno
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from fsspec.implementations.local import LocalFileSystem

from crackbatch import load_model, train
from crackbatch.datasets.dataset import read_dataset, with_split
from crackbatch.datasets.pixels import fits_memory, number_rows, stream_pixels
from crackbatch.errors import BundleError, HeldError, OptionError, RunError, SourceError
from crackbatch.machine import free_memory
from crackbatch.models.bundle import read_bundle
from crackbatch.storage.lease import Holding
from crackbatch.training import augment
from crackbatch.training.augment import Augmentation
from crackbatch.training.checkpoints import Checkpoints
from crackbatch.training.initial import initial_network, learnt_before
from crackbatch.training.learner import Fit, best_epoch, compute_alike, fit
from crackbatch.training.recipe import Recipe
from crackbatch.training.sampling import deal
from crackbatch.training.workers import _Watch, describe_device
from test_dataset import make_photos

CRACKBATCH = str(Path(sys.executable).with_name("crackbatch"))
SMALL = {"init": "none", "image_size": 64, "batch_size": 16, "epochs": 3}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """96 drawn tiles of 24 photos."""
    return str(make_photos(tmp_path_factory.mktemp("photos") / "deck", 24))


@pytest.fixture(scope="module")
def trained(photos: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained in this process without interruption."""
    out = tmp_path_factory.mktemp("model") / "small"
    train(photos, str(out), workers=0, **SMALL)
    return out


def command(photos: str, out: Path | str, *more: str) -> list[str]:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    return [CRACKBATCH, "train", photos, "--out", str(out), "--name", "small", *options, *more]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "it ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_bundle_says_how_it_was_made_and_scores(trained: Path, photos: str) -> None:
    bundle = read_bundle(str(trained))
    assert set(bundle.operating_points) == {"balanced", "recall_99", "precision_95", "false_alarms_1pct"}
    dataset = with_split(read_dataset([photos]))
    assert bundle.training["split_digest"] == dataset.digest
    assert bundle.training["images"] == {name: dataset.part(name).num_rows for name in ("train", "validation", "test")}
    assert bundle.training["data"] == ["deck"]
    card = (trained / "MODEL_CARD.md").read_text()
    assert "| split | drawn with seed 0, by group: photos that paths name |" in card
    assert f"| split digest | {dataset.digest} |" in card
    file = next(Path(photos).rglob("*.jpg"))
    assert 0 <= load_model(str(trained)).predict([file])[0] <= 1
    history = pq.read_table(trained / "metrics.parquet").to_pylist()
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert bundle.training["best"]["validation_loss"] == min(row["validation_loss"] for row in history)
    assert sorted(path.name for path in trained.iterdir()) == [
        "MODEL_CARD.md", "metrics.parquet", "model.json", "model.safetensors", "seen.parquet", "split.parquet",
        "training.png",
    ]  # fmt: skip


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    trained: Path, photos: str, tmp_path: Path
) -> None:
    train(photos, str(tmp_path / "again"), name="small", workers=0, **SMALL)
    train(photos, str(tmp_path / "other"), name="small", workers=0, **SMALL, seed=1)
    assert weights(tmp_path / "again") == weights(trained) != weights(tmp_path / "other")


@pytest.mark.parametrize(("strength", "least", "most"), [("full", 0.6, 0.7), ("light", 0.87, 0.92)])
def test_augmentation_shows_each_time_another_part_of_the_picture(strength: str, least: float, most: float) -> None:
    stripes = np.zeros((160, 160, 3), np.uint8)
    stripes[:, np.arange(160) // 4 % 2 == 0] = 200
    change = Augmentation(80, 0, strength)
    shown = [change(stripes, 0, number, number) for number in range(100)]
    assert len({picture.tobytes() for picture in shown}) == 100
    assert all((change(stripes, 0, number, number) == shown[number]).all() for number in range(10))
    shares = [_count_edges(picture) / 39 for picture in shown]
    assert least - 1 / 39 <= min(shares) < most
    assert max(shares) > 0.95


CORNERS = np.zeros((96, 96, 3), np.uint8)
CORNERS[:48, :48], CORNERS[:48, 48:], CORNERS[48:, :48], CORNERS[48:, 48:] = 40, 80, 120, 160


def augmented(pixels: np.ndarray, num: int = 400) -> list[np.ndarray]:
    change = Augmentation(64, 0, "full")
    return [change(pixels, 0, number, number).astype(float) for number in range(num)]


def test_augmentation_flips_and_turns_as_often_each_way() -> None:
    corners = [picture[[2, 2, -3, -3], [2, -3, 2, -3], 0] for picture in augmented(CORNERS)]
    ways = Counter(tuple(np.argsort(corner)) for corner in corners)
    assert len(ways) == 8
    assert all(25 <= num <= 80 for num in ways.values())


def test_augmentation_changes_light_contrast_and_colour() -> None:
    light = [picture.mean() / 120 for picture in augmented(np.full((96, 96, 3), 120, np.uint8))]
    assert (min(light), max(light)) == (pytest.approx(0.65, abs=0.03), pytest.approx(1.35, abs=0.03))
    halves = np.repeat(np.array([100, 150], np.uint8), 48)[:, None, None] + np.zeros((1, 96, 3), np.uint8)
    contrast = [np.ptp(picture[8::47, 8::47]) / picture[8::47, 8::47].mean() / 0.4 for picture in augmented(halves)]
    assert min(contrast) < 0.75
    assert max(contrast) > 1.25
    colour = [np.ptp(picture.mean((0, 1))) for picture in augmented(np.full((96, 96, 3), (150, 100, 100), np.uint8))]
    assert min(colour) < 3
    assert max(colour) > 70


def test_augmentation_blurs_some_pictures_and_saves_some_as_jpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    grain = np.random.default_rng(0).integers(60, 180, (96, 96, 1), np.uint8).repeat(3, 2)
    shown = augmented(grain)
    monkeypatch.setitem(augment._RANGES, "full", augment._RANGES["full"]._replace(noise=0))
    plain = augmented(grain)  # the same but for that: it is drawn last
    changed = [number for number in range(400) if (shown[number] != plain[number]).any()]
    assert len(changed) / 400 == pytest.approx(1 - 0.85**2, abs=0.07)
    grains = [np.abs(np.diff(shown[at], axis=0)).mean() / np.abs(np.diff(plain[at], axis=0)).mean() for at in changed]
    assert sum(left < 0.85 for left in grains) >= 20  # blurred
    assert sum(left > 0.95 for left in grains) >= 20  # a JPEG


def _count_edges(picture: np.ndarray) -> int:
    """Edges between stripes, which may have been turned."""
    lines = max((picture.mean(axis=(axis, 2)) for axis in (0, 1)), key=np.std)
    return int(np.count_nonzero(np.diff(lines > lines.mean())))


def test_images_that_do_not_fit_into_memory_are_streamed_and_train_alike(
    photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("crackbatch.training.batches.fits_memory", lambda *_: False)
    monkeypatch.setattr("crackbatch.datasets.pixels.fits_memory", lambda *_: False)
    options = {**SMALL, "epochs": 2}
    results = [train(photos, str(tmp_path / name), workers=0, **options) for name in "ab"]
    assert "do not fit into memory" in capfd.readouterr().err
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert read_bundle(str(tmp_path / "a")).temperature == read_bundle(str(tmp_path / "b")).temperature
    assert all(result.trained and len(result.history) == 2 for result in results)


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
    assert 0 <= load_model(out).predict([file])[0] <= 1


def test_two_trainings_into_one_place_do_not_meet(photos: str, tmp_path: Path) -> None:
    with Holding(str(tmp_path / "out" / "training"), "it"), pytest.raises(HeldError, match="is being worked on by"):
        train(photos, str(tmp_path / "out"), **SMALL)


def test_ray_train_gives_the_same_weights_from_relative_locations(
    trained: Path,
    photos: str,
    tmp_path: Path,
    ray_here: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)  # Ray Train's workers are somewhere else
    Path("deck").symlink_to(photos)
    torch.save(initial_network("resnet18", "none", 64).network.state_dict(), "initial.pth")
    same = {**SMALL, "init": "initial.pth", "learning_rate": Recipe(init="none", batch_size=16).peak_learning_rate}
    shutil.copy(trained / "split.parquet", "split.parquet")
    train("deck", "ray", name="small", workers=1, split="split.parquet", **same)
    assert "training on Ray Train, 1 CPU worker\n" in capfd.readouterr().err
    assert weights(tmp_path / "ray") == weights(trained)


@pytest.mark.parametrize(
    ("device", "workers", "nodes", "said"),
    [
        ("cuda", 2, [{"CPU": 8, "GPU": 2}], "2 GPU workers$"),
        ("cpu", 2, [{"CPU": 8}, {}], "2 CPU workers$"),
        ("cpu", 2, [{"CPU": 8, "GPU": 1}, {"CPU": 2}], "2 CPU workers: .* a GPU each, and the cluster has 1; fewer"),
    ],
)
def test_it_is_said_what_the_workers_train_on(
    device: str, workers: int, nodes: list[dict[str, float]], said: str
) -> None:
    assert re.search(said, describe_device(device, workers, nodes))


def test_whoever_watches_epochs_goes_on_where_a_file_cannot_be_read(tmp_path: Path) -> None:
    told, damaged = Event(), tmp_path / "progress-0001.json"
    with _Watch(str(tmp_path), lambda figures: told.set()):
        os.mkfifo(damaged)
        with open(damaged, "wb") as asked:  # opens when it is read
            asked.write(b"no JSON")
        damaged.unlink()
        damaged.write_bytes(b'{"epoch": 1}')
        assert told.wait(60)


def test_more_workers_than_the_cluster_has_room_for_are_refused(photos: str, tmp_path: Path, ray_here: None) -> None:
    with pytest.raises(RunError, match=r"2 workers need a CPU each.*fewer --workers"):
        train(photos, str(tmp_path / "ray"), workers=2, **SMALL)


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_ray_train_at_once(photos: str, tmp_path: Path, ray_here: None) -> None:
    with pytest.raises(RunError, match=r"the loss is nan in epoch \d.*--learning-rate"):
        train(photos, str(tmp_path / "out"), workers=1, **SMALL, learning_rate=1e30)


@pytest.mark.slow
def test_ray_train_gives_the_same_weights_and_survives_its_workers_death(
    trained: Path, photos: str, tmp_path: Path
) -> None:
    out = tmp_path / "ray"
    process = subprocess.Popen(command(photos, out, "--workers=1"), stderr=subprocess.PIPE, start_new_session=True)
    wait_for((out / "training" / "progress-0001.json").exists, process, 200)
    (worker,) = train_workers(process.pid)
    os.kill(worker, signal.SIGKILL)
    _, errors = process.communicate(timeout=250)
    assert process.returncode == 0, errors.decode()
    assert weights(out) == weights(trained)
    assert [line.split()[1] for line in errors.decode().splitlines() if line.startswith("epoch ")] == ["1", "2", "3"]


@pytest.mark.slow
def test_without_failures_to_recover_from_a_workers_death_ends_the_training_until_it_is_asked_for_again(
    trained: Path, photos: str, tmp_path: Path
) -> None:
    out = tmp_path / "ray"
    train_there = command(photos, out, "--workers=1", "--max-failures=0")
    process = subprocess.Popen(train_there, stderr=subprocess.PIPE, start_new_session=True)
    wait_for((out / "training" / "epoch-0001.pt").exists, process, 200)
    (worker,) = train_workers(process.pid)
    os.kill(worker, signal.SIGKILL)
    _, errors = process.communicate(timeout=250)
    assert process.returncode == 1
    last = errors.decode().splitlines()[-1]
    assert re.search(r"crackbatch: the training broke off \(.*\); the same command continues it$", last)
    again = subprocess.run(train_there, capture_output=True, text=True, check=True)
    assert "epoch 1 of 3" not in again.stderr
    assert weights(out) == weights(trained)


def train_workers(driver: int) -> list[int]:
    """Ray Train's workers among the processes that descend from a driver."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            parents[int(folder.name)] = (int(fields[1]), (folder / "cmdline").read_bytes())
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = []
    for process, (parent, name) in parents.items():
        while parent not in (0, driver):
            parent = parents.get(parent, (0, b""))[0]
        if parent == driver and b"RayTrainWorker" in name:
            found.append(process)
    return found


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


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_imagenets_weights_of_each_network_see_what_they_were_made_for(name: str) -> None:
    import torchvision.models

    theirs = getattr(torchvision.models, name)(weights=None, init_weights=False, transform_input=True).eval()
    ours = getattr(torchvision.models, name)(weights=None, init_weights=False).eval()
    ours.load_state_dict(theirs.state_dict())
    pixels = torch.rand(2, 3, 80, 80, generator=torch.Generator().manual_seed(0))
    logits = [
        network((pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
        for network, (mean, std) in ((theirs, Recipe().normalisation), (ours, Recipe(network=name).normalisation))
    ]
    torch.testing.assert_close(*logits)


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
    assert "the same command continues it" in failed.stderr.splitlines()[-1]
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


@pytest.mark.parametrize("labels", [[1] * 64 + [0] * 64, [0, 1] * 64, [1] * 20 + [0] * 300, [0, 1, 0]])
def test_workers_are_dealt_every_image_once_and_both_classes_alike(labels: list[int]) -> None:
    rows = number_rows(pa.table({"label": labels}))
    parts = deal(rows, 2, seed=0)
    assert sorted(number for part in parts for number in part.column("number").to_pylist()) == list(range(len(labels)))
    cracked = [sum(part.column("label").to_pylist()) for part in parts]
    assert max(cracked) - min(cracked) <= max(2, sum(cracked) // 4)
    assert [part.column("number").to_pylist() for part in deal(rows, 2, seed=0)] == [
        part.column("number").to_pylist() for part in parts
    ]


@pytest.mark.parametrize(("neighbours", "fits"), [(1, True), (3, False)])
def test_neighbours_share_the_memory_of_their_machine(neighbours: int, fits: bool) -> None:
    assert fits_memory(int(0.2 * free_memory() / 3 / 64**2), 64, neighbours) == fits


def test_memory_is_told_also_where_no_file_tells_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crackbatch.machine._MEMORY", tmp_path / "not on this system")
    assert 1 << 28 < free_memory() < 1 << 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "--epochs"),
        ({"batch_size": 1}, "--batch-size"),
        ({"learning_rate": -1.0}, "--learning-rate"),
        ({"image_size": 8}, "--image-size"),
        ({"seed": 2**32}, "--seed 4294967296"),
        ({"balance": "all"}, "--balance"),
        ({"augmentation": "none"}, "--augmentation"),
        ({"weights": {"deck/D": 0.0}}, "--weight"),
        ({"workers": -1}, "--workers"),
    ],
)
def test_an_option_that_means_nothing_is_refused_before_reading(options, message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        train("nowhere", str(tmp_path / "out"), **{**SMALL, **options})
    assert not (tmp_path / "out").exists()


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
    assert re.search(r"only \d+ validation images .* too few to calibrate", capfd.readouterr().err)
    assert read_bundle(str(tmp_path / "frozen")).training["recipe"]["init"] == read_bundle(str(trained)).model_id


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_torchvision_state_dict_is_where_training_starts(wrapped: bool, tmp_path: Path) -> None:
    from torchvision.models import resnet18

    state = resnet18(num_classes=1000).state_dict()  # as ImageNet's, with another head
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}} if wrapped else state, tmp_path / "r.pth")
    network, head, origin = initial_network("resnet18", str(tmp_path / "r.pth"))
    assert head == "fc"
    assert origin.startswith("r.pth@")
    assert torch.equal(network.state_dict()["layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])
    assert network.state_dict()["fc.weight"].shape == (2, 512)


@pytest.mark.parametrize("network", ["mnasnet0_5", "densenet121"])
def test_weights_that_torchvision_reads_in_a_way_of_its_own_are_where_training_starts(
    network: str, tmp_path: Path
) -> None:
    state = initial_network(network, "none", 64, seed=1).network.state_dict()
    named_as_once = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): state[key] for key in state}
    assert named_as_once.keys() != state.keys() or network == "mnasnet0_5"
    safetensors.torch.save_file(named_as_once, tmp_path / "weights.safetensors")
    found = initial_network(network, str(tmp_path / "weights.safetensors"), 64).network.state_dict()
    assert all(torch.equal(found[key], state[key]) for key in state)


@pytest.mark.parametrize("damaged", [b"", b".", b"hello", b"PK\x03\x04", None])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(damaged: bytes | None, tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(1, {"history": [1]}, set())
    checkpoints.save(2, {"history": [1, 2]}, set())
    file = tmp_path / "epoch-0002.pt"
    file.write_bytes(file.read_bytes()[:100] if damaged is None else damaged)
    assert checkpoints.latest() == {"history": [1]}
    shutil.copy(file, tmp_path / "best-0001.pt")
    with pytest.raises(RunError, match=r"the weights of epoch 1, the best, are gone .* or damaged; remove the folder"):
        checkpoints.best(1)


class _Scripted:
    """A learner whose epochs have the losses that it is told, and whose weights are the number of the epoch."""

    def __init__(self, losses: list[float]) -> None:
        self._losses, self._epoch = losses, 0

    def train_epoch(self, epoch: int, batches: object) -> float:
        self._epoch = epoch
        return 0.0

    def validate(self, blocks: object, epoch: int) -> dict[str, float]:
        return {"validation_loss": self._losses[epoch - 1], "validation_accuracy": 0.0}

    def weights(self) -> dict[str, torch.Tensor]:
        return {"epoch": torch.tensor(self._epoch)}

    def state(self) -> dict[str, int]:
        return {"epoch": self._epoch}

    def load_state(self, state: dict[str, int]) -> None:
        self._epoch = state["epoch"]


def run_epochs(folder: Path, losses: list[float], epochs: int) -> list[dict[str, float]]:
    batches = SimpleNamespace(num_steps=1, batch_size=1, epoch=lambda epoch: ())
    return fit(Fit(_Scripted(losses), batches, tuple, Checkpoints(str(folder)), epochs, 1), lambda figures: None)


@pytest.mark.parametrize("is_damaged", [False, True])
def test_the_best_weights_are_those_of_the_best_epoch_of_the_history(is_damaged: bool, tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    run_epochs(tmp_path, [3.0, 2.0, 2.5, 1.0], 4)
    assert {file.name for file in tmp_path.glob("best*")} == {"best-0002.pt", "best-0004.pt"}
    if is_damaged:
        (tmp_path / "epoch-0004.pt").write_bytes(b"cut off")
    else:
        (tmp_path / "epoch-0004.pt").unlink()  # killed after its weights, before its checkpoint
    history = run_epochs(tmp_path, [3.0, 2.0, 2.5, 2.4, 2.3], 5)  # another kind of machine, which rounds otherwise
    assert checkpoints.best(best_epoch(history)) == {"epoch": torch.tensor(2)}
    assert {file.name for file in tmp_path.glob("best*")} == {"best-0002.pt"}


def test_where_one_file_cannot_be_looked_for_no_best_weights_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_epochs(tmp_path, [1.0, 2.0, 3.0], 2)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(LocalFileSystem, "info", fail)  # a disk of the network that is away for a moment
        Checkpoints(str(tmp_path)).save(3, {"history": []}, {1})
    assert Checkpoints(str(tmp_path)).best(1) == {"epoch": torch.tensor(1)}


def test_where_several_checkpoints_are_damaged_those_of_the_epochs_trained_again_stay(tmp_path: Path) -> None:
    run_epochs(tmp_path, [3.0, 2.0, 1.0], 3)
    for epoch in (2, 3):
        (tmp_path / f"epoch-{epoch:04d}.pt").write_bytes(b"cut off")
    run_epochs(tmp_path, [3.0], 1)
    assert Checkpoints(str(tmp_path)).latest() is not None
    history = run_epochs(tmp_path, [3.0, 2.0], 2)
    assert [figures["epoch"] for figures in history] == [1, 2]
    assert Checkpoints(str(tmp_path)).best(2) == {"epoch": torch.tensor(2)}


def test_torch_is_told_to_compute_alike_for_gpus() -> None:
    try:
        compute_alike()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"]
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_a_training_that_an_older_version_began_goes_on_with_its_best_weights(tmp_path: Path) -> None:
    run_epochs(tmp_path, [3.0, 2.0], 2)
    (tmp_path / "best-0001.pt").unlink()
    (tmp_path / "best-0002.pt").rename(tmp_path / "best.pt")
    history = run_epochs(tmp_path, [3.0, 2.0, 2.5, 2.4], 4)
    assert Checkpoints(str(tmp_path)).best(best_epoch(history)) == {"epoch": torch.tensor(2)}
    history = run_epochs(tmp_path, [3.0, 2.0, 2.5, 2.4, 1.0, 1.1], 6)
    assert Checkpoints(str(tmp_path)).best(best_epoch(history)) == {"epoch": torch.tensor(5)}
    assert not (tmp_path / "best.pt").exists()


class _Exploding:
    def __reduce__(self):
        return (open, ("exploded", "w"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(pickle.dumps(_Exploding())), "is not loaded"),
        (lambda path: torch.save({"a": _Exploding()}, path), "is not loaded"),
        (lambda path: path.write_bytes(b""), "is not loaded"),
        (lambda path: path.write_bytes(b"."), "is not loaded"),
        (lambda path: path.write_bytes(b"hello"), "is not loaded"),
        (lambda path: torch.save({"conv1.weight": torch.zeros(1)}, path), "does not fit a resnet18"),
        (lambda path: torch.save([1, 2], path), "is no state dict"),
        (lambda path: None, "no bundle and no weights there"),
    ],
)
def test_initial_weights_that_are_none_are_refused_and_never_run(
    make, message: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "weights.pth")
    with pytest.raises(BundleError, match=message) as raised:
        initial_network("resnet18", str(tmp_path / "weights.pth"))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "exploded").exists()


def test_imagenet_weights_without_a_connection_name_the_other_choices(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(BundleError, match=r"--init none.*concrete-resnet18"):
        initial_network("resnet18", "imagenet")


@pytest.mark.parametrize(
    ("network", "size"), [("vit_b_16", 100), ("alexnet", 32), ("inception_v3", 64), ("maxvit_t", 100)]
)
def test_a_size_that_a_network_cannot_take_is_refused_in_one_line(network: str, size: int) -> None:
    with pytest.raises(BundleError, match=rf"--network {network} takes no pictures of {size} .*--image-size") as raised:
        initial_network(network, "none", size)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("network", ["resnet99", "fcn_resnet50", "squeezenet1_0"])
def test_what_is_no_classifier_of_torchvision_is_refused(network: str) -> None:
    with pytest.raises(BundleError, match=network):
        initial_network(network, "none")
