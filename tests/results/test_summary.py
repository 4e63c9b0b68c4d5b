"""A run's error rate is the share of its images that have no score."""

from __future__ import annotations

from dataclasses import fields

import pytest

from crackbatch.results.summary import RunSummary


@pytest.mark.parametrize(
    ("statuses", "rate"), [({"ok": 3, "empty": 1}, 0.25), ({"ok": 4}, 0.0), ({"corrupt": 2}, 1.0), ({}, 0.0)]
)
def test_the_error_rate_is_the_share_of_images_without_a_score(statuses: dict[str, int], rate: float) -> None:
    values = dict.fromkeys((field.name for field in fields(RunSummary)), None)
    summary = RunSummary(**{**values, "images": sum(statuses.values()), "statuses": statuses})  # type: ignore[arg-type]
    assert summary.error_rate == rate
