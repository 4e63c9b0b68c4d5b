"""The notebook runs from top to bottom without data and without a network, and shows pictures and tables."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from builders.places import ROOT

NOTEBOOK = ROOT / "notebooks" / "crackbatch.ipynb"


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"EPOCHS": "1", "PIXELS": "64", "WORK": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": NOTEBOOK.parent}}).execute()
    shown = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in data or "image/jpeg" in data for data in shown) >= 7
    assert sum("text/html" in data for data in shown) >= 7
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_it_is_committed_with_light_outputs_and_seven_stages() -> None:
    assert NOTEBOOK.stat().st_size < 1_000_000
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    stages = [line for cell in notebook.cells for line in cell["source"].splitlines() if line.startswith("## ")]
    assert [stage[3:5] for stage in stages] == [f"{number}." for number in range(1, 8)]
