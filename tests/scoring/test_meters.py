"""The metrics that a cluster's nodes offer over HTTP add up to the summary of the run."""

from __future__ import annotations

import re
import threading
import urllib.request
from collections import Counter
from pathlib import Path

import pytest

from builders.archives import write_files
from builders.runs import score

SAMPLE = re.compile(r"^ray_crackbatch_(\w+?)(?:_total)?\{(.*)\} (\S+)$", re.MULTILINE)
TAG = re.compile(r'(\w+)="([^"]*)"')


def scrape(run_id: str) -> dict[str, Counter[str]]:
    """The meters of a run by name, and of each the amounts by status, label or stage, from all nodes."""
    import ray

    found: dict[str, Counter[str]] = {}
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        with urllib.request.urlopen(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=20) as page:
            text = page.read().decode()
        for name, written, amount in SAMPLE.findall(text):
            tags = dict(TAG.findall(written))
            if tags.get("run_id", run_id) == run_id:
                by = next((tags[tag] for tag in ("status", "label", "stage", "exit_code") if tag in tags), "")
                found.setdefault(name, Counter())[by] += float(amount)
    return found


def wait_for_meters(run_id: str, images: int) -> dict[str, Counter[str]]:
    """A driver hands its meters to its node every few seconds."""
    tick = threading.Event()
    for _ in range(120):
        found = scrape(run_id)
        if found.get("images", Counter()).total() >= images and "runs" in found:
            return found
        tick.wait(0.5)
    raise AssertionError(found)


@pytest.mark.usefixtures("ray_here")
def test_the_metrics_of_the_nodes_add_up_to_the_summary(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    source = write_files(tmp_path / "in", {**tiles, "bad.jpg": b"x"})
    summary = score(source, tmp_path / "out", engine="ray", max_error_rate=0.001)
    found = wait_for_meters(summary.run_id, summary.images)
    assert found["images"] == Counter(summary.statuses)
    assert found["labels"] == Counter(summary.labels)
    assert found["bytes"].total() == summary.size_bytes
    assert found["images_left"].total() == 0
    assert found["runs"]["3"] == 1
    for stage, seconds in found["stage_seconds"].items():
        assert seconds == pytest.approx(summary.stages[stage]["seconds"], abs=0.01)
