"""The command line as a user types it: exit codes, one line for a mistake, and answers that do not wait for torch."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

import pytest

import crackbatch
from builders.processes import CRACKBATCH, Answer, crackbatch_says, run_all, run_main
from crackbatch.errors import OutputError


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [CRACKBATCH, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize("arguments", [["--help"], ["score", "--help"], ["score", "x", "--no-such-option"]])
def test_help_and_wrong_usage_are_answered_without_torch_or_ray(arguments: list[str]) -> None:
    result = run_main(arguments, "print('loaded', loaded)")
    assert "loaded []" in result.stdout
    assert result.returncode == (2 if "--no-such-option" in arguments else 0)


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
    ("score '' --out OUT", "a source must not be empty"),
    ("score http://user:word@127.0.0.1:1/a.zip --out OUT", "http://127.0.0.1:1/a.zip: Cannot connect"),
    ("score IMAGE --out OUT --model no-such-model", "no model at no-such-model"),
    ("score IMAGE --out OUT --operating-point perfect", "no operating point 'perfect'"),
    ("score IMAGE --out OUT --threshold 7", "--threshold must be from 0 to 1, got 7"),
    ("score IMAGE --out OUT --threshold 0.5 --operating-point balanced", "give only one of them"),
    ("score IMAGE --out OUT --date yesterday", "--date must be written as 2026-11-20, got 'yesterday'"),
    ("score IMAGE --out OUT --run-id ../x", "the first a letter or digit, got '../x'"),
    ("score IMAGE --out OUT --limit 0", "--limit must be 1 or more, got 0"),
    ("score IMAGE --out OUT --max-megapixels inf", "--max-megapixels must be above 0 and at most 100,000, got inf"),
    ("score IMAGE --out OUT --batch-size -1", "--batch-size must be 1 or more, got -1"),
    ("score IMAGE --out OUT --max-error-rate 5", "--max-error-rate must be from 0 to 1, got 5"),
    ("score IMAGE --out IMAGE/out", "cannot write to"),
    ("score IMAGE --out /proc/nowhere", "cannot write to /proc/nowhere"),
    ("score IMAGE --out memory://x", "give a path or another URL"),
    ("score ftpx://host/a.zip --out OUT", "ftpx"),
    ("train nowhere --out OUT", "no such file or folder: nowhere"),
    ("train FOLDER", "--out is missing"),
    ("train FOLDER --out OUT", "no labelled images in FOLDER: 1 image, none in a folder such as Positive"),
    ("train FOLDER --out OUT --epochs 0", "--epochs must be 1 or more, got 0"),
    ("train FOLDER --out OUT --weight much", "--weight must be written as SOURCE=0.5, got 'much'"),
    ("train FOLDER --out OUT --group-pattern (", "--group-pattern '(' is not a valid regular expression"),
    ("dataset FOLDER --out OUT", "no labelled images in FOLDER"),
    ("evaluate FOLDER", "--out is missing"),
    ("evaluate FOLDER --out OUT --model no-such-model", "no model at no-such-model"),
    ("evaluate FOLDER --out OUT --operating-point sharp", "has no operating point 'sharp'"),
    ("compare FOLDER --out OUT", "--networks is missing"),
    (
        "compare FOLDER --out OUT --networks resnet18 --balance some",
        "--balance must be one of none, class, source, got 'some'",
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
    said = [line for line in answer.stderr.strip().splitlines() if not line.startswith("planning …")]
    assert len(said) == 1, answer.stderr
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
    assert "1 image," in result.stdout
    assert "1 .txt files" in result.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_a_manifest_with_a_column_of_the_results_is_refused_before_anything_is_scored(
    dry: list[str], tmp_path: Path, image: Path
) -> None:
    manifest = image.parent / "m.csv"
    manifest.write_text(f"image_uri,Label\n{image.name},sound\n")
    result = run("score", manifest, "--out", tmp_path / "out", *dry)
    assert result.returncode == 2
    assert "column 'Label' has the same name as a column of the results" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out" / "predictions").exists()


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
    with pytest.raises(TypeError, match="list of images"):
        model.predict(image)
    assert model.predict([image]) == crackbatch.load_model().predict([image])


def test_models_lists_the_shipped_one() -> None:
    result = run("models")
    assert result.returncode == 0
    assert "concrete-resnet18@" in result.stdout


@pytest.mark.xdist_group("ray")
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
    assert "give another --run-id" in other.stderr


@pytest.mark.parametrize("command", [["runs", "--json"], ["clean", "--yes"]])
@pytest.mark.parametrize("place", ["/no/such/folder", "s3://no-such-bucket", "http://127.0.0.1:1/", "gs2://x"])
def test_no_runs_is_one_line_and_exit_2(s3: str, command: list[str], place: str) -> None:
    answer = crackbatch_says(*command, place)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert len(answer.stderr.splitlines()) == 1, answer.stderr


def test_the_version_is_told_without_a_command() -> None:
    shown = run("--version")
    assert (shown.returncode, shown.stdout) == (0, f"crackbatch {version('crackbatch')}\n")
