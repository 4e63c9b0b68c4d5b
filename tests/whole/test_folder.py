"""No file of an archive is run as code, and no other machine reaches the Ray of a run on this one."""

from __future__ import annotations

import ipaddress
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import crackbatch
from builders.archives import write_files
from builders.processes import CRACKBATCH, alone

MODULES = (
    "torch", "torchvision", "numpy", "pandas", "pyarrow", "ray", "fsspec", "PIL", "pi_heif", "simplejpeg", "zstandard",
    "safetensors", "typer", "rich", "sitecustomize", "usercustomize", "secrets", "queue",
)  # fmt: skip


@pytest.mark.parametrize(
    "engine", ["local", pytest.param("ray", marks=[pytest.mark.slow, pytest.mark.xdist_group("ray")])]
)
def test_modules_in_the_folder_of_an_archive_are_not_imported(
    engine: str, tmp_path: Path, tiles: dict[str, bytes]
) -> None:
    ran = tmp_path / "ran"
    code = f"import os; os.close(os.open({str(ran)!r}, os.O_CREAT | os.O_WRONLY))\nraise SystemExit(77)\n".encode()
    folder = write_files(tmp_path / "in", {**tiles, **{f"{name}.py": code for name in MODULES}})
    command = [CRACKBATCH, "score", ".", "--out", str(tmp_path / "out"), "--engine", engine]
    listening: set[str] = set()
    with subprocess.Popen(command, cwd=folder, env=alone(), stderr=subprocess.PIPE, text=True) as process:
        ticks = threading.Event()
        while process.poll() is None:
            with suppress(psutil.Error):
                for child in psutil.Process(process.pid).children(recursive=True):
                    with suppress(psutil.Error):
                        listening |= {at.laddr.ip for at in child.net_connections() if at.status == psutil.CONN_LISTEN}
            ticks.wait(0.5)
        assert process.stderr is not None
        assert process.returncode == 0, process.stderr.read()
    assert not ran.exists()
    assert len(crackbatch.read_predictions(str(tmp_path / "out"))) == len(tiles)
    assert bool(listening) == (engine == "ray")
    assert all(ipaddress.ip_address(address.removeprefix("::ffff:")).is_loopback for address in listening)


HOLDER = """
import sys
from crackbatch.cluster import Cluster
with Cluster(None) as cluster:
    cluster.start()
    import ray
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.readline()
"""
GUEST = """
import sys
import ray
ray.init(address=sys.argv[1], _node_ip_address="127.0.0.1")
ray.get(ray.remote(num_cpus=0)(lambda path: open(path, "w").close()).remote(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_a_process_without_the_token_runs_nothing_on_the_ray_of_a_run(tmp_path: Path) -> None:
    environment = {**alone(), "RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    python = [sys.executable, "-c"]
    with subprocess.Popen(
        [*python, HOLDER], env=alone(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        address = holder.stdout.readline().strip()
        for name, token in (("with", {}), ("without", {"RAY_AUTH_TOKEN": "another"})):
            guest = subprocess.run(
                [*python, GUEST, address, str(tmp_path / name)], env={**environment, **token}, capture_output=True,
                text=True, timeout=100,
            )  # fmt: skip
            assert (guest.returncode == 0) == (name == "with"), guest.stderr
        assert "InvalidAuthToken" in guest.stderr
        holder.communicate("end\n", timeout=60)
    assert [path.name for path in tmp_path.iterdir()] == ["with"]
