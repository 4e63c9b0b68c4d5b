"""The promise: every image in the sources is exactly one row, in whatever it comes and whatever it is."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
import pandas as pd
import PIL.Image
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import crackbatch
from conftest import SECRET
from crackbatch.cli.demo import draw_tile
from crackbatch.cluster import cause_of, data_context
from crackbatch.errors import OptionError, OutputError, RunError, SourceError
from crackbatch.models.model import load_model
from crackbatch.results.table import COLUMNS, STATUSES
from test_archive import write_files, zip_with

CRACKBATCH = str(Path(sys.executable).with_name("crackbatch"))

pytestmark = pytest.mark.usefixtures("ray_here")


def score(source: object, out: Path, **options: object) -> crackbatch.RunSummary:
    options.setdefault("max_error_rate", 1.0)
    sources = [str(item) for item in source] if isinstance(source, list) else str(source)
    return crackbatch.score(sources, str(out), **options)  # type: ignore[arg-type]


def run_score(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, which inherits this environment."""
    return subprocess.run([CRACKBATCH, "score", *map(str, arguments)], capture_output=True, text=True, check=False)


def rows(out: Path, **options: object) -> pd.DataFrame:
    return crackbatch.read_predictions(str(out), **options)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def many_tiles() -> dict[str, bytes]:
    """A hundred tiles, all different in shade and structure, so that each has an answer of its own."""
    return {f"lot-{index % 3}/{index:03d}.jpg": draw_tile(1000 + index, index % 4 == 0) for index in range(100)}


class Scored(NamedTuple):
    """A run that several tests look at: twelve tiles and what is no image."""

    folder: Path
    out: Path
    summary: crackbatch.RunSummary

    def copy(self, target: Path) -> Path:
        """Its results, to be written to; the same call as before goes on in them."""
        shutil.copytree(self.out, target)
        return target


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, tiles: dict[str, bytes], ray_here: str) -> Scored:
    folder, out = tmp_path_factory.mktemp("in"), tmp_path_factory.mktemp("scored") / "out"
    write_files(folder, {**tiles, "bad.jpg": b"x"})
    return Scored(folder, out, score(folder, out, date="2026-03-01"))


def test_no_pixels_ever_stand_under_another_images_name(tmp_path: Path, many_tiles: dict[str, bytes]) -> None:
    (tmp_path / "a.zip").write_bytes(zip_with(8, many_tiles))
    score(tmp_path / "a.zip", tmp_path / "out")
    table = rows(tmp_path / "out")
    assert len(table) == len(many_tiles)
    names = table["image_uri"].str.extract(r"zip://(.*)::", expand=False)
    assert sorted(names) == sorted(many_tiles)
    pictures = [PIL.Image.open(io.BytesIO(many_tiles[name])) for name in names]
    expected = np.array(load_model().predict(pictures))
    assert len(np.unique(expected)) > 90, "the images must have answers of their own for this test to mean anything"
    assert np.abs(table["crack_probability"].to_numpy() - expected).max() < 1e-4
    assert list(table["sha256"]) == [hashlib.sha256(many_tiles[name]).hexdigest() for name in names]
    assert list(table["size_bytes"]) == [len(many_tiles[name]) for name in names]
    assert table["crack_probability"].is_monotonic_decreasing


def test_one_image_gives_the_same_row_from_wherever_it_comes(
    tmp_path: Path, tiles: dict[str, bytes], s3: str, ray_here: str
) -> None:
    import boto3
    import fsspec

    sources = write_files(tmp_path / "in", {f"folder/{name}": data for name, data in tiles.items()})
    (sources / "a.zip").write_bytes(zip_with(8, tiles))
    for suffix in ("tar", "tar.gz"):
        with tarfile.open(sources / f"a.{suffix}", "w:gz" if suffix == "tar.gz" else "w") as tar:
            tar.add(sources / "folder", "folder")
    pq.write_table(pa.table({"bytes": list(tiles.values())}), sources / "a.parquet")
    client = boto3.client("s3")
    for name, data in tiles.items():
        client.put_object(Bucket="inspections", Key=f"bridge/{name}", Body=data)
    client.put_object(Bucket="inspections", Key="archive.zip", Body=zip_with(0, tiles), ACL="public-read")
    bucket, out = "s3://inspections", "s3://inspections/results"
    command = [sources, f"{bucket}/bridge", f"{bucket}/archive.zip", f"{s3}/inspections/archive.zip", "--out", out]
    first = run_score(*command, "--address", ray_here)
    assert first.returncode == 0, first.stdout + first.stderr
    table = crackbatch.read_predictions(out)
    assert len(table) == 8 * len(tiles)
    assert table["image_uri"].is_unique
    assert set(table["status"]) == {"ok"}
    by_image = table.groupby("sha256")["crack_logit"]
    assert (by_image.count() == 8).all()
    assert (by_image.max() - by_image.min()).max() < 1e-4
    for uri in table["image_uri"][table["sha256"] == table["sha256"][0]]:
        with fsspec.open(uri) as file:
            assert hashlib.sha256(file.read()).hexdigest() == table["sha256"][0], uri
    again = run_score(*command)
    assert "nothing left to do" in again.stdout, again.stdout + again.stderr
    assert SECRET not in first.stdout + first.stderr
    for entry in client.list_objects_v2(Bucket="inspections", Prefix="results/")["Contents"]:
        body = client.get_object(Bucket="inspections", Key=entry["Key"])["Body"].read()
        assert SECRET.encode() not in body, entry["Key"]
    kept = {
        entry["Key"].split("/")[-1]
        for entry in client.list_objects_v2(Bucket="inspections", Prefix="results/runs")["Contents"]
    }
    assert kept == {"run.json", "summary.json"}


