"""The promise: every image in the sources is exactly one row, in whatever it comes and whatever it is."""

from __future__ import annotations

import hashlib
import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import fsspec
import numpy as np
import pandas as pd
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import crackbatch
from builders.archives import write_files, zip_with
from builders.credentials import SIGNATURE
from builders.faulty import Faults, FaultyProxy
from builders.processes import CRACKBATCH, wait_for
from builders.runs import Scored, rows, score
from builders.servers import ByQuery, serving
from crackbatch.cli.demo import draw_tile
from crackbatch.errors import SourceError
from crackbatch.models.model import load_model
from crackbatch.results.table import STATUSES
from crackbatch.storage import atomic, objects


def test_no_pixels_ever_stand_under_another_images_name(
    tmp_path: Path, many_tiles: dict[str, bytes], engine: str
) -> None:
    (tmp_path / "a.zip").write_bytes(zip_with(8, many_tiles))
    score(tmp_path / "a.zip", tmp_path / "out", engine=engine)
    table = rows(tmp_path / "out")
    assert len(table) == len(many_tiles)
    names = table["image_uri"].str.extract(r"zip://(.*)::", expand=False)
    assert sorted(names) == sorted(many_tiles)
    pictures = [PIL.Image.open(io.BytesIO(many_tiles[name])) for name in names]
    expected = np.array([said.probability for said in load_model().predict(pictures)])
    assert len(np.unique(expected)) > 90, "the images must have answers of their own for this test to mean anything"
    assert np.abs(table["crack_probability"].to_numpy() - expected).max() < 1e-4
    assert list(table["sha256"]) == [hashlib.sha256(many_tiles[name]).hexdigest() for name in names]
    assert list(table["size_bytes"]) == [len(many_tiles[name]) for name in names]
    assert table["crack_probability"].is_monotonic_decreasing


BAD = {
    "empty.jpg": (b"", "empty"),
    "renamed.jpg": (b"%PDF-1.7", "not_an_image"),
    "half.jpg": (draw_tile(1, True)[:3000], "truncated"),
    "psd.png": (b"8BPS" + bytes(60), "unsupported"),
}


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.slow)], indirect=True)
def test_a_bad_image_is_a_row_with_its_reason_and_a_damaged_archive_is_named(
    tmp_path: Path, tiles: dict[str, bytes], engine: str
) -> None:
    source = write_files(tmp_path / "in", {**tiles, **{name: data for name, (data, _) in BAD.items()}})
    large = io.BytesIO()
    PIL.Image.new("RGB", (2000, 1000)).save(large, "PNG")
    whole = zip_with(0, tiles)
    write_files(source, {"large.png": large.getvalue(), "cut.zip": whole[: len(whole) // 2], "whole.zip": whole})
    (source / "gone.jpg").symlink_to("nowhere")
    summary = score(source, tmp_path / "out", max_megapixels=1.5, engine=engine)
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


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize(("rate", "code"), [(0.5, 0), (0.01, 3)])
def test_the_exit_code_says_whether_too_many_failed(tmp_path: Path, scored: Scored, rate: float, code: int) -> None:
    again = score(scored.folder, scored.copy(tmp_path / "out"), date="2026-03-01", max_error_rate=rate)
    assert (again.run_id, again.added, again.exit_code) == (scored.summary.run_id, 0, code)


@pytest.mark.usefixtures("without_ray")
def test_more_errors_than_allowed_are_exit_code_3_however_late_they_came(tmp_path: Path, scored: Scored) -> None:
    again = score(scored.folder, scored.copy(tmp_path / "out"), date="2026-03-01", max_errors=0)
    assert (again.added, again.stopped_early, again.exit_code) == (0, False, 3)


@pytest.mark.usefixtures("without_ray")
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
@pytest.mark.usefixtures("ray_here")
def test_another_threshold_is_another_run(tmp_path: Path, scored: Scored) -> None:
    first, out = scored.summary, scored.copy(tmp_path / "out")
    second = score(scored.folder, out, threshold=0.01)
    assert first.run_id != second.run_id
    table = rows(out)
    assert set(table["run_id"]) == {second.run_id}, "the newest row of each image is that of the second run"
    assert len(rows(out, run_id=first.run_id)) == len(table) == first.images
    assert (table["label"] == "crack").sum() == (table["crack_probability"] >= np.float32(0.01)).sum()


@pytest.mark.usefixtures("without_ray")
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
    with pytest.raises(SourceError, match="'status' has the same name as a column of the results"):
        score(tmp_path / "n.csv", tmp_path / "other")
    assert not list((tmp_path / "other").rglob("*.json"))
    assert len(rows(out)) == len(tiles) + scored.summary.images, "runs with different columns are read together"


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.slow)], indirect=True)
def test_signed_urls_that_look_alike_are_a_row_each_and_their_signatures_are_written_nowhere(
    tmp_path: Path, tiles: dict[str, bytes], engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_files(tmp_path / "in", {f"{number}.jpg": data for number, data in enumerate(tiles.values())})
    out, files = tmp_path / "out", set[str]()
    removed = objects.remove

    def remove(location: str) -> None:
        files.update(str(file) for file in out.rglob("*") if holds(file, SIGNATURE) or holds(file, unquote(SIGNATURE)))
        removed(location)

    monkeypatch.setattr(objects, "remove", remove)
    with serving(folder, ByQuery) as address:
        first, second = (
            pd.DataFrame({"image_uri": [f"{address}/image?code={code}&sig={SIGNATURE}" for code in codes]})
            for codes in (range(3), range(2, 5))
        )
        first.to_csv(tmp_path / "first.csv", index=False)
        second.to_csv(tmp_path / "second.csv", index=False)
        score(tmp_path / "first.csv", out, engine=engine)
        assert score(tmp_path / "second.csv", out, engine=engine, new_only=True).added == 2
    table = rows(out)
    assert len(table) == 5
    assert set(table["status"]) == {"ok"}
    expected = [hashlib.sha256(data).hexdigest() for data in list(tiles.values())[:5]]
    assert sorted(table["sha256"]) == sorted(expected)
    assert not files
    assert not [file for file in out.rglob("*") if holds(file, SIGNATURE)]


def holds(file: Path, secret: str) -> bool:
    """Whether a file of a run, compressed or not, holds a text."""
    if not file.is_file():
        return False
    if file.suffix == ".arrow":
        with pa.ipc.open_file(file) as reader:
            return secret in str(reader.read_all().to_pylist())
    if file.suffix in (".parquet", ".part"):
        return secret in str(pq.read_table(file).to_pylist())
    return secret.encode() in file.read_bytes()


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.slow)], indirect=True)
def test_memory_is_a_source_too(tmp_path: Path, tiles: dict[str, bytes], engine: str) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/lot/{name}": data for name, data in tiles.items()})
    memory.pipe_file("/lot/a.zip", zip_with(8, tiles))
    score("memory://lot", tmp_path / "out", engine=engine)
    assert len(rows(tmp_path / "out")) == 2 * len(tiles)
    assert set(rows(tmp_path / "out")["status"]) == {"ok"}


