"""A cluster that does not answer is said at once, and so is what a stage on it raised."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pyarrow as pa
import pytest

from builders.credentials import KEY
from builders.processes import run_main
from crackbatch.cluster import Seen, cause_of, data_context, is_at_hand, on_all_nodes
from crackbatch.errors import RunError
from crackbatch.sources.shards import Shard, read_shard


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nowhere.invalid:6379", "two..dots:6379"])
def test_a_cluster_that_does_not_answer_is_said_at_once_and_leaves_nothing(
    address: str, tmp_path: Path, image: Path
) -> None:
    done = run_main(["score", str(image), "--out", str(tmp_path / "out"), "--address", address], "pass")
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert f"no Ray cluster answers at {address}" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["score", "train"])
def test_an_address_of_ray_client_is_refused_with_the_command_that_submits_a_job(
    command: str, tmp_path: Path, image: Path
) -> None:
    done = run_main([command, str(image), "--out", str(tmp_path / "out"), "--address", "ray://head:10001"], "pass")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "ray job submit --address http://head:8265 -- " in line
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("ray_here")
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


def test_rays_report_of_too_little_memory_shows_no_command_of_other_processes() -> None:
    from ray.exceptions import OutOfMemoryError

    report = (
        "Task was killed due to the node running low on memory.\nMemory on the node (IP: 10.0.0.7) was 15.2GB / 16.0GB."
        f" Top 10 memory users:\nPID\tMEM(GB)\tCOMMAND\n4107\t8.47\tpython a.py --password={KEY}\nRefer to the docs."
    )
    told = cause_of(OutOfMemoryError(report))
    assert KEY not in told
    assert told.startswith("a machine ran out of memory")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a file of another user")
@pytest.mark.parametrize(("owner", "is_found"), [(0, True), (4711, False)])
def test_the_cluster_of_another_user_is_not_joined(
    owner: int, is_found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        file = tmp_path / "ray" / "ray_current_cluster"
        file.parent.mkdir()
        file.write_text(f"127.0.0.1:{server.getsockname()[1]}")
        os.chown(file, owner, owner)
        assert is_at_hand(None) is is_found


@pytest.mark.usefixtures("ray_here")
def test_a_node_that_does_not_see_what_the_driver_sees_says_so_and_no_image_is_missing(tmp_path: Path) -> None:
    roots = [str(tmp_path), str(tmp_path / "photos")]
    Seen.from_here(roots).check()
    with pytest.raises(RunError, match=rf"cannot find {tmp_path}/photos; give sources as URLs or as paths that all"):
        Seen("another node", roots).check()
    with (
        pytest.raises(RunError, match=rf"cannot find the run's folder {tmp_path}; give --out as a URL or a path"),
        on_all_nodes("--out", str(tmp_path)),
    ):
        read_shard(Shard(str(tmp_path), 0, b""))
