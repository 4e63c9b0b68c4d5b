"""A copy of the shipped model, to be damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from builders.models import SHIPPED


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED, tmp_path / "bundle"))
