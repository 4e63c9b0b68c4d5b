"""Archives are opened by what they are; what is not opened though it may hold images is named, with the mend."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path

import pytest

from builders.archives import archive_of, write_files
from builders.plans import contents, plan_of
from crackbatch.archives.kinds import kind_inside, kind_of, why_unopened
from crackbatch.errors import SourceError

OTHERS = {
    b"Rar!\x1a\x07\x01\0": "a RAR archive",
    b"7z\xbc\xaf\x27\x1c\0\4": "a 7-Zip archive",
    b"MSCF\0\0\0\0": "a cabinet archive",
    b"<!DOCTYPE html><html><title>Virus scan warning</title>": "a web page",
    b"\xef\xbb\xbf\r\n<HTML>": "a web page",
    b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>': "an XML text",
    b'{"error": "login"}': "a JSON text",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n": "a pointer of Git LFS",
    b"%PDF-1.7\n": "a PDF",
}


@pytest.mark.parametrize("named", ["zip", "tar", "tar.gz", "tgz", "tar.bz2", "tar.zst", "parquet"])
def test_an_archive_is_opened_by_what_it_is_and_not_by_its_name(
    named: str, tmp_path: Path, tiles: dict[str, bytes]
) -> None:
    plain = archive_of("tar", tiles, tmp_path)
    kinds = {"tar": plain, "tar.gz": gzip.compress(plain), "tar.bz2": bz2.compress(plain)}
    kinds |= {"tar.xz": lzma.compress(plain), "zip": archive_of("zip", tiles, tmp_path)}
    for number, (kind, data) in enumerate(kinds.items()):
        folder = write_files(tmp_path / f"{number}", {f"a.{named}": data})
        plan = plan_of(folder, scratch=str(tmp_path / "scratch" / f"{number}"))
        assert (contents(plan), plan.listing.problems) == (tiles, []), kind
        assert plan.table["image_uri"][0].as_py().startswith(f"{kind.partition('.')[0]}://")


@pytest.mark.parametrize("named", ["a.zip", "a.tar.gz"])
def test_what_is_no_archive_says_what_it_is(named: str, tmp_path: Path, tiles: dict[str, bytes]) -> None:
    for start, what in OTHERS.items():
        folder = write_files(tmp_path / "in", {named: start + b" " * 3000, "b.jpg": tiles["tile-00.jpg"]})
        plan = plan_of(folder)
        (problem,) = plan.listing.problems
        assert problem.startswith(f"{folder}/{named}: it is {what}")
        assert plan.table.num_rows == 1


def test_archives_that_are_not_opened_are_named_once_each(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    whole = archive_of("zip", tiles, tmp_path)
    names = ["a/b.7z", "a/c.RAR", "d.zip.001", "d.zip.002", "d.zip.003", "e.z01", "e.z02", "f.part1.rar", "f.part2.rar"]
    names += ["g.tar.gz.aa", "g.tar.gz.ab", "h.tar.lz4", "i.jpg.gz", "j.zip.crdownload"]
    files = {**dict.fromkeys(names, b"x" * 3000), "good.jpg": tiles["tile-00.jpg"]}
    files["e.zip"] = whole.replace(b"PK\5\6\0\0\0\0", b"PK\5\6\2\0\2\0")
    folder = write_files(tmp_path / "in", files)
    plan = plan_of(folder)
    found = {problem.removeprefix(f"{folder}/").partition(":")[0]: problem for problem in plan.listing.problems}
    assert len(found) == len(plan.listing.problems)
    assert set(found) == {"a/b.7z", "a/c.RAR", "d.zip", "e.zip", "f", "g.tar.gz", "h.tar.lz4", "i.jpg.gz", "j.zip"}
    assert found["d.zip"].endswith("join them first (cat NAME.* > whole) (3 volumes)")
    assert "(zip -s 0 NAME.zip --out whole.zip)" in found["e.zip"]
    assert plan.table.num_rows == 1


@pytest.mark.parametrize("name", ["a.7z", "a.zip.001", "a.rar"])
def test_a_source_that_is_not_opened_says_what_to_do(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x" * 100)
    with pytest.raises(SourceError, match=r"unpack it|join them first"):
        plan_of(tmp_path / name)


def test_archives_in_an_archive_are_named(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    inner = archive_of("zip", tiles, tmp_path)
    outer = {"Bridge A.zip": inner, "Bridge B.7z": b"7z", "overview.jpg": tiles["tile-00.jpg"]}
    for kind in ("zip", "tar", "tar.gz"):
        (tmp_path / f"outer.{kind}").write_bytes(archive_of(kind, outer, tmp_path))
        plan = plan_of(tmp_path / f"outer.{kind}", scratch=str(tmp_path / kind))
        (problem,) = plan.listing.problems
        assert "2 archives inside it are not opened (Bridge A.zip, Bridge B.7z): unpack it" in problem
        assert contents(plan) == {"overview.jpg": tiles["tile-00.jpg"]}


@pytest.mark.parametrize("name", ["a.tar.xz", "a.zip", "photo.jpg", "notes.txt", "a.zip.md5", "points.gz", "a.tar.gz"])
def test_names_that_are_opened_or_hold_no_images_are_not_named(name: str) -> None:
    assert why_unopened(name) is None


def test_no_photo_is_taken_for_an_archive(tiles: dict[str, bytes]) -> None:
    assert [kind_inside(data[:512]) for data in tiles.values()] == [None] * len(tiles)
    assert kind_of("a.tar.gz.jpg") is None
