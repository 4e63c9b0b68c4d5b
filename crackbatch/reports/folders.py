"""Counts images by folder: a tree of the path's own levels, such as bridge, pier and component."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crackbatch.reports.exports import place

if TYPE_CHECKING:
    import pandas as pd

_MOST_FOLDERS = 1_000


@dataclass
class Folder:
    """A folder or archive with the images in it and below it.

    `folders` are the folders directly in it, those with most cracks first; `num_left_out` counts those not listed.
    """

    name: str
    images: int = 0
    cracks: int = 0
    failed: int = 0
    highest: float | None = None
    folders: list[Folder] = field(default_factory=list)
    num_left_out: int = 0

    def add(self, images: int, cracks: int, failed: int, highest: float | None) -> None:
        """Count images that lie in it or below it."""
        self.images += images
        self.cracks += cracks
        self.failed += failed
        if highest is not None:
            self.highest = max(highest, self.highest or 0.0)


def folder_of(image_uri: str, archive: str | None) -> str:
    """Return the folder of an image; an archive is the folder of its members."""
    found = place(image_uri, archive)
    above = str(found["file"]).rpartition("/")[0]
    if found["archive"] is None:
        return above or ("/" if image_uri.startswith("/") else ".")
    return f"{found['archive']}/{above}".rstrip("/")


def count_folders(rows: pd.DataFrame) -> Folder:
    """Return the tree of folders of the rows of a table, down to at most 1,000 folders.

    The rows need `image_uri`, `archive`, `status`, `label` and `crack_probability`. A folder with nothing but one
    folder in it is written together with it, such as `bridge-7/pier-2`.
    """
    root = Folder("all")
    below: dict[int, dict[str, Folder]] = {}
    for path, *counts, highest in _counts(rows).itertuples():
        known = (*counts, None if highest != highest else highest)
        folder = root
        folder.add(*known)
        for level in _levels(path):
            inside = below.setdefault(id(folder), {})
            folder = inside.setdefault(level, Folder(level))
            folder.add(*known)
    _hang(root, below)
    return root.folders[0] if len(root.folders) == 1 else root


def _counts(rows: pd.DataFrame) -> pd.DataFrame:
    paths = [folder_of(uri, archive) for uri, archive in zip(rows["image_uri"], rows["archive"], strict=True)]
    counted = rows[["crack_probability"]].assign(
        path=paths, images=1, cracks=rows["label"] == "crack", failed=rows["status"] != "ok"
    )
    return counted.groupby("path").agg({"images": "sum", "cracks": "sum", "failed": "sum", "crack_probability": "max"})


def _levels(path: str) -> list[str]:
    """Return the parts of a path; a URL's first part is its scheme and host or bucket."""
    scheme, separator, rest = path.partition("://")
    first, *others = (rest if separator else path).split("/")
    return [f"{scheme}://{first}" if separator else first or "/", *(part for part in others if part)]


def _hang(root: Folder, below: dict[int, dict[str, Folder]]) -> None:
    """Give each folder the folders in it, level by level, until there are enough."""
    waiting, num = deque([root]), 1
    while waiting:
        folder = waiting.popleft()
        inside = sorted(
            below.get(id(folder), {}).values(), key=lambda inner: (-inner.cracks, -inner.images, inner.name)
        )
        folder.folders = [_alone(inner, below) for inner in inside[: max(0, _MOST_FOLDERS - num)]]
        folder.num_left_out = len(inside) - len(folder.folders)
        num += len(folder.folders)
        waiting.extend(folder.folders)


def _alone(folder: Folder, below: dict[int, dict[str, Folder]]) -> Folder:
    """Return the folder, or the only folder in it that holds all its images, with both names."""
    name = folder.name
    while len(inside := below.get(id(folder), {})) == 1:
        (inner,) = inside.values()
        if inner.images != folder.images:
            break
        name, folder = f"{name.rstrip('/')}/{inner.name}", inner
    folder.name = name
    return folder
