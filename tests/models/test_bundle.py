"""A bundle is read whole and as it was written, or refused in one line; nothing in it is executed."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from builders.models import SHIPPED, edit
from crackbatch.errors import BundleError
from crackbatch.models.bundle import (
    DEFAULT_MODEL,
    absolute,
    read_bundle,
    read_bundle_and_weights,
    shipped_models,
    write_bundle,
)
from crackbatch.storage.redaction import redact


def test_the_shipped_model_is_there_and_small() -> None:
    assert DEFAULT_MODEL in shipped_models()
    assert read_bundle().model_id.startswith(f"{DEFAULT_MODEL}@")
    assert (SHIPPED / "model.safetensors").stat().st_size <= 23e6


def test_all_that_changes_an_answer_is_in_a_models_name(tmp_path: Path) -> None:
    whole = read_bundle()
    names = {whole.model_id}
    for change in (
        {"temperature": 2.0}, {"mean": [0.4, 0.4, 0.4]}, {"std": [0.2, 0.2, 0.3]}, {"input_size": 160},
        {"network": "resnet34"},
    ):  # fmt: skip
        folder = tmp_path / "-".join(change)
        shutil.copytree(SHIPPED, folder)
        edit(folder, **change)
        names.add(read_bundle(str(folder)).model_id)
    assert len(names) == 6
    shutil.copytree(SHIPPED, tmp_path / "same")
    edit(tmp_path / "same", operating_points={"mine": {"threshold": 0.3}})
    assert read_bundle(str(tmp_path / "same")).model_id == whole.model_id


def test_a_model_takes_no_more_memory_than_its_files(tmp_path: Path) -> None:
    code = """
import resource
from crackbatch.models.bundle import read_bundle
resource.setrlimit(resource.RLIMIT_DATA, (300 << 20,) * 2)
print(read_bundle().model_id)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == read_bundle().model_id, done.stderr


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda bundle: shutil.rmtree(bundle), "no model at"),
        (lambda bundle: (bundle / "model.json").write_text("{"), "not valid JSON"),
        (lambda bundle: edit(bundle, format_version=99), "format_version 99"),
        (lambda bundle: edit(bundle, mean=[1]), "missing or wrong value"),
        (lambda bundle: edit(bundle, input_size=None), "missing or wrong value"),
        (lambda bundle: edit(bundle, input_size=0), "must be from 16 to 4096"),
        (lambda bundle: edit(bundle, temperature=0), "must be finite and above 0"),
        (lambda bundle: edit(bundle, operating_points={"balanced": {"threshold": "high"}}), "must be from 0 to 1"),
        (lambda bundle: (bundle / "model.json").write_text("[" * 100_000), "not valid JSON"),
        (lambda bundle: (bundle / "model.safetensors").unlink(), "no model at"),
        (lambda bundle: (bundle / "model.safetensors").write_bytes(pickle.dumps(Bomb())), "not a safetensors file"),
        (lambda bundle: (bundle / "model.safetensors").open("ab").write(b"x"), "does not match"),
    ],
)
def test_a_bad_bundle_is_refused_in_one_line(bundle: Path, damage, message: str) -> None:
    damage(bundle)
    with pytest.raises(BundleError, match=message) as raised:
        read_bundle(str(bundle))
    assert "\n" not in str(raised.value)
    assert not Path("exploded").exists()


def test_a_bundle_that_is_written_anew_is_whole_for_who_reads_it(bundle: Path) -> None:
    found, weights = read_bundle_and_weights(str(bundle))
    with open(bundle / "model.safetensors", "rb") as opened:
        write_bundle(found, weights[:-2] + b"xx")
        assert opened.read() == weights
    assert read_bundle(str(bundle)).weights_sha256 != found.weights_sha256


@pytest.mark.parametrize(
    ("location", "expected"),
    [("concrete-resnet18", "concrete-resnet18"), ("none", "none"), ("models/a", "{here}/models/a"),
     ("s3://b/a/", "s3://b/a")],
)  # fmt: skip
def test_a_location_means_the_same_everywhere(location: str, expected: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute(location, ["none"]) == expected.format(here=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["crack", "no_crack"]}, "classes must be no_crack and crack, in this order"),
        ({"classes": ["dog", "cat"]}, "classes must be no_crack and crack"),
        ({"name": "two\nlines"}, "name must be"),
        ({"name": "\x1b[31mred"}, "name must be"),
        ({"name": "x" * 200}, "name must be"),
        ({"mean": [0.5, float("nan"), 0.5]}, "mean must be finite"),
        ({"std": [0.5, float("inf"), 0.5]}, "std must be finite"),
    ],
)
def test_a_description_that_cannot_be_right_is_refused_in_one_line(changes: dict, message: str, bundle: Path) -> None:
    edit(bundle, **changes)
    with pytest.raises(BundleError, match=message) as raised:
        read_bundle(str(bundle))
    assert redact(str(raised.value)).isprintable()
