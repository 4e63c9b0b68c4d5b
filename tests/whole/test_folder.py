"""No file of an archive is run as code, and no other machine reaches the Ray of a run on this one."""

from __future__ import annotations

import ipaddress
import re
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


HOLD = """
import sys, ray
from crackbatch.cluster import Cluster
with Cluster(None) as cluster:
    cluster.start()
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""
INTRUDE = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, _node_ip_address="127.0.0.1")
print("ran", ray.get(ray.remote(lambda: 7).remote(), timeout=60))
"""


@pytest.mark.slow
def test_a_process_without_the_token_runs_no_task_on_the_ray_of_a_run(tmp_path: Path) -> None:
    """Another user of the machine reaches the ports of loopback, and has no token, or another one."""
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=alone()) as holder:
        assert holder.stdout is not None
        address = holder.stdout.readline().strip()
        try:
            for name, more in {"other": {"HOME": str(tmp_path)}, "none": {"RAY_AUTH_MODE": "disabled"}}.items():
                out = tmp_path / f"{name}.txt"
                with out.open("w") as said:
                    intruder = subprocess.Popen(
                        [sys.executable, "-c", INTRUDE, address], stdout=said, stderr=said, env={**alone(), **more}
                    )
                    with suppress(subprocess.TimeoutExpired):  # Ray may ask again for long
                        intruder.wait(60)
                    intruder.kill()
                    intruder.wait()
                told = out.read_text()
                assert "ran 7" not in told
                assert re.search(r"(?i)unauthenticated|authentication|token", told), told
        finally:
            holder.communicate("")
    home = Path.home() / ".ray" / "auth_token"
    assert not home.exists() or home.stat().st_mode & 0o077 == 0
