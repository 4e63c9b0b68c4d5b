"""Every image in the sources is one row of the plan, whatever the sources look like."""

from __future__ import annotations

import os
import threading
import tracemalloc
from contextlib import suppress
from pathlib import Path

import fsspec
import pandas as pd
import pyarrow as pa
import pytest

from crackbatch.errors import SourceError
from crackbatch.images.formats import EXTENSIONS
from crackbatch.sources.listing import check_sources
from crackbatch.sources.members import Object
from crackbatch.sources.plan import Plan, _Planner, local_roots, make_plan, subtract
from crackbatch.sources.shards import read_shard, shard_sizes, write_shards
from test_archive import contents, tar_of, write_files, zip_with


def plan_of(*sources: object, **options: object) -> Plan:
    return make_plan([str(source) for source in sources], EXTENSIONS, **options)


def names(plan: Plan) -> list[str]:
    return [uri.rsplit("/", 1)[-1] for uri in plan.table["image_uri"].to_pylist()]


def test_a_folder_with_everything_in_it(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    data = tiles["tile-00.jpg"]
    images = {"a.JPG": data, "deep/er/b.jpeg": data, "c.TIFF": data, "d.jpe": data, "e.heic": data}
    others = {".f.jpg": b"x", "._g.jpg": b"x", "__MACOSX/h.jpg": b"x", ".git/i.jpg": b"x", "j.txt": b"x", "noext": b"x"}
    write_files(tmp_path, {**images, **others})
    (tmp_path / "deep" / "inside.zip").write_bytes(zip_with(0, tiles))
    plan = plan_of(tmp_path)
    loose = [uri for uri in plan.table["image_uri"].to_pylist() if "::" not in uri]
    assert sorted(loose) == sorted(str(tmp_path / name) for name in images)
    assert plan.table.num_rows == len(images) + len(tiles)
    assert plan.num_archives == 1
    passed = dict(plan.listing.passed_over)
    assert passed == {"hidden files": 2, "hidden folders": 2, ".txt files": 1, "files without an extension": 1}


def test_symbolic_links_are_followed_once_and_loops_end(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    elsewhere = write_files(tmp_path / "elsewhere", {"far.jpg": tiles["tile-00.jpg"]})
    folder = write_files(tmp_path / "in", {"near.jpg": tiles["tile-01.jpg"]})
    (folder / "loop").symlink_to(folder)
    (folder / "there").symlink_to(elsewhere)
    (folder / "linked.jpg").symlink_to(elsewhere / "far.jpg")
    (folder / "broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    plan = plan_of(folder)
    assert sorted(names(plan)) == ["broken.jpg", "far.jpg", "linked.jpg", "near.jpg"]
    status = dict(zip(names(plan), plan.table["status"].to_pylist(), strict=True))
    assert status == {"broken.jpg": "missing", "far.jpg": None, "linked.jpg": None, "near.jpg": None}


def test_names_that_are_no_utf8_are_images_all_the_same(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"Br\xfccke.jpg")
    with open(path, "wb") as file:
        file.write(tiles["tile-00.jpg"])
    plan = plan_of(tmp_path)
    assert names(plan) == ["Br\\xfccke.jpg"]
    assert list(contents(plan).values()) == [tiles["tile-00.jpg"]]


def test_odd_entries_of_a_folder_stop_nothing(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    write_files(tmp_path, {"a.jpg": tiles["tile-00.jpg"]})
    (tmp_path / "itself").symlink_to("itself")
    (tmp_path / "itself.jpg").symlink_to("itself.jpg")
    os.symlink(b"nowhere", os.path.join(os.fsencode(tmp_path), b"\xff.jpg"))
    with open(os.path.join(os.fsencode(tmp_path), b"x.\xff"), "wb"):
        pass
    os.mkfifo(tmp_path / "pipe.jpg")
    plan = plan_of(tmp_path)
    found = dict(zip(names(plan), contents(plan).values(), strict=True))
    assert found["a.jpg"] == tiles["tile-00.jpg"]
    assert found["\\xff.jpg"] == found["itself.jpg"] == "missing"
    for text in [*plan.listing.passed_over, *filter(None, plan.table["error"].to_pylist())]:
        text.encode()


def test_an_image_that_vanishes_under_a_name_that_is_no_utf8_is_missing(tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"\xff.jpg")
    with open(path, "wb") as file:
        file.write(b"x")
    plan = plan_of(tmp_path)
    os.unlink(path)
    assert list(contents(plan).values()) == ["missing"]


def test_two_objects_whose_shown_urls_are_the_same_are_two_images() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({"/twice/img[1].jpg": b"first", "/twice/img1.jpg": b"other"})
    plan = plan_of("memory://twice")
    assert contents(plan) == {"/twice/img[1].jpg": b"first", "/twice/img1.jpg": b"other"}
    from crackbatch.sources.members import Listing
    from crackbatch.sources.plan import _drop_repeated

    shown = pa.array(["https://host/get"] * 2)
    same = plan.table.set_column(0, "image_uri", shown).set_column(9, "version", pa.array(["1", "1"]))
    kept = _drop_repeated(pa.concat_tables([same, same]), Listing())
    assert kept["version"].to_pylist() == ["1", "1#2"]


@pytest.mark.parametrize("pattern", ["*.jpg", "**/*.jpg", "?.jpg", "[ab].jpg"])
def test_globs(tmp_path: Path, tiles: dict[str, bytes], pattern: str) -> None:
    write_files(tmp_path, {"a.jpg": b"1", "b.jpg": b"2", "sub/c.jpg": b"3", "d.txt": b"4"})
    expected = {"*.jpg": 2, "**/*.jpg": 3, "?.jpg": 2, "[ab].jpg": 2}[pattern]
    assert plan_of(tmp_path / pattern).table.num_rows == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("2026-*", "2026-01/a.jpg 2026-01/deep/b.jpg 2026-02/c.jpg 2026-03.jpg"),
        ("2026-*/", "2026-01/a.jpg 2026-01/deep/b.jpg 2026-02/c.jpg 2026-03.jpg"),
        ("*", "2026-01/a.jpg 2026-01/deep/b.jpg 2026-02/c.jpg 2026-03.jpg"),
        ("*/d*", "2026-01/deep/b.jpg"),
        ("2026-*/**", "2026-01/a.jpg 2026-01/deep/b.jpg 2026-02/c.jpg"),
        ("2026-*/*.jpg", "2026-01/a.jpg 2026-02/c.jpg"),
    ],
)
@pytest.mark.parametrize("where", ["here", "memory"])
def test_folders_that_a_glob_matches_are_entered(tmp_path: Path, pattern: str, expected: str, where: str) -> None:
    names = ["2026-01/a.jpg", "2026-01/deep/b.jpg", "2026-01/._d.jpg", "2026-02/c.jpg", "2026-03.jpg", ".git/e.jpg"]
    top = str(tmp_path)
    if where == "memory":
        top = f"memory://{tmp_path.name}-{where}"
        fsspec.filesystem("memory").pipe({f"{top}/{name}": b"1" for name in names})
    else:
        write_files(tmp_path, dict.fromkeys(names, b"1"))
    plan = plan_of(f"{top}/{pattern}")
    found = [uri.partition(f"{top.removeprefix('memory://')}/")[2] for uri in plan.table["image_uri"].to_pylist()]
    assert sorted(found) == expected.split()
    assert plan_of(f"{top}/{pattern}", top).table.num_rows == plan_of(top).table.num_rows


def test_a_folder_that_a_glob_matches_is_entered_once_whatever_links_to_it(tmp_path: Path) -> None:
    folder = write_files(tmp_path, {"in/2026-01/a.jpg": b"1", "in/2026-02/b.jpg": b"2"}) / "in"
    (folder / "2026-01" / "link").symlink_to(folder / "2026-02")
    (folder / "2026-03").symlink_to(folder / "2026-01")
    assert sorted(names(plan_of(folder / "2026-*"))) == sorted(names(plan_of(folder))) == ["a.jpg", "b.jpg"]


def test_a_folder_whose_name_looks_like_a_glob(tmp_path: Path) -> None:
    write_files(tmp_path / "photos [1]*", {"a.jpg": b"1"})
    assert plan_of(tmp_path / "photos [1]*").table.num_rows == 1


def test_sources_that_overlap_give_each_image_once(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    write_files(tmp_path, {"in/a.jpg": b"1", "in/b.jpg": b"2"})
    (tmp_path / "in" / "c.zip").write_bytes(zip_with(0, tiles))
    once = plan_of(tmp_path / "in")
    again = plan_of(tmp_path / "in", tmp_path / "in" / "a.jpg", tmp_path / "in" / "*.jpg", tmp_path / "in" / "c.zip")
    assert again.table.equals(once.table)
    assert again.listing.passed_over["images listed twice"] == 1 + 2 + len(tiles)


def test_a_manifests_columns_are_carried_whatever_else_names_its_images(
    tmp_path: Path, tiles: dict[str, bytes]
) -> None:
    folder = write_files(tmp_path / "photos", {"a.jpg": b"1", "b.jpg": b"2", "c.jpg": b"3"})
    (folder / "d.zip").write_bytes(zip_with(0, tiles))
    lines = [f"{folder}/b.jpg,7", f"zip://tile-03.jpg::{folder}/d.zip,8"]
    manifest = write_files(tmp_path, {"m.csv": "\n".join(["image_uri,pier", *lines]).encode()}) / "m.csv"
    for sources in ([manifest, folder], [folder, manifest], [folder / "*.jpg", folder / "d.zip", manifest]):
        plan = plan_of(*sources)
        piers = zip(plan.table["image_uri"].to_pylist(), plan.table["carried:pier"].to_pylist(), strict=True)
        assert [f"{uri},{pier}" for uri, pier in piers if pier] == lines
        assert plan.table.num_rows == 3 + len(tiles)
        assert plan.listing.passed_over["images listed twice"] == 2


def test_the_output_is_no_source(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_files(out / "runs" / "x", {"run.json": b"{}", "scratch/0.images": b"2", "plan/0": b"3"})
    write_files(out / "predictions" / "date=2026-11-20", {"x-00000.parquet": b"4"})
    write_files(tmp_path, {"a.jpg": b"1", "out/runs/pier/b.jpg": b"5", "out/predictions/c.jpg": b"6"})
    for source in (tmp_path, out):
        plan = plan_of(source, skip=[str(out)])
        names = {Path(uri).name for uri in plan.table["image_uri"].to_pylist()}
        assert names == {"a.jpg", "b.jpg", "c.jpg"} - ({"a.jpg"} if source == out else set())
        assert not plan.listing.passed_over, "what runs made is not even counted"
        assert not plan.listing.problems


def test_what_a_plan_reads_from_this_machine_is_known(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    folder, others = write_files(tmp_path / "in", tiles), write_files(tmp_path / "elsewhere" / "deep", tiles)
    archive = tar_of(tmp_path / "a.tar", tiles)
    compressed = tar_of(tmp_path / "b.tar.gz", tiles)
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/known/{name}": data for name, data in tiles.items()})

    def roots(*sources: Path | str, **options: object) -> list[str]:
        return local_roots(plan_of(*sources, **options).table, list(map(str, sources)))

    assert roots(folder, archive, folder / "*.jpg") == [str(folder), str(archive)]
    assert roots(compressed, scratch=str(tmp_path / "scratch")) == [str(tmp_path / "scratch")]
    lines = [f"{others}/tile-00.jpg", f"{others.parent}/gone/gone.jpg", "/nowhere/a.jpg", "memory://known/tile-01.jpg"]
    (tmp_path / "m.csv").write_text("\n".join(["image_uri", *lines]))
    assert roots(tmp_path / "m.csv") == [str(others)]
    (tmp_path / "n.csv").write_text("image_uri\nmemory://known/tile-01.jpg")
    assert roots(tmp_path / "n.csv") == []
    assert roots("memory://known") == []


@pytest.mark.parametrize("source", ["zip://tile-00.jpg::ARCHIVE", "zip://*.jpg::ARCHIVE", "TAR://tile-00.jpg::ARCHIVE"])
def test_a_source_inside_an_archive_is_refused_in_one_line(source: str, tmp_path: Path) -> None:
    named = source.replace("ARCHIVE", str(tmp_path / "a.zip"))
    with pytest.raises(
        SourceError, match=r"://.*a\.zip lies in an archive: name the archive, or list its images in a "
    ):
        check_sources(named)


@pytest.mark.parametrize("scheme", ["dir", "generic", "jupyter", "reference"])
def test_a_storage_that_a_url_alone_does_not_open_is_refused_in_one_line(scheme: str) -> None:
    with pytest.raises(SourceError, match=f"cannot read {scheme}://x: a URL alone does not open {scheme}://") as raised:
        plan_of(f"{scheme}://x")
    assert "\n" not in str(raised.value)


def test_a_scheme_may_be_in_capitals() -> None:
    fsspec.filesystem("memory").pipe("/capitals/a.jpg", b"1")
    assert contents(plan_of("MEMORY://capitals")) == {"/capitals/a.jpg": b"1"}


def test_every_uri_opens_its_image(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    folder = write_files(tmp_path / "in", tiles)
    (folder / "b.zip").write_bytes(zip_with(8, tiles))
    import subprocess

    for suffix in (".tar", ".tar.gz", ".tar.xz"):
        subprocess.run(["tar", "-caf", f"../c{suffix}", "tile-00.jpg", "tile-01.jpg"], cwd=folder, check=True)
        (tmp_path / f"c{suffix}").rename(folder / f"c{suffix}")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"bytes": list(tiles.values())}), folder / "d.parquet")
    plan = plan_of(folder, scratch=str(tmp_path / "scratch"))
    from crackbatch.sources.fetch import fetch

    for block in fetch(plan.table):
        for row in block.to_pylist():
            with fsspec.open(row["image_uri"], "rb") as file:
                assert file.read() == row["bytes"], row["image_uri"]


@pytest.mark.parametrize("kind", ["csv", "semicolons", "parquet"])
def test_a_manifest_names_images_and_carries_its_columns(tmp_path: Path, tiles: dict[str, bytes], kind: str) -> None:
    write_files(tmp_path, {"in/a.jpg": tiles["tile-00.jpg"], "in/b.jpg": tiles["tile-01.jpg"]})
    (tmp_path / "c.zip").write_bytes(zip_with(0, tiles))
    uris = ["in/a.jpg", str(tmp_path / "in/b.jpg"), f"zip://tile-05.jpg::{tmp_path}/c.zip", "in/gone.jpg",
            f"zip://none.jpg::{tmp_path}/c.zip"]  # fmt: skip
    frame = pd.DataFrame({"bridge": ["A7", "A8", "A9", "A10", "A11"], "image_uri": uris, "pier": [1, 2, 3, 4, 5]})
    path = tmp_path / ("m.parquet" if kind == "parquet" else "m.csv")
    if kind == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep=";" if kind == "semicolons" else ",")
    table = plan_of(path).table
    by_name = {row["image_uri"].split("/")[-1]: row for row in table.to_pylist()}
    assert by_name["a.jpg"]["carried:bridge"] == "A7"
    assert by_name["b.jpg"]["carried:pier"] == (2 if kind == "parquet" else "2")
    rows = {row["carried:bridge"]: row for row in table.to_pylist()}
    assert table.num_rows == 5
    assert rows["A9"]["image_uri"] == uris[2]
    assert rows["A10"]["status"] == rows["A11"]["status"] == "missing"


def test_looking_at_a_manifests_images_takes_less_than_a_kilobyte_of_memory_for_each(tmp_path: Path) -> None:
    def peak_of(lines: int) -> int:
        write_files(tmp_path, {"m.csv": b"image_uri\n" + b"/nowhere/a.jpg\n" * lines})
        tracemalloc.start()
        try:
            assert plan_of(tmp_path / "m.csv").listing.passed_over == {"images listed twice": lines - 1}
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak_of(24_000) - peak_of(12_000) < 12_000 * 1000


def test_a_csvs_columns_are_carried_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("image_uri,pier,state,note\na.jpg,007,NA,\nb.jpg,012,null,1e3\n")
    table = plan_of(tmp_path / "m.csv").table
    carried = {name: table[f"carried:{name}"].to_pylist() for name in ("pier", "state", "note")}
    assert carried == {"pier": ["007", "012"], "state": ["NA", "null"], "note": [None, "1e3"]}


def test_a_manifest_that_names_images_by_numbers_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"image_uri": [1, 2]}).to_parquet(tmp_path / "m.parquet")
    with pytest.raises(SourceError, match="is int64, not text"):
        plan_of(tmp_path / "m.parquet")


