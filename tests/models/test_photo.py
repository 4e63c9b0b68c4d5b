"""A photograph is cut into strips without a trace, and its map becomes one verdict."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
from scipy.stats import pearsonr

from builders.pictures import draw_photo, gradient
from builders.places import SHARED
from crackbatch.models.bundle import PhotoSettings, read_bundle_and_weights
from crackbatch.models.model import Model, load_model
from crackbatch.models.photo import Box, CrackMap, Grid, judge, scale_of, strips

SETTINGS = PhotoSettings(window=256, cut=0.5, intercept=-1.0, slope=0.5, operating_points={}, mm_per_pixel=0.25)


def crack_map(logits: np.ndarray) -> CrackMap:
    """A map with a step of 32 pixels and windows of 224, of a photograph that it covers."""
    rows, columns = logits.shape
    return CrackMap(logits.astype(np.float32), (columns + 6) * 32, (rows + 6) * 32, (32.0, 32.0), (224.0, 224.0))


def test_photographs_of_several_threads_share_batches_and_get_the_maps_that_they_get_alone() -> None:
    bundle, weights = read_bundle_and_weights()
    model = Model(bundle, weights, joins_photos=True)
    photos = [np.array(draw_photo(3, size, seed=seed)) for seed in range(3) for size in (2, 3)]
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda photo: model.map_photo(photo, 0.875), photos))
    alone = Model(bundle, weights)
    for crack_map, photo in zip(found, photos, strict=True):
        expected = alone.map_photo(photo, 0.875)
        assert crack_map.logits.shape == expected.logits.shape
        assert np.abs(crack_map.probabilities - expected.probabilities).max() < 0.02  # bfloat16 rounds batches apart
    assert len({crack_map.logits.tobytes() for crack_map in found}) == len(photos)


@pytest.mark.parametrize(("width", "height"), [(448, 448), (900, 700), (701, 1303), (512, 3000)])
@pytest.mark.parametrize("scale", [0.31, 0.875, 1.0, 2.7])
def test_strips_are_the_photograph_scaled_at_once(width: int, height: int, scale: float) -> None:
    random = np.random.default_rng(0)
    pixels = np.asarray(gradient(width, height)) // 2 + random.integers(0, 128, (height, width, 3), np.uint8)
    grid = Grid.of(width, height, scale, 32, 7)
    assert grid.width % 32 == grid.height % 32 == 0
    assert min(grid) >= 224
    whole = np.asarray(PIL.Image.fromarray(pixels).resize(grid, PIL.Image.Resampling.BILINEAR))
    for num_rows in (32, 160):
        found = np.concatenate(list(strips(pixels, grid, num_rows)))
        assert np.abs(found.astype(int) - whole).max() <= 1


def test_the_strongest_region_decides_and_scattered_windows_do_not_add_up() -> None:
    sound = np.full((40, 60), -2.0)
    line, scattered = sound.copy(), sound.copy()
    line[20, 10:40] = 2.0
    scattered[::4, ::4] = 2.0  # 150 windows, none of which touches another
    one = sound.copy()
    one[0, 0] = 2.0
    verdicts = {name: judge(crack_map(logits), SETTINGS) for name, logits in
                {"line": line, "scattered": scattered, "one": one, "sound": sound}.items()}  # fmt: skip
    assert verdicts["line"].logit == pytest.approx(-1 + 0.5 * np.log1p(30 * 1.5), abs=1e-5)
    assert verdicts["scattered"].logit == pytest.approx(verdicts["one"].logit)
    assert verdicts["line"].logit > verdicts["one"].logit > verdicts["sound"].logit
    assert verdicts["sound"].logit == pytest.approx(-1 + 0.5 * (-2 - 0.5))
    assert (verdicts["line"].tiles, verdicts["line"].crack_tiles, verdicts["scattered"].crack_tiles) == (2400, 30, 150)
    assert verdicts["sound"].box is None


@pytest.mark.parametrize(
    ("places", "box"),
    [
        ((slice(20, 21), slice(10, 40)), Box(10 * 32 + 96, 20 * 32, 30 * 32, 224)),  # at least one window high
        ((slice(0, 40), slice(7, 9)), Box(7 * 32 + 16, 0, 224, 46 * 32)),  # from border to border
        ((slice(12, 13), slice(5, 6)), Box(5 * 32, 12 * 32, 224, 224)),  # one window
    ],
)
def test_the_box_spans_the_centres_of_the_strongest_region(places: tuple[slice, slice], box: Box) -> None:
    logits = np.full((40, 60), -2.0)
    logits[places] = 3.0
    logits[30, 55] = 2.0
    assert judge(crack_map(logits), SETTINGS).box == box


def test_the_scale_comes_from_the_tile_size_or_the_ground_resolution_or_the_training() -> None:
    assert scale_of(224, SETTINGS, None, None) == 224 / 256
    assert scale_of(224, SETTINGS, 512, None) == 224 / 512
    assert scale_of(224, SETTINGS, None, 0.5) == 2 * 224 / 256
    assert scale_of(224, SETTINGS, None, 50.0) == 4 * 224 / 256  # a pixel of it shows no more
    assert scale_of(224, replace(SETTINGS, mm_per_pixel=None), None, 0.5) == 224 / 256


def test_strips_change_no_logit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model()
    pixels = np.array(draw_photo(5, 4).resize((1111, 901)))
    found = []
    for size in (1 << 14, 1 << 17, 1 << 24):
        monkeypatch.setattr("crackbatch.models.model._CPU_STRIP", size)
        found.append(model.map_photo(pixels, 224 / 256).logits)
    assert np.ptp(found[0]) > 2
    # bfloat16 rounds in another way for other sizes, by a share of the logits.
    assert max(np.abs(logits - found[0]).max() for logits in found) < 0.005 * np.ptp(found[0])


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_a_crack_is_found_where_it_was_drawn_at_every_scale(scale: float) -> None:
    model = load_model()
    assert model.bundle.photo is not None
    photo = draw_photo(cracked=(2, 3, 4))
    size = (round(photo.width * scale), round(photo.height * scale))
    found = model.map(photo.resize(size, PIL.Image.Resampling.BICUBIC), ground_resolution=0.25 / scale)
    verdict = judge(found, model.bundle.photo)
    assert verdict.box is not None
    x, y, width, height = (side / scale for side in verdict.box)
    assert (x, y) <= (2 * 256 + 64, 2.5 * 256)
    assert x + width >= 5 * 256 - 64
    assert y + height >= 2.5 * 256
    assert width * height <= 4 * 256 * 2 * 256
    assert model.probability(np.array([verdict.logit * model.bundle.temperature]))[0] > 0.7
    sound = judge(model.map(draw_photo(cracked=())), model.bundle.photo)
    assert (sound.crack_tiles, sound.box) == (0, None)


def test_a_notebook_gets_a_map_of_a_tile_too() -> None:
    model = load_model()
    tile = draw_photo(1, 1, cracked=(0,)).rotate(90)
    found = model.map(tile)
    assert found.probabilities.shape == (7, 7)
    assert not found.is_of_windows
    with pytest.raises(ValueError, match="the image cannot be read"):
        model.map("no-such-file.jpg")


@pytest.mark.skipif(not (SHARED / "photos").is_dir(), reason="the real photographs are not here")
def test_windows_say_what_tiles_that_are_cut_apart_say() -> None:
    """Only at their borders they differ, where a tile ends and a window sees what lies beyond."""
    model = load_model()
    photo = PIL.Image.open(SHARED / "photos" / "W_7130.jpg").convert("RGB").crop((0, 0, 2304, 1792))
    found = model.map(photo)
    cells = [
        photo.crop((x, y, x + 256, y + 256)).resize((224, 224), PIL.Image.Resampling.BILINEAR)
        for y in range(0, 1792, 256)
        for x in range(0, 2304, 256)
    ]
    tiles = model.logits(np.stack([np.asarray(cell) for cell in cells]))
    assert pearsonr(tiles, found.logits[::7, ::7].ravel()).statistic > 0.8


PANORAMA = """
import sys, threading
from pathlib import Path
import numpy as np
from crackbatch.models.model import load_model, one_thread_each

def held(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024

model = load_model()
pixels = np.full((10_000, 20_000, 3), 128, np.uint8)  # 200 megapixels
before = held("VmRSS")
with one_thread_each():
    found = model.map_photo(pixels, 224 / 256)
print(found.logits.shape[0], found.logits.shape[1], held("VmHWM") - before)
"""


@pytest.mark.slow  # two minutes of arithmetic
def test_a_panorama_of_200_megapixels_takes_less_than_2_gb_beyond_its_pixels() -> None:
    done = subprocess.run([sys.executable, "-c", PANORAMA], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    rows, columns, size_bytes = map(int, done.stdout.split())
    assert (rows, columns) == (267, 541)
    assert size_bytes < 2e9
