"""Faults that are really made to happen: nothing is lost, nothing stands there twice.

`make test-faults` runs these and prints a table of what was done; the short ones are among the others' tests.
"""

from __future__ import annotations

import glob
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest

import crackbatch
from builders.archives import write_files, zip_with
from builders.faulty import FAULTS, Faults, FaultyProxy
from builders.poison import POISON
from builders.processes import alone, finish, wait_for
from builders.runs import begin, count_lost_and_twice, publish, summary_of, write_part
from crackbatch.cli.demo import draw_tile

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1500)]

OPEN_ROWS = 256  # of the part that the one task which writes on two cores has begun (pipeline.py)

Record = Callable[[str, int, pd.DataFrame, int], None]


@pytest.fixture(scope="module")
def many() -> dict[str, bytes]:
    """Six hundred images, of forty pictures."""
    tiles = [draw_tile(seed, seed % 3 == 0) for seed in range(40)]
    return {f"span-{index % 7}/{index:04d}.jpg": tiles[index % 40] for index in range(600)}


def start(source: object, out: object, *options: str, engine: str = "ray", **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "crackbatch.cli", "score", str(source), "--out", str(out), "--engine", engine]
    command += options
    return subprocess.Popen(
        command, env={**alone(), **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def parts(out: Path) -> list[Path]:
    return [Path(file) for file in glob.glob(f"{out}/runs/*/parts/*.part")]  # which heeds no folder that comes and goes


def start_and_wait_for_a_part(source: object, out: Path, **options: str) -> subprocess.Popen[str]:
    """A run in the middle of its work."""
    process = start(source, out, **options)
    wait_for(lambda: parts(out), process)
    return process


def worker(process: subprocess.Popen[str], title: str) -> psutil.Process | None:
    """A worker below the driver whose title holds these words (Ray titles them after what they do)."""
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if title in " ".join(child.cmdline()):
                return child
        except psutil.Error:  # it is gone
            continue
    return None


DIE_WHEN_IT_PUBLISHES = """
import os, signal
from crackbatch.cli import commands
from crackbatch.storage import objects
objects.move = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
commands.main()
"""


def start_and_die_when_it_publishes(
    source: object, out: object, *options: str, **environment: str
) -> subprocess.Popen[str]:
    """A run that is killed when its rows are written and none is visible yet, a moment that random ones hardly meet."""
    command = [sys.executable, "-c", DIE_WHEN_IT_PUBLISHES, "score", str(source), "--out", str(out), *options]
    return subprocess.Popen(
        command, env={**alone(), **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
    )


def test_a_driver_killed_at_twenty_moments_loses_nothing_and_does_nothing_twice(
    tmp_path: Path, many: dict[str, bytes], cluster: str, record: Record
) -> None:
    source, out = write_files(tmp_path / "in", many), tmp_path / "out"
    (source / "more.zip").write_bytes(zip_with(zipfile.ZIP_DEFLATED, many))
    options, environment = ["--address", cluster, "--date", "2026-01-01"], {"RAY_AUTH_MODE": "disabled"}
    began = time.monotonic()
    finish(start(source, tmp_path / "undisturbed", *options, **environment))
    seconds = time.monotonic() - began
    dice, scored, kills, again = random.Random(7), {}, 0, 0
    while kills < 20:
        process = start(source, out, *options, **environment)
        try:
            process.communicate(timeout=dice.uniform(0.05, 1.0) * seconds)
            kept = crackbatch.read_predictions(str(out))  # it was through: from the start again
            assert count_lost_and_twice(kept, 2 * len(many)) == (0, 0)
            _assert_kept(scored, kept)
            shutil.rmtree(out)
            scored = {}
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            if not list(out.glob("runs/*/summary.json")):
                visible = [pq.read_metadata(file).num_rows for file in out.rglob("predictions/**/*.parquet")]
                assert sum(visible) in (0, 2 * len(many)), "half of a run is visible"
            for part in parts(out):
                rows = pq.read_table(part, columns=["image_uri", "scored_at"]).to_pylist()
                again += sum(scored.get(row["image_uri"], row["scored_at"]) != row["scored_at"] for row in rows)
                scored |= {row["image_uri"]: row["scored_at"] for row in rows}
    # A dead driver's tasks may still write what the next one has begun: at most a part in each task that writes.
    assert again <= kills * OPEN_ROWS
    shutil.rmtree(out)
    process = start(source, out, *options, **environment)
    wait_for(lambda: list(out.glob("runs/*/lease-*.json")), process)
    process.kill()
    process.communicate()
    assert not list(out.glob("runs/*/run.json")), "it was killed while it planned"
    publishing = start_and_die_when_it_publishes(source, out, *options, **environment)
    assert publishing.wait(600) == -signal.SIGKILL
    assert not list(out.rglob("*.parquet"))
    scored = {row["image_uri"]: row["scored_at"] for part in parts(out) for row in pq.read_table(part).to_pylist()}
    assert len(scored) == 2 * len(many)
    finish(start(source, out, *options, **environment))
    kept = crackbatch.read_predictions(str(out))
    record("driver killed (SIGKILL)", kills + 2, kept, 2 * len(many))
    _assert_kept(scored, kept)
    expected = crackbatch.read_predictions(str(tmp_path / "undisturbed"))
    assert set(kept["image_uri"]) == set(expected["image_uri"])


def _assert_kept(scored: dict[str, object], kept: pd.DataFrame) -> None:
    """What a part held when a driver was killed was not done again: only what was in flight is."""
    done = dict(zip(kept["image_uri"], kept["scored_at"], strict=True))
    assert [uri for uri, moment in scored.items() if done[uri] != moment] == []


@pytest.mark.parametrize(
    ("title", "name"), [("_Scorer", "predict actor killed"), ("_fetch_shards", "fetch task's worker killed")]
)
def test_a_worker_killed_in_the_middle_does_not_end_the_run(
    title: str, name: str, tmp_path: Path, many: dict[str, bytes], record: Record, s3: str
) -> None:
    bucket = boto3.client("s3", endpoint_url=s3)
    prefix = title.lstrip("_")  # not the title itself: what the driver forks is called like the driver for a moment
    for key, data in many.items():
        bucket.put_object(Bucket="inspections", Key=f"{prefix}/{key}", Body=data)
    with FaultyProxy(s3, Faults(delay_s=0.3)) as slow:  # so that tasks that fetch are there to be killed
        process = start(f"s3://inspections/{prefix}", tmp_path / "out", AWS_ENDPOINT_URL=slow.url)
        victim = wait_for(lambda: worker(process, title), process)
        if title == "_Scorer":
            wait_for(lambda: parts(tmp_path / "out"), process)
            victim = wait_for(lambda: worker(process, title), process)
        assert isinstance(victim, psutil.Process)
        victim.kill()
        finish(process)
    rows = crackbatch.read_predictions(str(tmp_path / "out"))
    record(name, 1, rows, len(many))
    assert set(rows["status"]) == {"ok"}


ON_THREE_NODES = """
import signal, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
print(cluster.address, *(node.all_processes["raylet"][0].process.pid for node in nodes), flush=True)
sys.stdin.read()
cluster.shutdown()
"""


def test_a_node_that_dies_does_not_end_the_run(tmp_path: Path, many: dict[str, bytes], record: Record) -> None:
    source = write_files(tmp_path / "in", many)
    environment = {**alone(), "RAY_AUTH_MODE": "disabled"}
    nodes = subprocess.Popen(
        [sys.executable, "-c", ON_THREE_NODES],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        address, *raylets = nodes.stdout.readline().split()  # type: ignore[union-attr]
        process = start(source, tmp_path / "out", "--address", address, RAY_AUTH_MODE="disabled")
        wait_for(lambda: parts(tmp_path / "out"), process)
        os.kill(int(raylets[0]), signal.SIGKILL)
        finish(process)
    finally:
        nodes.communicate("")
    rows = crackbatch.read_predictions(str(tmp_path / "out"))
    record("raylet of one of three nodes killed", 1, rows, len(many))
    assert set(rows["status"]) == {"ok"}


@pytest.mark.parametrize("engine", ["local", "ray"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_says_within_three_seconds_how_it_goes_on(
    number: signal.Signals, engine: str, tmp_path: Path, many: dict[str, bytes], record: Record
) -> None:
    source, out = write_files(tmp_path / "in", many), tmp_path / "out"
    process = start_and_wait_for_a_part(source, out, engine=engine)
    began = time.monotonic()
    process.send_signal(number)
    assert process.stderr is not None
    said = next(line for line in process.stderr if "interrupted" in line)
    assert time.monotonic() - began < 3
    assert "run the same command to continue" in said
    process.kill()  # as `ray job stop` does after three seconds
    process.communicate()
    finish(start(source, out, engine=engine))
    record(f"stopped by {number.name} ({engine})", 1, crackbatch.read_predictions(str(out)), len(many))


@pytest.mark.parametrize("engine", ["local", "ray"])
@pytest.mark.parametrize(
    ("kind", "places", "megapixels", "status", "message"),
    [
        ("abort", [20, 50, 100], "10", "crashed", "decoding it crashed the decoder process (signal 6"),
        ("memory", [50], "10", "crashed", "decoding it needs more than"),
        ("memory", [50], "200", "crashed", "decoding it needs more than"),
        ("sleep", [20, 50, 100], "10", "failed", "decoding took longer than 2 s"),
    ],
)
def test_a_poisonous_image_costs_itself_alone(
    kind: str,
    places: list[int],
    megapixels: str,
    status: str,
    message: str,
    engine: str,
    tmp_path: Path,
    many: dict[str, bytes],
    record: Record,
) -> None:
    files = dict(list(many.items())[:120])
    poisoned = sorted(list(files)[place] for place in places)
    for name in poisoned:
        files[name] += f"POISON: {kind}".encode()
    source = write_files(tmp_path / "in", files)
    write_files(tmp_path / "poison", {"sitecustomize.py": POISON.encode()})
    memory = psutil.virtual_memory()
    process = start(
        source, tmp_path / "out", "--max-megapixels", megapixels, "--decode-timeout", "2" if kind == "sleep" else "60",
        engine=engine, PYTHONPATH=str(tmp_path / "poison"), RAY_memory_monitor_refresh_ms="100",
        # The system that kills it is Ray's monitor, long before the machine is in need.
        RAY_memory_usage_threshold=str((memory.used + (4 << 30)) / memory.total),
    )  # fmt: skip
    finish(process)
    rows = crackbatch.read_predictions(str(tmp_path / "out"))
    record(
        f"images that kill their decoder ({kind}, {megapixels} megapixels allowed, {engine})",
        len(places),
        rows,
        len(files),
    )
    bad = rows[rows["status"] != "ok"]
    assert sorted(bad["image_uri"]) == [str(source / name) for name in poisoned]
    assert set(bad["status"]) == {status}
    assert all(message in error for error in bad["error"])


def test_two_runs_of_one_id_do_not_meet_and_two_ids_go_on_side_by_side(
    tmp_path: Path, many: dict[str, bytes], cluster: str, record: Record
) -> None:
    source, out = write_files(tmp_path / "in", many), tmp_path / "out"
    options, environment = ["--address", cluster], {"RAY_AUTH_MODE": "disabled"}
    first = start(source, out, *options, "--run-id", "a", **environment)
    wait_for(lambda: list(out.glob("runs/a/lease-*.json")), first)
    said = finish(start(source, out, *options, "--run-id", "a", **environment), code=1, timeout_s=60)
    assert re.search(rf"process {first.pid} on \S+ has been working on run a since 20", said)
    finish(start(source, out, *options, "--run-id", "b", **environment))
    finish(first)
    for run_id in ("a", "b"):
        rows = crackbatch.read_predictions(str(out), run_id=run_id)
        record(f"two runs into one OUT, run {run_id}", 1, rows, len(many))


@pytest.mark.parametrize("seed", [1, 2])
def test_a_store_that_fails_at_one_request_in_twenty_costs_no_image(
    seed: int, tmp_path: Path, many: dict[str, bytes], record: Record, s3: str
) -> None:
    bucket = boto3.client("s3", endpoint_url=s3)
    for key, data in many.items():
        bucket.put_object(Bucket="inspections", Key=f"shaky-{seed}/in/{key}", Body=data)
    bucket.put_object(Bucket="inspections", Key=f"shaky-{seed}/in/all.zip", Body=zip_with(zipfile.ZIP_STORED, many))
    faults = Faults(share=0.05, silence_s=30, seed=seed)
    prefix = f"s3://inspections/shaky-{seed}"
    with FaultyProxy(s3, faults) as proxy:
        said = finish(start(f"{prefix}/in", f"{prefix}/out", AWS_ENDPOINT_URL=proxy.url), timeout_s=1200)
    rows = crackbatch.read_predictions(f"{prefix}/out")
    record("500, 503, 429, resets, cut bodies, lost answers, 30 s silences", faults.made.total(), rows, 2 * len(many))
    assert set(rows["status"]) == {"ok"}
    retries = re.search(r"storage requests were repeated ([\d,]+) times", said)
    assert retries is not None
    assert int(retries[1].replace(",", "")) > faults.made.total() / 4
    assert set(faults.made) == set(FAULTS)


def test_credentials_that_expire_in_the_middle_end_the_run_and_it_goes_on_with_new_ones(
    tmp_path: Path, many: dict[str, bytes], record: Record, s3: str
) -> None:
    bucket = boto3.client("s3", endpoint_url=s3)
    for key, data in many.items():
        bucket.put_object(Bucket="inspections", Key=f"expiring/{key}", Body=data)
    source, out = "s3://inspections/expiring", tmp_path / "out"
    faults = Faults(delay_s=0.5)  # so that there is still something to be read
    with FaultyProxy(s3, faults) as store:
        process = start_and_wait_for_a_part(source, out, AWS_ENDPOINT_URL=store.url)
        faults.expires_after = 0
        said = finish(process, code=1)
    assert "The provided token has expired" in said
    assert "renew them and run again" in said
    kept = parts(out)
    assert kept
    assert not list(out.rglob("*.parquet"))
    finish(start(source, out))
    rows = crackbatch.read_predictions(str(out))
    record("credentials expire", 1, rows, len(many))
    assert set(rows["status"]) == {"ok"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a few megabytes; needs the right to mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no right to mount a small disk here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def _fill(file: Path) -> None:
    with file.open("wb", buffering=0) as opened:
        while True:
            opened.write(bytes(4096))


def test_a_disk_that_is_full_ends_the_run_with_the_cause_and_it_goes_on_later(
    small_disk: Path, tmp_path: Path, many: dict[str, bytes], record: Record
) -> None:
    source, out = write_files(tmp_path / "in", many), small_disk / "out"
    process = start_and_wait_for_a_part(source, out)
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space left"):
        _fill(ballast)
    said = finish(process, code=1)
    assert "No space left on device" in said
    assert "run the same command" in said
    assert not list(out.rglob("*.parquet"))
    ballast.unlink()
    finish(start(source, out))
    record("disk full while parts are written", 1, crackbatch.read_predictions(str(out)), len(many))


def test_a_disk_that_is_full_while_rows_are_published_shows_none_of_them_and_they_come_later(
    small_disk: Path, tmp_path: Path, many: dict[str, bytes], record: Record
) -> None:
    source, out = write_files(tmp_path / "in", many), small_disk / "out"
    before = begin(str(out), "before")
    write_part(before, "abc")
    publish(before, "abc")
    before.finish(summary_of(before))
    assert start_and_die_when_it_publishes(source, out).wait(600) == -signal.SIGKILL
    for file in out.glob("runs/*/publish/*"):
        file.unlink()
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space left"):
        _fill(ballast)
    os.truncate(ballast, ballast.stat().st_size - (16 << 10))  # room for a lease, not for the rows
    said = finish(start(source, out), code=1)
    assert "No space left on device" in said
    assert "run the same command" in said
    assert sorted(crackbatch.read_predictions(str(out))["image_uri"]) == list("abc"), "as readable as before"
    ballast.unlink()
    finish(start(source, out))
    rows = crackbatch.read_predictions(str(out))
    record("disk full while rows are published", 1, rows[rows["run_id"].notna()], len(many))


def test_an_out_that_becomes_read_only_ends_the_run_with_the_cause_and_it_goes_on_later(
    small_disk: Path, tmp_path: Path, many: dict[str, bytes], record: Record
) -> None:
    source, out = write_files(tmp_path / "in", many), small_disk / "out"
    process = start_and_wait_for_a_part(source, out)
    # A write may be under way at the very moment, for which a disk cannot be made read-only.
    wait_for(
        lambda: not subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], capture_output=True).returncode,
        process,
    )
    said = finish(process, code=1)
    assert "Read-only file system" in said
    assert "run the same command" in said
    refused = finish(start(source, out), code=2)
    assert "cannot write to" in refused
    assert not list(out.rglob("*.parquet"))
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    finish(start(source, out))
    record("OUT becomes read-only", 1, crackbatch.read_predictions(str(out)), len(many))


def test_an_out_that_vanishes_ends_the_run_with_the_cause(
    tmp_path: Path, many: dict[str, bytes], record: Record
) -> None:
    source, out = write_files(tmp_path / "in", many), tmp_path / "out"
    process = start_and_wait_for_a_part(source, out)
    out.rename(tmp_path / "gone")
    out.write_bytes(b"")  # nothing can be made below it
    said = finish(process, code=1)
    assert "Not a directory" in said or re.search(rf"{out}/runs/\S+ no longer exists", said)
    assert "run the same command" in said
    out.unlink()
    (tmp_path / "gone").rename(out)
    finish(start(source, out))
    record("OUT vanishes", 1, crackbatch.read_predictions(str(out)), len(many))
