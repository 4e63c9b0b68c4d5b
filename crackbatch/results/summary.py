"""The summary of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunSummary:
    """What a run did. `score` returns it, and `summary.json` holds it.

    `photographs` counts the images that were looked at in `windows`; `notes` says what to doubt in their results.
    `images` counts all rows of the run, `added` the rows of this call. `size_bytes` is the encoded size of the images
    in the sources, where it is known. `seconds` is the duration of the whole call. `retries` counts repeated storage
    requests. If `--max-errors` ended the run, `stopped_early` is set, and some images have no row. After a dry run,
    `images` counts the images that would be read, and `added` is 0.
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
    notes: list[str]
    photographs: int
    windows: int
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
        """The share of the run's images that have no score."""
        return 1 - self.statuses.get("ok", 0) / self.images if self.images else 0.0
