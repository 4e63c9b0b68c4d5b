"""Answers become a manifest: each image once, those that nobody can tell left out and named."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from crackbatch.datasets.answers import import_answers
from crackbatch.errors import OptionError, SourceError

URIS = [
    "/site/pier 1/a.jpg", "/site/pier 2/a.jpg", "s3://b/lot/b.jpg", "zip://day/c.jpg::/site/lot.zip", "/site/d.jpg",
]  # fmt: skip


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["image,label", *lines]) + "\n")
    return path


def labels(path: Path) -> dict[str, str]:
    with open(path, newline="") as file:
        return {line["image_uri"]: line["label"] for line in csv.DictReader(file)}


def test_names_of_tools_are_found_among_the_images_of_the_results(tmp_path: Path) -> None:
    file = write(
        tmp_path / "answers.csv",
        "pier 1/a.jpg,crack", "b.jpg,no_crack", "day\\c.jpg,1", "/site/d.jpg,crack", "a.jpg,crack", "gone.jpg,crack",
    )  # fmt: skip
    found = import_answers(file, tmp_path / "labels.csv", URIS)
    assert labels(tmp_path / "labels.csv") == {
        "/site/pier 1/a.jpg": "crack", "s3://b/lot/b.jpg": "no_crack", "zip://day/c.jpg::/site/lot.zip": "crack",
        "/site/d.jpg": "crack",
    }  # fmt: skip
    assert found.labels == {"crack": 3, "no_crack": 1}
    assert found.unknown == ["a.jpg", "gone.jpg"], "two images end in a.jpg"


def test_without_results_names_are_paths_beside_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "answers.csv", "pier/a.jpg,crack", "/b.jpg,crack", "s3://b/c.jpg,no_crack")
    import_answers(file, tmp_path / "labels.csv")
    assert list(labels(tmp_path / "labels.csv")) == [f"{tmp_path}/pier/a.jpg", "/b.jpg", "s3://b/c.jpg"]


def test_two_answers_to_one_image_agree_or_are_left_out(tmp_path: Path) -> None:
    lines = ["/a.jpg,crack", "/a.jpg,1", "/b.jpg,crack", "/b.jpg,no_crack", "/c.jpg,", "/d.jpg,perhaps", "/e.jpg,0"]
    found = import_answers(write(tmp_path / "answers.csv", *lines), tmp_path / "labels.csv")
    assert labels(tmp_path / "labels.csv") == {"/a.jpg": "crack", "/e.jpg": "no_crack"}
    assert (found.contradictory, found.unanswered, found.not_understood) == (["/b.jpg"], 2, {"perhaps": 1})


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "has no images"),
        (["/a.jpg,"], "none of its 1 images has an answer; write crack or no_crack beside each"),
        (["/a.jpg,perhaps"], "no label is understood, such as 'perhaps'"),
    ],
)
def test_no_answers_are_no_manifest(lines: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=message):
        import_answers(write(tmp_path / "answers.csv", *lines), tmp_path / "labels.csv")
    assert not (tmp_path / "labels.csv").exists()


def test_a_file_of_other_images_says_so(tmp_path: Path) -> None:
    file = write(tmp_path / "answers.csv", "x.jpg,crack")
    with pytest.raises(SourceError, match=r"none of its images is in the results, such as x\.jpg"):
        import_answers(file, tmp_path / "labels.csv", URIS)
    with pytest.raises(OptionError, match=r"the name of the manifest must end in \.csv, got 'labels\.json'"):
        import_answers(file, "labels.json")
