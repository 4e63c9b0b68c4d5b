"""The report of a run is one page that shows everything, in a real browser, and obeys no name that stands in it."""

from __future__ import annotations

import base64
import io
import re
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from typer.testing import CliRunner

import crackbatch
from builders.archives import write_files, zip_with
from builders.browser import chromium, requests
from builders.models import SHIPPED, edit
from builders.pictures import draw_photo, encode
from builders.runs import score
from crackbatch.cli.commands import app
from crackbatch.errors import OptionError, OutputError
from crackbatch.images.picture import read_image

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, tiles: dict[str, bytes]) -> Path:
    """Two runs over tiles in folders and in an archive, photographs with maps, and what is no image."""
    root = tmp_path_factory.mktemp("report")
    names = list(tiles)
    exif = PIL.Image.Exif()
    exif.get_ifd(0x8825).update({1: "N", 2: (47.0, 0.0, 0.0), 3: "E", 4: (8.0, 0.0, 0.0)})
    exif[0x0110] = "DJI M3E"
    write_files(root / "in", {f"pier 1/{name}": tiles[name] for name in names[:5]})
    lot = zip_with(0, {f"girder/{name}": tiles[name] for name in names[5:9]})
    write_files(root / "in", {"lot.zip": lot, f"{EVIL}/{EVIL}.jpg": b"nothing", "empty.jpg": b""})
    score(root / "in", root / "out", engine="local", date="2026-11-19")
    photo = encode(draw_photo(7, 5, cracked=(2, 3, 4)), "JPEG", quality=92, exif=exif.tobytes())
    write_files(root / "in", {"span/photo.jpg": photo})
    (root / "in" / "pier 1" / names[0]).unlink()
    score(root / "in", root / "out", engine="local", date="2026-11-20", maps=True)
    return root / "out"


@pytest.fixture(scope="module")
def page(out: Path) -> Path:
    made = crackbatch.report(out, out.parent / "page.html")
    assert (made.images, made.pictures, made.notes) == (11, 9, [])
    return out.parent / "page.html"


def texts(elements: list[WebElement]) -> list[str]:
    return [element.text for element in elements]


def test_a_person_reads_it_in_a_browser(page: Path, out: Path) -> None:
    with chromium() as browser:
        browser.get(page.as_uri())
        assert requests(browser) == [page.as_uri()], "it loads nothing"
        assert not browser.get_log("browser")
        assert "Cracks in 11 images" in browser.find_element(By.TAG_NAME, "h1").text
        rows = crackbatch.read_predictions(out, run_id=crackbatch.list_runs(out)[-1].run_id)
        cracks = int((rows["label"] == "crack").sum())
        assert texts(browser.find_elements(By.CSS_SELECTOR, ".numbers b")) == [str(cracks), str(9 - cracks), "2"]
        # All names are text: none became a picture, and nothing asked the reader anything.
        assert browser.find_elements(By.CSS_SELECTOR, 'img[src="x"]') == []
        assert EVIL in browser.find_element(By.TAG_NAME, "body").text
        # Links lead to their sections.
        for link in browser.find_elements(By.CSS_SELECTOR, "nav a"):
            link.click()
            target = browser.find_element(By.ID, str(link.get_attribute("href")).rpartition("#")[2])
            assert browser.execute_script("return arguments[0].getBoundingClientRect().top < innerHeight", target)
        # Folders open.
        browser.find_element(By.ID, "folders").click()
        shown = browser.find_element(By.CSS_SELECTOR, ".tree").text
        assert "lot.zip/girder" in shown
        assert "pier 1" in shown
        # A picture is enlarged, and made small again.
        card = browser.find_element(By.CSS_SELECTOR, ".card")
        small = card.find_element(By.CSS_SELECTOR, ".pictures img")
        width = small.size["width"]
        small.click()
        assert small.size["width"] > 2 * width
        card.find_element(By.CSS_SELECTOR, ".close").click()
        assert small.size["width"] == width
        assert browser.find_element(By.CSS_SELECTOR, "svg.map circle.crack title").get_attribute("textContent") == (
            "1 image, 1 crack"
        )


@pytest.mark.parametrize("width", [500, 1280])
def test_no_line_is_wider_than_the_window(page: Path, width: int) -> None:
    with chromium(width) as browser:
        browser.get(page.as_uri())
        inner, needed = browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
        assert needed <= inner


