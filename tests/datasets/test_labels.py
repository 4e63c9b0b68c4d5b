"""Labels and groups are read from paths as people name them."""

from __future__ import annotations

import unicodedata

import pytest

from crackbatch.datasets.labels import LabelRules, name_blocks, parse_label
from crackbatch.errors import OptionError


@pytest.mark.parametrize(
    ("path", "label", "above"),
    [
        ("metu.zip/Positive/00001.jpg", 1, "metu.zip"),
        ("metu.zip/Negative/00001.jpg", 0, "metu.zip"),
        ("sdnet.tar/D/CD/7001-115.jpg", 1, "sdnet.tar/D"),
        ("sdnet.tar/W/UW/7069-1.jpg", 0, "sdnet.tar/W"),
        ("site/crack/a.jpg", 1, "site"),
        ("site/NO_CRACK/deep/er/a.jpg", 0, "site"),
        ("cracks/2024/sound/a.jpg", 0, "cracks/2024"),  # the innermost folder that says anything
        ("site/Positive.zip/a.jpg", 1, "site"),
        ("site/negative.tar.gz/a.jpg", 0, "site"),
        ("archive/Decks/Cracked/7001-115.jpg", 1, "archive/Decks"),
        ("archive/Decks/Non-cracked/7001-3.jpg", 0, "archive/Decks"),
        ("archive/Walls/non cracked/7001-3.jpg", 0, "archive/Walls"),
        ("site/No-Cracks/a.jpg", 0, "site"),
        ("site/non-cracks/a.jpg", 0, "site"),
        ("site/no cracks/a.jpg", 0, "site"),
    ],
)
def test_the_innermost_folder_that_says_anything_is_the_label(path: str, label: int, above: str) -> None:
    assert LabelRules().label(path) == (label, above)


@pytest.mark.parametrize("path", ["site/2024/a.jpg", "crack.jpg", "site/crackers/a.jpg"])
def test_a_path_that_says_nothing_has_no_label(path: str) -> None:
    assert LabelRules().label(path) is None


def test_patterns_name_other_folders() -> None:
    rules = LabelRules(positive=["schaden*"], negative=["*/ok/*"])
    assert rules.label("a/Schaden-3/x.jpg") == (1, "a")
    assert rules.label("a/ok/x.jpg") == (0, "a")
    assert rules.label("a/crack/x.jpg") is None


@pytest.mark.parametrize("pattern", ["schäden", "*/schäden/*"])
def test_a_pattern_matches_a_folder_however_its_accents_are_written(pattern: str) -> None:
    spelled = [(form, other) for form in ("NFC", "NFD") for other in ("NFC", "NFD")]  # a shell's, a Mac's archive
    for form, other in spelled:
        rules = LabelRules(positive=[unicodedata.normalize(form, pattern)])
        assert rules.label(unicodedata.normalize(other, "site/Schäden/a.jpg")) == (1, "site"), (form, other)


@pytest.mark.parametrize(
    ("pattern", "path", "group"),
    [
        (None, "sdnet.tar/D/CD/7001-115.jpg", "D/7001"),
        (None, "sdnet.tar/D/UD/7001-3.jpg", "D/7001"),  # cracked and sound tiles of one photo are one group
        (None, "sdnet.tar/W/UW/7001-3.jpg", "W/7001"),
        (None, "sdnet.tar/W/CW/7107-100_2.jpg", "W/7107"),
        (None, "D/UD.zip/UD/7001-3.jpg", "D/7001"),
        (None, "sdnet/D.tar.gz/CD/7001-3.jpg", "D/7001"),
        (None, "archive/Decks/Cracked/7001-115.jpg", "D/7001"),
        (None, "archive/Decks/Non-cracked/7001-3.jpg", "D/7001"),
        (None, "Walls/Non-cracked.zip/non-cracked/7001-3.jpg", "W/7001"),
        (None, "piers/Cracked/7001-115.jpg", None),
        (None, "W/Cracked/2024-11.jpg", None),
        (None, "metu.zip/Positive/00001.jpg", None),
        (r"(bridge-\d+)/.*_(\d+)_tile", "x/bridge-12/a_7_tile3.jpg", "bridge-12/7"),
        (r"IMG_\d+", "x/IMG_0042_3.jpg", "IMG_0042"),
    ],
)
def test_a_group_is_the_photo_that_a_path_names(pattern: str | None, path: str, group: str | None) -> None:
    assert LabelRules(group_pattern=pattern).group(path) == group


def test_a_group_pattern_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(OptionError, match="--group-pattern"):
        LabelRules(group_pattern="(")


def test_blocks_hold_neighbours_in_number_not_in_spelling() -> None:
    paths = [f"a/{number}.jpg" for number in range(1000)]
    blocks = name_blocks(sorted(paths))
    by_path = dict(zip(sorted(paths), blocks, strict=True))
    sizes = {blocks.count(block) for block in blocks}
    assert sizes == {20}
    assert by_path["a/2.jpg"] == by_path["a/10.jpg"] != by_path["a/100.jpg"]


def test_blocks_never_span_folders() -> None:
    paths = [f"{folder}/{number}.jpg" for folder in "ab" for number in range(500)]
    owners: dict[str, set[str]] = {}
    for path, block in zip(paths, name_blocks(paths), strict=True):
        owners.setdefault(block, set()).add(path[0])
    assert all(len(folders) == 1 for folders in owners.values())


@pytest.mark.parametrize(
    ("cell", "label"),
    [("crack", 1), ("no_crack", 0), (1, 1), (0, 0), (1.0, 1), ("0", 0), (True, 1), (False, 0), ("Negative ", 0),
     ("1.0", 1), ("0.0", 0), (0.0, 0), ("1.5", None), (float("nan"), None),
     ("maybe", None), (None, None), ("None", None), ("none", None), ("nan", None), (2, None), (0.5, None)],
)  # fmt: skip
def test_a_manifests_cell_is_a_label_or_none(cell: object, label: int | None) -> None:
    assert parse_label(cell) == label


def test_augmented_copies_of_roboflow_are_one_group() -> None:
    rules = LabelRules()
    copies = [f"a/train/crack/DJI_0001_JPG.rf.{hash_}.jpg" for hash_ in ("0123456789abcdef" * 2, "f" * 32)]
    assert {rules.group(path) for path in copies} == {"DJI_0001_JPG"}
    assert rules.group("a/train/crack/DJI_0002_JPG.rf.0123456789abcdef.jpg") == "DJI_0002_JPG"
    assert rules.group("a/train/crack/DJI_0002.jpg") is None


@pytest.mark.parametrize(("num", "size", "blocks"), [(60, 10, 6), (20, 4, 5), (99, 10, 10), (400, 10, 40), (3, 1, 3)])
def test_neighbours_stay_together_in_small_folders_too(num: int, size: int, blocks: int) -> None:
    found = name_blocks([f"a/{number}.jpg" for number in range(num)])
    assert len(set(found)) == blocks
    assert found.count(found[0]) == size
    assert found == sorted(found)
