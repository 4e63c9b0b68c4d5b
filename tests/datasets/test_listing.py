"""Labels, groups and sources are told by paths and manifests, wherever the images come from."""

from __future__ import annotations

import csv
import zipfile
from pathlib import Path, PurePosixPath

import fsspec
import pandas as pd
import pytest

from builders.labelled import sides
from builders.pictures import make_photos
from builders.servers import Ranges, serving
from crackbatch.cli.demo import draw_tile
from crackbatch.datasets.dataset import read_dataset, with_split
from crackbatch.datasets.labels import LabelRules
from crackbatch.errors import SourceError


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
        assert report.lines() == ["2 images without a label were skipped"]
    table["label"] = ["crack", "no_crack"] * 4 + ["Craak", "Craak", "?", ""]
    table.to_csv(tmp_path / "typos.csv", index=False)
    assert read_dataset([str(tmp_path / "typos.csv")]).report.lines() == [
        "4 images without a label were skipped (3 of a manifest's labels are not understood, such as 'Craak')"
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


def test_a_group_pattern_keeps_what_it_names_together(tmp_path: Path) -> None:
    for index in range(40):
        path = tmp_path / "site" / ("crack" if index % 2 else "sound") / f"flight{index % 8}_{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(draw_tile(index, cracked=bool(index % 2)))
    dataset = with_split(read_dataset([str(tmp_path / "site")], LabelRules(group_pattern=r"flight\d+")))
    assert set(sides(dataset, "group")) == {f"site/flight{flight}" for flight in range(8)}
    assert all(len(splits) == 1 for splits in sides(dataset, "group").values())


def test_folders_in_a_zip_of_windows_are_labels(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "tiles.zip", "w") as archive:
        for index in range(20):
            name = f"tiles\\{'crack' if index % 2 else 'no_crack'}\\{index:03d}.jpg"
            archive.writestr(name, draw_tile(index, cracked=index % 2 == 1))
        archive.writestr("__MACOSX\\tiles\\._0.jpg", b"x")
    table = read_dataset([str(tmp_path / "tiles.zip")]).table
    assert sorted(table["label"].to_pylist()) == [0] * 10 + [1] * 10
    for uri in table["image_uri"].to_pylist():
        with fsspec.open(uri) as file:
            assert file.read(2) == b"\xff\xd8"
