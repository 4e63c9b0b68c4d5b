"""What the tests share: drawn tiles, Ray started once, and the real images where they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from crackbatch.demo import draw_tile

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def tiles() -> dict[str, bytes]:
    """Twelve drawn JPEG tiles, every one different, by name."""
    return {f"tile-{index:02d}.jpg": draw_tile(index, cracked=index % 2 == 0) for index in range(12)}


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images, which lies beside the project on its developers' machines."""
    if not SHARED.is_dir():
        pytest.skip(f"the real images are not here ({SHARED.parent.name}/{SHARED.name})")
    return SHARED


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """Ray on this machine, started once for all tests that score in this process."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
