"""A labelled dataset holds each picture once, and no photo stands on two sides of its split."""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections import defaultdict
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
import PIL.Image
import pyarrow.parquet as pq
import pytest

from crackbatch import describe_dataset
from crackbatch.cli.demo import draw_tile
from crackbatch.datasets.dataset import Dataset, read_dataset, with_given_split, with_split
from crackbatch.datasets.labels import LabelRules
from crackbatch.datasets.split import write_split
from crackbatch.errors import BundleError, OptionError, SourceError
from crackbatch.models.seen import write_seen
from test_fetch import Ranges, WholeFiles, serving


def make_photos(folder: Path, num_photos: int = 12, tiles_each: int = 4, seed: int = 0) -> Path:
    """Tiles named as SDNET2018's: cracked and sound ones of the same photos."""
    for photo in range(num_photos):
        for tile in range(tiles_each):
            cracked = tile % 2 == 0
            path = folder / "D" / ("CD" if cracked else "UD") / f"{7000 + photo}-{tile}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(draw_tile(seed + photo * tiles_each + tile, cracked))
    return folder


def sides(dataset: Dataset, column: str) -> dict[str, set[str]]:
    found = defaultdict(set)
    names = dataset.table.column(column).to_pylist()
    for name, split in zip(names, dataset.table.column("split").to_pylist(), strict=True):
        found[name].add(split)
    return found


def test_no_photo_stands_on_two_sides_and_every_side_has_both_labels(tmp_path: Path) -> None:
    dataset = with_split(read_dataset([str(make_photos(tmp_path / "deck"))]))
    assert all(len(splits) == 1 for splits in sides(dataset, "group").values())
    for split in ("train", "validation", "test"):
        assert set(dataset.part(split).column("label").to_pylist()) == {0, 1}


def test_the_same_seed_draws_the_same_split(tmp_path: Path) -> None:
    dataset = read_dataset([str(make_photos(tmp_path / "deck"))])
    assert with_split(dataset, 3).digest == with_split(dataset, 3).digest != with_split(dataset, 4).digest


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


def test_a_manifest_brings_labels_and_groups(tmp_path: Path) -> None:
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image_uri", "label", "pier"])
        for index in range(24):
            (tmp_path / f"{index}.jpg").write_bytes(draw_tile(index, cracked=index % 2 == 0))
            rows.writerow([f"{index}.jpg", "crack" if index % 2 == 0 else "no_crack", f"pier {index // 4}"])
        rows.writerow(["0.jpg", "no_crack", "pier 0"])
        rows.writerow(["1.jpg", "no_crack", "pier 9"])
        (tmp_path / "unknown.jpg").write_bytes(draw_tile(99, cracked=True))
        rows.writerow(["unknown.jpg", "", "pier 9"])
    dataset = with_split(read_dataset([str(tmp_path / "labels.csv")], LabelRules(group_column="pier")))
    assert dataset.labels.sum() == 11
    assert dataset.report.contradictions == [str(tmp_path / "0.jpg")]
    assert set(dataset.table.column("group").to_pylist()) == {f"labels.csv/pier {pier}" for pier in range(6)}
    assert (dataset.report.unlabelled, dataset.report.listed_twice) == (1, 1)
    assert dataset.report.grouped == {"a manifest's column pier": 25}
    assert all(len(splits) == 1 for splits in sides(dataset, "group").values())


def test_a_manifests_labels_are_read_as_pandas_writes_them_and_those_that_say_nothing_are_named(tmp_path: Path) -> None:
    for index in range(12):
        (tmp_path / f"{index}.jpg").write_bytes(draw_tile(index, cracked=index % 2 == 0))
    names = [f"{index}.jpg" for index in range(12)]
    table = pd.DataFrame({"image_uri": names, "label": [1, 0] * 5 + [None, None]})
    for written in ("labels.csv", "labels.parquet"):
        (table.to_csv if written.endswith("csv") else table.to_parquet)(tmp_path / written, index=False)
        report = read_dataset([str(tmp_path / written)]).report
        assert report.lines() == ["2 images without a label were passed over"]
    table["label"] = ["crack", "no_crack"] * 4 + ["Craak", "Craak", "?", ""]
    table.to_csv(tmp_path / "typos.csv", index=False)
    assert read_dataset([str(tmp_path / "typos.csv")]).report.lines() == [
        "4 images without a label were passed over (3 of a manifest's labels are not understood, such as 'Craak')"
    ]
    table["label"] = "x\ny" * 99
    table.to_csv(tmp_path / "none.csv", index=False)
    with pytest.raises(SourceError, match=r"12 images \(12 of .* not understood, such as 'x\\ny[xyn\\]{,60}'\), none"):
        read_dataset([str(tmp_path / "none.csv")])


