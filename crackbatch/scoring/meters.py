"""The meters of a scoring run, as Ray's metrics: each node of a cluster offers them to Prometheus.

    ray_crackbatch_images_total{run_id, status}             images with a row in a finished part
    ray_crackbatch_labels_total{run_id, label}              images labelled crack, or no_crack
    ray_crackbatch_bytes_total{run_id}                      encoded bytes of these images
    ray_crackbatch_stage_seconds_total{run_id, stage}       seconds that tasks and actors spent in fetch, predict, write
    ray_crackbatch_retries_total{run_id}                    repeated storage requests
    ray_crackbatch_decoder_deaths_total{run_id}             decoder processes that images have ended
    ray_crackbatch_images_left{run_id}                      images that still wait for a row
    ray_crackbatch_runs_total{run_id, exit_code}            1 when the run has ended

The driver counts, because it alone sees every part once; a repeated task would count twice. Its node keeps the counts
after the run has ended.
"""

from __future__ import annotations

import sys
from typing import Any

from crackbatch.results.summary import RunSummary

_PREFIX = "crackbatch_"
STAGES = ("fetch", "predict", "write")


class Meters:
    """The meters of one run. Without Ray they do nothing."""

    def __init__(self, run_id: str) -> None:
        self._run_id, self._num_left, self._retries = run_id, 0, 0.0
        self._made: dict[str, Any] = {}

    def begin(self, num_left: int) -> None:
        """Show how many images the run has to score."""
        if _ray_runs():
            self._num_left = num_left
            self._show_left()

    def add(self, part: dict[str, Any]) -> None:
        """Count a part that is written, given its counts."""
        if not _ray_runs():
            return
        self._num_left -= part["rows"]
        for name, tag, counts in (
            ("images", "status", part["statuses"]),
            ("labels", "label", part["labels"]),
            ("stage_seconds", "stage", {stage: part[f"{stage}_seconds"] for stage in STAGES}),
        ):
            for value, count in counts.items():
                self._count(name, count, **{tag: value})
        self._count("bytes", part["size_bytes"])
        self._count("decoder_deaths", part["decoder_deaths"])
        self._count_retries(part["retries"])
        self._show_left()

    def finish(self, summary: RunSummary) -> None:
        """Count the run, and the retries that were made before and after its stages."""
        if not self._made or not _ray_runs():
            return
        self._count_retries(summary.retries - self._retries)
        self._num_left = 0
        self._show_left()
        self._count("runs", 1, exit_code=str(summary.exit_code))

    def _count_retries(self, num: float) -> None:
        self._retries += num
        self._count("retries", num)

    def _show_left(self) -> None:
        self._meter("Gauge", "images_left", "run_id").set(self._num_left, {"run_id": self._run_id})

    def _count(self, name: str, amount: float, **tags: str) -> None:
        if amount > 0:  # Ray takes no other
            self._meter("Counter", name, "run_id", *tags).inc(amount, {"run_id": self._run_id, **tags})

    def _meter(self, kind: str, name: str, *tags: str) -> Any:
        if name not in self._made:
            from ray.util import metrics

            self._made[name] = getattr(metrics, kind)(_PREFIX + name, tag_keys=tags)
        return self._made[name]


def _ray_runs() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())
