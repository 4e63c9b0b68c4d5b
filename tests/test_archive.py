"""What lies in archives, written by the tools that people use, whole and damaged."""

from __future__ import annotations

import bz2
import copy
import gzip
import io
import lzma
import os
import resource
import shutil
import struct
import subprocess
import tarfile
import warnings
import zipfile
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crackbatch.errors import RunError, SourceError
from crackbatch.images.formats import EXTENSIONS
from crackbatch.sources.fetch import fetch
from crackbatch.sources.members import Listing
from crackbatch.sources.plan import Plan, make_plan
from crackbatch.sources.tars import list_tar


def plan_of(path: Path, **options: object) -> Plan:
    return make_plan([str(path)], EXTENSIONS, scratch=str(path.parent / "scratch"), **options)


def contents(plan: Plan) -> dict[str, bytes | str]:
    """Bytes, or the status where there are none, by the member's name or the file's."""
    found: dict[str, bytes | str] = {}
    for block in fetch(plan.table):
        for row in block.to_pylist():
            found[row["image_uri"].split("://")[-1].split("::")[0]] = row["bytes"] if row["bytes"] else row["status"]
    assert len(found) == plan.table.num_rows
    return found


class Unseekable(io.RawIOBase):
    """A pipe: zipfile cannot go back to write sizes, so they follow the data."""

    def __init__(self, target: io.BytesIO) -> None:
        self._target = target

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:
        return self._target.write(data)


def zip_with(method: int, tiles: dict[str, bytes], streamed: bool = False, zip64: bool = False) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(Unseekable(buffer) if streamed else buffer, "w", method) as archive:  # type: ignore[arg-type]
        for name, data in tiles.items():
            with archive.open(name, "w", force_zip64=zip64) as member:
                member.write(data)
    return buffer.getvalue()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("zip64", [False, True])
@pytest.mark.parametrize("prefix", [b"", b"#!/bin/sh self-extracting\n" * 9])
def test_zips_of_all_kinds(
    tmp_path: Path, tiles: dict[str, bytes], method: int, streamed: bool, zip64: bool, prefix: bytes
) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(prefix + zip_with(method, tiles, streamed, zip64))
    assert contents(plan_of(archive)) == tiles


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
    found = plan_of(archive)
    assert contents(found) == given
    assert sorted(path.name for path in tmp_path.rglob("*") if path.suffix == ".jpg") == []
    # MS-DOS names: byte 0x81 of code page 437 is ü, and no flag says UTF-8.
    old = zip_with(zipfile.ZIP_STORED, {"Br_cke.jpg": given[names[0]]}).replace(b"Br_cke.jpg", b"Br\x81cke.jpg")
    archive.write_bytes(old)
    assert contents(plan_of(archive)) == {"Brücke.jpg": given[names[0]]}