BAD = {
    "empty.jpg": (b"", "empty"),
    "renamed.jpg": (b"%PDF-1.7", "not_an_image"),
    "half.jpg": (draw_tile(1, True)[:3000], "truncated"),
    "psd.png": (b"8BPS" + bytes(60), "unsupported"),
}


def test_a_bad_image_is_a_row_with_its_reason_and_a_damaged_archive_is_named(
    tmp_path: Path, tiles: dict[str, bytes]
) -> None:
    source = write_files(tmp_path / "in", {**tiles, **{name: data for name, (data, _) in BAD.items()}})
    large = io.BytesIO()
    PIL.Image.new("RGB", (2000, 1000)).save(large, "PNG")
    whole = zip_with(0, tiles)
    write_files(source, {"large.png": large.getvalue(), "cut.zip": whole[: len(whole) // 2], "whole.zip": whole})
    (source / "gone.jpg").symlink_to("nowhere")
    summary = score(source, tmp_path / "out", max_megapixels=1.5)
    table = rows(tmp_path / "out").set_index("image_uri")
    expected = {name: status for name, (_, status) in BAD.items()} | {"large.png": "too_large", "gone.jpg": "missing"}
    for name, status in expected.items():
        row = table.loc[str(source / name)]
        assert row["status"] == status
        assert row["error"]
        assert row[["crack_probability", "crack_logit", "label"]].isna().all()
    assert set(table["status"]) <= set(STATUSES)
    assert len(table) == summary.images
    by_archive = table.groupby(table["archive"].fillna(""))["status"]
    assert (by_archive.get_group("") == "ok").sum() == len(tiles)
    assert list(by_archive.get_group(str(source / "whole.zip"))) == ["ok"] * len(tiles)
    assert 0 < len(by_archive.get_group(str(source / "cut.zip"))) < len(tiles)
    assert summary.error_rate == pytest.approx((table["status"] != "ok").mean())
    assert summary.exit_code == 3
    (problem,) = summary.problems
    assert "cut.zip" in problem


@pytest.mark.parametrize(("rate", "code"), [(0.5, 0), (0.01, 3)])
def test_the_exit_code_says_whether_too_many_failed(tmp_path: Path, scored: Scored, rate: float, code: int) -> None:
    again = score(scored.folder, scored.copy(tmp_path / "out"), date="2026-03-01", max_error_rate=rate)
    assert (again.run_id, again.added, again.exit_code) == (scored.summary.run_id, 0, code)


def test_more_errors_than_allowed_are_exit_code_3_however_late_they_came(tmp_path: Path, scored: Scored) -> None:
    again = score(scored.folder, scored.copy(tmp_path / "out"), date="2026-03-01", max_errors=0)
    assert (again.added, again.stopped_early, again.exit_code) == (0, False, 3)


def test_a_second_run_adds_nothing_and_new_images_are_added(
    tmp_path: Path, tiles: dict[str, bytes], scored: Scored
) -> None:
    first, out = scored.summary, scored.copy(tmp_path / "out")
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    second = score(scored.folder, out, date="2026-03-01")
    assert (second.run_id, second.added, second.images) == (first.run_id, 0, first.images)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")} == files
    new = scored.folder / "new.jpg"
    new.write_bytes(tiles["tile-00.jpg"])
    third = score(scored.folder, out, date="2026-03-01")
    new.unlink()
    assert (third.run_id, third.added, third.images) == (first.run_id, 1, first.images + 1)
    assert rows(out)["image_uri"].is_unique


@pytest.mark.slow
def test_another_threshold_is_another_run(tmp_path: Path, scored: Scored) -> None:
    first, out = scored.summary, scored.copy(tmp_path / "out")
    second = score(scored.folder, out, threshold=0.01)
    assert first.run_id != second.run_id
    table = rows(out)
    assert set(table["run_id"]) == {second.run_id}, "the newest row of each image is that of the second run"
    assert len(rows(out, run_id=first.run_id)) == len(table) == first.images
    assert (table["label"] == "crack").sum() == (table["crack_probability"] >= np.float32(0.01)).sum()


def test_every_reader_sees_the_same_rows(tmp_path: Path, scored: Scored) -> None:
    import ray

    out = scored.copy(tmp_path / "out")
    leftover = out / "runs" / "other" / "parts" / "0.part"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(next(out.rglob("*.parquet")).read_bytes())
    ours = sorted(rows(out)["image_uri"])
    assert len(ours) == 13
    assert sorted(pd.read_parquet(out / "predictions")["image_uri"]) == ours
    query = f"select image_uri, date from read_parquet('{out}/predictions/**/*.parquet', hive_partitioning=true)"
    assert sorted(row[0] for row in duckdb.sql(query).fetchall()) == ours
    assert sorted(ds.dataset(out / "predictions", partitioning="hive").to_table()["image_uri"].to_pylist()) == ours
    assert sorted(row["image_uri"] for row in ray.data.read_parquet(str(out / "predictions")).take_all()) == ours


def test_the_file_has_the_contracts_schema_and_says_what_made_it(scored: Scored) -> None:
    summary = scored.summary
    assert summary.files == [str(scored.out / f"predictions/date=2026-03-01/{summary.run_id}-00000.parquet")]
    schema = pq.read_schema(summary.files[0])
    assert schema.remove_metadata() == COLUMNS
    about = {key.decode(): value.decode() for key, value in schema.metadata.items()}
    assert about["crackbatch.model_id"] == summary.model_id == load_model().bundle.model_id
    assert "balanced" in json.loads(about["crackbatch.operating_points"])
    run = scored.out / "runs" / summary.run_id
    assert json.loads((run / "run.json").read_text())["versions"]["ray"]
    assert sorted(path.name for path in run.iterdir()) == ["run.json", "summary.json"]


def test_a_manifests_columns_are_carried_and_may_not_collide(
    tmp_path: Path, tiles: dict[str, bytes], scored: Scored
) -> None:
    write_files(tmp_path, tiles)
    frame = pd.DataFrame({"image_uri": list(tiles), "pier": range(len(tiles)), "method": "A7"})
    frame.to_csv(tmp_path / "m.csv", index=False)
    out = scored.copy(tmp_path / "out")
    run = score(tmp_path / "m.csv", out)
    table = rows(out, run_id=run.run_id)
    names = table["image_uri"].str.rsplit("/").str[-1]
    assert dict(zip(names, table["pier"], strict=True)) == dict(zip(tiles, map(str, range(len(tiles))), strict=True))
    assert set(table["method"]) == {"A7"}
    frame.assign(status="x").to_csv(tmp_path / "n.csv", index=False)
    with pytest.raises(SourceError, match="'status' would collide"):
        score(tmp_path / "n.csv", tmp_path / "other")
    assert not list((tmp_path / "other").rglob("*.json"))
    assert len(rows(out)) == len(tiles) + scored.summary.images, "runs with different columns are read together"


@pytest.mark.slow
def test_memory_is_a_source_too(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe({f"/lot/{name}": data for name, data in tiles.items()})
    memory.pipe_file("/lot/a.zip", zip_with(8, tiles))
    score("memory://lot", tmp_path / "out")
    assert len(rows(tmp_path / "out")) == 2 * len(tiles)
    assert set(rows(tmp_path / "out")["status"]) == {"ok"}


def test_reading_predictions(tmp_path: Path, scored: Scored) -> None:
    with pytest.raises(OutputError, match="no predictions in"):
        rows(tmp_path / "nothing")
    everything = rows(scored.out)
    middle = float(everything["crack_probability"].median())
    likely = rows(scored.out, min_probability=middle, columns=["image_uri", "crack_probability"])
    assert list(likely.columns) == ["image_uri", "crack_probability"]
    assert len(likely) == (everything["crack_probability"] >= middle).sum() < len(everything)
    with pytest.raises(OptionError, match="no column 'probability'"):
        rows(scored.out, columns=["probability"])
    with pytest.raises(OptionError, match="no rows of run"):
        rows(scored.out, run_id="another")


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_run_stopped_in_the_middle_is_finished_by_the_same_command(
    tmp_path: Path, many_tiles: dict[str, bytes], number: signal.Signals
) -> None:
    sources = write_files(tmp_path / "in", many_tiles)
    for copy in range(6):
        (sources / f"{copy}.zip").write_bytes(zip_with(0, many_tiles))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "crackbatch.cli", "score", str(sources), "--out", str(out)]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(out.glob("runs/*/parts/*.part")), process)
    os.kill(process.pid, number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == (130 if number != signal.SIGKILL else -signal.SIGKILL)
    if number != signal.SIGKILL:
        assert "the same command continues" in stderr
        assert "Traceback" not in stderr
    assert not list(out.rglob("*.parquet")), "nothing is visible before it is published"
    held = sum(pq.read_metadata(part).num_rows for part in out.glob("runs/*/parts/*.part"))
    assert held > 0
    summary = score(sources, out)
    table = rows(out)
    assert len(table) == summary.images == 7 * len(many_tiles)
    assert table["image_uri"].is_unique
    assert (table["scored_at"] < pd.Timestamp(summary_time(out), tz="UTC")).sum() >= held


def summary_time(out: Path) -> float:
    return pd.Timestamp(next(out.glob("runs/*/summary.json")).stat().st_mtime, unit="s")


def wait_for(condition, process: subprocess.Popen[str], timeout_s: float = 120) -> None:
    ticks = threading.Event()
    for _ in range(int(timeout_s / 0.05)):
        if condition():
            return
        assert process.poll() is None, process.stderr.read() if process.stderr else "it ended"
        ticks.wait(0.05)
    raise AssertionError("it did not happen in time")


@pytest.mark.slow  # enough shards that reading does not end before the first image is scored
def test_rows_are_kept_as_they_come_and_not_at_the_end_of_the_run(tmp_path: Path) -> None:
    tiles = [draw_tile(seed, cracked=False) for seed in range(20)]
    source = write_files(tmp_path / "in", {f"{index:04d}.jpg": tiles[index % 20] for index in range(6000)})
    command = [CRACKBATCH, "score", str(source), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    tick = threading.Event()
    first = None
    while first is None and process.poll() is None:
        first = next((path.stat().st_mtime for path in (tmp_path / "out").glob("runs/*/parts/*.part")), None)
        tick.wait(0.05)
    assert process.wait(200) == 0
    scored = crackbatch.read_predictions(str(tmp_path / "out"))["scored_at"]
    assert first is not None
    assert pd.Timestamp(first, unit="s", tz="UTC") < scored.quantile(0.4)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RunError("renew them and run again"), "RunError: renew them and run again"),
        (OSError(28, "full"), "[Errno 28] full"),
    ],
)
def test_what_a_stage_raised_is_said_and_not_rays_advice(error: Exception, said: str) -> None:
    import ray

    def fail(_: pa.Table) -> pa.Table:
        raise error

    with data_context(), pytest.raises(ray.exceptions.RayError) as raised:
        ray.data.range(1).map_batches(fail, batch_format="pyarrow").take_all()
    assert cause_of(raised.value).endswith(said)


@pytest.mark.parametrize(
    ("nodes", "layout"),
    [
        ([{"CPU": 2}], ("cpu", 1, 2)),
        ([{"CPU": 1}], ("cpu", 1, 1)),
        ([{"CPU": 0}, {"CPU": 8}, {"CPU": 8}], ("cpu", 2, 8)),
        ([{"CPU": 64}], ("cpu", 4, 16)),
        ([{"CPU": 4}, {"CPU": 9}], ("cpu", 3, 4)),
        ([{"CPU": 16, "GPU": 2}, {"CPU": 8, "GPU": 1}, {"CPU": 8}], ("cuda", 3, 8)),
    ],
)
def test_actors_leave_room_for_reading_and_writing(nodes: list[dict], layout: tuple) -> None:
    from crackbatch.cluster import IO_CPUS
    from crackbatch.scoring.layout import lay_out

    found = lay_out(nodes)
    assert (found.kind, found.num_actors, found.threads) == layout
    if found.kind == "cpu":
        assert sum(int(node["CPU"] / found.threads) for node in nodes) == found.num_actors
        # Also those of a node that died: twice as many on a node, and still room for reading.
        assert all(node["CPU"] - 2 * int(node["CPU"] / found.threads) * found.num_cpus >= IO_CPUS
                   for node in nodes if node["CPU"])  # fmt: skip
        # And another run's beside one that reads and predicts.
        taken = found.num_actors * found.num_cpus + found.num_readers * IO_CPUS
        assert 2 * taken <= sum(node["CPU"] for node in nodes)


def test_a_node_that_does_not_see_what_the_driver_sees_says_so_and_no_image_is_missing(tmp_path: Path) -> None:
    from crackbatch.scoring.pipeline import _node, _read_shard, _Seen

    elsewhere = _Seen("another node", [str(tmp_path), str(tmp_path / "photos")])
    with pytest.raises(RunError, match=rf"does not see {tmp_path}/photos; name sources by URLs or by paths that all"):
        _read_shard(str(tmp_path), 0, elsewhere)
    with pytest.raises(RunError, match=rf"does not see the run's folder {tmp_path}; give --out as a URL or a path"):
        _read_shard(str(tmp_path), 0, _Seen(_node(), elsewhere.roots))
