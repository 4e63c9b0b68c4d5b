"""What can be known to be wrong with a request is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

import crackbatch
from crackbatch.errors import OptionError


def test_fewer_errors_than_allowed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--max-errors -1"):
        crackbatch.score("nowhere", str(tmp_path / "out"), max_errors=-1)
