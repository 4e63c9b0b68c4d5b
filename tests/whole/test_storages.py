"""The same images give the same table from every storage, with the results on it; no credential is shown anywhere."""

from __future__ import annotations

import hashlib
import os
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, quote

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from azure.storage.blob import generate_container_sas

import crackbatch
from builders.archives import write_files, zip_with
from builders.credentials import ACCOUNT_KEY, SECRET, TOKEN
from builders.processes import run_score
from builders.servers import Place
from crackbatch.images.formats import EXTENSIONS
from crackbatch.models.bundle import DEFAULT_MODEL
from crackbatch.models.model import load_model
from crackbatch.sources.plan import make_plan
from crackbatch.storage import objects


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.slow)], indirect=True)
def test_one_image_gives_the_same_row_from_wherever_it_comes(
    tmp_path: Path, tiles: dict[str, bytes], s3: str, engine: str
) -> None:
    import boto3

    sources = write_files(tmp_path / "in", {f"folder/{name}": data for name, data in tiles.items()})
    (sources / "a.zip").write_bytes(zip_with(8, tiles))
    for suffix in ("tar", "tar.gz"):
        with tarfile.open(sources / f"a.{suffix}", "w:gz" if suffix == "tar.gz" else "w") as tar:
            tar.add(sources / "folder", "folder")
    pq.write_table(pa.table({"bytes": list(tiles.values())}), sources / "a.parquet")
    client = boto3.client("s3")
    for name, data in tiles.items():
        client.put_object(Bucket="inspections", Key=f"bridge/{name}", Body=data)
    client.put_object(Bucket="inspections", Key="archive.zip", Body=zip_with(0, tiles), ACL="public-read")
    bucket, out = "s3://inspections", "s3://inspections/results"
    command = [sources, f"{bucket}/bridge", f"{bucket}/archive.zip", f"{s3}/inspections/archive.zip", "--out", out]
    first = run_score(*command, "--engine", engine)
    assert first.returncode == 0, first.stdout + first.stderr
    table = crackbatch.read_predictions(out)
    assert len(table) == 8 * len(tiles)
    assert table["image_uri"].is_unique
    assert set(table["status"]) == {"ok"}
    by_image = table.groupby("sha256")["crack_logit"]
    assert (by_image.count() == 8).all()
    assert (by_image.max() - by_image.min()).max() < 1e-4
    for uri in table["image_uri"][table["sha256"] == table["sha256"][0]]:
        with fsspec.open(uri) as file:
            assert hashlib.sha256(file.read()).hexdigest() == table["sha256"][0], uri
    again = run_score(*command)
    assert "nothing left to do" in again.stdout, again.stdout + again.stderr
    assert SECRET not in first.stdout + first.stderr
    for entry in client.list_objects_v2(Bucket="inspections", Prefix="results/")["Contents"]:
        body = client.get_object(Bucket="inspections", Key=entry["Key"])["Body"].read()
        assert SECRET.encode() not in body, entry["Key"]
    kept = {
        entry["Key"].split("/")[-1]
        for entry in client.list_objects_v2(Bucket="inspections", Prefix="results/runs")["Contents"]
    }
    assert kept == {"run.json", "summary.json"}


@pytest.mark.usefixtures("without_ray")
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


@pytest.mark.usefixtures("without_ray", "google")
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