def test_the_pictures_show_the_photograph_its_map_and_its_worst_region(page: Path, out: Path) -> None:
    html = page.read_text()
    card = next(part for part in html.split("<article")[1:] if "photo.jpg" in part)
    whole, detail = (PIL.Image.open(io.BytesIO(_data(uri))) for uri in re.findall(r'src="(data:[^"]+)"', card)[:2])
    assert max(whole.size) == max(detail.size) == 320
    assert detail.width == detail.height
    row = crackbatch.read_predictions(out, min_probability=0).set_index("width").loc[7 * 256]
    # The left picture has the blue box around the worst region, the right one only concrete.
    x, y = round(row["box_x"] * 320 / 1792) + 1, round((row["box_y"] + row["box_h"] / 2) * 320 / 1792)
    edge = np.asarray(whole.convert("RGB")).astype(int)[y, max(0, x - 3) : x + 4]
    assert (edge[:, 2] - edge[:, 0]).max() > 60
    assert all(abs(a - c) < 60 for a, _, c in detail.convert("RGB").get_flattened_data())
    assert "DJI M3E" in card
    assert "47.000000, 8.000000" in card


def _data(uri: str) -> bytes:
    return base64.b64decode(uri.partition(",")[2])


def test_it_says_what_failed_what_changed_and_what_the_threshold_means(page: Path) -> None:
    text = re.sub(r"<[^>]+>", " ", page.read_text())
    assert "2 images without a score" in text
    assert "the image has no bytes" in text
    assert re.search(r"Changes since run 2026-11-19-\w+", text)
    changed = re.search(r"changed status\s+new\s+gone\s+the same\s+0\s+0\s+0\s+(\d+)\s+(\d+)\s+(\d+)", text)
    assert changed is not None
    assert changed.groups() == ("1", "1", "10")
    assert re.search(r"operating point\s+balanced", text)
    assert re.search(r"it found \d+ % of the cracked tiles", text)
    assert "never says that a structure is safe" in text


def test_another_run_fewer_pictures_and_no_maps(out: Path, tmp_path: Path) -> None:
    first = crackbatch.list_runs(out)[0].run_id
    shown = CliRunner().invoke(app, ["report", str(out), "--run-id", first, "--top", "9", "-o", f"{tmp_path}/p.html"])
    assert shown.exit_code == 0, shown.output
    assert f"report of run {first}, 11 images, 8 pictures: {tmp_path}/p.html" in shown.output
    # One of the images is gone: the page says so instead of its picture.
    assert "No picture: " in (tmp_path / "p.html").read_text()
    assert "Changes since" not in (tmp_path / "p.html").read_text()


def test_a_model_that_is_not_the_runs_draws_no_map(out: Path, tmp_path: Path) -> None:
    shutil.copytree(SHIPPED, tmp_path / "other")
    edit(tmp_path / "other", temperature=2.0)
    made = crackbatch.report(out, tmp_path / "p.html", model=tmp_path / "other", top=2)
    assert made.notes[0].startswith("Tiles have no crack map: they were scored with concrete-resnet18@")
    assert made.pictures == 4


def test_a_wrong_request_is_one_line_and_writes_nothing(out: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"the name of the page must end in \.html, got 'page\.pdf'"):
        crackbatch.report(out, "page.pdf")
    with pytest.raises(OptionError, match="--top must be from 0 to 500, got -1"):
        crackbatch.report(out, tmp_path / "p.html", top=-1)
    with pytest.raises(OptionError, match="has no published run 'other'; the newest are 2026-11-19-"):
        crackbatch.report(out, tmp_path / "p.html", run_id="other")
    with pytest.raises(OutputError, match="no runs in"):
        crackbatch.report(tmp_path, tmp_path / "p.html")
    assert not (tmp_path / "p.html").exists()


def test_tiles_are_drawn_as_they_are(page: Path, tiles: dict[str, bytes]) -> None:
    card = next(part for part in page.read_text().split("<article")[1:] if "tile-02.jpg" in part)
    detail = PIL.Image.open(io.BytesIO(_data(re.findall(r'src="(data:[^"]+)"', card)[1]))).convert("RGB")
    pixels = read_image(tiles["tile-02.jpg"]).pixels
    assert pixels is not None
    assert detail.size == pixels.size
