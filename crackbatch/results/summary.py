"""What came of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunSummary:
    """What a run did: as returned by `score` and as it stands in `summary.json`.

    `images` counts all rows of the run, `added` those of this call; `size_bytes` the encoded bytes in the sources
    where known; `seconds` is the whole call; `retries` is how often a storage was asked again; a run that
    `--max-errors` ended `stopped_early` has images without a row. After a dry run `images` are those that would be
    read; none is added.
    """

    run_id: str
    date: str
    out: str
    model_id: str
    threshold: float
    images: int
    added: int
    size_bytes: int
    statuses: dict[str, int]
    archives: int
    passed_over: dict[str, int]
    problems: list[str]
    files: list[str]
    seconds: float
    images_per_s: float | None
    stages: dict[str, dict[str, float]]
    max_error_rate: float
    retries: int
    stopped_early: bool
    exit_code: int

    @property
    def error_rate(self) -> float:
        """Share of the run's images without a score."""
        return 1 - self.statuses.get("ok", 0) / self.images if self.images else 0.0