def test_a_member_that_a_manifest_lists_under_both_labels_is_reported(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for index in range(4):
            archive.writestr(f"{index}.jpg", draw_tile(index, cracked=index % 2 == 0))
    lines = [f"zip://{index}.jpg::a.zip,{'crack' if index % 2 == 0 else 'no_crack'}" for index in range(4)]
    lines += ["zip://0.jpg::a.zip,no_crack", "zip://1.jpg::a.zip,no_crack"]
    (tmp_path / "labels.csv").write_text("\n".join(["image_uri,label", *lines]))
    dataset = read_dataset([str(tmp_path / "labels.csv")])
    assert [Path(str(path)).name for path in dataset.table.column("path").to_pylist()] == ["1.jpg", "2.jpg", "3.jpg"]
    assert dataset.report.contradictions == [f"zip://0.jpg::{tmp_path}/a.zip"]
    assert dataset.report.listed_twice == 1


@pytest.fixture
def photos_manifest(tmp_path: Path) -> Path:
    """A manifest without labels of photos whose folders say them, below a folder that says something else."""
    folder = make_photos(tmp_path / "crack" / "deck")
    with open(tmp_path / "images.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image_uri"])
        rows.writerows([str(path.relative_to(tmp_path))] for path in sorted(folder.rglob("*.jpg")))
        (folder / "D" / "unknown.jpg").write_bytes(draw_tile(999, True))
        rows.writerow(["crack/deck/D/unknown.jpg"])
    return tmp_path / "images.csv"


def test_the_paths_that_a_manifest_names_are_labels_and_photos(photos_manifest: Path) -> None:
    dataset = with_split(read_dataset([str(photos_manifest)]))
    assert set(dataset.table.column("group").to_pylist()) == {f"images.csv/D/{7000 + photo}" for photo in range(12)}
    assert set(dataset.table.column("source").to_pylist()) == {"images.csv/D"}
    assert (dataset.labels.sum(), dataset.table.num_rows, dataset.report.unlabelled) == (24, 48, 1)
    assert all(len(splits) == 1 for splits in sides(dataset, "group").values())


def test_a_group_pattern_finds_photos_in_the_whole_path_of_a_manifests_images(photos_manifest: Path) -> None:
    rules = LabelRules(group_pattern=r"crack/(deck)/.*/700(\d)")
    groups = set(read_dataset([str(photos_manifest)], rules).table.column("group").to_pylist())
    assert {f"images.csv/deck/{photo}" for photo in range(10)} <= groups


@pytest.mark.parametrize("pattern", ["deck/*/*/*.jpg", "d*/**/*.jpg"])
def test_the_folders_that_a_glob_matches_are_labels_and_photos(tmp_path: Path, pattern: str) -> None:
    folder = make_photos(tmp_path / "deck")
    found, whole = (read_dataset([source]) for source in (str(tmp_path / pattern), str(folder)))
    names = [PurePosixPath(path).parts[-3:] for path in found.table.column("path").to_pylist()]
    assert names == [PurePosixPath(path).parts[-3:] for path in whole.table.column("path").to_pylist()]
    assert found.labels.tolist() == whole.labels.tolist()
    assert {group.split("/")[-1] for group in found.table.column("group").to_pylist()} == {
        str(7000 + photo) for photo in range(12)
    }


def test_sources_are_kept_apart_by_the_folders_above_their_labels(tmp_path: Path) -> None:
    make_photos(tmp_path / "north", 3)
    make_photos(tmp_path / "south", 3, seed=100)
    dataset = read_dataset([str(tmp_path / "north"), str(tmp_path / "south")])
    assert set(dataset.table.column("source").to_pylist()) == {"north/D", "south/D"}


@pytest.mark.parametrize("pattern", [None, r"(\d+)-\d+"])
@pytest.mark.parametrize("sources", [("CD", "UD"), ("CD.zip", "UD"), ("CD.zip", "UD.zip")])
def test_cracked_and_sound_tiles_of_a_photo_are_one_group_also_where_each_class_is_a_source(
    sources: tuple[str, str], pattern: str | None, tmp_path: Path
) -> None:
    deck = make_photos(tmp_path) / "D"
    for label, above in (("CD", deck), ("UD", deck / "UD")):  # an archive of a folder begins with it, or with its files
        with zipfile.ZipFile(deck / f"{label}.zip", "w") as archive:
            for file in (deck / label).iterdir():
                archive.write(file, file.relative_to(above))
    rules = LabelRules(group_pattern=pattern)
    dataset = with_split(read_dataset([str(deck / source) for source in sources], rules))
    groups = sides(dataset, "group")
    assert {group.rpartition("/")[2] for group in groups} == {str(7000 + photo) for photo in range(12)}
    assert len(groups) == 12
    assert all(len(splits) == 1 for splits in groups.values())