def test_categories_of_two_manifests_are_carried_as_their_values(tmp_path: Path) -> None:
    for name, sites in {"a": "xy", "b": "zqx"}.items():
        frame = pd.DataFrame({"image_uri": [f"{name}{row}.jpg" for row in range(300)]})
        frame["site"] = pd.Categorical([sites[row % len(sites)] for row in range(300)])
        frame.to_parquet(tmp_path / f"{name}.parquet")
    table = plan_of(tmp_path / "a.parquet", tmp_path / "b.parquet").table
    number = write_shards(table, str(tmp_path / "plan"))
    read = pa.concat_tables(read_shard(str(tmp_path / "plan"), index) for index in range(number))
    assert read["carried:site"].to_pylist() == [*"xy" * 150, *"zqx" * 100]


@pytest.mark.parametrize(
    ("archive", "status", "message"),
    [
        ("whole.zip", "missing", "has no member b.jpg"),
        ("cut.zip", "unreadable", "its directory cannot be read"),
        ("none.zip", "unreadable", "its directory cannot be read"),
        ("none.tar", "unreadable", "it breaks off"),
    ],
)
def test_a_member_that_a_manifest_names_and_its_archive_does_not_give_is_a_row(
    tmp_path: Path, tiles: dict[str, bytes], archive: str, status: str, message: str
) -> None:
    whole = zip_with(0, {"a.jpg": tiles["tile-00.jpg"]})
    write_files(tmp_path, {"whole.zip": whole, "cut.zip": whole[:-30], "none.zip": b"x" * 99, "none.tar": b"x" * 9999})
    (tmp_path / "m.csv").write_text(f"image_uri,pier\n{archive[-3:]}://b.jpg::{archive},7\n")
    (row,) = plan_of(tmp_path / "m.csv").table.to_pylist()
    assert row["status"] == status
    assert message in row["error"]
    assert row["carried:pier"] == "7"


