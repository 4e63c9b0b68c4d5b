"""Images decoded in processes are as decoded here, and what one of them does to its decoder costs it alone."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from builders.pictures import encode, gradient
from builders.poison import POISON
from builders.processes import wait_for
from crackbatch.cli.demo import draw_tile
from crackbatch.decoding.decoders import Decoded, Decoders
from crackbatch.decoding.process import too_slow
from crackbatch.errors import RunError
from crackbatch.images.picture import read_image, to_input

TILES = [draw_tile(seed, cracked=bool(seed % 2)) for seed in range(6)]
ODD = [TILES[0], encode(gradient(), "PNG"), TILES[1][:3000], encode(gradient(1200, 1000), "PNG"), b"", b"%PDF-1.7"]
FROM_PICTURE = ("status", "error", "format", "width", "height", "captured_at", "latitude", "longitude", "camera")


def assert_as_here(images: Sequence[bytes], decoded: Decoded) -> None:
    pictures = [read_image(image, 1.0) for image in images]
    for name in FROM_PICTURE:
        assert decoded.facts[name] == [getattr(picture, name) for picture in pictures]
    assert decoded.facts["sha256"] == [hashlib.sha256(image).hexdigest() for image in images]
    expected = [to_input(picture, 64) for picture in pictures if picture.status == "ok"]
    assert decoded.pixels.shape == (len(expected), 64, 64, 3)
    assert len(expected) == 0 or np.array_equal(decoded.pixels, expected)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_images_are_the_same_in_processes_as_here(batch_size: int) -> None:
    images = [*ODD, *TILES] * 7
    batches = [images[at : at + batch_size] for at in range(0, len(images), batch_size)]
    with Decoders(64, max_megapixels=1.0, num_processes=2, batch_size=batch_size) as decoders:
        found = 0
        for batch, decoded in zip(batches, decoders.decode(batches), strict=True):
            assert_as_here(batch, decoded)
            found += len(batch)
    assert found == len(images)


def test_a_batch_without_images_has_no_facts_and_no_pixels() -> None:
    with Decoders(64, num_processes=1) as decoders:
        (decoded,) = decoders.decode([[]])
    assert len(decoded.pixels) == 0
    assert all(column == [] for column in decoded.facts.values())


@pytest.fixture
def poisonous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Decoders]:
    """Decoders that do what an image's last bytes say."""
    (tmp_path / "sitecustomize.py").write_text(POISON)
    monkeypatch.syspath_prepend(str(tmp_path))
    with Decoders(64, max_megapixels=1.0, timeout_s=3, num_processes=2, batch_size=32) as decoders:
        yield decoders


@pytest.mark.parametrize(
    ("kind", "status", "error", "ends_process"),
    [
        ("abort", "crashed", "decoding it crashed the decoder process (signal 6", True),
        ("memory", "crashed", "decoding it needs more than", False),
        ("sleep", "failed", too_slow(3), True),
    ],
)
def test_what_an_image_does_to_its_decoder_costs_it_alone(
    kind: str, status: str, error: str, ends_process: bool, poisonous: Decoders
) -> None:
    images = TILES * 5
    for place in (3, 4, 21):
        images[place] += f"POISON: {kind}".encode()
    decoded, after = poisonous.decode([images, TILES])
    expected = ["ok"] * 30
    expected[3] = expected[4] = expected[21] = status
    assert decoded.facts["status"] == expected
    assert all(decoded.facts["error"][place].startswith(error) for place in (3, 4, 21))
    assert after.facts["status"] == ["ok"] * 6
    assert (poisonous.take_deaths() >= 3) == ends_process
    assert poisonous.take_deaths() == 0


def test_pixels_after_a_crash_are_those_of_their_images(poisonous: Decoders) -> None:
    images = TILES * 5
    images[7] += b"POISON: abort"
    expected = [to_input(read_image(image), 64) for at, image in enumerate(images) if at != 7]
    (pixels,) = (decoded.pixels.copy() for decoded in poisonous.decode([images]))
    assert np.array_equal(pixels, expected)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_decoder_that_is_killed_or_hangs_costs_no_image(number: signal.Signals) -> None:
    with Decoders(64, num_processes=1, batch_size=6, timeout_s=3) as decoders:
        batches = decoders.decode([TILES] * 9)
        assert next(batches).facts["status"] == ["ok"] * 6
        (before,) = decoders.pids
        os.kill(before, number)
        assert [decoded.facts["status"] for decoded in batches] == [["ok"] * 6] * 8
        assert decoders.pids != [before]


def test_memory_is_free_again_when_a_caller_stops_in_the_middle() -> None:
    with Decoders(64, num_processes=2, batch_size=6, num_batches=2) as decoders:
        for _ in range(8):
            batches = decoders.decode([TILES] * 3)
            next(batches)
            batches.close()  # type: ignore[attr-defined]
        assert len(list(decoders.decode([TILES] * 3))) == 3


def test_callers_get_an_error_when_decoders_are_closed_under_them_and_none_waits_for_ever() -> None:
    decoders = Decoders(64, num_processes=2, batch_size=6, num_batches=2)

    def decode() -> None:
        for _ in decoders.decode([TILES] * 100_000):
            pass

    with ThreadPoolExecutor(4) as threads:
        callers = [threads.submit(decode) for _ in range(4)]
        next(decoders.decode([TILES]))
        decoders.close()
        for caller in callers:
            with pytest.raises(RunError, match="decoding was stopped"):
                caller.result(60)


def test_decoders_that_do_not_start_say_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "PIL").mkdir()
    (tmp_path / "PIL" / "__init__.py").write_text("raise ImportError('Pillow is broken')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with (
        Decoders(64, num_processes=1) as decoders,
        pytest.raises(RunError, match=r"a decoder process does not start: ImportError: Pillow is broken"),
    ):
        next(decoders.decode([TILES]))


KILLED = """
import sys, time
from crackbatch.decoding.decoders import Decoders
decoders = Decoders(64, num_processes=2)
while len(decoders.pids) < 2: time.sleep(0.01)
print(*decoders.pids, flush=True)
list(decoders.decode([[sys.stdin.buffer.read()]]))
"""


def test_no_decoder_outlives_a_process_that_is_killed_not_even_in_the_middle_of_an_image(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(POISON)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED],
        env={**os.environ, "PYTHONPATH": path}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    children = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
    process.stdin.write("\xff\xd8\xff POISON: sleep")
    process.stdin.close()
    wait_for(lambda: all(child.num_fds() > 3 for child in children), process)
    process.kill()
    process.wait()
    psutil.wait_procs(children, timeout=30)
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


def test_a_decoder_imports_nothing_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pi_heif.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    with Decoders(64, num_processes=1) as decoders:
        assert next(decoders.decode([TILES])).facts["status"] == ["ok"] * 6
    assert not (tmp_path / "run").exists()
