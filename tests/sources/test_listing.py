"""What a user names gives the images that lie there, each once, or one line that says why not."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders.archives import write_files, zip_with
from builders.credentials import ACCOUNT_KEY, KEY
from builders.faulty import Faults
from builders.plans import contents, fetch_all, names, plan_of
from builders.processes import CRACKBATCH
from builders.servers import Place, put, refusing, serving
from crackbatch.archives.members import Listing
from crackbatch.errors import RunError, SourceError
from crackbatch.images.formats import EXTENSIONS
from crackbatch.sources.listing import check_sources, list_source
from crackbatch.sources.plan import make_plan
from crackbatch.storage import atomic, locations, objects


@pytest.mark.parametrize(
    ("fault", "after", "error", "message"),
    [
        ("expired", 0, RunError, "The provided token has expired.*renew them and run again"),
        ("expired", 2, RunError, "The provided token has expired.*renew them and run again"),
        ("503", 0, RunError, "cannot read s3://.*; run again"),
        ("denied", 0, SourceError, "cannot read s3://.*not for your eyes"),
    ],
)
def test_a_bucket_that_cannot_be_listed_to_its_end_is_no_mistake_of_the_request(
    fault: str,
    after: int,
    error: type[Exception],
    message: str,
    s3: str,
    bucket: str,
    through: Callable[[Faults], None],
) -> None:
    for number in range(3):
        put(s3, f"{bucket}/{number}/{number}.jpg", b"x")
    through(
        {
            "expired": Faults(expires_after=after),
            "503": Faults(kinds=("503",), share=1),
            "denied": Faults(denied="prefix="),
        }[fault]
    )
    with pytest.raises(error, match=message):
        list(list_source(f"s3://inspections/{bucket}", EXTENSIONS, Listing()))


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize(
    ("answer", "times", "error"),
    [
        (403, 999, SourceError(r"cannot read http.*/a\.jpg: 403, message='Forbidden'")),
        (404, 999, SourceError(r"no such object or prefix: http.*/a\.jpg")),
        (503, 3, None),
        (503, 999, RunError(r"cannot read http.*/a\.jpg: 503, message='Service Unavailable'.*; run again")),
    ],
)
def test_what_a_web_server_says_of_an_image_that_is_named_is_said(
    answer: int, times: int, error: Exception | None, tmp_path: Path, tiles: dict[str, bytes]
) -> None:
    folder = write_files(tmp_path / "www", {"a.jpg": tiles["tile-00.jpg"]})
    with serving(folder, refusing("/a.jpg", answer, times)) as base:
        if error is None:
            assert [row["bytes"] for row in fetch_all(make_plan([f"{base}/a.jpg"], EXTENSIONS))] == [
                tiles["tile-00.jpg"]
            ]
        else:
            with pytest.raises(type(error), match=str(error)):
                make_plan([f"{base}/a.jpg"], EXTENSIONS)


@pytest.mark.parametrize(
    ("pattern", "number"),
    [("*.jpg", 1), ("*.*", 3), ("many/*.jpg", 10), ("many/day-00?/1.jpg", 10), ("many/day-0[01]*/*.jpg", 40),
     ("**/0.jpg", 70), ("a/**/*.jpg", 2), ("large/0000*", 10), ("nowhere/*.jpg", 0)],
)  # fmt: skip
def test_globs_give_the_images_that_fsspec_gives(listed_bucket: str, pattern: str, number: int) -> None:
    filesystem, path = objects.filesystem(f"{listed_bucket}/{pattern}")
    expected = [f"s3://{name}" for name in filesystem.glob(path) if filesystem.isfile(name) and "/._" not in name]
    images = [uri for uri in expected if uri.lower().endswith((".jpg", ".png"))]
    assert len(images) == number
    if number:
        assert plan_of(f"{listed_bucket}/{pattern}").table["image_uri"].to_pylist() == sorted(images)
    else:
        with pytest.raises(SourceError, match="no images in"):
            plan_of(f"{listed_bucket}/{pattern}")


@pytest.mark.parametrize(
    ("pattern", "folders", "number"),
    [("many/day-00*", ["many/day-00"], 22), ("a*", ["a.", "a/", "a-b"], 5),
     ("?/b", ["a/b/"], 1), ("*", [""], 2260)],
)  # fmt: skip
def test_folders_that_a_glob_matches_are_entered_and_no_image_is_listed_twice(
    listed_bucket: str, pattern: str, folders: list[str], number: int
) -> None:
    everything = plan_of(listed_bucket).table["image_uri"].to_pylist()
    expected = [uri for uri in everything if uri.startswith(tuple(f"{listed_bucket}/{folder}" for folder in folders))]
    assert len(expected) == number
    assert plan_of(f"{listed_bucket}/{pattern}").table["image_uri"].to_pylist() == expected


@pytest.mark.parametrize("source", ["s3://listed/nothing", "s3://listed/nothing.jpg", "s3://no-such-bucket/x"])
def test_a_prefix_without_objects_is_an_error(listed_bucket: str, source: str) -> None:
    with pytest.raises(SourceError, match=r"no such object or prefix|cannot read") as raised:
        plan_of(source)
    assert source in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_folder_with_everything_in_it(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    data = tiles["tile-00.jpg"]
    images = {"a.JPG": data, "deep/er/b.jpeg": data, "c.TIFF": data, "d.jpe": data, "e.heic": data}
    images |= {"f.jfif": data, "g.JP2": data, "h.hif": data, "i.dib": data, "@2x.jpg": data, "recycle/j.jpg": data}
    others = {".f.jpg": b"x", "._g.jpg": b"x", "__MACOSX/h.jpg": b"x", ".git/i.jpg": b"x", "j.txt": b"x", "noext": b"x"}
    others |= {"@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg": b"x", "#recycle/k.jpg": b"x", "$RECYCLE.BIN/S-1/$RA.JPG": b"x"}
    others |= {"System Volume Information/l.jpg": b"x", "m.DNG": b"x", "n.dng": b"x", "o.NEF": b"x"}
    write_files(tmp_path, {**images, **others})
    (tmp_path / "deep" / "inside.zip").write_bytes(zip_with(0, tiles))
    plan = plan_of(tmp_path)
    loose = [uri for uri in plan.table["image_uri"].to_pylist() if "::" not in uri]
    assert sorted(loose) == sorted(str(tmp_path / name) for name in images)
    assert plan.table.num_rows == len(images) + len(tiles)
    assert plan.num_archives == 1
    passed = dict(plan.listing.passed_over)
    raws = {f"{name} files (camera raws: export JPEGs from them)": num for name, num in ((".dng", 2), (".nef", 1))}
    others = {"hidden files": 2, "hidden folders": 6, ".txt files": 1, "files without an extension": 1}
    assert passed == {**others, **raws}


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


@pytest.mark.parametrize("source", ["zip://tile-00.jpg::ARCHIVE", "zip://*.jpg::ARCHIVE", "TAR://tile-00.jpg::ARCHIVE"])
def test_a_source_inside_an_archive_is_refused_in_one_line(source: str, tmp_path: Path) -> None:
    named = source.replace("ARCHIVE", str(tmp_path / "a.zip"))
    with pytest.raises(SourceError, match=r"://.*a\.zip is inside an archive; give the archive or a manifest of its "):
        check_sources(named)


@pytest.mark.parametrize("scheme", ["dir", "generic", "jupyter", "reference"])
def test_a_storage_that_a_url_alone_does_not_open_is_refused_in_one_line(scheme: str) -> None:
    with pytest.raises(SourceError, match=f"cannot read {scheme}://x: a URL alone does not open {scheme}://") as raised:
        plan_of(f"{scheme}://x")
    assert "\n" not in str(raised.value)


def test_a_scheme_may_be_in_capitals() -> None:
    fsspec.filesystem("memory").pipe("/capitals/a.jpg", b"1")
    assert contents(plan_of("MEMORY://capitals")) == {"/capitals/a.jpg": b"1"}


def test_a_connection_string_given_for_a_source_is_not_shown(tmp_path: Path) -> None:
    for source in (
        f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={KEY}",
        f"{tmp_path}/AccountKey={KEY}.txt",
    ):
        with pytest.raises(SourceError) as raised:
            make_plan([source], EXTENSIONS)
        assert KEY not in str(raised.value)


LAYOUTS = {
    "above": ("photos", "."),
    "equal": ("photos", "photos"),
    "below": ("photos", "photos/out"),
    "above what is called like it": ("runs/photos", "."),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_of_an_output_that_a_source_holds_only_what_runs_wrote_is_no_image(
    layout: str, out: str, tmp_path: Path, tiles: dict[str, bytes]
) -> None:
    source, results = (locations.normalize(f"{out}/{part}".removesuffix("/.")) for part in LAYOUTS[layout])
    images = [f"{source}/a.jpg", f"{source}/b/runs/c.jpg", f"{results}/photos/d.jpg", f"{source}/predictions.jpg"]
    images += [f"{results}/runs/pier 7/e.jpg", f"{results}/predictions/f.jpg"]
    for image in images:
        atomic.write_whole(image, tiles["tile-00.jpg"])
    before = make_plan([source], EXTENSIONS, [results]).table
    assert set(before["image_uri"].to_pylist()) == {image for image in images if image.startswith(f"{source}/")}
    pq.write_table(pa.table({"bytes": [tiles["tile-01.jpg"]]}), tmp_path / "r.parquet")
    for name in (
        "runs/r/scratch/0.images",
        "runs/r/run.json",
        "predictions/date=2026-01-01/r-00000.parquet",
        "maps/date=2026-01-01/r-00000.parquet",
    ):
        atomic.write_whole(f"{results}/{name}", (tmp_path / "r.parquet").read_bytes())
    assert make_plan([source], EXTENSIONS, [results]).table.equals(before)


@pytest.mark.parametrize("name", ["/nothing", "/nothing/*.jpg", "-no-such-bucket/lot"])
def test_a_source_that_is_not_there_is_an_error_of_one_line(place: Place, name: str) -> None:
    source = f"{place.url.removesuffix('/storage')}{name}"
    with pytest.raises(SourceError) as raised:
        make_plan([source], EXTENSIONS)
    assert source in str(raised.value)
    assert "\n" not in str(raised.value)
    assert ACCOUNT_KEY not in str(raised.value)


def test_a_wrong_key_is_refused_in_one_line_that_does_not_show_it(azure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = os.environ["AZURE_STORAGE_CONNECTION_STRING"]
    for wrong in (right.replace(ACCOUNT_KEY, KEY), right.replace(f"AccountKey={ACCOUNT_KEY}", f"AccountKey {KEY}")):
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", wrong)
        fsspec.get_filesystem_class("abfs").clear_instance_cache()
        with pytest.raises(SourceError) as raised:
            make_plan([f"{azure}/lot"], EXTENSIONS)
        assert "\n" not in str(raised.value)
        assert KEY not in str(raised.value)
    fsspec.get_filesystem_class("abfs").clear_instance_cache()


def test_a_bucket_without_any_credentials_says_so(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}
    command = [CRACKBATCH, "score", "s3://nobucket/", "--out", str(tmp_path / "out"), "--dry-run"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "there are no credentials for s3://nobucket" in line
    assert "renew" not in line
