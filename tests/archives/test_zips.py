"""Zips of all kinds give their images, whole, cut, damaged or without a directory."""

from __future__ import annotations

import copy
import io
import os
import shutil
import struct
import subprocess
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from builders.archives import write_files, zip_with
from builders.faulty import Faults
from builders.plans import contents, fetch_all, plan_of_archive
from builders.servers import put
from crackbatch.archives.members import Listing
from crackbatch.archives.zips import LOCAL_HEADER, list_zip
from crackbatch.images.formats import EXTENSIONS
from crackbatch.sources.plan import make_plan


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("zip64", [False, True])
@pytest.mark.parametrize("prefix", [b"", b"#!/bin/sh self-extracting\n" * 9])
def test_zips_of_all_kinds(
    tmp_path: Path, tiles: dict[str, bytes], method: int, streamed: bool, zip64: bool, prefix: bytes
) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(prefix + zip_with(method, tiles, streamed, zip64))
    assert contents(plan_of_archive(archive)) == tiles


def test_names_in_zips(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    names = [
        "Brücke/Pfeiler 1/Riß.jpg",
        "橋/ひび割れ.JPG",
        "../../etc/x.jpg",
        "/rooted/y.jpg",
        "a b#c%20?.jpg",
        "x" * 300 + ".jpg",
    ]
    given = dict(zip(names, tiles.values(), strict=False))
    archive = tmp_path / "a.zip"
    archive.write_bytes(zip_with(zipfile.ZIP_DEFLATED, given))
    found = plan_of_archive(archive)
    assert contents(found) == given
    assert sorted(path.name for path in tmp_path.rglob("*") if path.suffix == ".jpg") == []
    # MS-DOS names: byte 0x81 of code page 437 is ü, and no flag says UTF-8.
    old = zip_with(zipfile.ZIP_STORED, {"Br_cke.jpg": given[names[0]]}).replace(b"Br_cke.jpg", b"Br\x81cke.jpg")
    archive.write_bytes(old)
    assert contents(plan_of_archive(archive)) == {"Brücke.jpg": given[names[0]]}


def test_info_zip_archives(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    if shutil.which("zip") is None:
        pytest.skip("the zip command is not installed")
    write_files(tmp_path / "in", tiles)
    subprocess.run(["zip", "-qr", "../a.zip", "."], cwd=tmp_path / "in", check=True)
    subprocess.run(["zip", "-qr", "-P", "secret", "../locked.zip", "."], cwd=tmp_path / "in", check=True)
    assert contents(plan_of_archive(tmp_path / "a.zip")) == tiles
    assert set(contents(plan_of_archive(tmp_path / "locked.zip")).values()) == {"encrypted"}


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize(
    ("method", "streamed"), [(zipfile.ZIP_STORED, False), (zipfile.ZIP_DEFLATED, True), (zipfile.ZIP_STORED, True)]
)
@pytest.mark.parametrize("zip64", [False, True])
def test_a_zip_without_its_end_gives_what_is_there(
    tmp_path: Path, tiles: dict[str, bytes], share: float, method: int, streamed: bool, zip64: bool
) -> None:
    whole = zip_with(method, tiles, streamed, zip64)
    archive = tmp_path / "a.zip"
    archive.write_bytes(whole[: int(len(whole) * share)])
    plan = plan_of_archive(archive)
    found = contents(plan)
    readable = {name: data for name, data in found.items() if isinstance(data, bytes)}
    assert readable.items() <= tiles.items()
    assert len(readable) >= int(len(tiles) * share) - 1
    assert len(plan.listing.problems) == 1
    assert str(archive) in plan.listing.problems[0]


def test_symbolic_links_are_passed_over_in_zips_as_in_tars(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    folder = write_files(tmp_path / "in", tiles)
    (folder / "link.jpg").symlink_to("tile-00.jpg")
    subprocess.run(["tar", "-cf", "../a.tar", "."], cwd=folder, check=True)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in sorted(folder.iterdir()):
            entry = zipfile.ZipInfo(path.name)
            entry.create_system, entry.external_attr = 3, path.lstat().st_mode << 16  # as `zip -y` has it
            archive.writestr(entry, os.readlink(path) if path.is_symlink() else path.read_bytes())
    for name in ("a.zip", "a.tar"):
        plan = plan_of_archive(tmp_path / name)
        assert {name.removeprefix("./"): data for name, data in contents(plan).items()} == tiles
        assert dict(plan.listing.passed_over) == {"links and special files in archives": 1}


def test_a_damaged_member_is_its_own_row(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    name = "tile-03.jpg"
    stored = bytearray(zip_with(zipfile.ZIP_STORED, tiles))
    stored[stored.index(tiles[name]) + 2000] ^= 0xFF
    (tmp_path / "a.zip").write_bytes(stored)
    assert contents(plan_of_archive(tmp_path / "a.zip")) == {**tiles, name: "corrupt"}
    deflated = bytearray(zip_with(zipfile.ZIP_DEFLATED, tiles))
    at = deflated.index(name.encode()) + 500
    deflated[at : at + 32] = b"\xff" * 32
    (tmp_path / "a.zip").write_bytes(deflated)
    assert contents(plan_of_archive(tmp_path / "a.zip")) == {**tiles, name: "corrupt"}


def test_a_member_that_unpacks_to_more_than_it_says_is_refused(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    data = bytearray(zip_with(zipfile.ZIP_DEFLATED, {"bomb.jpg": b"\0" * 50_000_000, **tiles}))
    central = data.index(b"PK\x01\x02")
    struct.pack_into("<L", data, central + 24, 1000)  # its uncompressed size
    (tmp_path / "a.zip").write_bytes(data)
    assert contents(plan_of_archive(tmp_path / "a.zip")) == {**tiles, "bomb.jpg": "corrupt"}


def test_a_zip_method_that_cannot_be_read_is_a_status(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    (tmp_path / "a.zip").write_bytes(zip_with(zipfile.ZIP_LZMA, tiles))
    plan = plan_of_archive(tmp_path / "a.zip")
    assert set(plan.table["status"].to_pylist()) == {"unsupported"}
    assert "lzma" in plan.table["error"][0].as_py()


@pytest.mark.parametrize("size", [2**63, 2**70])
def test_a_directory_with_senseless_sizes_costs_only_its_own_image(
    tmp_path: Path, tiles: dict[str, bytes], size: int
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in tiles.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        huge = tarfile.TarInfo("huge.jpg")
        huge.size = size
        tar.fileobj.write(huge.tobuf(tarfile.GNU_FORMAT))
    plan = plan_of_archive(tmp_path / "a.tar")
    assert contents(plan) == {**tiles, "huge.jpg": "too_large"}
    assert len(plan.listing.problems) == 1


def test_a_zip_member_with_a_long_local_extra_is_read_without_the_directory(
    tmp_path: Path, tiles: dict[str, bytes]
) -> None:
    name, data = "a.jpg", tiles["tile-00.jpg"]
    header = struct.pack(
        "<4s5H3L2H", b"PK\x03\x04", 20, 0, 0, 0, 0, zlib.crc32(data), len(data), len(data), len(name), 200
    )
    (tmp_path / "a.zip").write_bytes(header + name.encode() + bytes(200) + data)
    assert contents(plan_of_archive(tmp_path / "a.zip")) == {name: data}


def test_two_names_of_one_zip_member_are_both_read(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    member = zipfile.ZipInfo("a.jpg")
    member.extra = struct.pack("<HH", 0xCAFE, 200) + bytes(200)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(member, tiles["tile-00.jpg"])
        other = copy.copy(member)
        other.filename = "b.jpg"
        archive.filelist.append(other)
    assert contents(plan_of_archive(tmp_path / "a.zip")) == dict.fromkeys(["a.jpg", "b.jpg"], tiles["tile-00.jpg"])


@pytest.mark.parametrize("comment", [b"", b"of the first" * 99])
def test_a_zip_behind_another_in_one_file_is_named_and_one_behind_a_program_is_not(
    tmp_path: Path, tiles: dict[str, bytes], comment: bytes
) -> None:
    with zipfile.ZipFile(tmp_path / "first.zip", "w") as first:
        first.writestr("first.jpg", tiles["tile-00.jpg"])
        first.comment = comment
    (tmp_path / "joined.zip").write_bytes((tmp_path / "first.zip").read_bytes() + zip_with(0, tiles))
    (tmp_path / "program.zip").write_bytes(b"#!/bin/sh\n" + os.urandom(100_000) + zip_with(0, tiles))
    joined, program = plan_of_archive(tmp_path / "joined.zip"), plan_of_archive(tmp_path / "program.zip")
    assert len(contents(joined)) == len(contents(program)) == len(tiles)
    assert "another zip comes before it in the same file" in joined.listing.problems[0]
    assert program.listing.problems == []


@pytest.mark.parametrize("cut", [1, 100, 9000])
def test_a_zip_without_its_first_bytes_loses_only_the_members_that_were_there(
    tmp_path: Path, tiles: dict[str, bytes], cut: int
) -> None:
    whole = zip_with(zipfile.ZIP_STORED, tiles)
    (tmp_path / "a.zip").write_bytes(whole[cut:])
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        lost = [info.filename for info in archive.infolist() if info.header_offset < cut]
    plan = plan_of_archive(tmp_path / "a.zip")
    assert plan.listing.problems == []
    assert contents(plan) == {**tiles, **dict.fromkeys(lost, "corrupt")}


@pytest.mark.parametrize("senseless", [range(1, 2), range(12)])
@pytest.mark.parametrize("offset", [2**62, 2**64 - 1])
def test_a_zip_member_beyond_what_a_file_can_have_costs_no_other(
    tmp_path: Path, tiles: dict[str, bytes], senseless: range, offset: int
) -> None:
    names = [f"tile-{number:02}.jpg" for number in senseless]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, data in tiles.items():
            archive.writestr(name, data)
        for name in names:
            archive.getinfo(name).header_offset = offset
    plan = plan_of_archive(tmp_path / "a.zip")
    assert plan.listing.problems == []
    assert contents(plan) == {**tiles, **dict.fromkeys(names, "corrupt")}


@pytest.mark.faults
def test_a_zip_of_100_000_members_takes_few_requests(
    s3: str, bucket: str, through: Callable[[Faults], None], tiles: dict[str, bytes]
) -> None:
    file, tile = io.BytesIO(), tiles["tile-00.jpg"][:2000]
    with zipfile.ZipFile(file, "w") as archive:
        for index in range(100_000):
            archive.writestr(f"{index:06d}.jpg", tile)
    put(s3, f"{bucket}/large.zip", file.getvalue())
    faults = Faults()
    through(faults)
    plan = make_plan([f"s3://inspections/{bucket}/large.zip"], EXTENSIONS)
    assert sum(row["bytes"] == tile for row in fetch_all(plan)) == 100_000
    assert faults.requests.total() < 2000
    print(f"{faults.requests.total()} requests for {len(file.getvalue()) / 1e6:.0f} MB in 100,000 members")


def finder_zip(path: Path, members: list[tuple[str, bytes | int]], shuffled: bool = False) -> None:
    """A zip as Finder of macOS writes it: without zip64, whatever its size. A number stands for so many zeros."""
    directory = []
    with open(path, "wb") as file:
        for name, content in members:
            start, raw = file.tell(), name.encode()
            data = zlib.compress(content, wbits=-15) if isinstance(content, bytes) else b""
            method = 8 if data else 0
            file.write(struct.pack("<IHHHHHIIIHH", 0x04034B50, 20, 8, method, 0, 0, 0, 0, 0, len(raw), 0) + raw)
            size = content if isinstance(content, int) else len(content)
            file.write(data)
            if isinstance(content, int):
                file.seek(content, os.SEEK_CUR)
            packed, crc = (len(data), zlib.crc32(content)) if isinstance(content, bytes) else (size, 0)  # type: ignore[arg-type]
            sizes = (crc, packed % 2**32, size % 2**32)
            file.write(struct.pack("<IIII", 0x08074B50, *sizes))
            entry = struct.pack("<IHHHHHH", 0x02014B50, 0x0315, 20, 8, method, 0, 0) + struct.pack("<III", *sizes)
            entry += struct.pack("<HHHHHII", len(raw), 0, 0, 0, 0, 0x81A40000, start % 2**32) + raw
            directory.append(entry)
        start = file.tell()
        blob = b"".join(directory[::-1] if shuffled else directory)
        file.write(blob)
        num = len(directory)
        file.write(struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, num, num, len(blob), start % 2**32, 0))


@pytest.mark.parametrize("films", [[3 << 30, 2 << 30], [5 << 30, 100], [9 << 30, 4 << 30], [(4 << 30) - 50, 1 << 20]])
def test_a_zip_of_more_than_4_gib_without_zip64_gives_all_its_images(
    films: list[int], tmp_path: Path, tiles: dict[str, bytes]
) -> None:
    images = list(tiles.items())
    members: list[tuple[str, bytes | int]] = [*images[:3], ("film-1.mov", films[0]), *images[3:6]]
    members += [("film-2.mov", films[1]), *images[6:]]
    finder_zip(tmp_path / "a.zip", members)
    plan = plan_of_archive(tmp_path / "a.zip")
    assert (contents(plan), plan.listing.problems) == (tiles, [])


def test_a_member_that_cannot_be_found_again_is_one_problem(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    images = list(tiles.items())
    finder_zip(tmp_path / "a.zip", [images[0], ("film.mov", 5 << 30), images[1], images[2]])
    with open(tmp_path / "a.zip", "r+b") as file:
        file.seek((5 << 30) - 100)
        behind = file.read(1 << 20)
        file.seek((5 << 30) - 100 + behind.index(b"PK\3\4"))
        file.write(b"lost")
    plan = plan_of_archive(tmp_path / "a.zip")
    (problem,) = plan.listing.problems
    assert "larger than 4 GiB and was written without zip64, as Finder of macOS does: 1 of its members" in problem
    found = contents(plan)
    assert found.pop(images[1][0]) == "corrupt"
    assert found == dict([images[0], images[2]])


def test_overlapping_members_are_refused_by_name(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    """As in a decompression bomb (Fifield, A better zip bomb, 2019): each member holds the headers of the next ones."""
    kernel, unpacked = zlib.compress(bytes(50 << 20), 9)[2:-4], 50 << 20
    names = [f"{number:02}.jpg".encode() for number in range(30)]
    length = LOCAL_HEADER.size + len(names[0])
    body = b"".join(LOCAL_HEADER.pack(b"PK\x03\x04", 20, 0, 0, 8, 0, 0, 0, 0, unpacked, 6, 0) + name for name in names)
    body += kernel
    entries = b"".join(
        struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 8, 0, 0, 0, len(body) - (number + 1) * length, unpacked,
                    len(name), 0, 0, 0, 0, 0, number * length) + name
        for number, name in enumerate(names)
    )  # fmt: skip
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, len(names), len(names), len(entries), len(body), 0)
    (tmp_path / "bomb.zip").write_bytes(body + entries + end)
    rows = plan_of_archive(tmp_path / "bomb.zip").table.to_pylist()
    assert len(rows) == len(names)
    assert [row["status"] for row in rows[:-1]] == ["corrupt"] * 29
    assert rows[0]["error"].startswith("its bytes overlap those of 01.jpg")


@pytest.mark.parametrize("method", [0, 8])
def test_false_descriptors_and_headers_cost_no_time(tmp_path: Path, method: int) -> None:
    """A megabyte of local headers, and of descriptors that match none: the file is read a few times, not for each."""
    header = LOCAL_HEADER.pack(b"PK\x03\x04", 20, 0x8, 0, method, 0, 0, 0, 0, 0, 5, 0) + b"a.jpg"
    plain = LOCAL_HEADER.pack(b"PK\x03\x04", 20, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0) + b"b.jpg"
    bomb = zlib.compress(bytes(300 << 20), 9)[2:-4]
    for number, data in enumerate((header + b"PK\x07\x08" * 250_000, plain * 25_000, header + bomb, header * 25_000)):
        path = tmp_path / f"{number}.zip"
        path.write_bytes(data)
        began = time.process_time()
        with path.open("rb") as file:
            listing = Listing()
            list(list_zip(file, listing, lambda _: True))
        assert time.process_time() - began < 15, number
        assert "its directory cannot be read" in listing.problems[0]


def test_names_longer_than_any_system_allows_are_a_problem(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    images = {"a.jpg": tiles["tile-00.jpg"], f"{'x' * 4093}.jpg": tiles["tile-01.jpg"]}
    (tmp_path / "a.zip").write_bytes(zip_with(0, images))
    plan = plan_of_archive(tmp_path / "a.zip")
    assert list(contents(plan)) == ["a.jpg"]
    assert plan.listing.problems == [f"{tmp_path}/a.zip: members whose names have more than 4,096 bytes are not read"]


def test_many_names_of_one_member_and_twins_that_overlap_others_are_refused(tmp_path: Path) -> None:
    headers = [LOCAL_HEADER.pack(b"PK\x03\x04", 20, 0, 0, 0, 0, 0, 0, 0, 0, 6, 0) + b"%02d.jpg" % n for n in range(20)]
    body, length = b"".join(headers) + bytes(5000), len(headers[0])

    def directory(places: list[tuple[int, int]]) -> bytes:
        entries = b"".join(
            struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, size, size, 6, 0, 0, 0, 0, 0, place)
            + b"%02d.jpg" % number
            for number, (place, size) in enumerate(places)
        )
        end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, len(places), len(places), len(entries), len(body), 0)
        return body + entries + end

    twins = [(number * length, len(body) - (number + 1) * length) for number in range(20) for _ in range(2)]
    (tmp_path / "twins.zip").write_bytes(directory(twins))
    (tmp_path / "names.zip").write_bytes(directory([(19 * length, 5000)] * 40))
    for name, num_good in (("twins", 2), ("names", 3)):
        rows = plan_of_archive(tmp_path / f"{name}.zip").table.to_pylist()
        assert len(rows) == 40
        assert sum(row["status"] is None for row in rows) == num_good, name
