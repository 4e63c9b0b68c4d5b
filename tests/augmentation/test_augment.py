"""Pictures are changed as another camera or light would change them, and the same for the same seed."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import PIL.Image
import pytest
import torch
from torchvision.transforms.v2 import functional

from crackbatch.augmentation import augment
from crackbatch.augmentation.augment import Augmentation
from crackbatch.augmentation.jpeg import SavedAsJpeg
from crackbatch.cli.demo import draw_tile
from crackbatch.images.picture import read_image, to_input


def augmented(pixels: np.ndarray, num: int = 400, size: int = 64, strength: str = "full") -> np.ndarray:
    """(num, size, size, 3): one picture, changed in as many ways."""
    images, numbers = torch.from_numpy(pixels).expand(num, *pixels.shape), np.arange(num)
    return Augmentation(size, 0, strength)(images, 0, numbers, numbers, numbers % 2).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(("strength", "least", "most"), [("full", 0.6, 0.7), ("light", 0.87, 0.92)])
def test_augmentation_shows_each_time_another_part_of_the_picture(strength: str, least: float, most: float) -> None:
    stripes = np.zeros((160, 160, 3), np.uint8)
    stripes[:, np.arange(160) // 4 % 2 == 0] = 200
    shown = augmented(stripes, 100, 80, strength)
    assert len({picture.tobytes() for picture in shown}) == 100
    assert (augmented(stripes, 100, 80, strength) == shown).all()
    shares = [_count_edges(picture) / 39 for picture in shown]
    assert least - 1 / 39 <= min(shares) < most
    assert max(shares) > 0.95


@pytest.fixture(scope="module")
def tiles() -> torch.Tensor:
    """Drawn tiles (24, 80, 80, 3) uint8."""
    return torch.from_numpy(np.stack([to_input(read_image(draw_tile(at, at % 2 == 0)), 80) for at in range(24)]))


@pytest.mark.parametrize("size", [70, 64])  # of which one fills no whole blocks of JPEG
def test_a_picture_does_not_depend_on_the_others_in_its_batch(tiles: torch.Tensor, size: int) -> None:
    change, places = Augmentation(size, 3, "full"), np.arange(24)
    whole = change(tiles, 2, places, 100 + places, places % 2)
    assert whole.shape == (24, 3, size, size)
    assert whole.is_contiguous(memory_format=torch.channels_last)
    assert 0 <= whole.min() < whole.max() <= 255
    order = np.random.default_rng(0).permutation(24)
    for part in (order[:1], order[1:6], order[6:]):
        # Sums are rounded in another order in batches of another size, and JPEG may round another way then.
        difference = (change(tiles[part], 2, part, 100 + part, part % 2) - whole[part]).abs()
        assert difference.mean() < 0.01


@pytest.mark.parametrize(("seed", "epoch", "place", "number"), [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)])
def test_seed_epoch_place_and_number_all_decide(
    tiles: torch.Tensor, seed: int, epoch: int, place: int, number: int
) -> None:
    at = np.arange(24)
    first = Augmentation(64, 0, "full")(tiles, 0, at, at, at % 2)
    other = Augmentation(64, seed, "full")(tiles, epoch, at + place, at + number, at % 2)
    assert ((first - other).abs().mean((1, 2, 3)) > 1).all()


CORNERS = np.zeros((96, 96, 3), np.uint8)
CORNERS[:48, :48], CORNERS[:48, 48:], CORNERS[48:, :48], CORNERS[48:, 48:] = 40, 80, 120, 160


def test_augmentation_flips_and_turns_as_often_each_way() -> None:
    corners = [picture[[2, 2, -3, -3], [2, -3, 2, -3], 0] for picture in augmented(CORNERS)]
    ways = Counter(tuple(np.argsort(corner)) for corner in corners)
    assert len(ways) == 8
    assert all(25 <= num <= 80 for num in ways.values())


def test_flips_and_turns_move_pixels_without_changing_them(tiles: torch.Tensor) -> None:
    same = dict.fromkeys(augment._Changes._fields, torch.ones(1)) | {"x": torch.zeros(1), "y": torch.zeros(1)}
    same |= {"width": torch.full((1,), 0.7), "height": torch.full((1,), 0.7), "is_turned": torch.zeros(1)}
    centres = Augmentation(63, 0, "full")._centres
    pictures = tiles[:1].permute(0, 3, 1, 2).float()

    def crop(**changes: float) -> torch.Tensor:
        given = {name: torch.full((1,), float(value)) for name, value in changes.items()}
        return augment._cropped(pictures, centres, augment._Changes(**{**same, **given}))

    plain = crop()
    assert plain.std() > 1
    assert torch.equal(crop(mirror_x=-1), plain.flip(3))
    assert torch.equal(crop(mirror_y=-1), plain.flip(2))
    assert torch.equal(crop(is_turned=1), plain.transpose(2, 3))
    assert torch.equal(crop(is_turned=1, mirror_x=-1), plain.rot90(1, (2, 3)))


def test_a_crop_is_scaled_as_pillow_does_it(tiles: torch.Tensor) -> None:
    image = PIL.Image.fromarray(tiles[1].numpy())
    expected = np.asarray(image.resize((64, 64), PIL.Image.Resampling.BILINEAR, box=(8, 16, 72, 80)), float)
    values = dict.fromkeys(augment._Changes._fields, torch.ones(1)) | {"is_turned": torch.zeros(1)}
    crop = {"width": 64 / 80, "height": 64 / 80, "x": (40 - 40) / 40, "y": (48 - 40) / 40}
    changes = augment._Changes(**{**values, **{name: torch.full((1,), value) for name, value in crop.items()}})
    found = augment._cropped(tiles[1:2].permute(0, 3, 1, 2).float(), Augmentation(64, 0, "full")._centres, changes)
    assert np.abs(found[0].permute(1, 2, 0).numpy() - expected).max() < 0.1


def test_augmentation_changes_light_contrast_and_colour() -> None:
    light = [picture.mean() / 120 for picture in augmented(np.full((96, 96, 3), 120, np.uint8))]
    assert (min(light), max(light)) == (pytest.approx(0.65, abs=0.03), pytest.approx(1.35, abs=0.03))
    halves = np.repeat(np.array([100, 150], np.uint8), 48)[:, None, None] + np.zeros((1, 96, 3), np.uint8)
    contrast = [np.ptp(picture[8::47, 8::47]) / picture[8::47, 8::47].mean() / 0.4 for picture in augmented(halves)]
    assert min(contrast) < 0.75
    assert max(contrast) > 1.25
    colour = [np.ptp(picture.mean((0, 1))) for picture in augmented(np.full((96, 96, 3), (150, 100, 100), np.uint8))]
    assert min(colour) < 3
    assert max(colour) > 70


@pytest.mark.parametrize(("brightness", "contrast", "saturation"), [(0.7, 1.3, 0.2), (1.35, 0.7, 1.5), (1, 1, 0)])
def test_light_and_colour_change_as_torchvision_defines_it(
    tiles: torch.Tensor, brightness: float, contrast: float, saturation: float
) -> None:
    pictures = tiles.permute(0, 3, 1, 2).float()
    expected = functional.adjust_brightness(pictures / 255, brightness)
    expected = functional.adjust_saturation(functional.adjust_contrast(expected, contrast), saturation) * 255
    values = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    given = {name: torch.full((24,), float(values.get(name, 0))) for name in augment._Changes._fields}
    # torchvision's weights of grey have four digits, ours three.
    assert (augment._relit(pictures, augment._Changes(**given)) - expected).abs().max() < 0.1


def test_blur_is_torchvisions_with_a_width_for_each_picture(tiles: torch.Tensor) -> None:
    pictures = tiles[:3].permute(0, 3, 1, 2).float()
    sigmas = [0.3, 0.8, 1.2]
    blurred = augment._blurred(pictures, torch.tensor(sigmas))
    for at, sigma in enumerate(sigmas):
        assert (blurred[at] - functional.gaussian_blur(pictures[at], [5, 5], [sigma, sigma])).abs().max() < 0.01


@pytest.mark.parametrize("quality", [40, 65, 90])
@pytest.mark.parametrize("side", [80, 67])
def test_jpeg_noise_is_that_of_pillow_at_the_same_quality(tiles: torch.Tensor, quality: int, side: int) -> None:
    grain = torch.from_numpy(np.random.default_rng(0).integers(-20, 21, (24, 80, 80, 1)))
    pixels = (tiles + grain).clamp(0, 255)[:, :side, :side].byte()
    expected = torch.stack([_saved_by_pillow(picture, quality) for picture in pixels.numpy()]).float()
    pictures = pixels.permute(0, 3, 1, 2).float()
    found = SavedAsJpeg("cpu")(pictures, torch.full((24,), float(quality))).permute(0, 2, 3, 1)
    assert (expected - pixels).abs().mean() > 3
    assert (found - expected).abs().mean() < 0.5  # libjpeg computes in whole numbers


def test_augmentation_blurs_some_pictures_sharpens_some_and_saves_some_as_jpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    grain = np.random.default_rng(0).integers(60, 180, (96, 96, 1), np.uint8).repeat(3, 2)
    shown = augmented(grain)
    monkeypatch.setitem(augment._RANGES, "full", augment._RANGES["full"]._replace(noise=0))
    plain = augmented(grain)  # the same but for that
    changed = [number for number in range(400) if (shown[number] != plain[number]).any()]
    assert len(changed) / 400 == pytest.approx(1 - 0.85**3, abs=0.07)
    grains = [np.abs(np.diff(shown[at], axis=0)).mean() / np.abs(np.diff(plain[at], axis=0)).mean() for at in changed]
    assert sum(left < 0.85 for left in grains) >= 20  # blurred
    assert sum(0.9 < left < 1.1 for left in grains) >= 20  # a JPEG
    assert sum(left > 1.1 for left in grains) >= 20  # sharpened


def _saved_by_pillow(pixels: np.ndarray, quality: int) -> torch.Tensor:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(PIL.Image.open(file)))


def _count_edges(picture: np.ndarray) -> int:
    """Edges between stripes, which may have been turned."""
    lines = max((picture.mean(axis=(axis, 2)) for axis in (0, 1)), key=np.std)
    return int(np.count_nonzero(np.diff(lines > lines.mean())))