def test_a_manifest_without_image_uri_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path,pier\na.jpg,1\n")
    with pytest.raises(SourceError, match=r"no column 'image_uri' \(its columns: path, pier\)"):
        plan_of(tmp_path / "m.csv")


@pytest.mark.parametrize(
    ("files", "source", "message"),
    [
        ({}, "nowhere", "no such file or folder"),
        ({"a.txt": b"x"}, ".", "none ends in"),
        ({"a.docx": b"x"}, "a.docx", "--extensions"),
        ({"a.zip": b"no zip at all"}, "a.zip", "directory cannot be read"),
        ({"a.tar": b"no tar at all" * 99}, "a.tar", "breaks off"),
        ({"a.parquet": b"no parquet"}, "a.parquet", "cannot be read"),
        ({"m.csv": b""}, "m.csv", "is empty"),
        ({"m.csv": "image_uri\nbrücke.jpg\n".encode("latin-1")}, "m.csv", "save it as CSV UTF-8"),
        ({"m.csv": b"image_uri,image_uri\na,b\n"}, "m.csv", "two columns of the same name"),
    ],
)
def test_sources_that_give_nothing_say_why(tmp_path: Path, files: dict[str, bytes], source: str, message: str) -> None:
    write_files(tmp_path, files)
    with pytest.raises(SourceError) as raised:
        plan_of(tmp_path / source)
    assert message in str(raised.value)
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_subtracting_what_is_done_leaves_the_rest_in_order(tmp_path: Path) -> None:
    write_files(tmp_path, {f"{index:03d}.jpg": b"x" for index in range(100)})
    table = plan_of(tmp_path).table
    done = table.take([3, 50, 99]).append_column("more", pa.array(["a", "b", "c"]))
    rest = subtract(table, done)
    assert rest.column("image_uri").to_pylist() == [
        uri for index, uri in enumerate(table.column("image_uri").to_pylist()) if index not in (3, 50, 99)
    ]
    changed = done.set_column(done.column_names.index("version"), "version", pa.array(["other"] * 3))
    assert subtract(table, changed).num_rows == 100


