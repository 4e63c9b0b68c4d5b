"""A labelled dataset holds each picture once, and what cannot be used is counted."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import PIL.Image
import pytest

from builders.pictures import make_photos
from crackbatch.cli.demo import draw_tile
from crackbatch.datasets.dataset import read_dataset, with_split
from crackbatch.errors import SourceError


def test_exact_duplicates_are_kept_once_and_contradictions_not_at_all(tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "deck")
    first, contested = draw_tile(0, True), draw_tile(1, False)
    (folder / "D" / "CD" / "9000-1.jpg").write_bytes(first)
    (folder / "D" / "CD" / "9001-1.jpg").write_bytes(contested)  # lies in UD as well
    before = read_dataset([str(make_photos(tmp_path / "plain"))])
    dataset = read_dataset([str(folder)])
    assert dataset.report.duplicates == 1
    assert len(dataset.report.contradictions) == 1
    assert dataset.table.num_rows == before.table.num_rows - 1
    digests = dataset.table.column("sha256").to_pylist()
    assert len(set(digests)) == len(digests)


def test_near_duplicates_are_joined_whatever_photo_they_claim(tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "deck")
    for photo in range(0, 12, 2):  # each even photo's first tile again, saved anew, under the next photo's number
        picture = PIL.Image.open(io.BytesIO(draw_tile(photo * 4, True)))
        picture.save(folder / "D" / "CD" / f"{7000 + photo + 1}-99.jpg", quality=70)
    dataset = with_split(read_dataset([str(folder)]))
    assert dataset.report.near_duplicates >= 6
    splits = dict(zip(*(dataset.table.column(name).to_pylist() for name in ("group", "split")), strict=True))
    for photo in range(0, 12, 2):
        assert splits[f"deck/D/{7000 + photo}"] == splits[f"deck/D/{7000 + photo + 1}"]


def test_a_near_duplicate_leaves_its_block_of_names_and_does_not_join_blocks(tmp_path: Path) -> None:
    for index in range(120):
        path = tmp_path / "site" / ("crack" if index % 2 else "sound") / f"{index:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(draw_tile(index, cracked=bool(index % 2)))
    twin = PIL.Image.open(tmp_path / "site" / "crack" / "0001.jpg")
    twin.save(tmp_path / "site" / "crack" / "9999.jpg", quality=70)
    table = read_dataset([str(tmp_path / "site")]).table
    groups = dict(zip(*(table.column(name).to_pylist() for name in ("path", "group")), strict=True))
    assert groups["site/crack/9999.jpg"] == groups["site/crack/0001.jpg"]
    assert len(set(table.column("component").to_pylist())) == len(set(groups.values()))


def test_other_pictures_are_no_near_duplicates(tmp_path: Path) -> None:
    assert read_dataset([str(make_photos(tmp_path / "deck", 40))]).report.near_duplicates == 0


def test_what_cannot_be_read_or_has_no_label_is_counted_and_passed_over(tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "deck")
    (folder / "D" / "CD" / "8000-1.jpg").write_bytes(b"")
    (folder / "D" / "CD" / "8000-2.jpg").write_bytes(draw_tile(1, True)[:2000])
    (folder / "readme.jpg").write_bytes(draw_tile(999, True))
    report = read_dataset([str(folder)]).report
    assert dict(report.unreadable) == {"empty": 1, "truncated": 1}
    assert report.unlabelled == 1
    assert len(report.lines()) == 2


def test_a_folder_and_a_zip_of_it_are_the_same_dataset(tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "deck")
    with zipfile.ZipFile(tmp_path / "deck.zip", "w") as archive:
        for file in sorted(folder.rglob("*.jpg")):
            archive.write(file, file.relative_to(folder))
    one, other = (with_split(read_dataset([str(tmp_path / name)])) for name in ("deck", "deck.zip"))
    assert one.digest == other.digest


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({"crack": 4}, "no sound images.*--negative"),
        ({"sound": 4}, "no cracked images.*--positive"),
        ({"other": 4}, "no labelled images.*--positive"),
    ],
)
def test_data_of_one_class_are_refused_in_one_line(tmp_path: Path, folders: dict[str, int], message: str) -> None:
    for folder, num in folders.items():
        (tmp_path / "site" / folder).mkdir(parents=True)
        for index in range(num):
            (tmp_path / "site" / folder / f"{index}.jpg").write_bytes(draw_tile(index, True))
    with pytest.raises(SourceError, match=message) as raised:
        with_split(read_dataset([str(tmp_path / "site")]))
    assert "\n" not in str(raised.value)


def test_images_that_all_stand_under_both_labels_are_refused_in_one_line(tmp_path: Path) -> None:
    for label in ("crack", "no_crack"):
        (tmp_path / "site" / label).mkdir(parents=True)
        for index in range(3):
            (tmp_path / "site" / label / f"{index}.jpg").write_bytes(draw_tile(index, True))
    with pytest.raises(SourceError, match=r"all 3 have both labels, such as .*/0\.jpg; give each") as raised:
        read_dataset([str(tmp_path / "site")])
    assert "\n" not in str(raised.value)
