"""The summary of a run counts its rows, and says what was found."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from builders.archives import write_files
from builders.runs import rows, score
from crackbatch.results.states import list_runs
from crackbatch.results.summary import RunSummary, findings


@pytest.mark.parametrize(
    ("statuses", "rate"), [({"ok": 3, "empty": 1}, 0.25), ({"ok": 4}, 0.0), ({"corrupt": 2}, 1.0), ({}, 0.0)]
)
def test_the_error_rate_is_the_share_of_images_without_a_score(statuses: dict[str, int], rate: float) -> None:
    values = dict.fromkeys((field.name for field in fields(RunSummary)), None)
    summary = RunSummary(**{**values, "images": sum(statuses.values()), "statuses": statuses})  # type: ignore[arg-type]
    assert summary.error_rate == rate


@pytest.mark.parametrize(
    ("labels", "statuses", "line"),
    [
        ({"crack": 312, "no_crack": 11045}, {"ok": 11357}, "crack 312, no crack 11,045"),
        (
            {"crack": 0, "no_crack": 2}, {"ok": 2, "corrupt": 5, "missing": 2},
            "crack 0, no crack 2, could not be scored 7 (corrupt 5, missing 2)",
        ),
        ({}, {"corrupt": 2}, "could not be scored 2 (corrupt 2)"),
        ({}, {"ok": 3, "empty": 1}, "ok 3, could not be scored 1 (empty 1)"),  # of an older version
        ({}, {}, ""),
    ],
)  # fmt: skip
def test_one_line_says_what_was_found(labels: dict[str, int], statuses: dict[str, int], line: str) -> None:
    assert findings(labels, statuses) == line


def test_a_summary_counts_what_the_table_holds_and_shows_itself_in_a_notebook(
    tmp_path: Path, tiles: dict[str, bytes]
) -> None:
    folder = write_files(tmp_path / "in", {**tiles, "<b>bold & broken.jpg": b"GIF no"})
    summary = score(folder, tmp_path / "out", engine="local")
    table = rows(tmp_path / "out")
    assert summary.labels == table["label"].value_counts().reindex(["crack", "no_crack"], fill_value=0).to_dict()
    assert 0 < summary.labels["crack"] < len(tiles)
    found = table["crack_probability"].dropna()
    assert summary.quantiles["0.5"] == pytest.approx(np.median(found), abs=1e-5)
    assert list(summary.quantiles.values()) == sorted(summary.quantiles.values())
    shown = [(likely.image_uri, likely.crack_probability) for likely in summary.most_probable]
    assert shown == list(zip(table["image_uri"][:5], table["crack_probability"][:5], strict=True))
    written = json.loads((tmp_path / "out" / "runs" / summary.run_id / "summary.json").read_text())
    assert written["labels"] == summary.labels
    assert written["most_probable"][0] == {"image_uri": shown[0][0], "crack_probability": pytest.approx(shown[0][1])}
    (listed,) = list_runs(str(tmp_path / "out"))
    assert listed.labels == summary.labels
    page = summary._repr_html_()
    assert f"crack {summary.labels['crack']}, no crack" in page
    assert "<b>bold" not in page
    assert page.count("<tr>") == 6
