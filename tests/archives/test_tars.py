"""Tars of all kinds give their images, whole, cut, damaged, joined, compressed or linked."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import struct
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest
import zstandard

from builders.archives import tar_of, write_files
from builders.plans import contents, fetch_all, plan_of_archive
from crackbatch.archives.members import Listing, limited
from crackbatch.archives.tars import list_tar
from crackbatch.errors import RunError, SourceError


@pytest.mark.parametrize("form", ["ustar", "gnu", "pax", "v7"])
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst"])
def test_tars_of_all_kinds(tmp_path: Path, tiles: dict[str, bytes], form: str, suffix: str) -> None:
    given = {f"spän/deep{'/x' * (60 if form in ('gnu', 'pax') else 5)}/{name}": data for name, data in tiles.items()}
    write_files(tmp_path / "in", given)
    archive = tmp_path / f"a{suffix}"
    if suffix == ".tar.zst":  # not every tar can write it
        subprocess.run(["tar", f"--format={form}", "-cf", tmp_path / "a", "spän"], cwd=tmp_path / "in", check=True)
        packed = zstandard.ZstdCompressor().compress((tmp_path / "a").read_bytes())
        archive.write_bytes(zstandard.ZstdCompressor().compress(b"") + packed)  # two frames
    else:
        subprocess.run(["tar", f"--format={form}", "-caf", archive, "spän"], cwd=tmp_path / "in", check=True)
    assert contents(plan_of_archive(archive)) == given


def test_hard_links_in_a_tar_are_images_too(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    folder = write_files(tmp_path / "in", {"a.jpg": tiles["tile-00.jpg"]})
    (folder / "b.jpg").hardlink_to(folder / "a.jpg")
    for suffix in (".tar", ".tar.gz"):
        subprocess.run(["tar", "-caf", tmp_path / f"a{suffix}", "a.jpg", "b.jpg"], cwd=folder, check=True)
        assert contents(plan_of_archive(tmp_path / f"a{suffix}")) == dict.fromkeys(
            ("a.jpg", "b.jpg"), tiles["tile-00.jpg"]
        )


@pytest.mark.parametrize("first", [".dvc/cache/3", "cache/3.bin", "__MACOSX/3.jpg", b"cache/3\xff"])
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_a_hard_link_to_what_is_no_image_by_its_name_is_one(
    tmp_path: Path, tiles: dict[str, bytes], first: str | bytes, suffix: str
) -> None:
    folder = write_files(tmp_path / "in", {"photos/2.jpg": tiles["tile-02.jpg"], "photos/3.jpg": tiles["tile-03.jpg"]})
    target = os.path.join(os.fsencode(folder), os.fsencode(first))
    os.makedirs(os.path.dirname(target))
    os.link(folder / "photos/3.jpg", target)
    subprocess.run(["tar", "-caf", f"../a{suffix}", first, "photos"], cwd=folder, check=True)
    plan = plan_of_archive(tmp_path / f"a{suffix}")
    # A compressed tar is read once: at the link, the bytes are gone by.
    expected = tiles["tile-03.jpg"] if suffix == ".tar" else "unsupported"
    assert contents(plan) == {"photos/2.jpg": tiles["tile-02.jpg"], "photos/3.jpg": expected}
    (error,) = {*plan.table["error"].to_pylist()} - {None} or {None}
    assert (error is None) == (suffix == ".tar")
    assert error is None or "a hard link to " in error


@pytest.mark.parametrize(("suffix", "status"), [(".tar", "missing"), (".tar.gz", "unsupported")])
def test_a_hard_link_to_nothing_is_a_row_that_says_so(
    tmp_path: Path, tiles: dict[str, bytes], suffix: str, status: str
) -> None:
    link = tarfile.TarInfo("b.jpg")
    link.type, link.linkname = tarfile.LNKTYPE, "gone.jpg"
    with tarfile.open(tmp_path / f"a{suffix}", f"w:{suffix[5:]}") as tar:
        tar.addfile(link)
    plan = plan_of_archive(tmp_path / f"a{suffix}")
    assert contents(plan) == {"b.jpg": status}
    assert "a hard link to gone.jpg" in plan.table["error"][0].as_py()


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.bz2", ".tar.xz"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_tar_cut_in_the_middle_gives_what_is_there(
    tmp_path: Path, tiles: dict[str, bytes], suffix: str, share: float
) -> None:
    many = {f"{number}-{name}": data for number in range(8) for name, data in tiles.items()}
    write_files(tmp_path / "in", many)
    archive = tmp_path / f"a{suffix}"
    subprocess.run(["tar", "-caf", archive, "."], cwd=tmp_path / "in", check=True)
    archive.write_bytes(archive.read_bytes()[: int(archive.stat().st_size * share)])
    if suffix == ".tar.bz2":  # one block of bzip2 holds 900 kB, more than this whole archive: nothing is left of it
        with pytest.raises(SourceError, match="is damaged or cut off"):
            plan_of_archive(archive)
        return
    plan = plan_of_archive(archive)
    found = contents(plan)
    whole = {name.removeprefix("./"): data for name, data in found.items() if isinstance(data, bytes)}
    assert whole.items() <= many.items()
    # xz decodes in long strides, and what it had not yet given when the bytes ended is lost.
    assert len(whole) >= (1 if suffix == ".tar.xz" else int(len(many) * share) - 6)
    assert set(found.values()) - set(whole.values()) <= {"truncated"}
    assert len(plan.listing.problems) == 1


def test_a_tar_cut_between_members_is_noticed(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in tiles.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        end = tar.offset
    whole = (tmp_path / "a.tar").read_bytes()
    assert plan_of_archive(tmp_path / "a.tar").listing.problems == []
    (tmp_path / "a.tar").write_bytes(whole[:end])
    plan = plan_of_archive(tmp_path / "a.tar")
    assert plan.table.num_rows == len(tiles)
    assert "no end marker" in plan.listing.problems[0]


@pytest.mark.parametrize("kind", ["tar.gz", "tar.bz2", "tar.xz"])
def test_a_disk_that_is_full_is_no_damage_of_the_archive_that_is_unpacked(
    tmp_path: Path, tiles: dict[str, bytes], kind: str
) -> None:
    archive = tar_of(tmp_path / f"a.{kind}", tiles)
    listing = Listing()
    with (
        archive.open("rb") as file,
        open("/dev/full", "wb", buffering=0) as full,
        pytest.raises(RunError, match=r"No space left on device.*run again"),
    ):
        list(list_tar(file, kind, listing, lambda _: True, full))
    assert listing.problems == []


def test_a_damaged_gzip_stream_is_noticed(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    write_files(tmp_path / "in", {f"{number}-{name}": data for number in range(8) for name, data in tiles.items()})
    archive = tmp_path / "a.tar.gz"
    subprocess.run(["tar", "-caf", archive, "."], cwd=tmp_path / "in", check=True)
    data = bytearray(archive.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = b"\xff" * 64
    archive.write_bytes(data)
    plan = plan_of_archive(archive)
    assert 0 < plan.table.num_rows < 96
    assert str(archive) in plan.listing.problems[0]


def test_an_extended_tar_header_of_great_size_is_not_read(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        entry = tarfile.TarInfo("a.jpg")
        entry.size = len(tiles["tile-00.jpg"])
        tar.addfile(entry, io.BytesIO(tiles["tile-00.jpg"]))
        bomb = tarfile.TarInfo("pax")
        bomb.type, bomb.size = tarfile.XHDTYPE, 1 << 30
        tar.fileobj.write(bomb.tobuf())
    plan = plan_of_archive(tmp_path / "a.tar")
    assert contents(plan) == {"a.jpg": tiles["tile-00.jpg"]}
    assert "extended header" in plan.listing.problems[0]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_tars_joined_by_cat_are_read_to_the_last(tmp_path: Path, tiles: dict[str, bytes], suffix: str) -> None:
    names = list(tiles)
    halves = [{name: tiles[name] for name in some} for some in (names[::2], names[1::2])]
    joined = b"".join(tar_of(tmp_path / f"part.{suffix}", half).read_bytes() for half in halves)
    (tmp_path / f"all.{suffix}").write_bytes(joined)
    plan = plan_of_archive(tmp_path / f"all.{suffix}")
    assert plan.listing.problems == []
    assert contents(plan) == tiles


def end_of(tar: bytes) -> int:
    """Where the two blocks of a tar's end marker end."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        opened.getmembers()
        return opened.offset + 512


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.bz2", ".tar.xz"])
@pytest.mark.parametrize("behind", [b"\n", b"\7" * 512, b"signed by whom it may concern" * 99])
@pytest.mark.parametrize("record", [512, 10_240])
def test_what_stands_behind_the_end_marker_of_a_tar_is_no_damage(
    tmp_path: Path, tiles: dict[str, bytes], suffix: str, behind: bytes, record: int
) -> None:
    whole = tar_of(tmp_path / "part.tar", tiles).read_bytes()
    end = end_of(whole)
    whole = whole[: end + -end % record]
    pack = {".tar": bytes, ".tar.gz": gzip.compress, ".tar.bz2": bz2.compress, ".tar.xz": lzma.compress}[suffix]
    # Behind the marker, its record and the packed stream, where fewer than 13 might be the first of an .lzma file.
    for data in (pack(whole[:end] + behind), pack(whole + behind), pack(whole) + behind * 13):
        (tmp_path / f"a{suffix}").write_bytes(data)
        plan = plan_of_archive(tmp_path / f"a{suffix}")
        assert plan.listing.problems == []
        assert contents(plan) == tiles


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_a_damaged_tar_behind_another_is_named(tmp_path: Path, tiles: dict[str, bytes], suffix: str) -> None:
    whole = tar_of(tmp_path / "whole.tar", tiles).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        header = tar.getmembers()[3].offset
    damaged = {
        "zeros instead of a header": whole[:header] + bytes(512) + whole[header + 512 :],
        "its first header": whole + b"\xff" + whole[1:],
        "its first half": whole + whole[len(whole) // 2 :],
        "its second half": whole + whole[: len(whole) // 2],
        "its place": whole + b"\n" + whole,
        "more than fills a record": whole + b"\7" * (5 << 20),
    }
    for name, data in damaged.items():
        (tmp_path / f"a{suffix}").write_bytes(gzip.compress(data, 1) if suffix == ".tar.gz" else data)
        plan = plan_of_archive(tmp_path / f"a{suffix}")
        assert ["is damaged or cut off" in problem for problem in plan.listing.problems] == [True], name


def test_a_gzip_stream_that_breaks_off_behind_another_is_named(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    whole = tar_of(tmp_path / "a.tar.gz", tiles).read_bytes()
    for cut in (40, len(whole) // 2, len(whole) - 4):
        (tmp_path / "a.tar.gz").write_bytes(whole + whole[:cut])
        assert "is damaged or cut off" in plan_of_archive(tmp_path / "a.tar.gz").listing.problems[0]
    (tmp_path / "a.tar.gz").write_bytes(whole[:-8] + bytes(8))
    assert "CRC check failed" in plan_of_archive(tmp_path / "a.tar.gz").listing.problems[0]


class Zeros(io.RawIOBase):
    """Bytes, and zeros behind them without end, to which nobody should read."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (self._at if whence == 1 else 0)
        return self._at

    def read(self, size: int = -1) -> bytes:
        assert size >= 0
        found = self._data[self._at : self._at + size].ljust(size, b"\0")
        self._at += size
        assert self._at < len(self._data) + (5 << 20)
        return found


def test_zeros_behind_a_tar_are_not_read_to_the_last(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    file, listing = Zeros(tar_of(tmp_path / "a.tar", tiles).read_bytes()), Listing()
    assert [member.name for member in list_tar(file, "tar", listing, lambda _: True)] == list(tiles)  # type: ignore[arg-type]
    assert listing.problems == []
    packed = gzip.compress((tmp_path / "a.tar").read_bytes() + bytes(64 << 20), 1)
    with io.BytesIO(packed) as stream:
        assert [member.name for member in list_tar(stream, "tar.gz", listing, lambda _: True)] == list(tiles)
        assert listing.problems == []
        assert len(packed) - stream.tell() > 100_000


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_tar_behind_the_padding_of_another_is_read(tmp_path: Path, tiles: dict[str, bytes], suffix: str) -> None:
    names = list(tiles)
    first, second = (
        tar_of(tmp_path / "part.tar", {name: tiles[name] for name in some}).read_bytes()
        for some in (names[::2], names[1::2])
    )
    joined = first + bytes(1 << 20) + second
    (tmp_path / f"a.{suffix}").write_bytes(gzip.compress(joined, 1) if suffix == "tar.gz" else joined)
    plan = plan_of_archive(tmp_path / f"a.{suffix}")
    assert plan.listing.problems == []
    assert contents(plan) == tiles


def compressed_tar(path: Path, pieces: Iterable[bytes]) -> Path:
    with gzip.open(path, "wb", compresslevel=1) as file:
        for piece in pieces:
            file.write(piece)
    return path


def header(name: str, size: int, kind: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def pax(records: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    return header("pax", len(records), kind) + records + bytes(-len(records) % 512)


def test_what_a_tar_announces_takes_neither_memory_nor_time(tmp_path: Path) -> None:
    """Long names, sparse maps without end, global headers in a row, records that hold no value of their own."""
    long_name = b"1000013 path=" + b"x" * 999_995 + b".jpg\n"
    image = header("a.jpg", 5, tarfile.REGTYPE) + b"image" + bytes(507)
    sparse = bytearray(header("s.jpg", 0, tarfile.GNUTYPE_SPARSE))
    sparse[482] = 1  # an extended map follows (GNU tar's manual, The old GNU format)
    sparse[148:156] = b"        "
    sparse[148:156] = b"%06o\0 " % sum(sparse)
    extended = (b"00000000001\0" * 42) + b"\1" + bytes(7)
    tars = {
        "names": [*[pax(long_name) + image] * 100, image, bytes(1024)],
        "sparse": [bytes(sparse), *[extended * 100] * 2000],
        "globals": [pax(b"14 key=value1\n", tarfile.XGLTYPE)] * 1500 + [image],
        "large globals": [pax(b"%07d k%06d=%s\n" % (500_000, n, b"x" * 499_983), tarfile.XGLTYPE) for n in range(200)],
        "records": [pax(b"2 " * 250_000 + b"=\n")] * 5,
    }
    for name, pieces in tars.items():
        compressed_tar(tmp_path / f"{name}.tar.gz", pieces)
    code = f"""
import json, resource, sys, time
from crackbatch.sources.plan import make_plan
from crackbatch.images.formats import EXTENSIONS
resource.setrlimit(resource.RLIMIT_DATA, (900 << 20,) * 2)
for name in {list(tars)!r}:
    began = time.process_time()
    try:
        plan = make_plan(["{tmp_path}/" + name + ".tar.gz"], EXTENSIONS)
        print(json.dumps([name, plan.table["image_uri"].to_pylist(), plan.listing.problems]))
    except Exception as error:
        print(json.dumps([name, [], [str(error)]]))
    assert time.process_time() - began < 20, name
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = {name: (uris, problems) for name, uris, problems in map(json.loads, done.stdout.splitlines())}
    uris, problems = told["names"]
    assert uris == [f"tar://a.jpg::{tmp_path}/names.tar.gz"]
    assert [problem.partition(": ")[2] for problem in problems] == [
        "members whose names have more than 4,096 bytes are not read"
    ]
    for name, why in {
        "sparse": "a map without end", "globals": "too many extended headers",
        "large globals": "too many extended headers", "records": "an extended header is damaged",
    }.items():  # fmt: skip
        assert why in told[name][1][0], name


def test_a_tar_that_announces_more_images_than_its_file_can_hold_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crackbatch.archives.members._MOST_MEMBERS", 10_000)
    images = (header(f"{number}.jpg", 0, tarfile.REGTYPE) for number in range(13_000))
    path = compressed_tar(tmp_path / "a.tar.gz", images)
    listing, small = Listing(), path.stat().st_size // 100
    with path.open("rb") as file:
        found = sum(1 for _ in limited(list_tar(file, "tar.gz", listing, lambda _: True), small, listing))
    assert found == 10_000
    assert listing.problems == ["it announces more than 10,000 images, which a file of its size cannot hold"]


def test_a_compressed_tar_that_would_fill_the_disk_gives_what_it_may(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    size, tile = 60 << 20, tiles["tile-00.jpg"]
    pieces = [header("a.jpg", len(tile), tarfile.REGTYPE), tile, bytes(-len(tile) % 512)]
    for number in range(12):
        pieces += [header(f"{number}.jpg", size, tarfile.REGTYPE), bytes(size)]
    path = compressed_tar(tmp_path / "a.tar.gz", [*pieces, bytes(1024)])
    plan = plan_of_archive(path)
    assert contents(plan)["a.jpg"] == tile
    assert 4 <= plan.table.num_rows <= 12
    assert "it unpacks to more than" in plan.listing.problems[0]
    assert sum(file.stat().st_size for file in (tmp_path / "scratch").rglob("*")) < 650 << 20


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_members_of_negative_sizes_and_links_of_any_length_end_at_once(
    suffix: str, tmp_path: Path, tiles: dict[str, bytes]
) -> None:
    tile = tiles["tile-00.jpg"]
    image = header("a.jpg", len(tile), tarfile.REGTYPE) + tile + bytes(-len(tile) % 512)
    negative = bytearray(header("b.txt", 0, tarfile.REGTYPE))
    negative[124:136] = b"\xff" * 4 + struct.pack(">q", -512)  # in base 256 (GNU tar's manual, Extensions)
    negative[148:156] = b"        "
    negative[148:156] = b"%06o\0 " % sum(negative)
    links = (
        pax(b"60024 linkpath=" + b"x" * 60_008 + b"\n", tarfile.XGLTYPE) + header("l.jpg", 0, tarfile.LNKTYPE) * 2500
    )
    pieces = {
        "negative": image + bytes(negative) + bytes(1024),
        "pax": image + pax(b"14 size=-1536\n") + header("b.txt", 0, tarfile.REGTYPE) + bytes(1024),
        "links": image + links + bytes(1024),
    }
    for name, data in pieces.items():
        path = tmp_path / f"{name}.{suffix}"
        path.write_bytes(gzip.compress(data) if suffix == "tar.gz" else data)
        plan = plan_of_archive(path)
        assert plan.table.num_rows == (2501 if name == "links" else 1)
        assert next(iter(fetch_all(plan)))["bytes"] == tile
        assert name == "links" or "a member has a negative size" in plan.listing.problems[0]
        assert max(len(error or "") for error in plan.table["error"].to_pylist()) <= 1000


def test_an_xz_file_with_a_dictionary_of_gigabytes_is_refused(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 29, "preset": 0}]
    (tmp_path / "a.tar.xz").write_bytes(
        lzma.compress(header("a.jpg", 0, tarfile.REGTYPE) + bytes(1024), filters=filters)
    )
    with pytest.raises(SourceError, match=r"[Mm]emory usage limit"):
        plan_of_archive(tmp_path / "a.tar.xz")