def test_info_zip_archives(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    if shutil.which("zip") is None:
        pytest.skip("the zip command is not installed")
    write_files(tmp_path / "in", tiles)
    subprocess.run(["zip", "-qr", "../a.zip", "."], cwd=tmp_path / "in", check=True)
    subprocess.run(["zip", "-qr", "-P", "secret", "../locked.zip", "."], cwd=tmp_path / "in", check=True)
    assert contents(plan_of(tmp_path / "a.zip")) == tiles
    assert set(contents(plan_of(tmp_path / "locked.zip")).values()) == {"encrypted"}


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


@pytest.mark.parametrize("form", ["ustar", "gnu", "pax", "v7"])
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"])
def test_tars_of_all_kinds(tmp_path: Path, tiles: dict[str, bytes], form: str, suffix: str) -> None:
    given = {f"spän/deep{'/x' * (60 if form in ('gnu', 'pax') else 5)}/{name}": data for name, data in tiles.items()}
    write_files(tmp_path / "in", given)
    archive = tmp_path / f"a{suffix}"
    subprocess.run(["tar", f"--format={form}", "-caf", archive, "spän"], cwd=tmp_path / "in", check=True)
    assert contents(plan_of(archive)) == given


def test_hard_links_in_a_tar_are_images_too(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    folder = write_files(tmp_path / "in", {"a.jpg": tiles["tile-00.jpg"]})
    (folder / "b.jpg").hardlink_to(folder / "a.jpg")
    for suffix in (".tar", ".tar.gz"):
        subprocess.run(["tar", "-caf", tmp_path / f"a{suffix}", "a.jpg", "b.jpg"], cwd=folder, check=True)
        assert contents(plan_of(tmp_path / f"a{suffix}")) == dict.fromkeys(("a.jpg", "b.jpg"), tiles["tile-00.jpg"])


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
    plan = plan_of(tmp_path / f"a{suffix}")
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
    plan = plan_of(tmp_path / f"a{suffix}")
    assert contents(plan) == {"b.jpg": status}
    assert "a hard link to gone.jpg" in plan.table["error"][0].as_py()


def test_a_manifest_may_name_a_hard_link(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    folder = write_files(tmp_path / "in", {"a.jpg": tiles["tile-00.jpg"], "c.jpg": tiles["tile-01.jpg"]})
    (folder / "b.jpg").hardlink_to(folder / "a.jpg")
    subprocess.run(["tar", "-cf", "../hl.tar", "a.jpg", "b.jpg", "c.jpg"], cwd=folder, check=True)
    (tmp_path / "m.csv").write_text("image_uri\ntar://b.jpg::hl.tar\n")
    assert contents(plan_of(tmp_path / "m.csv")) == {"b.jpg": tiles["tile-00.jpg"]}


def test_one_name_twice_in_an_archive_is_two_images(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    first, second = tiles["tile-00.jpg"], tiles["tile-01.jpg"]
    with tarfile.open(tmp_path / "a.tar", "w") as tar, zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for data in (first, second):
            entry = tarfile.TarInfo("a.jpg")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # zipfile warns of the second
                archive.writestr("a.jpg", data)
    for name in ("a.tar", "a.zip"):
        table = plan_of(tmp_path / name).table
        assert len(set(zip(table["image_uri"].to_pylist(), table["version"].to_pylist(), strict=True))) == 2
        assert [row["bytes"] for block in fetch(table) for row in block.to_pylist()] == [first, second]


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
    plan = plan_of(archive)
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
        plan = plan_of(tmp_path / name)
        assert {name.removeprefix("./"): data for name, data in contents(plan).items()} == tiles
        assert dict(plan.listing.passed_over) == {"links and special files in archives": 1}


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
        with pytest.raises(SourceError, match="breaks off"):
            plan_of(archive)
        return
    plan = plan_of(archive)
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
    assert plan_of(tmp_path / "a.tar").listing.problems == []
    (tmp_path / "a.tar").write_bytes(whole[:end])
    plan = plan_of(tmp_path / "a.tar")
    assert plan.table.num_rows == len(tiles)
    assert "no end marker" in plan.listing.problems[0]


def tar_of(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, f"w:{path.suffix[1:]}" if path.suffix != ".tar" else "w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


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


def test_a_file_that_may_not_grow_ends_the_planning_and_leaves_no_half_of_it(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "a.tar.gz", {f"{number}.jpg": os.urandom(1 << 20) for number in range(4)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, before[1]))
    try:
        with pytest.raises(RunError, match="File too large"):
            plan_of(archive)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_damaged_gzip_stream_is_noticed(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    write_files(tmp_path / "in", {f"{number}-{name}": data for number in range(8) for name, data in tiles.items()})
    archive = tmp_path / "a.tar.gz"
    subprocess.run(["tar", "-caf", archive, "."], cwd=tmp_path / "in", check=True)
    data = bytearray(archive.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = b"\xff" * 64
    archive.write_bytes(data)
    plan = plan_of(archive)
    assert 0 < plan.table.num_rows < 96
    assert str(archive) in plan.listing.problems[0]


def test_a_damaged_member_is_its_own_row(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    name = "tile-03.jpg"
    stored = bytearray(zip_with(zipfile.ZIP_STORED, tiles))
    stored[stored.index(tiles[name]) + 2000] ^= 0xFF
    (tmp_path / "a.zip").write_bytes(stored)
    assert contents(plan_of(tmp_path / "a.zip")) == {**tiles, name: "corrupt"}
    deflated = bytearray(zip_with(zipfile.ZIP_DEFLATED, tiles))
    at = deflated.index(name.encode()) + 500
    deflated[at : at + 32] = b"\xff" * 32
    (tmp_path / "a.zip").write_bytes(deflated)
    assert contents(plan_of(tmp_path / "a.zip")) == {**tiles, name: "corrupt"}


def test_a_member_that_unpacks_to_more_than_it_says_is_refused(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    data = bytearray(zip_with(zipfile.ZIP_DEFLATED, {"bomb.jpg": b"\0" * 50_000_000, **tiles}))
    central = data.index(b"PK\x01\x02")
    struct.pack_into("<L", data, central + 24, 1000)  # its uncompressed size
    (tmp_path / "a.zip").write_bytes(data)
    assert contents(plan_of(tmp_path / "a.zip")) == {**tiles, "bomb.jpg": "corrupt"}


def test_a_zip_method_that_cannot_be_read_is_a_status(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    (tmp_path / "a.zip").write_bytes(zip_with(zipfile.ZIP_LZMA, tiles))
    plan = plan_of(tmp_path / "a.zip")
    assert set(plan.table["status"].to_pylist()) == {"unsupported"}
    assert "lzma" in plan.table["error"][0].as_py()


@pytest.mark.parametrize("layout", ["bytes", "image-struct", "image-binary", "image-view", "image-categories"])
def test_parquet_with_an_image_column(tmp_path: Path, tiles: dict[str, bytes], layout: str) -> None:
    data = list(tiles.values())
    column: pa.Array = pa.array(data, pa.binary_view() if layout == "image-view" else pa.binary())
    if layout == "image-struct":
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        column = pa.array([{"bytes": item, "path": name} for name, item in tiles.items()], kind)
    if layout == "image-categories":
        column = column.dictionary_encode()
    name = "bytes" if layout == "bytes" else "image"
    pq.write_table(pa.table({"label": [1] * len(data), name: column}), tmp_path / "a.parquet", row_group_size=5)
    assert list(contents(plan_of(tmp_path / "a.parquet")).values()) == data


def test_a_parquet_group_with_fewer_rows_than_its_footer_says_mixes_nothing_up(tmp_path: Path) -> None:
    data = [b"image %03d" % index for index in range(200)]
    pq.write_table(pa.table({"bytes": data}), tmp_path / "a.parquet", row_group_size=100)
    plan = plan_of(tmp_path / "a.parquet")
    # As a footer that counts too many rows would have it planned: rows 100 to 109 are said to be in group 0.
    groups = [0 if index < 110 else 1 for index in range(200)]
    table = plan.table.set_column(plan.table.column_names.index("row_group"), "row_group", pa.array(groups, pa.int32()))
    rows = [row for block in fetch(table) for row in block.to_pylist()]
    assert len(rows) == 200
    for index, row in enumerate(rows):
        assert row["bytes"] in (data[index], None)
    assert [row["status"] for row in rows[100:110]] == ["corrupt"] * 10
    assert [row["bytes"] for row in rows[110:]] == data[110:]


@pytest.mark.parametrize("layout", ["bytes", "struct"])
def test_large_cells_of_a_parquet_file_are_not_all_in_memory_at_once(tmp_path: Path, layout: str) -> None:
    data = [os.urandom(8 << 20) for _ in range(24)]
    column = pa.array(data if layout == "bytes" else [{"bytes": item, "path": "x"} for item in data])
    options = {"compression": "none", "use_dictionary": False, "write_batch_size": 1}  # a page for each cell
    pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet", **options)
    plan, before, pool = plan_of(tmp_path / "a.parquet"), pa.default_memory_pool(), pa.system_memory_pool()
    del column
    pa.set_memory_pool(pool)
    try:
        blocks = fetch(plan.table)
        assert [row["bytes"] for block in blocks for row in block.to_pylist()] == data
        assert pool.max_memory() < 150 << 20
    finally:
        pa.set_memory_pool(before)


def test_a_struct_whose_bytes_are_no_bytes_is_no_image_column(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.int64()), ("path", pa.string())])
    table = pa.table({"file": pa.array([{"bytes": 300_000_000, "path": "x"}], kind)})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(SourceError, match="no images in"):
        plan_of(tmp_path / "a.parquet")


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
    plan = plan_of(tmp_path / "a.tar")
    assert contents(plan) == {**tiles, "huge.jpg": "too_large"}
    assert len(plan.listing.problems) == 1


def test_an_extended_tar_header_of_great_size_is_not_read(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        entry = tarfile.TarInfo("a.jpg")
        entry.size = len(tiles["tile-00.jpg"])
        tar.addfile(entry, io.BytesIO(tiles["tile-00.jpg"]))
        bomb = tarfile.TarInfo("pax")
        bomb.type, bomb.size = tarfile.XHDTYPE, 1 << 30
        tar.fileobj.write(bomb.tobuf())
    plan = plan_of(tmp_path / "a.tar")
    assert contents(plan) == {"a.jpg": tiles["tile-00.jpg"]}
    assert "extended header" in plan.listing.problems[0]


def test_a_zip_member_with_a_long_local_extra_is_read_without_the_directory(
    tmp_path: Path, tiles: dict[str, bytes]
) -> None:
    name, data = "a.jpg", tiles["tile-00.jpg"]
    header = struct.pack(
        "<4s5H3L2H", b"PK\x03\x04", 20, 0, 0, 0, 0, zlib.crc32(data), len(data), len(data), len(name), 200
    )
    (tmp_path / "a.zip").write_bytes(header + name.encode() + bytes(200) + data)
    assert contents(plan_of(tmp_path / "a.zip")) == {name: data}


def test_two_names_of_one_zip_member_are_both_read(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    member = zipfile.ZipInfo("a.jpg")
    member.extra = struct.pack("<HH", 0xCAFE, 200) + bytes(200)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(member, tiles["tile-00.jpg"])
        other = copy.copy(member)
        other.filename = "b.jpg"
        archive.filelist.append(other)
    assert contents(plan_of(tmp_path / "a.zip")) == dict.fromkeys(["a.jpg", "b.jpg"], tiles["tile-00.jpg"])


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_tars_joined_by_cat_are_read_to_the_last(tmp_path: Path, tiles: dict[str, bytes], suffix: str) -> None:
    names = list(tiles)
    halves = [{name: tiles[name] for name in some} for some in (names[::2], names[1::2])]
    joined = b"".join(tar_of(tmp_path / f"part.{suffix}", half).read_bytes() for half in halves)
    (tmp_path / f"all.{suffix}").write_bytes(joined)
    plan = plan_of(tmp_path / f"all.{suffix}")
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
        plan = plan_of(tmp_path / f"a{suffix}")
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
        plan = plan_of(tmp_path / f"a{suffix}")
        assert ["breaks off" in problem for problem in plan.listing.problems] == [True], name


def test_a_gzip_stream_that_breaks_off_behind_another_is_named(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    whole = tar_of(tmp_path / "a.tar.gz", tiles).read_bytes()
    for cut in (40, len(whole) // 2, len(whole) - 4):
        (tmp_path / "a.tar.gz").write_bytes(whole + whole[:cut])
        assert "breaks off" in plan_of(tmp_path / "a.tar.gz").listing.problems[0]
    (tmp_path / "a.tar.gz").write_bytes(whole[:-8] + bytes(8))
    assert "CRC check failed" in plan_of(tmp_path / "a.tar.gz").listing.problems[0]


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
    plan = plan_of(tmp_path / f"a.{suffix}")
    assert plan.listing.problems == []
    assert contents(plan) == tiles


@pytest.mark.parametrize("comment", [b"", b"of the first" * 99])
def test_a_zip_behind_another_in_one_file_is_named_and_one_behind_a_program_is_not(
    tmp_path: Path, tiles: dict[str, bytes], comment: bytes
) -> None:
    with zipfile.ZipFile(tmp_path / "first.zip", "w") as first:
        first.writestr("first.jpg", tiles["tile-00.jpg"])
        first.comment = comment
    (tmp_path / "joined.zip").write_bytes((tmp_path / "first.zip").read_bytes() + zip_with(0, tiles))
    (tmp_path / "program.zip").write_bytes(b"#!/bin/sh\n" + os.urandom(100_000) + zip_with(0, tiles))
    joined, program = plan_of(tmp_path / "joined.zip"), plan_of(tmp_path / "program.zip")
    assert len(contents(joined)) == len(contents(program)) == len(tiles)
    assert "another zip stands before it in the same file" in joined.listing.problems[0]
    assert program.listing.problems == []


@pytest.mark.parametrize("cut", [1, 100, 9000])
def test_a_zip_without_its_first_bytes_loses_only_the_members_that_were_there(
    tmp_path: Path, tiles: dict[str, bytes], cut: int
) -> None:
    whole = zip_with(zipfile.ZIP_STORED, tiles)
    (tmp_path / "a.zip").write_bytes(whole[cut:])
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        lost = [info.filename for info in archive.infolist() if info.header_offset < cut]
    plan = plan_of(tmp_path / "a.zip")
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
    plan = plan_of(tmp_path / "a.zip")
    assert plan.listing.problems == []
    assert contents(plan) == {**tiles, **dict.fromkeys(names, "corrupt")}


def test_what_is_no_image_in_an_archive_is_counted(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    extra = {"__MACOSX/._a.jpg": b"x", "._b.jpg": b"x", ".hidden/c.jpg": b"x", "notes.txt": b"x", "inner.zip": b"x"}
    (tmp_path / "a.zip").write_bytes(zip_with(zipfile.ZIP_STORED, {**tiles, **extra}))
    plan = plan_of(tmp_path / "a.zip")
    assert contents(plan) == tiles
    assert dict(plan.listing.passed_over) == {"hidden files": 3, ".txt files": 1, "archives inside archives": 1}
