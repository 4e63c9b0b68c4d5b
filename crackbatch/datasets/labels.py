"""Reads an image's label and group from its path. The group, the photo that it was cut from, must stay together.

sdnet.tar, D/CD/7001-115.jpg   →  source sdnet.tar/D, label crack, group D/7001
metu.zip, Positive/00042.jpg   →  source metu.zip, label crack, group: a block of neighbouring names
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import PurePosixPath

from crackbatch.archives.kinds import kind_of
from crackbatch.errors import OptionError

# Folder names in published crack datasets, and names that people choose themselves. SDNET2018 uses (C)racked and
# (U)ncracked (D)ecks, (P)avements and (W)alls, or these words in full.
_CRACKS = ("crack", "cracks", "cracked")
_GAPS = ("", "_", "-", " ")
POSITIVE = (
    "positive", *_CRACKS, *(f"with{gap}{crack}" for gap in _GAPS for crack in _CRACKS), "cd", "cp", "cw",
)  # fmt: skip
NEGATIVE = (
    "negative", *(f"{no}{gap}{crack}" for no in ("no", "non", "without") for gap in _GAPS for crack in _CRACKS),
    "uncracked", "sound", "intact", "ud", "up", "uw",
)  # fmt: skip
# pandas writes 1 as 1.0 if its column has an empty cell.
_WORDS = {
    **dict.fromkeys(["1", "1.0", "true", "yes", *POSITIVE], 1),
    **dict.fromkeys(["0", "0.0", "false", "no", *NEGATIVE], 0),  # not "none": pandas writes None for no label
}

# SDNET2018: the surface, a folder of cracked or uncracked tiles (perhaps in an archive of the same name), then
# photo-tile. The names of some tiles of two walls end in _2.
_SDNET = re.compile(
    r"(?:^|/)([DPW])(?:(?:/[CU][DPW])+|(?:ecks|avements|alls)(?:/(?:(?:non|un)[-_ ]?)?cracked)+)"
    r"/(\d+)-\d+(?:_\d+)?\.[^/]*$",
    re.IGNORECASE,
)
# Each of METU's photos gave about 44 of 20,000 tiles; longer blocks keep most photos in one piece.
_MAX_BLOCK = 100
_MIN_BLOCKS = 50
_SMALL_BLOCK, _FEW_BLOCKS = 10, 5  # in small folders: so many images, or so many blocks
# Roboflow's exports hold several augmented copies of each image: NAME.rf.HASH.jpg.
_ROBOFLOW = re.compile(r"([^/]+)\.rf\.[0-9A-Za-z]{8,}\.\w+$")


@dataclass(frozen=True)
class LabelRules:
    """How to read paths: patterns for the folder names of each class, and a pattern for the group.

    `positive` and `negative` are globs that ignore case and how accents are encoded. A glob is matched against each
    folder's name, or against the whole path if it contains a `/`. `group_pattern` is a regular expression that is
    searched for in the path; its parenthesised parts are the group. If a manifest has a column `group_column`, the
    group comes from there instead. Raises OptionError if `group_pattern` is not a valid regular expression.
    """

    positive: Sequence[str] = ()
    negative: Sequence[str] = ()
    group_pattern: str | None = None
    group_column: str = "group"

    def __post_init__(self) -> None:
        try:
            re.compile(self.group_pattern or "")
        except re.error as error:
            raise OptionError(
                f"--group-pattern {self.group_pattern!r} is not a valid regular expression ({error})"
            ) from None

    def label(self, path: str) -> tuple[int, str] | None:
        """Return the label, 1 for a crack or 0, and the path above the folder that gives it; None if no folder does.

        The innermost folder with a label decides.
        """
        folders = PurePosixPath(path).parts[:-1]
        rules = ((1, self.positive or POSITIVE), (0, self.negative or NEGATIVE))
        for depth in range(len(folders), 0, -1):
            for label, patterns in rules:
                folder = _without_archive_suffix(folders[depth - 1])
                if any(_matches(pattern, folder, path) for pattern in patterns):
                    return label, "/".join(folders[: depth - 1])
        return None

    def group(self, path: str, above: str = "") -> str | None:
        """Return the photo that an image was cut from, None if the path does not name it.

        `above` is the name of the folder in which the path begins; it may be the first folder of an SDNET2018 path.
        """
        if self.group_pattern:
            found = re.search(self.group_pattern, path)
        else:
            *folders, name = (above, *path.split("/"))
            found = _SDNET.search("/".join([*map(_without_archive_suffix, folders), name])) or _ROBOFLOW.search(path)
        if found is None:
            return None
        return "/".join(part or "" for part in found.groups()) if found.groups() else found[0]


def _without_archive_suffix(folder: str) -> str:
    """Return `Positive` for `Positive.zip`: an archive's name gives a label just as a folder's name does."""
    return re.sub(r"(\.tar)?\.\w+$", "", folder) if kind_of(folder) else folder


def _matches(pattern: str, folder: str, path: str) -> bool:
    return fnmatchcase(_plain(path if "/" in pattern else folder), _plain(pattern))


@lru_cache
def _plain(name: str) -> str:
    """Return one form for all spellings of a name: an archive from a Mac stores ä as a and dots, a shell gives ä."""
    return unicodedata.normalize("NFC", name).lower()


def parse_label(value: object) -> int | None:
    """Return 1 for a crack, 0 for none, from a manifest's cell (`crack`, `no_crack`, 1, 0, true, …), or None."""
    if value is None:
        return None
    return _WORDS.get(str(value).strip().lower())


def name_blocks(paths: Iterable[str]) -> list[str]:
    """Return a group for each path, for images without a known photo: blocks of neighbouring names in a folder.

    Tiles are numbered in the order they were cut, so tiles with neighbouring names are neighbours in the photo.
    """
    folders: dict[str, list[tuple[list[tuple[int, int | str]], int]]] = defaultdict(list)
    groups = []
    for index, path in enumerate(paths):
        folder, _, name = path.rpartition("/")
        folders[folder].append((_natural(name), index))
        groups.append(folder)
    for members in folders.values():
        size = max(1, min(_SMALL_BLOCK, len(members) // _FEW_BLOCKS), min(_MAX_BLOCK, len(members) // _MIN_BLOCKS))
        for place, (_, index) in enumerate(sorted(members)):
            groups[index] += f"/block-{place // size:05d}"
    return groups


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Return a sort key that puts `2.jpg` before `10.jpg` and never compares digits with text."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name) if part]
