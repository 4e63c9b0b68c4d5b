"""Workers of Ray Train give the same weights as a training in one process, also where one of them dies."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from threading import Event

import pytest
import torch

from builders.processes import wait_for
from builders.trainings import SMALL, command, train_workers, weights
from crackbatch import train
from crackbatch.errors import OptionError, RunError
from crackbatch.machine import num_cores
from crackbatch.training.initial import initial_network
from crackbatch.training.recipe import Recipe
from crackbatch.training.workers import _Watch, describe_device, has_gpus


@pytest.mark.slow
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
    assert "training on Ray Train with 1 CPU worker\n" in capfd.readouterr().err
    threads = torch.get_num_threads()
    torch.set_num_threads(num_cores())  # as many as the worker has: they decide in which order numbers are added
    try:
        train("deck", "here", name="small", workers=0, split="split.parquet", **SMALL)
    finally:
        torch.set_num_threads(threads)
    assert weights(tmp_path / "ray") == weights(tmp_path / "here")


@pytest.mark.parametrize(
    ("workers", "nodes", "said"),
    [
        (2, [{"CPU": 8, "GPU": 2}], "2 GPU workers$"),
        (2, [{"CPU": 8}, {}], "2 CPU workers$"),
        (1, [{"CPU": 8}, {}], "1 CPU worker$"),
        (2, [{"CPU": 8, "GPU": 1}, {"CPU": 2}], "2 CPU workers: .* a GPU each, the cluster has 1; give fewer"),
    ],
)
def test_it_is_said_what_the_workers_train_on(workers: int, nodes: list[dict[str, float]], said: str) -> None:
    assert re.search(said, describe_device(has_gpus(nodes, workers), workers, nodes))


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
    with pytest.raises(RunError, match=r"waited 0 s for 2.25 CPUs in the Ray cluster, which has 2.*fewer --workers"):
        train(photos, str(tmp_path / "ray"), workers=2, **SMALL, max_wait=0)
    with pytest.raises(RunError, match=r"--workers 2 needs a CPU for each worker.*fewer --workers"):
        has_gpus([{"CPU": 2.0}], workers=2)


@pytest.mark.parametrize("gpus", [1, 3])
def test_each_worker_trains_on_one_gpu(gpus: int, photos: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=rf"--gpus {gpus} needs --workers {gpus}"):
        train(photos, str(tmp_path / "out"), workers=2, gpus=gpus, **SMALL)


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
    assert re.search(r"crackbatch: the training stopped \(.*\); run the same command to continue$", last)
    again = subprocess.run(train_there, capture_output=True, text=True, check=True)
    assert "epoch 1 of 3" not in again.stderr
    assert weights(out) == weights(trained)
