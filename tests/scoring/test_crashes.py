"""A block whose workers died is known to the next worker, and one that ended well is not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from builders.places import TESTS
from builders.runs import BLOCK
from crackbatch.scoring.crashes import MAX_DEATHS, Attempts, Watch
from crackbatch.storage import locations, objects

DIE = """
import os, sys
from crackbatch.scoring.crashes import Attempts
from builders.runs import BLOCK
attempts = Attempts(sys.argv[1])
with attempts.attempt(BLOCK) as (name, past):
    """


def die(folder: str, when: str = "os._exit(9)") -> None:
    died = subprocess.run([sys.executable, "-c", DIE + when, folder], cwd=TESTS, check=False)
    assert died.returncode == 9


def test_after_three_deaths_a_block_is_suspicious_and_after_a_good_end_it_is_not(out: str) -> None:
    folder = locations.join(out, "attempts")
    for deaths in range(MAX_DEATHS):
        with Attempts(folder).attempt(BLOCK.slice(1)) as (_, other):
            assert other.deaths == 0, "another block's deaths are its own"
        die(folder)
        if deaths + 1 < MAX_DEATHS:
            assert len(objects.list_files(folder)) == deaths + 1
    with Attempts(folder).attempt(BLOCK) as (_, past):
        assert past.is_suspicious
        assert past.deaths == MAX_DEATHS == 3
    with Attempts(folder).attempt(BLOCK) as (_, past):
        assert past.deaths == 0


def test_a_row_with_which_three_workers_died_that_decoded_it_alone_is_known(tmp_path: Path) -> None:
    folder = str(tmp_path / "attempts")
    with Attempts(folder).attempt(BLOCK) as (name, past):
        assert past.killers == frozenset()
        with Attempts(folder).alone(name, 0):
            pass
        with pytest.raises(ZeroDivisionError), Attempts(folder).alone(name, 1):
            raise ZeroDivisionError
    for row in (2, 1, 2, 2):  # one that was there when a worker or two died may be a good one
        die(folder, f"assert not past.killers\n    with attempts.alone(name, {row}): os._exit(9)")
    with Attempts(folder).attempt(BLOCK) as (_, past):
        assert (past.deaths, past.killers) == (4, {2})
    assert objects.list_files(folder) == []


def test_a_worker_decodes_nothing_beside_an_image_that_it_decodes_alone(tmp_path: Path) -> None:
    attempts = Attempts(str(tmp_path))
    watch, start = Watch(attempts, 60), threading.Barrier(8)
    together, beside = set(), []

    def work(thread: int) -> None:
        for row in range(20):
            start.wait()
            if thread % 2:
                with watch.decoding("ordinary", row):
                    together.add(thread)
                    time.sleep(0)
                    together.discard(thread)
                continue
            with attempts.alone(f"suspicious{thread}", row):
                beside.append((len(objects.list_files(str(tmp_path), ".alone")), len(together)))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert beside == [(1, 0)] * 80


def test_an_exception_is_no_death(tmp_path: os.PathLike[str]) -> None:
    attempts = Attempts(str(tmp_path))
    with pytest.raises(ZeroDivisionError), attempts.attempt(BLOCK):
        raise ZeroDivisionError
    assert objects.list_files(str(tmp_path)) == []


def test_a_row_that_is_too_slow_is_remembered_and_is_no_death(tmp_path: os.PathLike[str]) -> None:
    attempts = Attempts(str(tmp_path))
    with attempts.attempt(BLOCK) as (name, _), attempts.alone(name, 1):
        attempts.give_up(name, 2)
        assert objects.list_files(str(tmp_path)) == [f"{tmp_path}/{name}-2.slow"]
        with Attempts(str(tmp_path)).attempt(BLOCK) as (_, past):
            assert (past.deaths, past.slow) == (0, {2})
