"""No file of an archive is run as code, and no other machine reaches the Ray of a run on this one."""

from __future__ import annotations

import ipaddress
import subprocess
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