def test_photos_that_manifests_of_either_class_name_are_one_group(tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "deck")
    for name, label in (("cracked.csv", "CD"), ("sound.csv", "UD")):
        with open(tmp_path / name, "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["image_uri", "label", "group"])
            for path in sorted((folder / "D" / label).iterdir()):
                rows.writerow([path.relative_to(tmp_path), name.removesuffix(".csv"), f"pier {path.name[:4]}"])
    dataset = with_split(read_dataset([str(tmp_path / "cracked.csv"), str(tmp_path / "sound.csv")]))
    groups = sides(dataset, "group")
    assert len(groups) == 12
    assert all(len(splits) == 1 for splits in groups.values())


def test_class_archives_behind_signed_urls_are_of_one_photo(tmp_path: Path) -> None:
    deck = make_photos(tmp_path / "www") / "D"
    for label in ("CD", "UD"):
        with zipfile.ZipFile(deck / f"{label}.zip", "w") as archive:
            for file in (deck / label).iterdir():
                archive.write(file, file.name)
    with serving(tmp_path / "www", Ranges) as base:
        table = read_dataset([f"{base}/D/CD.zip?sig=a/b", f"{base}/D/UD.zip?sig=c/d"]).table
    assert len(table) == 48
    assert len(set(table.column("group").to_pylist())) == 12


def test_class_folders_of_several_places_are_grouped_by_place(tmp_path: Path) -> None:
    for place, seed in (("north", 0), ("south", 100)):
        make_photos(tmp_path / place, 3, seed=seed)
    folders = [tmp_path / place / "D" / label for place, label in (("north", "CD"), ("north", "UD"), ("south", "UD"))]
    groups = set(read_dataset(list(map(str, folders))).table.column("group").to_pylist())
    assert {Path(group).relative_to(tmp_path).parts[0] for group in groups} == {"north", "south"}
    assert len(groups) == 6


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
    with pytest.raises(SourceError, match=r"all 3 stand under both labels, such as .*/0\.jpg; leave each") as raised:
        read_dataset([str(tmp_path / "site")])
    assert "\n" not in str(raised.value)


def test_one_photo_cannot_be_split(tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "deck", num_photos=1)
    with pytest.raises(SourceError, match=r"one group \(deck/D/7000\).*--group-pattern"):
        with_split(read_dataset([str(folder)]))


def test_a_given_split_is_the_same_wherever_the_files_lie(tmp_path: Path) -> None:
    here = with_split(read_dataset([str(make_photos(tmp_path / "here" / "deck"))]))
    write_split(here.table, str(tmp_path / "split.parquet"))
    there = read_dataset([str(make_photos(tmp_path / "there" / "deck"))])
    assert with_given_split(there, str(tmp_path / "split.parquet")).digest == here.digest
    images, splits = (here.table.column(name).to_pylist() for name in ("sha256", "split"))
    write_seen(str(tmp_path / "model"), images, splits)
    assert with_given_split(there, str(tmp_path / "model")).digest == here.digest, "that of a model is the same"
    assert pq.read_schema(tmp_path / "split.parquet").names == ["image_uri", "label", "group", "split", "sha256"]
    with serving(tmp_path, WholeFiles) as base:
        assert with_given_split(there, f"{base}/split.parquet?signature=a.b/c").digest == here.digest


def test_what_is_no_split_is_refused_in_one_line(tmp_path: Path) -> None:
    dataset = read_dataset([str(make_photos(tmp_path / "deck"))])
    (tmp_path / "split.csv").write_text("sha256,split")
    with pytest.raises(SourceError, match=r"--split .*split\.csv is no \.parquet, nor a model"):
        with_given_split(dataset, str(tmp_path / "split.csv"))
    (tmp_path / "model").mkdir()
    write_seen(str(tmp_path / "model"), dataset.table.column("sha256").to_pylist(), ["train"] * len(dataset.table))
    file = tmp_path / "model" / "seen.parquet"
    for damaged in (file.read_bytes()[:-20], bytes(40) + file.read_bytes()[40:], b"", b"PAR1"):
        file.write_bytes(damaged)
        with pytest.raises(BundleError, match=r"model .*: seen\.parquet cannot be read"):
            with_given_split(dataset, str(tmp_path / "model"))


def test_a_split_of_other_images_is_refused(tmp_path: Path) -> None:
    dataset = with_split(read_dataset([str(make_photos(tmp_path / "deck"))]))
    write_split(dataset.table, str(tmp_path / "split.parquet"))
    fewer = read_dataset([str(make_photos(tmp_path / "fewer" / "deck", 6))])
    with pytest.raises(SourceError, match="names 24 images that are not in the data"):
        with_given_split(fewer, str(tmp_path / "split.parquet"))
    more = read_dataset([str(make_photos(tmp_path / "more" / "deck", 13))])
    with pytest.raises(SourceError, match="does not name 4 of the 52 images, such as"):
        with_given_split(more, str(tmp_path / "split.parquet"))
    (tmp_path / "none.parquet").write_bytes(b"PAR1")
    with pytest.raises(SourceError, match="cannot be read as a split"):
        with_given_split(dataset, str(tmp_path / "none.parquet"))
    with pytest.raises(SourceError, match=r"is no \.parquet, nor a model"):
        with_given_split(dataset, str(tmp_path / "nowhere"))
    with pytest.raises(SourceError, match="concrete-resnet18 does not name 48 of the 48 images"):
        with_given_split(dataset, "concrete-resnet18")


def test_a_given_split_that_cuts_photos_or_parts_near_duplicates_is_warned_of_in_one_line(tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "deck")
    twin = folder / "D" / "CD" / "7001-99.jpg"  # of another photo, by its name
    PIL.Image.open(io.BytesIO(draw_tile(0, True))).save(twin, quality=70)
    location = str(tmp_path / "split.parquet")
    drawn = with_split(read_dataset([str(folder)]))
    write_split(drawn.table, location)
    assert with_given_split(read_dataset([str(folder)]), location).report.lines() == drawn.report.lines()
    assert drawn.report.lines() == ["1 sets of near-duplicates (2 images) are kept on one side of the split"]

    table = drawn.table.to_pandas()
    others = {"train": "test", "validation": "train", "test": "train"}
    for moved, group in (("7001-99.jpg", "deck/D/7000"), ("7005-0.jpg", "deck/D/7005")):
        row = table["path"].str.endswith(moved)
        splits = [others[split] if here else split for split, here in zip(table["split"], row, strict=True)]
        write_split(drawn.table.set_column(drawn.table.column_names.index("split"), "split", [splits]), location)
        lines = with_given_split(read_dataset([str(folder)]), location).report.lines()
        assert lines[0] == "1 sets of near-duplicates (2 images) were found"
        assert lines[1].startswith(f"warning: 1 groups (told by photos that paths name), such as {group}, ")
        assert len(lines) == 2


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_is_none_is_refused_before_reading(seed: int, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=f"--seed {seed}: give a number from 0"):
        describe_dataset("nowhere", str(tmp_path / "out"), seed=seed)


def test_an_overview_counts_every_image_and_draws_them(tmp_path: Path) -> None:
    overview = describe_dataset(str(make_photos(tmp_path / "deck")), str(tmp_path / "out"))
    assert sum(images for images, _ in overview.counts.values()) == 48
    sheet = np.asarray(PIL.Image.open(tmp_path / "out" / "dataset.png"))
    assert sheet.std() > 10
    train = [
        groups for (_, label, split), (_, groups) in overview.counts.items() if (label, split) == ("crack", "train")
    ]
    table = pq.read_table(tmp_path / "out" / "split.parquet").to_pandas()
    assert train == [table[(table["split"] == "train") & (table["label"] == 1)]["group"].nunique()]


def test_an_overview_says_what_told_the_groups(tmp_path: Path) -> None:
    make_photos(tmp_path / "site" / "deck")
    assert describe_dataset(str(tmp_path / "site"), str(tmp_path / "known")).notes == [
        "48 images are grouped by photos that paths name"
    ]
    for index in range(4):
        (tmp_path / "site" / "deck" / "D" / "UD" / f"{index}.jpg").write_bytes(draw_tile(500 + index, cracked=False))
    known, guessed = describe_dataset(str(tmp_path / "site"), str(tmp_path / "guessed")).notes
    assert known == "48 images are grouped by photos that paths name"
    assert re.fullmatch(
        r"4 images are grouped by blocks of neighbouring names, .* a guess \(see --group-pattern\)", guessed
    )


def test_a_group_pattern_keeps_what_it_names_together(tmp_path: Path) -> None:
    for index in range(40):
        path = tmp_path / "site" / ("crack" if index % 2 else "sound") / f"flight{index % 8}_{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(draw_tile(index, cracked=bool(index % 2)))
    dataset = with_split(read_dataset([str(tmp_path / "site")], LabelRules(group_pattern=r"flight\d+")))
    assert set(sides(dataset, "group")) == {f"site/flight{flight}" for flight in range(8)}
    assert all(len(splits) == 1 for splits in sides(dataset, "group").values())
