"""A few labelled images of a site say whether the model works there, how sure that is, and what would settle it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import crackbatch
from builders.archives import write_files
from builders.pictures import draw_photo, encode
from crackbatch.cli.commands import app
from crackbatch.cli.demo import draw_tile
from crackbatch.errors import OptionError
from crackbatch.evaluation.metrics import Scored
from crackbatch.evaluation.site_check import Figures, Kind, judge_kind


def site(num_cracked: int, num_sound: int, recall: float, alarms: float, groups: int = 20) -> Scored:
    """Images of which a share of the cracked and of the sound ones have a high probability."""
    labels = np.repeat([1, 0], [num_cracked, num_sound])
    high = np.concatenate([np.arange(num_cracked) < recall * num_cracked, np.arange(num_sound) < alarms * num_sound])
    order = np.random.default_rng(0).permutation(len(labels))
    names = np.array([f"photo {number % groups}" for number in range(len(labels))])
    return Scored(np.where(high, 0.9, 0.1).astype(np.float32)[order], labels[order], names)


def judged(scored: Scored, min_recall: float = 0.9, max_false_alarms: float = 0.1) -> Kind:
    return judge_kind("tiles", scored, np.log(scored.probabilities / (1 - scored.probabilities)), 0.5,
                      (min_recall, max_false_alarms))  # fmt: skip


def as_it_is(kind: Kind) -> Figures:
    assert kind.as_it_is is not None
    return kind.as_it_is


def test_many_images_settle_it_both_ways() -> None:
    works, fails = judged(site(400, 400, 0.97, 0.03)), judged(site(400, 400, 0.75, 0.03))
    assert (works.works, fails.works) == (True, False)
    assert works.verdict.startswith("the model works as it is: it finds 97% (")
    assert fails.verdict.startswith("the model does not work here: it finds 75% (")
    assert works.further == fails.further == {}


def test_few_images_say_how_many_more_would_settle_it() -> None:
    kind = judged(site(40, 40, 0.95, 0.05))
    assert kind.works is None
    assert kind.further is not None
    num = kind.further["cracked"]
    assert 20 < num < 2_000
    # With so many more images and the same rates, it is settled.
    assert judged(site(40 + num, 40 + kind.further["sound"], 0.95, 0.05)).works is True


def test_all_or_nothing_is_not_said_to_be_certain() -> None:
    figures = as_it_is(judged(site(15, 15, 1.0, 0.0)))
    assert (figures.recall.value, figures.false_alarm_rate.value) == (1.0, 0.0)
    # Wilson's interval for 15 of 15.
    assert figures.recall.low == pytest.approx(1 / (1 + 1.96**2 / 15), abs=1e-3)
    assert figures.false_alarm_rate.high == pytest.approx(1 - figures.recall.low, abs=1e-6)


def test_a_handful_says_too_few_and_no_figures() -> None:
    kind = judged(site(4, 30, 0.5, 0.1))
    assert (kind.works, kind.as_it_is, kind.roc_auc, kind.further) == (None, None, None, {"cracked": 6})
    assert kind.verdict == "too few images to say anything: label at least 6 more cracked tiles"


def test_a_threshold_of_the_site_is_measured_on_photos_that_it_was_not_chosen_on() -> None:
    random = np.random.default_rng(1)
    labels = np.tile([1, 0], 400)
    # All probabilities of this site are lower than those that the threshold was chosen for.
    probabilities = np.where(labels == 1, random.uniform(0.2, 0.4, 800), random.uniform(0.0, 0.15, 800))
    scored = Scored(probabilities.astype(np.float32), labels, np.arange(800) // 20)
    kind = judged(scored)
    assert kind.works is True
    assert kind.at_site is not None
    assert 0.13 < kind.at_site.threshold < 0.21
    assert f"works with --threshold {kind.at_site.threshold:.3f}" in kind.verdict
    # Noise has no threshold: what is chosen on some photos does not hold for others.
    noise = Scored(random.uniform(0, 1, 60).astype(np.float32), np.tile([1, 0], 30), np.arange(60) // 3)
    found = judged(noise).at_site
    assert found is not None
    assert found.recall.value - found.false_alarm_rate.value < 0.35


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn tiles and photographs of a site, in folders that say what they show."""
    folder = tmp_path_factory.mktemp("site")
    for number in range(24):
        name = ("with crack", "without crack")[number % 2]
        write_files(folder, {f"{name}/tile-{number}.jpg": draw_tile(500 + number, cracked=number % 2 == 0)})
    write_files(folder, {"with crack/photo.jpg": encode(draw_photo(), "JPEG")})
    return folder


def test_a_folder_is_checked_and_a_model_for_the_site_is_written(labelled: Path, tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["site-check", str(labelled), "--out", str(tmp_path / "model")])
    assert shown.exit_code == 0, shown.output
    assert re.search(r"tiles +24 +12 +\d+ +0\.\d{3} ", shown.output), shown.output
    assert (
        "photographs: too few images to say anything: label at least 9 more cracked and 10 more sound photographs"
        in (shown.output)
    )
    model = crackbatch.load_model(tmp_path / "model")
    found = crackbatch.site_check(labelled)
    assert found.kinds[0].at_site is not None
    assert model.bundle.operating_points["balanced"].threshold == pytest.approx(found.kinds[0].at_site.threshold)
    assert "## Site" in (tmp_path / "model" / "MODEL_CARD.md").read_text()
    assert "12 of them cracked" in (tmp_path / "model" / "MODEL_CARD.md").read_text()


def test_a_wrong_request_is_one_line(labelled: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--min-recall must be above 0 and below 1, got 90"):
        crackbatch.site_check(labelled, min_recall=90)
    write_files(tmp_path, {"crack/a.jpg": draw_tile(1, True), "no_crack/b.jpg": draw_tile(2, False)})
    with pytest.raises(OptionError, match="--out needs enough labelled tiles to choose a threshold on"):
        crackbatch.site_check(tmp_path, out=tmp_path / "model")
    assert not (tmp_path / "model").exists()
