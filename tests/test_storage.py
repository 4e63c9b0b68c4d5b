"""The same images give the same table from every storage, with the results on it; no credential is shown anywhere."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, quote

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from azure.storage.blob import generate_container_sas

import crackbatch
from conftest import ACCOUNT_KEY, SECRET
from crackbatch.errors import OutputError, SourceError
from crackbatch.images.formats import EXTENSIONS
from crackbatch.models.bundle import DEFAULT_MODEL
from crackbatch.models.model import load_model
from crackbatch.sources.fetch import fetch
from crackbatch.sources.plan import make_plan
from crackbatch.storage import atomic, locations, objects, retry
from crackbatch.storage.buckets import list_objects
from crackbatch.storage.redaction import redact
from faulty import Faults, FaultyProxy
from test_archive import contents, zip_with

CRACKBATCH = str(Path(sys.executable).with_name("crackbatch"))
KEY = "bm90LWEtcmVhbC1rZXktYnV0LWFzLWxvbmctYXMtb25lLW9mLWF6dXJl"
SIGNATURE = "c2lnbmF0dXJlLW9mLW5vLXVzZS10by1hbnlib2R5%3D"
TOKEN = "ya29.a0no-token-of-anybody"


@pytest.mark.parametrize(
    ("shown", "left"),
    [
        ("s3://bucket/a.jpg", "s3://bucket/a.jpg"),
        ("s3://bucket/sig=1/token=2/a.jpg", "s3://bucket/sig=1/token=2/a.jpg"),
        (f"s3://{KEY}@bucket/a.jpg", "s3://bucket/a.jpg"),
        (f"https://user:{KEY}@host/a.jpg", "https://host/a.jpg"),
        (f"https://o'{KEY}@host/a.jpg", "https://host/a.jpg"),
        (f"https://host/a.jpg?X-Amz-Signature={SIGNATURE}&size=2", "https://host/a.jpg?size=2"),
        (f"zip://m.jpg::https://host/a.zip?sig={SIGNATURE}&sv=1", "zip://m.jpg::https://host/a.zip?sv=1"),
        (f"abfs://c/a.jpg?sv=2024&sig={SIGNATURE}", "abfs://c/a.jpg?sv=2024"),
        ("abfss://c@account.dfs.core.windows.net/a.jpg", "abfss://c@account.dfs.core.windows.net/a.jpg"),
        ("az://c@account.blob.core.windows.net/a.jpg", "az://c@account.blob.core.windows.net/a.jpg"),
        (f"abfs://c:{KEY}@account.dfs.core.windows.net/a", "abfs://c@account.dfs.core.windows.net/a"),
        (f"gs://bucket/a.jpg?access_token={TOKEN}", "gs://bucket/a.jpg"),
        (f"refused: AccountName=a;AccountKey={KEY}==;X=1", "refused: AccountName=a;AccountKey=***;X=1"),
        (f"BlobEndpoint=https://a.net/;SharedAccessSignature=sv=1&sig={SIGNATURE};", None),
        (f"SharedAccessSignature=sv=2024&sig={SIGNATURE}", "SharedAccessSignature=***"),
        (f"no container for ?sv=2024&sig={SIGNATURE}&se=2", "no container for ?sv=2024&sig=***&se=2"),
        (f"401, Authorization: Bearer {TOKEN}", "401, Authorization: Bearer ***"),
        (f"{{'access_token': '{TOKEN}', 'expires': 3}}", "{'access_token': '***', 'expires': 3}"),
        (f'{{"private_key": "-----BEGIN PRIVATE KEY-----\\n{KEY}\\n"}}', '{"private_key": "***"}'),
    ],
)
def test_credentials_are_taken_out_of_what_is_shown(shown: str, left: str | None) -> None:
    found = redact(shown)
    assert not any(secret in found for secret in (KEY, SIGNATURE, TOKEN))
    if left is not None:
        assert found == left


@pytest.mark.parametrize(
    "location", ["s3://b/Load Bearer of-the-northern-span.jpg", "s3://b/a sig=0123456789abcdefgh.jpg", "s3://b/sig=1/a"]
)
def test_a_name_that_looks_like_a_credential_still_opens(location: str) -> None:
    assert locations.public(location) == location


@pytest.mark.parametrize(
    ("path", "like", "location"),
    [
        ("b/deck/a.jpg", "s3://b/deck", "s3://b/deck/a.jpg"),
        ("b1/a.jpg", "gs://b*/a.jpg", "gs://b1/a.jpg"),
        ("/deck/a.jpg", "ftp://user@host:2121/deck", "ftp://user@host:2121/deck/a.jpg"),
        ("/deck/a.jpg", "sftp://host/deck", "sftp://host/deck/a.jpg"),
        ("deck/a.jpg", "github://owner:repo@main/deck", "github://owner:repo@main/deck/a.jpg"),
        ("c/a.jpg", "abfs://c@account.dfs.core.windows.net/", "abfs://c@account.dfs.core.windows.net/a.jpg"),
        ("https://host/a.jpg", "https://host/", "https://host/a.jpg"),
        ("b/crawl/https://host/a.jpg", "s3://b/crawl", "s3://b/crawl/https://host/a.jpg"),
    ],
)
def test_what_a_storage_lists_is_located_on_the_host_it_was_listed_on(path: str, like: str, location: str) -> None:
    assert locations.locate(path, like) == location


@pytest.mark.parametrize(
    ("location", "name"),
    [
        ("/deck/a?b/c#1.jpg", "c#1.jpg"),
        ("s3://b/deck/a?b/c#1.jpg", "c#1.jpg"),
        ("https://host/deck/a.jpg?b/c#1.jpg", "a.jpg"),
        ("https://host/a.jpg#b/c.zip", "a.jpg"),
        ("https://host.zip?a.jpg", ""),
        ("https://[host/a.zip?b", "a.zip"),
    ],
)
def test_the_name_of_a_file_ends_before_the_query_of_a_url(location: str, name: str) -> None:
    assert locations.file_name(location) == name


def test_a_connection_string_given_for_a_source_is_not_shown(tmp_path: Path) -> None:
    for source in (
        f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={KEY}",
        f"{tmp_path}/AccountKey={KEY}.txt",
    ):
        with pytest.raises(SourceError) as raised:
            make_plan([source], EXTENSIONS)
        assert KEY not in str(raised.value)


class Place(NamedTuple):
    """A bucket that holds images as a folder `lot`, as `lot.zip`, and a model bundle as `model`."""

    url: str
    filesystem: fsspec.AbstractFileSystem


@pytest.fixture(scope="module", params=["s3", "azure", "google"])
def place(request: pytest.FixtureRequest, tiles: dict[str, bytes]) -> Place:
    url = "s3://inspections" if request.param == "s3" else request.getfixturevalue(request.param)
    request.getfixturevalue(request.param)
    url += "/storage"
    filesystem, root = objects.filesystem(url)
    placed = {f"lot/span-{index % 3}/{name}": data for index, (name, data) in enumerate(tiles.items())}
    model = Path(crackbatch.__file__).parent / "models" / DEFAULT_MODEL
    placed |= {f"model/{file.name}": file.read_bytes() for file in model.iterdir()}
    for name, data in {
        **placed,
        "lot.zip": zip_with(8, tiles),
        "lot/notes.txt": b"x",
        "lot/.hidden.jpg": b"x",
    }.items():
        filesystem.pipe_file(f"{root}/{name}", data)
    return Place(url, filesystem)


def test_planned_and_fetched_to_the_same_bytes(place: Place, tiles: dict[str, bytes]) -> None:
    plan = make_plan([f"{place.url}/lot", f"{place.url}/lot.zip"], EXTENSIONS)
    assert plan.table.num_rows == 2 * len(tiles)
    assert dict(plan.listing.passed_over) == {"hidden files": 1, ".txt files": 1}
    fetched = [data for block in fetch(plan.table) for data in block["bytes"].to_pylist()]
    assert sorted(fetched) == sorted([*tiles.values()] * 2)
    for uri in plan.table["image_uri"].to_pylist()[:: len(tiles) // 2]:
        with fsspec.open(uri) as file:
            assert file.read() == tiles[uri.partition("::")[0].rsplit("/", 1)[-1]]


def test_a_name_with_colons_is_no_chain_of_storages(place: Place, tiles: dict[str, bytes]) -> None:
    root = objects.filesystem(place.url)[1]
    place.filesystem.pipe_file(f"{root}/colons/span::3.jpg", tiles["tile-00.jpg"])
    place.filesystem.pipe_file(f"{root}/colons/span::3.zip", zip_with(8, tiles))
    plan = make_plan([f"{place.url}/colons"], EXTENSIONS)
    fetched = [data for block in fetch(plan.table) for data in block["bytes"].to_pylist()]
    assert sorted(fetched) == sorted([tiles["tile-00.jpg"], *tiles.values()])
    atomic.write_whole(f"{place.url}/colons/a::b/c.json", b"{}")
    assert objects.list_files(f"{place.url}/colons/a::b") == [f"{place.url}/colons/a::b/c.json"]


def test_many_pages_of_folders_are_listed_as_the_storage_does_with_each_objects_version(
    place: Place,
) -> None:
    root = objects.filesystem(place.url)[1]
    names = [f"{root}/many/{number:04d}/{number // 200}/{number % 23:02d}.jpg" for number in range(1100)]
    place.filesystem.pipe(dict.fromkeys(names, b"x"))
    found = {entry.path: entry for page in list_objects(place.filesystem, f"{root}/many") for entry in page}
    assert sorted(found) == sorted(names)
    for name in names[::100]:
        place.filesystem.invalidate_cache()
        assert found[name].version == locations.version(place.filesystem.info(name))
        assert found[name].size == 1


@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize(
    "place",
    ["s3", pytest.param("azure", marks=pytest.mark.slow), pytest.param("google", marks=pytest.mark.slow)],
    indirect=True,
)
def test_scored_with_results_and_model_on_the_same_storage(place: Place, tiles: dict[str, bytes]) -> None:
    out = f"{place.url}/results"
    asked = ([f"{place.url}/lot", f"{place.url}/lot.zip"], out)
    summary = crackbatch.score(*asked, model=f"{place.url}/model")
    assert summary.statuses == {"ok": 2 * len(tiles)}
    table = crackbatch.read_predictions(out)
    assert sorted(table["image_uri"]) == sorted(make_plan(asked[0], EXTENSIONS).table["image_uri"].to_pylist())
    assert (table.groupby("sha256")["crack_logit"].count() == 2).all()
    assert (table.groupby("sha256")["crack_logit"].std() < 1e-4).all()
    assert set(table["model_id"]) == {load_model(DEFAULT_MODEL).bundle.model_id}
    before = written(place, out)
    assert crackbatch.score(*asked, model=f"{place.url}/model").added == 0
    assert written(place, out) == before
    assert {name.rsplit("/", 1)[-1] for name in before if "/runs/" in name} == {"run.json", "summary.json"}
    for secret in (SECRET, ACCOUNT_KEY):
        assert not table.astype(str).apply(lambda column, secret=secret: column.str.contains(secret)).any(axis=None)
        assert not [name for name, data in before.items() if secret.encode() in data]


def written(place: Place, out: str) -> dict[str, bytes]:
    """Every object of the results, but not those of a run that is under way."""
    return {name: objects.read_bytes(name) for name in objects.list_files(out)}


def test_an_object_is_created_only_where_there_is_none(place: Place) -> None:
    path = objects.filesystem(f"{place.url}/created")[1]
    place.filesystem.pipe_file(path, b"first", mode="create")
    with pytest.raises(FileExistsError):
        place.filesystem.pipe_file(path, b"second", mode="create")
    place.filesystem.invalidate_cache()
    assert place.filesystem.cat_file(path) == b"first"


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
    for name in ("runs/r/scratch/0.images", "runs/r/run.json", "predictions/date=2026-01-01/r-00000.parquet"):
        atomic.write_whole(f"{results}/{name}", (tmp_path / "r.parquet").read_bytes())
    assert make_plan([source], EXTENSIONS, [results]).table.equals(before)


@pytest.mark.usefixtures("ray_here", "s3")
def test_scoring_a_prefix_into_itself_again_adds_nothing(tiles: dict[str, bytes]) -> None:
    out = "s3://inspections/itself"
    atomic.write_whole(f"{out}/a.jpg", tiles["tile-00.jpg"])
    assert [crackbatch.score(out, out, date="2026-01-01").added for _ in range(2)] == [1, 0]


@pytest.mark.parametrize("name", ["/nothing", "/nothing/*.jpg", "-no-such-bucket/lot"])
def test_a_source_that_is_not_there_is_an_error_of_one_line(place: Place, name: str) -> None:
    source = f"{place.url.removesuffix('/storage')}{name}"
    with pytest.raises(SourceError) as raised:
        make_plan([source], EXTENSIONS)
    assert source in str(raised.value)
    assert "\n" not in str(raised.value)
    assert ACCOUNT_KEY not in str(raised.value)


def test_results_in_a_bucket_that_is_not_there_are_refused_in_one_line(place: Place) -> None:
    out = f"{place.url.removesuffix('/storage')}-no-such-bucket/results"
    with pytest.raises(OutputError, match=r"does not exist|no such bucket") as raised:
        atomic.check_output(out)
    assert out in str(raised.value)
    assert "\n" not in str(raised.value)


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


@pytest.mark.parametrize("kind", ["s3", "azure", "google"])
def test_a_storage_that_lets_nobody_read_the_results_is_one_line(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, tiles: dict[str, bytes]
) -> None:
    given = request.getfixturevalue(kind)
    url = "s3://inspections" if kind == "s3" else given
    variable = {"s3": "AWS_ENDPOINT_URL", "azure": "AZURE_STORAGE_CONNECTION_STRING", "google": "STORAGE_EMULATOR_HOST"}
    known = os.environ[variable[kind]]
    base = re.search(r"http://127\.0\.0\.1:\d+", known)
    assert base is not None
    (tmp_path / "a.jpg").write_bytes(tiles["tile-00.jpg"])
    with FaultyProxy(base[0], Faults(denied="run.json")) as proxy:
        done = subprocess.run(
            [CRACKBATCH, "score", str(tmp_path / "a.jpg"), "--out", f"{url}/refused", "--date", "2026-01-01"],
            env={**os.environ, variable[kind]: known.replace(base[0], proxy.url)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert re.match(rf"crackbatch: cannot read the runs in {url}/refused: .*(Forbidden|not for your eyes)", line)


@pytest.mark.usefixtures("ray_here", "google")
def test_a_shared_access_signature_is_in_no_row_and_no_file_of_a_run(
    azure: str, tiles: dict[str, bytes], tmp_path: Path
) -> None:
    filesystem, root = objects.filesystem(f"{azure}/signed")
    placed = {"a.jpg": tiles["tile-00.jpg"], "b.zip": zip_with(8, tiles), "damaged.zip": b"no zip at all"}
    filesystem.pipe({f"{root}/{name}": data for name, data in placed.items()})
    until = datetime.now(UTC) + timedelta(hours=1)
    signed = generate_container_sas("tests", "inspections", account_key=ACCOUNT_KEY, permission="rl", expiry=until)
    base = os.environ["AZURE_STORAGE_CONNECTION_STRING"].partition("BlobEndpoint=")[2]
    named = [f"{base}/{root}/{name}?{signed}" for name in placed]
    gone = [
        f"{base}/{root}/gone.jpg?{signed}",
        f"{azure}/gone.jpg?{signed}",
        f"gs://inspections/x?access_token={TOKEN}",
    ]
    (tmp_path / "m.csv").write_text("\n".join(["image_uri", *gone]))
    summary = crackbatch.score([*named, str(tmp_path / "m.csv")], str(tmp_path / "out"), max_error_rate=1.0)
    assert summary.statuses == {"ok": 1 + len(tiles), "missing": len(gone)}
    assert len(summary.problems) == 1
    shown = crackbatch.read_predictions(str(tmp_path / "out")).to_csv() + str(summary)
    shown += "".join(path.read_text() for path in (tmp_path / "out").rglob("*.json"))
    signature = parse_qs(signed)["sig"][0]
    assert not [secret for secret in (signature, quote(signature, safe=""), TOKEN, ACCOUNT_KEY) if secret in shown]
