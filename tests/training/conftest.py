"""Tiles of photos to train on, and a model that was trained on them without interruption."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders.pictures import make_photos
from builders.trainings import SMALL
from crackbatch import train


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """96 drawn tiles of 24 photos."""
    return str(make_photos(tmp_path_factory.mktemp("photos") / "deck", 24))


@pytest.fixture(scope="session")
def trained(photos: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained in this process without interruption."""
    out = tmp_path_factory.mktemp("model") / "small"
    train(photos, str(out), workers=0, **SMALL)
    return out
