"""A model says on which images it was trained and tuned, and on which the one before it was."""

from __future__ import annotations

import hashlib
from pathlib import Path

from crackbatch.models.seen import read_learnt, read_seen, splits_of, write_seen

DIGESTS = [hashlib.sha256(name).hexdigest() for name in (b"a", b"b", b"c", b"d")]
SPLITS = ["train", "validation", "test"]


def test_images_are_known_again_by_their_splits(tmp_path: Path) -> None:
    write_seen(str(tmp_path), DIGESTS[:3], SPLITS)
    assert splits_of(DIGESTS, read_seen(str(tmp_path))) == [*SPLITS, None]
    assert splits_of(DIGESTS, read_learnt(str(tmp_path))) == ["train", "validation", None, None]


def test_what_the_model_before_has_learnt_from_stays_learnt_and_is_no_split(tmp_path: Path) -> None:
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    write_seen(first, DIGESTS[:3], SPLITS)
    write_seen(second, DIGESTS[1:], ["test", "train", "test"], read_learnt(first))
    assert splits_of(DIGESTS, read_seen(second)) == [None, "test", "train", "test"]
    assert splits_of(DIGESTS, read_learnt(second)) == ["train", "validation", "train", None]


def test_a_model_that_does_not_say_has_seen_nothing(tmp_path: Path) -> None:
    assert read_seen(str(tmp_path)) == read_learnt(str(tmp_path)) == {}
