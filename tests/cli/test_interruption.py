"""A command that is stopped says so in one line, at once, and leaves nothing half done."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from builders.processes import CRACKBATCH


def interrupted(process: subprocess.Popen[str], number: signal.Signals) -> str:
    """What a command said that was sent a signal, after which it has three seconds."""
    began = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert time.monotonic() - began < 3
    return said


STOPPED = "crackbatch: interrupted; finished work is kept; run the same command to continue\n"


def test_ctrl_c_ends_a_command_also_when_nobody_reads_what_it_says() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "import os, time\n"
         "from crackbatch.cli.interruption import Interrupted, interruptible\n"
         "try:\n"
         "    with interruptible('mend'): print(flush=True); time.sleep(60)\n"
         "except Interrupted as error: os._exit(error.exit_code)"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stderr.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130


def test_a_command_that_is_in_a_long_call_of_a_library_says_so_at_once_and_ends() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "import hashlib, os\n"
         "from crackbatch.cli.interruption import Interrupted, interruptible\n"
         "try:\n"
         "    with interruptible('mend'): print(flush=True); hashlib.pbkdf2_hmac('sha256', b'a', b'b', 100_000_000)\n"
         "except Interrupted as error: os._exit(error.exit_code)"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.read(1)
    assert interrupted(process, signal.SIGTERM) == "crackbatch: interrupted; mend\n"


@pytest.mark.xdist_group("ray")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_while_ray_starts_says_so_and_leaves_nothing(
    number: signal.Signals, tmp_path: Path, image: Path
) -> None:
    command = [CRACKBATCH, "score", str(image.parent), "--out", str(tmp_path / "out"), "--engine", "ray"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "RAY_ADDRESS": ""}) as process:
        ticks = threading.Event()
        while not (started := psutil.Process(process.pid).children(recursive=True)):
            assert process.poll() is None
            ticks.wait(0.02)
        said = interrupted(process, number)
    assert said.endswith(STOPPED)
    assert set(said.removesuffix(STOPPED).splitlines()) <= {"starting Ray …"}
    assert not (tmp_path / "out").exists()
    assert psutil.wait_procs(started, timeout=20)[1] == []


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_a_run_that_is_stopped_while_its_sources_are_listed_says_so(options: tuple[str, ...], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        source = f"http://127.0.0.1:{silent.getsockname()[1]}/photos/"
        command = [CRACKBATCH, "score", source, "--out", str(tmp_path / "out"), *options]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            asking, _ = silent.accept()
            with asking:
                assert asking.recv(100)
                assert interrupted(process, signal.SIGTERM) == STOPPED
    assert not (tmp_path / "out").exists()


def test_on_a_terminal_what_a_stopped_command_says_stays_its_last_line() -> None:
    ours, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", "import os, time\n"
         "from crackbatch.cli.interruption import Interrupted, interruptible\n"
         "from crackbatch.progress import Progress\n"
         "try:\n"
         "    with interruptible('mend'), Progress(9): print(flush=True); time.sleep(60)\n"
         "except Interrupted as error: os._exit(error.exit_code)"],
        stdout=subprocess.PIPE, stderr=terminal,
    )  # fmt: skip
    os.close(terminal)
    assert process.stdout is not None
    process.stdout.read(1)
    said = b""
    while b"0 of 9 images" not in said:
        said += os.read(ours, 4096)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    with suppress(OSError):  # the other end is closed
        while more := os.read(ours, 4096):
            said += more
    os.close(ours)
    assert said.decode().rstrip().splitlines()[-1].endswith("crackbatch: interrupted; mend")
