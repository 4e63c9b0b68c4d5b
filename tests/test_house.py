"""The house stands as the README draws it: imports point one way, and ray has its place."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(path.stem for path in (ROOT / "crackbatch").glob("*.py") if path.stem != "__init__")


def order() -> list[str]:
    drawn = (ROOT / "README.md").read_text().partition("## The code")[2]
    return re.findall(r"`(\w+)\.py`", drawn.partition("| `errors.py`")[1] + drawn.partition("| `errors.py`")[2])


def imports(module: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / "crackbatch" / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "crackbatch":
            names |= {f"crackbatch.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_every_file_has_its_place() -> None:
    assert sorted(order()) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    before = set(order()[: order().index(module)])
    inside = {name.split(".")[1] for name in imports(module) if name.startswith("crackbatch.")}
    public = {"score", "read_predictions", "__version__"}  # the demo uses what a user would
    assert inside - public <= before
    if module not in ("cluster", "pipeline", "trainer", "tuner"):
        assert not any(name.split(".")[0] == "ray" for name in imports(module))
