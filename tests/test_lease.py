"""One process at a time works on a run, and one that was killed holds it no longer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from crackbatch import lease, storage
from crackbatch.errors import HeldError, LeaseLostError
from crackbatch.lease import Holding, read_lease

HOLD = """
import sys
from crackbatch.lease import Holding
with Holding(sys.argv[1], "run r"):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(folder: str) -> subprocess.Popen[str]:
    """A process that holds the lease until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def folder(out: str) -> str:
    return storage.join(out, "runs", "r")


def test_a_second_process_is_told_who_works_and_since_when(folder: str) -> None:
    process = hold(folder)
    known = read_lease(folder)
    assert known is not None
    assert known.is_alive
    with pytest.raises(HeldError, match=rf"worked on by process {process.pid} .*since {known.since[:10]}"):
        Holding(folder, "run r").__enter__()
    process.communicate("")
    with Holding(folder, "run r"):
        pass
    assert read_lease(folder) is None


def test_a_killed_process_holds_nothing(folder: str) -> None:
    process = hold(folder)
    process.kill()
    process.wait()
    known = read_lease(folder)
    assert known is not None
    assert not known.is_alive
    with Holding(folder, "run r"):
        assert read_lease(folder).pid == os.getpid()


def test_a_holder_on_another_machine_is_waited_for_until_it_is_silent_for_long(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_SILENT_S", 2.0)
    elsewhere = {
        "host": "far",
        "pid": 1,
        "machine": "other/pid:[1]",
        "started": "1",
        "since": "2026-01-01T00:00:00+00:00",
    }
    location = storage.join(folder, "lease-00007.json")

    def renew(number: int) -> None:
        moment = f"2026-01-01T00:00:{number:02d}+00:00"
        storage.write_whole(location, json.dumps({**elsewhere, "renewed_at": moment}).encode())

    renew(0)
    renewing = threading.Timer(0.5, renew, [1])
    renewing.start()
    with pytest.raises(HeldError, match="process 1 on far"):
        Holding(folder, "run r").__enter__()
    renewing.join()
    with Holding(folder, "run r"):
        assert read_lease(folder).number == 8
    assert not storage.list_files(folder)


def test_a_holder_that_was_taken_over_does_not_publish(tmp_path: Path) -> None:
    folder = str(tmp_path)
    with Holding(folder, "run r") as holding:
        holding.check()
        storage.write_whole(storage.join(folder, "lease-00002.json"), b"{}")
        with pytest.raises(LeaseLostError, match="took run r over"):
            holding.check()


def test_of_many_that_start_at_once_one_holds(tmp_path: Path) -> None:
    folder = str(tmp_path)
    start = "import sys; sys.stdin.readline()\n" + HOLD.replace("sys.stdin.read()", "input()")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", start, folder],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        for _ in range(4)
    ]  # fmt: skip
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    losers = [process for process in processes if not process.stdout.readline()]
    assert len(losers) == 3
    assert all(process.wait() for process in losers)
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.communicate()
