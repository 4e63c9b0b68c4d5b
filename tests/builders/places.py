"""Where the project, its tests and the real images are."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
NODE_PROGRAMS = TESTS / "node_modules" / ".bin"
SHARED = ROOT.parent / "shared" / "data"
