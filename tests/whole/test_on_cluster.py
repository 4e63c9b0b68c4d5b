"""A cluster of three nodes on this machine does what is asked of one every night; make test-cluster runs these tests.

Jobs are submitted to `cluster/local.py`. Exit codes, stops, nights, drift and metrics are as a real cluster shows them.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pandas as pd
import PIL.Image
import PIL.ImageFilter
import psutil
import pytest

import crackbatch
from builders.archives import write_files
from builders.pictures import make_photos
from builders.places import ROOT
from builders.processes import RAY
from builders.runs import count_lost_and_twice
from crackbatch.cli.demo import draw_tile

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("ray"), pytest.mark.timeout(600)]
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class Cluster:
    """The cluster, and how a user reaches it."""

    def __init__(self, process: subprocess.Popen[str], access: dict[str, str]) -> None:
        self._process, self.access = process, access
        self.environment = {**{key: value for key, value in os.environ.items() if key != "PYTHONPATH"}, **access}

    def submit(self, *entrypoint: str) -> str:
        """Submit a job from the project's folder, as the README says, and return its id."""
        command = [RAY, "job", "submit", "--no-wait", "--working-dir", ".", "--", *entrypoint]
        done = subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, text=True, check=True)
        found = re.search(r"'(raysubmit_\w+)' submitted", done.stdout)
        assert found, done.stdout
        return found[1]

    def run(self, *entrypoint: str) -> tuple[int, str]:
        """Submit a job and wait until it has ended; return its exit code and what it said."""
        job = self.submit(*entrypoint)
        info = self.wait(job)
        return info["driver_exit_code"], self.logs(job)

    def wait(self, job: str, ended: Callable[[dict[str, Any]], bool] | None = None) -> dict[str, Any]:
        ticks = threading.Event()
        for _ in range(1200):
            info = self.info(job)
            if (ended or (lambda info: info["status"] in ENDED))(info):
                return info
            ticks.wait(0.25)
        raise AssertionError(self.logs(job))

    def stop(self, job: str) -> None:
        subprocess.run([RAY, "job", "stop", job], env=self.environment, capture_output=True, check=True)

    def info(self, job: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._get(f"/api/jobs/{job}"))
        return found

    def logs(self, job: str) -> str:
        return str(json.loads(self._get(f"/api/jobs/{job}/logs"))["logs"])

    def metrics(self) -> str:
        """What Prometheus reads, from the addresses that Ray lists for it."""
        pages = []
        for group in json.loads(self._get("/api/prometheus/sd")):
            for target in group["targets"]:
                with urllib.request.urlopen(f"http://{target}/metrics", timeout=20) as page:
                    pages.append(page.read().decode())
        return "\n".join(pages)

    def raylets(self) -> list[psutil.Process]:
        """The nodes' processes: the head's and those of the workers."""
        return [part for part in psutil.Process(self._process.pid).children() if part.name() == "raylet"]

    def _get(self, path: str) -> str:
        url = self.access["RAY_API_SERVER_ADDRESS"] + path
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {self.access['RAY_AUTH_TOKEN']}"})
        with urllib.request.urlopen(request, timeout=20) as page:
            return str(page.read().decode())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head and two workers of one core each."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, str(ROOT / "cluster" / "local.py"), "--workers", "2", "--cpus", "1"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("export "))
        yield Cluster(process, dict(word.split("=", 1) for word in shlex.split(line)[1:]))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(120)


