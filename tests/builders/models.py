"""The shipped model as files, and how they are changed."""

from __future__ import annotations

import json
from pathlib import Path

import crackbatch
from crackbatch.models.bundle import DEFAULT_MODEL

SHIPPED = Path(crackbatch.__file__).parent / "models" / DEFAULT_MODEL


def edit(bundle: Path, **changes: object) -> None:
    description = json.loads((bundle / "model.json").read_text())
    (bundle / "model.json").write_text(json.dumps({**description, **changes}))