def test_shards_hold_every_row_once_and_row_groups_whole(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    write_files(tmp_path, {f"in/{index:04d}.jpg": b"x" for index in range(700)})
    pq.write_table(pa.table({"bytes": [b"y"] * 500}), tmp_path / "in" / "p.parquet", row_group_size=200)
    table = plan_of(tmp_path / "in").table
    num = write_shards(table, str(tmp_path / "plan"))
    shards = [read_shard(str(tmp_path / "plan"), index) for index in range(num)]
    assert pa.concat_tables(shards).to_pylist() == table.to_pylist()
    for shard in shards:
        groups = [group for group in shard["row_group"].unique().to_pylist() if group is not None]
        assert len(groups) <= 1 or len(shard) == sum(shard_sizes(shard))
    holders = [sum(shard["row_group"].to_pylist().count(group) > 0 for shard in shards) for group in range(3)]
    assert holders == [1, 1, 1]


def test_a_plan_that_is_given_up_reads_no_more_archives_and_leaves_the_scratch_alone(
    tmp_path: Path, tiles: dict[str, bytes]
) -> None:
    for number in range(40):
        (tmp_path / "in").mkdir(exist_ok=True)
        os.mkfifo(tmp_path / "in" / f"{number:02d}.tar.gz")
    listed = [Object(str(path), 1, "1", "tar.gz") for path in sorted((tmp_path / "in").iterdir())]
    archive = tar_of(tmp_path / "a.tar.gz", tiles).read_bytes()
    planner = _Planner(EXTENSIONS, str(tmp_path / "scratch"), threading.Event())
    for found in listed:
        planner.add(found)
    pipes = [open(found.location, "wb") for found in listed[:8]]  # noqa: SIM115  # each thread has opened its own
    stopping = threading.Thread(target=planner.stop)
    stopping.start()
    ticks = threading.Event()
    while not planner._is_stopped:
        ticks.wait(0.01)
    for pipe in pipes:
        with suppress(BrokenPipeError), pipe:  # it is not read to its end
            pipe.write(archive)
    stopping.join(30)
    assert not stopping.is_alive()
    assert list((tmp_path / "scratch").iterdir()) == []
    with pytest.raises(OSError, match="No such device"):
        os.open(listed[8].location, os.O_WRONLY | os.O_NONBLOCK)  # nobody reads it


def test_a_source_that_is_absent_ends_the_planning_of_those_before_it(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    write_files(tmp_path / "in", {f"{number:03d}.tar.gz": b"" for number in range(300)})
    (tmp_path / "in" / "000.tar.gz").write_bytes(tar_of(tmp_path / "a.tar.gz", tiles).read_bytes())
    before = threading.active_count()
    with pytest.raises(SourceError, match="no such file or folder"):
        plan_of(tmp_path / "in", tmp_path / "nowhere", scratch=str(tmp_path / "scratch"))
    assert threading.active_count() == before
