"""Every image in the sources is one row of the plan, in one order, whatever the sources look like."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from builders.archives import tar_of, write_files, zip_with
from builders.plans import contents, plan_of
from crackbatch.archives.members import Object
from crackbatch.errors import SourceError
from crackbatch.images.formats import EXTENSIONS
from crackbatch.sources.plan import _Planner, local_roots, subtract


def test_the_plan_has_the_order_of_names_and_is_the_same_each_time(listed_bucket: str) -> None:
    first = plan_of(listed_bucket, skip=[f"{listed_bucket}/results"])
    uris = first.table["image_uri"].to_pylist()
    assert uris == sorted(uris)
    assert len(uris) == len(set(uris)) == 140 + 10 + 2100 + 8 + 2
    assert dict(first.listing.passed_over) == {"hidden files": 2, ".txt files": 1, "files without an extension": 1}
    assert plan_of(listed_bucket, skip=[f"{listed_bucket}/results"]).table.equals(first.table)


def test_two_objects_whose_shown_urls_are_the_same_are_two_images() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({"/twice/img[1].jpg": b"first", "/twice/img1.jpg": b"other"})
    plan = plan_of("memory://twice")
    assert contents(plan) == {"/twice/img[1].jpg": b"first", "/twice/img1.jpg": b"other"}
    from crackbatch.archives.members import Listing
    from crackbatch.sources.plan import _drop_repeated

    shown = pa.array(["https://host/get"] * 2)
    same = plan.table.set_column(0, "image_uri", shown).set_column(9, "version", pa.array(["1", "1"]))
    kept = _drop_repeated(pa.concat_tables([same, same]), Listing())
    assert kept["version"].to_pylist() == ["1", "1#2"]


def test_sources_that_overlap_give_each_image_once(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    write_files(tmp_path, {"in/a.jpg": b"1", "in/b.jpg": b"2"})
    (tmp_path / "in" / "c.zip").write_bytes(zip_with(0, tiles))
    once = plan_of(tmp_path / "in")
    again = plan_of(tmp_path / "in", tmp_path / "in" / "a.jpg", tmp_path / "in" / "*.jpg", tmp_path / "in" / "c.zip")
    assert again.table.equals(once.table)
    assert again.listing.passed_over["images listed twice"] == 1 + 2 + len(tiles)


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


@pytest.mark.parametrize(
    ("files", "source", "message"),
    [
        ({}, "nowhere", "no such file or folder"),
        ({"a.txt": b"x"}, ".", "found only 1 .txt files; images end in .jpg, "),
        ({".a.jpg": b"x", "b.txt": b"x", ".c.jpg": b"x"}, ".", "found only 2 hidden files, 1 .txt files; "),
        ({}, ".", "found no files; "),
        ({"a.docx": b"x"}, "a.docx", "--extensions"),
        ({"a.zip": b"no zip at all"}, "a.zip", "directory cannot be read"),
        ({"a.tar": b"no tar at all" * 99}, "a.tar", "is damaged or cut off"),
        ({"a.parquet": b"no parquet"}, "a.parquet", "cannot be read"),
        ({"m.csv": b""}, "m.csv", "is empty"),
        ({"m.csv": "image_uri\nbrücke.jpg\n".encode("latin-1")}, "m.csv", "save it as CSV UTF-8"),
        ({"m.csv": b"image_uri,image_uri\na,b\n"}, "m.csv", "two columns with the same name"),
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