@pytest.mark.parametrize(
    ("number", "first", "second"),
    [
        pytest.param(signal.SIGTERM, "local", "local", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "local", "ray", marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, "local", "ray", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "ray", "local", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "ray", "ray", marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, "ray", "local", marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("ray_here")
def test_a_run_stopped_in_the_middle_is_finished_by_the_same_command_with_either_engine(
    tmp_path: Path, many_tiles: dict[str, bytes], number: signal.Signals, first: str, second: str
) -> None:
    sources = write_files(tmp_path / "in", many_tiles)
    for copy in range(6):
        (sources / f"{copy}.zip").write_bytes(zip_with(0, many_tiles))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "crackbatch.cli", "score", str(sources), "--out", str(out), "--engine", first]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(out.glob("runs/*/parts/*.part")), process)
    os.kill(process.pid, number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == (130 if number != signal.SIGKILL else -signal.SIGKILL)
    if number != signal.SIGKILL:
        assert "run the same command to continue" in stderr
        assert "Traceback" not in stderr
        assert "received at time" not in stderr, "as Ray's own handler of signals says"
    assert not list(out.rglob("*.parquet")), "nothing is visible before it is published"
    held = sum(pq.read_metadata(part).num_rows for part in out.glob("runs/*/parts/*.part"))
    assert held > 0
    summary = score(sources, out, engine=second)
    assert 0 < summary.stages["pipeline"]["images_per_s"] * summary.seconds < summary.images, "it counts its own work"
    table = rows(out)
    assert len(table) == summary.images == 7 * len(many_tiles)
    assert table["image_uri"].is_unique
    assert (table["scored_at"] < pd.Timestamp(summary_time(out), tz="UTC")).sum() >= held


def summary_time(out: Path) -> float:
    return pd.Timestamp(next(out.glob("runs/*/summary.json")).stat().st_mtime, unit="s")


@pytest.mark.usefixtures("without_ray", "s3")
def test_scoring_a_prefix_into_itself_again_adds_nothing(tiles: dict[str, bytes]) -> None:
    out = "s3://inspections/itself"
    atomic.write_whole(f"{out}/a.jpg", tiles["tile-00.jpg"])
    assert [crackbatch.score(out, out, date="2026-01-01").added for _ in range(2)] == [1, 0]


@pytest.mark.parametrize("kind", ["s3", "azure", "google"])
def test_a_storage_that_lets_nobody_read_the_results_is_one_line(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, tiles: dict[str, bytes]
) -> None:
    given = request.getfixturevalue(kind)
    url = "s3://inspections" if kind == "s3" else given
    variable = {"s3": "AWS_ENDPOINT_URL", "azure": "AZURE_STORAGE_CONNECTION_STRING", "google": "STORAGE_EMULATOR_HOST"}
    known = os.environ[variable[kind]]
    base = re.search(r"http://127\.0\.0\.1:\d+", known)
    assert base is not None
    (tmp_path / "a.jpg").write_bytes(tiles["tile-00.jpg"])
    with FaultyProxy(base[0], Faults(denied="run.json")) as proxy:
        done = subprocess.run(
            [CRACKBATCH, "score", str(tmp_path / "a.jpg"), "--out", f"{url}/refused", "--date", "2026-01-01"],
            env={**os.environ, variable[kind]: known.replace(base[0], proxy.url)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert re.match(rf"crackbatch: cannot read the runs in {url}/refused: .*(Forbidden|not for your eyes)", line)