def images_of(pages: str, run_id: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for tags, amount in re.findall(r"^ray_crackbatch_images_total\{(.*)\} (\S+)$", pages, re.MULTILINE):
        if f'run_id="{run_id}"' in tags:
            found[re.search(r'status="(\w+)"', tags)[1]] += int(float(amount))  # type: ignore[index]
    return found


def test_the_exit_code_of_a_submitted_run_is_ours_and_its_metrics_are_scraped_and_add_up(
    cluster: Cluster, tmp_path: Path, many_tiles: dict[str, bytes]
) -> None:
    source = write_files(tmp_path / "in", {**many_tiles, "bad.jpg": b"x"})
    options = ["--out", str(tmp_path / "out"), "--max-error-rate", "0.001", "--log-format", "json"]
    code, said = cluster.run("python", "jobs/score.py", str(source), *options)
    assert code == 3, said
    last = json.loads(said.splitlines()[-1])
    assert (last["event"], last["statuses"]) == ("finished", {"ok": len(many_tiles), "not_an_image": 1})
    rows = crackbatch.read_predictions(tmp_path / "out")
    assert count_lost_and_twice(rows, len(many_tiles) + 1) == (0, 0)
    assert images_of(cluster.metrics(), last["run_id"]) == Counter(last["statuses"])


def test_a_submitted_training_ends_with_0_and_a_wrong_request_with_2(cluster: Cluster, tmp_path: Path) -> None:
    photos = str(make_photos(tmp_path / "deck", 24))
    options = ["--init=none", "--image-size=64", "--batch-size=16", "--epochs=1", "--workers=1"]
    code, said = cluster.run("python", "jobs/train.py", photos, "--out", str(tmp_path / "model"), *options)
    assert code == 0, said
    assert crackbatch.load_model(tmp_path / "model").bundle.model_id in said
    code, said = cluster.run("python", "jobs/score.py", str(tmp_path / "deck"), "--out", "/tmp/x", "--limit", "0")
    assert (code, "--limit must be 1 or more" in said) == (2, True)


def test_a_job_that_is_stopped_says_so_and_submitted_again_it_continues(cluster: Cluster, tmp_path: Path) -> None:
    tiles = [draw_tile(seed, cracked=False) for seed in range(20)]
    source = write_files(tmp_path / "in", {f"{index:04d}.jpg": tiles[index % 20] for index in range(2000)})
    out = tmp_path / "out"
    command = ["python", "jobs/score.py", str(source), "--out", str(out), "--run-id", "archive"]
    first = cluster.submit(*command)
    cluster.wait(first, lambda info: info["status"] in ENDED or any(out.glob("runs/*/parts/*.part")))
    cluster.stop(first)
    assert cluster.wait(first)["status"] == "STOPPED"
    stopped = pd.Timestamp.now("UTC")
    assert "interrupted; finished work is kept; run the same command to continue" in cluster.logs(first)
    code, said = cluster.run(*command)
    assert code == 0, said
    rows = crackbatch.read_predictions(out)
    assert count_lost_and_twice(rows, 2000) == (0, 0)
    assert (rows["scored_at"] < stopped).any(), "what was finished before the stop was done again"
    assert (rows["scored_at"] > stopped).any()


def write_night(folder: Path, day: int, change: Callable[[PIL.Image.Image], PIL.Image.Image] | None = None) -> None:
    """The images that a night brings: every third one cracked, and changed if asked."""
    night = folder / f"2026-11-{day:02d}"
    tiles = {f"{day}-{number}.jpg": draw_tile(1000 * day + number, number % 3 == 0) for number in range(60)}
    write_files(night, tiles)
    for file in night.iterdir() if change else ():
        change(PIL.Image.open(file)).save(file, quality=88)  # type: ignore[misc]


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An inbox and results of four nights."""
    root = tmp_path_factory.mktemp("nights")
    for day in range(1, 5):
        write_night(root / "in", day)
    crackbatch.nightly(f"{root}/in/{{date}}", root / "out", date="2026-11-04", since="2026-11-01", engine="local")
    return root


def night_job(root: Path, day: int) -> list[str]:
    inbox = ["--inbox", f"{root}/in/{{date}}/", "--out", f"{root}/out", "--date", f"2026-11-{day:02d}"]
    return ["python", "jobs/nightly.py", *inbox]


def test_two_nightly_jobs_at_the_same_moment_give_one_published_night(cluster: Cluster, nights: Path) -> None:
    write_night(nights / "in", 5)
    jobs = [cluster.submit(*night_job(nights, 5)) for _ in range(2)]
    codes = [cluster.wait(job)["driver_exit_code"] for job in jobs]
    said = [cluster.logs(job) for job in jobs]
    assert codes == [0, 0], said
    rows = pd.read_parquet(nights / "out" / "predictions")
    of_night = rows[rows["run_id"] == "night-2026-11-05"]
    assert count_lost_and_twice(of_night, 60) == (0, 0)
    code, again = cluster.run(*night_job(nights, 5))
    assert (code, "night 2026-11-05: 60 images" in again) == (0, True)


def blurred(image: PIL.Image.Image) -> PIL.Image.Image:
    return image.filter(PIL.ImageFilter.GaussianBlur(4))


def darkened(image: PIL.Image.Image) -> PIL.Image.Image:
    return image.point(lambda value: int(value * 0.4))


@pytest.mark.parametrize(("day", "change", "figure"), [(6, blurred, "sharpness"), (7, darkened, "brightness")])
def test_a_night_of_other_pictures_ends_with_4_and_names_what_is_other(
    day: int, change: Callable[[PIL.Image.Image], PIL.Image.Image], figure: str, cluster: Cluster, nights: Path
) -> None:
    write_night(nights / "in", day, change)
    code, said = cluster.run(*night_job(nights, day))
    assert code == 4, said
    assert f"not as before, since 2026-11-{day:02d}: " in said
    record = json.loads((nights / "out" / "nights" / f"2026-11-{day:02d}.json").read_text())
    assert figure in {drift["figure"] for drift in record["drift"]}


def test_a_night_of_another_surface_ends_with_4(cluster: Cluster, nights: Path, shared_data: Path) -> None:
    with ZipFile(shared_data / "metu.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")][:60]
        write_files(nights / "in" / "2026-11-08", {Path(name).name: archive.read(name) for name in names})
    code, said = cluster.run(*night_job(nights, 8))
    assert code == 4, said
    assert "not as before, since 2026-11-08: " in said


def test_a_worker_node_that_is_killed_does_not_end_the_run(
    cluster: Cluster, tmp_path: Path, many_tiles: dict[str, bytes]
) -> None:
    tiles = list(many_tiles.values())
    source = write_files(tmp_path / "in", {f"{index:04d}.jpg": tiles[index % 100] for index in range(1500)})
    out = tmp_path / "out"
    job = cluster.submit("python", "jobs/score.py", str(source), "--out", str(out))
    cluster.wait(job, lambda info: info["status"] in ENDED or any(out.glob("runs/*/parts/*.part")))
    cluster.raylets()[-1].kill()
    assert cluster.wait(job)["driver_exit_code"] == 0, cluster.logs(job)
    rows = crackbatch.read_predictions(out)
    assert count_lost_and_twice(rows, 1500) == (0, 0)
    assert set(rows["status"]) == {"ok"}
