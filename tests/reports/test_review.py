"""A person answers on the page of a review, and the answers become labels that training takes."""

from __future__ import annotations

import csv
import io
import json
import time
from pathlib import Path

import PIL.Image
import pytest
from selenium.webdriver.common.keys import Keys
from typer.testing import CliRunner

import crackbatch
from builders.archives import write_files, zip_with
from builders.browser import chromium, requests
from builders.pictures import encode
from builders.runs import score
from crackbatch.cli.commands import app
from crackbatch.cli.demo import draw_tile
from crackbatch.datasets.listing import list_labelled
from crackbatch.errors import OptionError, OutputError


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, tiles: dict[str, bytes]) -> Path:
    root = tmp_path_factory.mktemp("review")
    names = list(tiles)
    write_files(root / "in", {f"pier 1/{name}": tiles[name] for name in names[:7]})
    write_files(root / "in", {"lot.zip": zip_with(0, {name: tiles[name] for name in names[7:]})})
    picture = PIL.Image.open(io.BytesIO(draw_tile(99, cracked=True)))
    again = {f"again/{quality}.jpg": encode(picture, "JPEG", quality=quality) for quality in (95, 90, 85)}
    write_files(root / "in", {**again, "=1+1.jpg": draw_tile(77, cracked=True), "broken.jpg": b"nothing"})
    score(root / "in", root / "out", engine="local")
    return root / "out"


def lines_of(file: Path) -> list[dict[str, str]]:
    with open(file, encoding="utf-8-sig", newline="") as opened:
        return list(csv.DictReader(opened))


def test_the_list_has_what_is_near_the_threshold_and_some_at_random_each_picture_once(
    out: Path, tmp_path: Path
) -> None:
    shown = CliRunner().invoke(app, ["review", str(out), "--out", str(tmp_path), "--num", "10"])
    assert shown.exit_code == 0, shown.output
    lines = lines_of(tmp_path / "review.csv")
    assert [line["reason"] for line in lines] == ["random"] * 2 + ["near"] * 8
    assert "2 images drawn at random, 8 images near the threshold" in shown.output
    rows = crackbatch.read_predictions(out).set_index("image_uri")
    listed = [line["image_uri"] for line in lines]
    assert len(set(listed)) == 10
    assert sum("again/" in uri for uri in listed) <= 1
    distance = (rows["crack_probability"] - rows["threshold"]).abs()
    near = distance[[line["image_uri"] for line in lines if line["reason"] == "near"]]
    assert list(near) == sorted(near)
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert len(tasks) == sum(not line["archive"] for line in lines)
    assert crackbatch.review(out, tmp_path / "b", num=10).images == {"random": 2, "near": 8}
    assert lines_of(tmp_path / "b" / "review.csv") == lines, "the same seed draws the same images"


def test_a_person_answers_on_the_page_and_the_answers_are_labels(out: Path, tmp_path: Path) -> None:
    crackbatch.review(out, tmp_path / "review", num=20)
    lines = lines_of(tmp_path / "review" / "review.csv")
    with chromium() as browser:
        page = (tmp_path / "review" / "review.html").as_uri()
        browser.get(page)
        assert requests(browser) == [page], "it loads nothing"
        browser.execute_cdp_cmd(
            "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path / "saved")}
        )
        cards = browser.find_elements("css selector", ".card")
        assert len(cards) == len(lines)
        cards[0].find_element("css selector", "input[value=crack]").click()
        browser.execute_script("arguments[0].focus()", cards[1])
        for key in "nuc":  # each answer leads to the next image
            browser.switch_to.active_element.send_keys(key)
        assert browser.find_element("id", "state").text == f"4 of {len(lines)} answered"
        browser.find_element("id", "save").send_keys(Keys.ENTER)
        saved = tmp_path / "saved" / "answers.csv"
        until = time.monotonic() + 20
        while not saved.exists() and time.monotonic() < until:
            time.sleep(0.05)
        assert not browser.get_log("browser")
    answers = lines_of(saved)
    order = [int(str(card)) for card in _order(tmp_path / "review" / "review.html")]
    given = dict(zip(order, ("crack", "no_crack", "unsure", "crack"), strict=False))
    assert [line["answer"] for line in answers] == [given.get(place, "") for place in range(len(lines))]
    assert [line["image_uri"].lstrip("'") for line in answers] == [line["image_uri"].lstrip("'") for line in lines]
    shown = CliRunner().invoke(app, ["review", str(out), "--import", str(saved), "--out", f"{tmp_path}/labels.csv"])
    assert shown.exit_code == 0, shown.output
    assert f"crack 2, no crack 1, without an answer {len(lines) - 3}" in shown.output
    wanted = {lines[place]["image_uri"]: int(value == "crack") for place, value in given.items() if value != "unsure"}
    listed = list_labelled([str(tmp_path / "labels.csv")]).table
    assert dict(zip(listed.column("image_uri").to_pylist(), listed.column("label").to_pylist(), strict=True)) == wanted


def _order(page: Path) -> list[str]:
    """The numbers of the images in the list, in the order of the page."""
    return [part.partition('"')[0] for part in page.read_text().split('tabindex="0" id="image-')[1:]]


def test_a_wrong_request_is_one_line(out: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="give the --out of score, or --import with a file of answers"):
        crackbatch.review(None, tmp_path)
    with pytest.raises(OptionError, match="--num must be from 1 to 500, got 0"):
        crackbatch.review(out, tmp_path, num=0)
    with pytest.raises(OutputError, match="no predictions in"):
        crackbatch.review(tmp_path, tmp_path / "x")
