"""Every image_uri of the table opens with fsspec or with open_image, and gives the bytes of its row."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import tarfile
import zipfile
from pathlib import Path

import fsspec
import pytest
import zstandard

import crackbatch
from builders.archives import archive_of, write_files
from builders.plans import fetch_all, plan_of

NAMES = [
    "a.jpg", "d/b.jpg", "./dot/c.jpg", "a b#c%20?.jpg", "[1]*.jpg", "Brücke.jpg", "win\\dir\\e.jpg", "semi;colon&+.jpg",
    "{c}.jpg", "space .jpg", "../up.jpg", "http://x/y.jpg", "/abs/z.jpg", "x::y.jpg", "x::/y.jpg",
]  # fmt: skip
ONLY_HERE = ("/abs/z.jpg", "x::y.jpg", "x::/y.jpg")  # names that fsspec cannot open
PACKED = {
    ".tar.gz": gzip.compress, ".tar.bz2": bz2.compress, ".tar.xz": lzma.compress, ".tgz": gzip.compress,
    ".tbz2": bz2.compress, ".txz": lzma.compress, ".tar.zst": zstandard.ZstdCompressor().compress,
}  # fmt: skip
NOT_BY_FSSPEC = (".tgz", ".tbz2", ".txz", ".tar.zst", "wrong.zip", "wrong.tar", "odd::name.zip")


@pytest.mark.parametrize(
    "name",
    ["a.zip", "a.tar", *(f"a{suffix}" for suffix in PACKED), "a.parquet", "wrong.zip", "wrong.tar", "odd::name.zip",
     "a b#c?.zip", "[x].tar"],
)  # fmt: skip
def test_every_image_of_an_archive_opens_by_its_uri(name: str, tmp_path: Path, tiles: dict[str, bytes]) -> None:
    images = {member: data + member.encode() for member, data in zip(NAMES, [*tiles.values()] * 2, strict=False)}
    tar = archive_of("tar", images, tmp_path)
    suffix = next((suffix for suffix in PACKED if name.endswith(suffix)), None)
    data = PACKED[suffix](tar) if suffix else tar
    if name.endswith((".zip", ".parquet")) and name != "wrong.zip":
        data = archive_of(name.rpartition(".")[2], images, tmp_path)
    elif name == "wrong.tar":
        data = gzip.compress(tar)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(data)
    plan = plan_of(tmp_path / "in" / name, scratch=str(tmp_path / "scratch"))
    rows = fetch_all(plan)
    assert sorted(row["bytes"] for row in rows) == sorted(images.values())  # type: ignore[type-var]
    for row in rows:
        uri, digest = str(row["image_uri"]), hashlib.sha256(row["bytes"]).hexdigest()  # type: ignore[arg-type]
        opened = crackbatch.open_image(uri, str(row["version"])).read()
        assert hashlib.sha256(opened).hexdigest() == digest
        member = uri.partition("://")[2].removesuffix(f"::{tmp_path}/in/{name}")
        if not name.endswith(NOT_BY_FSSPEC) and member not in ONLY_HERE:
            with fsspec.open(uri) as file:
                assert hashlib.sha256(file.read()).hexdigest() == digest, uri


def test_every_loose_image_opens_by_its_uri(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    names = [name for name in NAMES if not name.startswith(("/", "..", ".")) and "//" not in name]
    folder = write_files(tmp_path, dict(zip(names, [*tiles.values()] * 2, strict=False)))
    rows = fetch_all(plan_of(folder))
    assert len(rows) == len(names)
    for row in rows:
        assert crackbatch.open_image(str(row["image_uri"])).read() == row["bytes"]
        if "::" not in str(row["image_uri"]):
            with fsspec.open(row["image_uri"]) as file:
                assert file.read() == row["bytes"]


def test_the_second_of_two_members_with_one_name_opens_by_its_version(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    first, second = tiles["tile-00.jpg"], tiles["tile-01.jpg"]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.jpg", first)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.jpg", second)
    for row, data in zip(fetch_all(plan_of(tmp_path / "a.zip")), (first, second), strict=True):
        assert crackbatch.open_image(str(row["image_uri"]), str(row["version"])).read() == data
    with pytest.raises(FileNotFoundError, match="has no version other"):
        crackbatch.open_image(f"zip://a.jpg::{tmp_path}/a.zip", "other")


def test_an_image_that_is_gone_or_cannot_be_read_says_so(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("empty.jpg"))
    for uri in (f"{tmp_path}/gone.jpg", f"tar://gone.jpg::{tmp_path}/a.tar", f"zip://a.jpg::{tmp_path}/gone.zip"):
        with pytest.raises(FileNotFoundError, match="cannot be opened"):
            crackbatch.open_image(uri)
    assert crackbatch.open_image(f"tar://empty.jpg::{tmp_path}/a.tar").read() == b""
    (tmp_path / "b.zip").write_bytes(archive_of("zip", tiles, tmp_path)[:-200].replace(tiles["tile-00.jpg"][:9], b"x"))
    with pytest.raises(OSError, match="cannot be opened"):
        crackbatch.open_image(f"zip://tile-00.jpg::{tmp_path}/b.zip")


def test_a_name_that_is_no_utf8_opens_by_its_uri(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    data = tiles["tile-00.jpg"]
    with open(os.fsencode(tmp_path) + b"/br\xfccke.jpg", "wb") as file:
        file.write(data)
    archive = archive_of("tar", {"br_cke.jpg": data}, tmp_path).replace(b"br_cke.jpg", b"br\xfccke.jpg")
    checksum = 8 * 32 + sum(archive[:148]) + sum(archive[156:512])
    (tmp_path / "a.tar").write_bytes(archive[:148] + b"%06o\0 " % checksum + archive[156:])
    rows = fetch_all(plan_of(tmp_path))
    assert len(rows) == 2
    for row in rows:
        assert "\\xfc" in str(row["image_uri"])
        assert crackbatch.open_image(str(row["image_uri"])).read() == data
