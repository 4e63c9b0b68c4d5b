"""Images are counted at each level of their paths."""

from __future__ import annotations

import pandas as pd

from crackbatch.reports.folders import Folder, count_folders, folder_of


def table(*rows: tuple[str, str | None, float | None]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "image_uri": uri,
                "archive": archive,
                "status": "corrupt" if value is None else "ok",
                "label": None if value is None else "crack" if value >= 0.5 else "no_crack",
                "crack_probability": value,
            }
            for uri, archive, value in rows
        ]
    )


def shown(folder: Folder, depth: int = 0) -> list[tuple[int, str, int, int, int, float | None]]:
    own = (depth, folder.name, folder.images, folder.cracks, folder.failed, folder.highest)
    return [own, *(line for inner in folder.folders for line in shown(inner, depth + 1))]


def test_each_level_counts_all_images_below_it_and_archives_are_folders() -> None:
    found = count_folders(
        table(
            ("s3://b/2026/bridge-1/pier-1/a.jpg", None, 0.2),
            ("s3://b/2026/bridge-1/pier-2/b.jpg", None, 0.9),
            ("s3://b/2026/bridge-1/pier-2/c.jpg", None, None),
            ("zip://girder/d.jpg::s3://b/2026/bridge-2/lot.zip", "s3://b/2026/bridge-2/lot.zip", 0.75),
            ("zip://girder/e.jpg::s3://b/2026/bridge-2/lot.zip", "s3://b/2026/bridge-2/lot.zip", 0.5),
        )
    )
    assert shown(found) == [
        (0, "s3://b/2026", 5, 3, 1, 0.9),
        (1, "bridge-2/lot.zip/girder", 2, 2, 0, 0.75),
        (1, "bridge-1", 3, 1, 1, 0.9),
        (2, "pier-2", 2, 1, 1, 0.9),
        (2, "pier-1", 1, 0, 0, 0.2),
    ]


def test_a_folder_with_images_of_its_own_is_not_joined_with_the_one_in_it() -> None:
    found = count_folders(table(("/a/b/x.jpg", None, None), ("/a/b/c/y.jpg", None, None)))
    assert shown(found) == [(0, "/a/b", 2, 0, 2, None), (1, "c", 1, 0, 1, None)]


def test_a_million_folders_are_not_listed_but_counted() -> None:
    found = count_folders(table(*((f"/nights/{number:05d}/x.jpg", None, number / 5000) for number in range(5000))))
    lines = shown(found)
    assert len(lines) <= 1000
    assert found.folders[0].name == "02500"  # the first by name of those with a crack
    assert len(found.folders) + found.num_left_out == 5000
    assert found.images == 5000


def test_places_of_all_kinds_have_a_folder() -> None:
    assert folder_of("/x.jpg", None) == "/"
    assert folder_of("/a b/x.jpg", None) == "/a b"
    assert folder_of("https://h/x.jpg", None) == "https://h"
    assert folder_of("tar://m.jpg::/a/b.tar", "/a/b.tar") == "/a/b.tar"
