"""The files below a folder are listed and no others, and what cannot be listed is not taken for empty."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
import s3fs

from builders.archives import zip_with
from builders.faulty import Faults, FaultyProxy
from builders.plans import contents
from builders.servers import Place
from crackbatch.images.formats import EXTENSIONS
from crackbatch.sources.fetch import fetch
from crackbatch.sources.plan import make_plan
from crackbatch.storage import atomic, objects, retry


def test_a_name_with_colons_is_no_chain_of_storages(place: Place, tiles: dict[str, bytes]) -> None:
    root = objects.filesystem(place.url)[1]
    place.filesystem.pipe_file(f"{root}/colons/span::3.jpg", tiles["tile-00.jpg"])
    place.filesystem.pipe_file(f"{root}/colons/span::3.zip", zip_with(8, tiles))
    plan = make_plan([f"{place.url}/colons"], EXTENSIONS)
    fetched = [data for block in fetch(plan.table) for data in block["bytes"].to_pylist()]
    assert sorted(fetched) == sorted([tiles["tile-00.jpg"], *tiles.values()])
    atomic.write_whole(f"{place.url}/colons/a::b/c.json", b"{}")
    assert objects.list_files(f"{place.url}/colons/a::b") == [f"{place.url}/colons/a::b/c.json"]


def check_listing(base: str) -> None:
    for name in ("r/a.json", "r/deep/b.json", "r/deep/er/c.txt", "r1/d.json", "r.json"):
        atomic.write_whole(f"{base}/{name}", name.encode())
    assert objects.list_files(f"{base}/r", ".json") == [f"{base}/r/a.json", f"{base}/r/deep/b.json"]
    assert objects.list_files(f"{base}/r", recursive=False) == [f"{base}/r/a.json"]
    assert objects.list_sizes(f"{base}/r") == {"a.json": 8, "deep/b.json": 13, "deep/er/c.txt": 15}
    assert objects.list_files(f"{base}/nothing") == objects.list_files(f"{base}/nothing", recursive=False) == []


def test_the_files_below_a_folder_are_listed_and_no_others(place: Place) -> None:
    check_listing(f"{place.url}/listed")


@pytest.mark.parametrize("scheme", ["", "memory:/"])
def test_the_files_below_a_folder_here_are_listed_and_no_others(tmp_path: Path, scheme: str) -> None:
    check_listing(f"{scheme}{tmp_path}")


def test_a_folder_that_cannot_be_listed_is_not_taken_for_empty(tmp_path: Path) -> None:
    atomic.write_whole(str(tmp_path / "runs/a.json"), b"x")
    lowest = os.dup(0)
    os.close(lowest)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))  # no further file or folder can be opened
    try:
        with pytest.raises(OSError, match="Too many open files"):
            objects.list_files(str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("recursive", [True, False])
def test_a_bucket_that_cannot_be_listed_is_asked_again_and_not_taken_for_empty(
    s3: str, monkeypatch: pytest.MonkeyPatch, recursive: bool
) -> None:
    monkeypatch.setattr(retry, "_MAX_PAUSE_S", 0.01)
    atomic.write_whole("s3://inspections/unlisted/r/a.json", b"x")
    for faults, error in ((Faults(share=1.0, kinds=("503",)), OSError), (Faults(denied="list-type"), PermissionError)):
        before = retry.num_retries()
        with FaultyProxy(s3, faults) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            s3fs.S3FileSystem.clear_instance_cache()
            with pytest.raises(error):
                objects.list_files("s3://inspections/unlisted/r", recursive=recursive)
        assert (retry.num_retries() > before) == (error is OSError)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    s3fs.S3FileSystem.clear_instance_cache()


def test_an_account_in_a_url_stays_in_the_names_of_its_objects(azure: str, tiles: dict[str, bytes]) -> None:
    filesystem, root = objects.filesystem(f"{azure}/account")
    filesystem.pipe({f"{root}/{name}": data for name, data in tiles.items()})
    for url in (
        "abfss://inspections@tests.dfs.core.windows.net/account",
        "az://inspections@tests.blob.core.windows.net/account",
    ):
        plan = make_plan([url], EXTENSIONS)
        assert plan.table["image_uri"].to_pylist() == [f"{url}/{name}" for name in sorted(tiles)]
        assert sorted(contents(plan).values()) == sorted(tiles.values())
        assert objects.list_files(url) == [f"{url}/{name}" for name in sorted(tiles)]
