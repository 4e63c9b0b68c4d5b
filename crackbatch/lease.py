"""The lease on a run: which process works on it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Lease:
    """Who holds a run, since when, and when that was renewed last (ISO times)."""

    holder: str
    since: str
    renewed_at: str

    @property
    def is_alive(self) -> bool:
        """Whether the holder works still."""
        return False


def read_lease(run_folder: str) -> Lease | None:
    """The lease in a run's folder, None where nobody holds it."""
    return None
