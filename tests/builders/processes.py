"""The command line in processes of its own: run, waited for, and what it answered."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

CRACKBATCH = str(Path(sys.executable).with_name("crackbatch"))
RAY = str(Path(sys.executable).with_name("ray"))


def run_main(arguments: list[str], at_the_end: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, which then runs a statement that may look at `loaded`."""
    code = (
        "import sys, crackbatch, crackbatch.cli.commands\n"
        f"sys.argv[1:] = {arguments!r}\n"
        "try: crackbatch.cli.commands.main()\n"
        "finally:\n"
        "    loaded = [name for name in ('torch', 'ray', 'torchvision') if name in sys.modules]\n"
        f"    {at_the_end}\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


RUN_ALL = """
import contextlib, io, json, os, sys, traceback
import crackbatch.cli.commands

os._exit = sys.exit  # how a command ends that does not wait for its threads: the next one comes in this process

def answer(arguments):
    sys.argv[1:] = arguments
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = crackbatch.cli.commands.main()
        except SystemExit as end:
            code = end.code
        except BaseException:
            code = 1
            traceback.print_exc()
    return {"code": code or 0, "stdout": out.getvalue(), "stderr": err.getvalue(), "ray": "ray" in sys.modules}

json.dump([answer(arguments) for arguments in json.load(sys.stdin)], sys.__stdout__)
"""


class Answer(NamedTuple):
    """What a command said, and whether Ray was imported by then."""

    code: int
    stdout: str
    stderr: str
    ray: bool


def run_all(commands: Sequence[Sequence[str]], folder: Path) -> list[Answer]:
    """Commands one after the other in one process, in a folder: importing takes longer than what they do."""
    asked = json.dumps([list(command) for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL], input=asked, cwd=folder, capture_output=True, text=True, check=True
    )
    return [Answer(**answer) for answer in json.loads(done.stdout)]


def alone() -> dict[str, str]:
    """This environment, without a cluster to join."""
    return {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}


def finish(process: subprocess.Popen[str], code: int = 0, timeout_s: float = 600) -> str:
    """What a run said that ended with this exit code."""
    stdout, stderr = process.communicate(timeout=timeout_s)
    assert process.returncode == code, stdout + stderr
    assert "Traceback" not in stderr
    return stdout + stderr


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[Any], timeout_s: float = 200) -> Any:
    """What a condition gives as soon as it holds, while the process that brings it about still runs."""
    ticks = threading.Event()
    for _ in range(int(timeout_s / 0.02)):
        if found := condition():
            return found
        assert process.poll() is None, process.stderr.read() if process.stderr else "it ended before it could happen"
        ticks.wait(0.02)
    raise AssertionError("it did not happen in time")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def crackbatch_says(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command's answer, in a process that fails where it has loaded torch or ray."""
    return run_main(list(arguments), "assert not loaded")


def run_score(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, which inherits this environment."""
    return subprocess.run([CRACKBATCH, "score", *map(str, arguments)], capture_output=True, text=True, check=False)
