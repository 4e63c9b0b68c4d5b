"""The package that is built holds every file of the code, the shipped models, the command and the storage `parquet://`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from builders.places import ROOT


def test_a_wheel_holds_every_file_and_the_models(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT / "crackbatch", source / "crackbatch", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", str(source), "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*command, "--wheel-dir", str(tmp_path)], check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (name for name in names if name.endswith("/entry_points.txt"))
        stated = archive.read(entry_points).decode()
    files = {path.relative_to(source).as_posix() for path in (source / "crackbatch").rglob("*") if path.is_file()}
    assert any(name.endswith("/model.safetensors") for name in files)
    assert not files - names
    assert "crackbatch = crackbatch.cli.commands:main" in stated
    assert "parquet = crackbatch.archives.parquet.ParquetFileSystem" in stated
