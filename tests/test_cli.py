"""The command line as a user types it: exit codes, one line for a mistake, and answers that do not wait for torch."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

import crackbatch
from conftest import Answer, run_all, run_main
from crackbatch.errors import OutputError

CRACKBATCH = str(Path(sys.executable).with_name("crackbatch"))


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [CRACKBATCH, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]


@pytest.fixture
def image(tmp_path: Path, tiles: dict[str, bytes]) -> Path:
    path = tmp_path / "in" / "a.jpg"
    path.parent.mkdir()
    path.write_bytes(tiles["tile-00.jpg"])
    return path


@pytest.mark.parametrize("arguments", [["--help"], ["score", "--help"], ["score", "x", "--no-such-option"]])
def test_help_and_wrong_usage_are_answered_without_torch_or_ray(arguments: list[str]) -> None:
    result = run_main(arguments, "print('loaded', loaded)")
    assert "loaded []" in result.stdout
    assert result.returncode == (2 if "--no-such-option" in arguments else 0)


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "nowhere.invalid:6379", "two..dots:6379"])
def test_a_cluster_that_does_not_answer_is_said_at_once_and_leaves_nothing(
    address: str, tmp_path: Path, image: Path
) -> None:
    done = run_main(["score", str(image), "--out", str(tmp_path / "out"), "--address", address], "pass")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"no Ray cluster answers at {address}" in line
    assert not (tmp_path / "out").exists()


def test_help_takes_less_than_a_second() -> None:
    fastest = min(_timed("--help") for _ in range(3))
    assert fastest < 1


def _timed(*arguments: str) -> float:
    began = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - began


WRONG = [
    ("score nowhere --out OUT", "no such file or folder: nowhere"),
    ("score IMAGE", "--out is missing"),
    ("score '' --out OUT", "a source is an empty name"),
    ("score http://user:word@127.0.0.1:1/a.zip --out OUT", "http://127.0.0.1:1/a.zip: Cannot connect"),
    ("score IMAGE --out OUT --model no-such-model", "no model at no-such-model"),
    ("score IMAGE --out OUT --operating-point perfect", "no operating point 'perfect'"),
    ("score IMAGE --out OUT --threshold 7", "--threshold 7 is no probability"),
    ("score IMAGE --out OUT --threshold 0.5 --operating-point balanced", "give one of them"),
    ("score IMAGE --out OUT --date yesterday", "--date 'yesterday' is no date"),
    ("score IMAGE --out OUT --run-id ../x", "--run-id '../x'"),
    ("score IMAGE --out OUT --limit 0", "--limit 0"),
    ("score IMAGE --out OUT --max-megapixels inf", "--max-megapixels inf"),
    ("score IMAGE --out OUT --batch-size -1", "--batch-size -1"),
    ("score IMAGE --out OUT --max-error-rate 5", "--max-error-rate 5"),
    ("score IMAGE --out IMAGE/out", "cannot write to"),
    ("score IMAGE --out /proc/nowhere", "cannot write to /proc/nowhere"),
    ("score IMAGE --out memory://x", "give --out a path or a URL"),
    ("score ftpx://host/a.zip --out OUT", "ftpx"),
    ("train nowhere --out OUT", "no such file or folder: nowhere"),
    ("train FOLDER", "--out is missing"),
    ("train FOLDER --out OUT", "no labelled images in FOLDER: 1 images, none in a folder such as Positive"),
    ("train FOLDER --out OUT --epochs 0", "--epochs 0"),
    ("train FOLDER --out OUT --weight much", "--weight 'much': write it as SOURCE=0.5"),
    ("train FOLDER --out OUT --group-pattern (", "--group-pattern '(' is no regular expression"),
    ("dataset FOLDER --out OUT", "no labelled images in FOLDER"),
    ("evaluate FOLDER", "--out is missing"),
    ("evaluate FOLDER --out OUT --model no-such-model", "no model at no-such-model"),
    ("evaluate FOLDER --out OUT --operating-point sharp", "has no operating point 'sharp'"),
    ("compare FOLDER --out OUT", "--networks is missing"),
    (
        "compare FOLDER --out OUT --networks resnet18 --balance some",
        "--balance 'some': choose from none, class, source",
    ),
    ("compare nowhere --out OUT --networks resnet18", "no such file or folder: nowhere"),
    ("compare FOLDER --out OUT --networks resnet18,resnet99", "torchvision has no classifier 'resnet99'"),
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, tiles: dict[str, bytes]) -> dict[str, tuple[Answer, Path]]:
    """What each wrong request is answered, and the folder that it had for itself."""
    folders = [tmp_path_factory.mktemp("wrong") for _ in WRONG]
    commands = []
    for (command, _), folder in zip(WRONG, folders, strict=True):
        (folder / "in").mkdir()
        (folder / "in" / "a.jpg").write_bytes(tiles["tile-00.jpg"])
        commands.append([_replace(word, folder) for word in shlex.split(command)])
    found = run_all(commands, tmp_path_factory.mktemp("here"))
    return {command: (answer, folder) for (command, _), answer, folder in zip(WRONG, found, folders, strict=True)}


def _replace(text: str, folder: Path) -> str:
    names = {"IMAGE": folder / "in" / "a.jpg", "FOLDER": folder / "in", "OUT": folder / "out"}
    for name, path in names.items():
        text = text.replace(name, str(path))
    return text


@pytest.mark.parametrize(("command", "message"), WRONG)
def test_a_wrong_request_is_one_line_and_exit_code_2_and_writes_nothing(
    command: str, message: str, answers: dict[str, tuple[Answer, Path]]
) -> None:
    answer, folder = answers[command]
    assert answer.code == 2, answer.stderr
    assert _replace(message, folder) in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1, answer.stderr
    assert not (folder / "out").exists(), "something was written"
    assert not answer.ray


@pytest.mark.parametrize(
    ("source", "package", "extra"),
    [("s3://b/a.zip", "s3fs", "s3"), ("gs://b/a.zip", "gcsfs", "gcs"), ("az://b/a.zip", "adlfs", "azure")],
)
def test_a_storage_whose_package_is_missing_says_what_to_install(
    tmp_path: Path, source: str, package: str, extra: str
) -> None:
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / f"{package}.py").write_text("raise ImportError(__name__)\n")
    paths = [str(tmp_path / "without"), *filter(None, [os.environ.get("PYTHONPATH")])]
    result = run("score", source, "--out", tmp_path / "out", env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
    assert result.returncode == 2
    assert f"pip install 'crackbatch[{extra}]'" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert not list((tmp_path / "out").rglob("*")), "something was written"


def test_a_dry_run_says_what_would_be_read_and_writes_nothing(tmp_path: Path, image: Path) -> None:
    (image.parent / "notes.txt").write_text("x")
    result = run("score", image.parent, "--out", tmp_path / "out", "--dry-run")
    assert result.returncode == 0
    assert "1 images" in result.stdout
    assert "1 .txt files" in result.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--date=yesterday", "--run-id=///"])
def test_a_dry_run_refuses_what_the_run_would(option: str, tmp_path: Path, image: Path) -> None:
    result = run("score", image, "--out", tmp_path / "out", "--dry-run", option)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert option.partition("=")[0] in line


def test_python_takes_paths_of_pathlib_and_one_extension_as_it_is(image: Path, tmp_path: Path) -> None:
    image.with_name("b.jp2").write_bytes(b"x")
    plan = crackbatch.score(image.parent, tmp_path / "out", date="2026-01-01", extensions=".jp2", dry_run=True)
    assert plan.images == 2
    for call in (crackbatch.read_predictions, crackbatch.list_runs, crackbatch.clean):
        with pytest.raises(OutputError, match=re.escape(str(tmp_path / "out"))):
            call(tmp_path / "out")
    model = crackbatch.load_model(Path(crackbatch.__file__).parent / "models" / "concrete-resnet18")
    with pytest.raises(TypeError, match="several"):
        model.predict(image)
    assert model.predict([image]) == crackbatch.load_model().predict([image])


def test_models_lists_the_shipped_one() -> None:
    result = run("models")
    assert result.returncode == 0
    assert "concrete-resnet18@" in result.stdout


def test_a_whole_run_from_the_command_line_and_again(tmp_path: Path, image: Path) -> None:
    (image.parent / "empty.jpg").touch()
    command = ["score", image.parent, "--out", tmp_path / "out", "--run-id", "night-1"]
    environment = {**os.environ, "RAY_ADDRESS": ""}
    first = run(*command, env=environment)
    assert first.returncode == 3, first.stderr  # one of two is empty
    assert "empty 1" in first.stdout
    assert "more than --max-error-rate" in first.stdout
    assert "Traceback" not in first.stderr
    again = run(*command, "--max-error-rate", "0.5", env=environment)
    assert again.returncode == 0, again.stderr
    assert "nothing left to do" in again.stdout
    other = run(*command, "--threshold", "0.9", env=environment)
    assert other.returncode == 2
    assert "choose another --run-id" in other.stderr


def interrupted(process: subprocess.Popen[str], number: signal.Signals) -> str:
    """What a command said that was sent a signal, after which it has three seconds."""
    began = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert time.monotonic() - began < 3
    return said


STOPPED = "crackbatch: interrupted; what is done is kept, and the same command continues the run\n"


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_while_ray_starts_says_so_and_leaves_nothing(
    number: signal.Signals, tmp_path: Path, image: Path
) -> None:
    command = [CRACKBATCH, "score", str(image.parent), "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "RAY_ADDRESS": ""}) as process:
        ticks = threading.Event()
        while not (started := psutil.Process(process.pid).children(recursive=True)):
            assert process.poll() is None
            ticks.wait(0.02)
        assert interrupted(process, number) == STOPPED
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
