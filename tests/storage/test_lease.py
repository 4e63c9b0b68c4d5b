"""One process at a time works on a run, and one that was killed holds it no longer."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from crackbatch.errors import HeldError, LeaseLostError
from crackbatch.storage import atomic, lease, locations, objects
from crackbatch.storage.lease import Holding, Lease, read_lease, working_lease

HOLD = """
import sys
from crackbatch.storage.lease import Holding
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
    return locations.join(out, "runs", "r")


def test_a_second_process_is_told_who_works_and_since_when(folder: str) -> None:
    process = hold(folder)
    known = read_lease(folder)
    assert known is not None
    assert working_lease(folder) == known
    with pytest.raises(HeldError, match=rf"process {process.pid} .*has been working on .*since {known.since[:10]}"):
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
    assert working_lease(folder) is None
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
        "token": "t",
        "since": "2026-01-01T00:00:00+00:00",
    }
    location = locations.join(folder, "lease-00007.json")

    def renew(number: int) -> None:
        moment = f"2026-01-01T00:00:{number:02d}+00:00"
        atomic.write_whole(location, json.dumps({**elsewhere, "renewed_at": moment}).encode())

    renew(0)
    renewing = threading.Timer(0.5, renew, [1])
    renewing.start()
    with pytest.raises(HeldError, match="process 1 on far"):
        Holding(folder, "run r").__enter__()
    renewing.join()
    with Holding(folder, "run r"):
        assert read_lease(folder).number == 8
    assert not objects.list_files(folder)


ELSEWHERE = Lease(1, "far", 1, "other/pid:[1]", "1", "t", "2026-01-01T00:00:00+00:00", "2026-01-01T00:00:00+00:00")


@pytest.mark.parametrize(
    "damage",
    [{"renewed_at": 7}, {"since": "never"}, {"renewed_at": "2026-01-01T00:00:00"}, {"pid": "../../1"}, {"x": 1}],
)
def test_a_lease_that_no_process_has_written_holds_nothing(
    damage: dict, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_SILENT_S", 1.0)
    there = locations.join(folder, "lease-00001.json")
    atomic.write_whole(there, json.dumps({**json.loads(lease._encode(ELSEWHERE)), **damage}).encode())
    assert working_lease(folder) is None
    with Holding(folder, "run r"):
        assert read_lease(folder).number == 2


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_an_hour_off_neither_steals_a_run_nor_blocks_it(
    tmp_path: Path, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path / "runs" / "r")
    monkeypatch.setattr(lease, "_SILENT_S", 2.0)
    monkeypatch.setattr(lease, "_RENEW_S", 0.4)
    there, moment = locations.join(folder, "lease-00001.json"), datetime.now(UTC) + timedelta(hours=hours)

    def renew(number: int) -> None:
        renewed = (moment + number * timedelta(seconds=0.4)).isoformat()
        atomic.write_whole(there, lease._encode(replace(ELSEWHERE, renewed_at=renewed)))

    renew(0)
    renewing = [threading.Timer(0.4 * number, renew, [number]) for number in range(1, 12)]
    for timer in renewing:
        timer.start()
    working = working_lease(folder)
    assert working is not None
    assert working.host == "far"
    with pytest.raises(HeldError, match="process 1 on far"):
        Holding(folder, "run r").__enter__()
    for timer in renewing:
        timer.join()
    assert working_lease(folder) is None, "the other machine has died"
    with Holding(folder, "run r"):
        assert read_lease(folder).number == 2


@pytest.mark.parametrize("number", [1, 2])
def test_a_holder_that_was_taken_over_does_not_publish(folder: str, number: int) -> None:
    with Holding(folder, "run r") as holding:
        holding.check()
        there = locations.join(folder, f"lease-{number:05d}.json")  # 1: the one that took over has ended, a third holds
        atomic.write_whole(there, lease._encode(ELSEWHERE))
        with pytest.raises(LeaseLostError, match="took over run r"):
            holding.check()
    assert read_lease(folder) == replace(ELSEWHERE, number=number), "it is not its own to remove"


def test_a_holder_whose_lease_is_gone_does_not_publish(folder: str) -> None:
    with Holding(folder, "run r") as holding:
        atomic.write_whole(locations.join(folder, "run.json"), b"{}")
        objects.remove_file(locations.join(folder, "lease-00001.json"))
        with pytest.raises(LeaseLostError, match="took over run r"):
            holding.check()


def test_a_holder_whose_folder_is_gone_says_so(folder: str) -> None:
    with Holding(folder, "run r") as holding:
        objects.remove(folder)
        with pytest.raises(LeaseLostError, match=f"^{re.escape(folder)} no longer exists; restore it"):
            holding.check()


def test_a_holder_renews_its_lease(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_RENEW_S", 0.05)
    with Holding(folder, "run r"):
        _wait_for_renewal(folder)


@pytest.mark.parametrize(("silent_s", "is_held"), [(30.0, True), (0.2, False)])
def test_a_holder_whose_folder_was_away_renews_its_lease_or_knows_that_it_was_silent_for_long(
    silent_s: float, is_held: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_RENEW_S", 0.05)
    monkeypatch.setattr(lease, "_SILENT_S", silent_s)
    share, folder = tmp_path / "share", str(tmp_path / "share" / "runs" / "r")
    _link(share, tmp_path)
    with Holding(folder, "run r") as holding:
        _link(share, tmp_path / "not mounted")
        holding._thread.join(1 if is_held else 30)
        with pytest.raises(LeaseLostError, match="no longer exists"):
            holding.check()
        _link(share, tmp_path)
        if not is_held:
            with pytest.raises(LeaseLostError, match="the lease on run r could not be renewed"):
                holding.check()
            return
        _wait_for_renewal(folder)
        holding.check()


def _link(link: Path, target: Path) -> None:
    """Make the link lead there, at one moment."""
    new = link.with_name("new")
    new.symlink_to(target)
    new.replace(link)


def _wait_for_renewal(folder: str) -> None:
    first = read_lease(folder)
    deadline = time.monotonic() + 30
    while (found := read_lease(folder)) == first:
        assert time.monotonic() < deadline
    assert replace(found, renewed_at=first.renewed_at) == first


def test_a_lease_that_is_being_written_is_not_free(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_SILENT_S", 2.0)
    location = locations.join(folder, "lease-00001.json")
    atomic.write_whole(location, b"")
    writing = threading.Timer(0.5, atomic.write_whole, [location, lease._encode(ELSEWHERE)])
    writing.start()
    with pytest.raises(HeldError, match="process 1 on far"):
        Holding(folder, "run r").__enter__()
    writing.join()
    atomic.write_whole(location, b"")  # and nobody ever writes the rest
    with Holding(folder, "run r"):
        assert read_lease(folder).number == 2


def test_of_many_that_start_at_once_one_holds(folder: str) -> None:
    start = threading.Barrier(8)

    def take(_: int) -> Holding | None:
        start.wait()
        try:
            return Holding(folder, "run r").__enter__()
        except HeldError:
            return None

    with ThreadPoolExecutor(8) as threads:
        for _ in range(2):
            (holder,) = filter(None, threads.map(take, range(8)))
            holder.__exit__(None, None, None)
