"""Networks are compared on the same images."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from builders.pictures import make_photos
from crackbatch import compare
from crackbatch.errors import BundleError, OptionError, SourceError
from crackbatch.models.bundle import read_bundle
from crackbatch.training.compare import Room, find_room

SMALL = {"workers": 0, "init": "none", "image_size": 64, "batch_size": 16, "epochs": 1}


@pytest.mark.slow
def test_each_network_is_trained_and_measured_on_one_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crackbatch.training.compare._SPEED_S", 0.2)
    photos = str(make_photos(tmp_path / "deck", 20))
    out = str(tmp_path / "out")
    found = compare(photos, out, networks=["resnet18,mobilenet_v3_small"], **SMALL)
    table = pq.read_table(found.out).to_pylist()
    assert {row["network"] for row in table} == {"resnet18", "mobilenet_v3_small"}
    assert [row["average_precision"] for row in table] == sorted(
        (row["average_precision"] for row in table), reverse=True
    )
    digests = {read_bundle(f"{out}/{row['network']}").training["split_digest"] for row in table}
    assert len(digests) == 1
    assert all(row["images_per_s"] > 0 and row["training_s"] > 0 for row in table)
    by_name = {row["network"]: row for row in table}
    assert by_name["resnet18"]["parameters"] > 5 * by_name["mobilenet_v3_small"]["parameters"]
    again = compare(photos, out, networks=["mobilenet_v3_small", "resnet18"], **SMALL)
    assert {row["model_id"] for row in again.rows} == {row["model_id"] for row in table}


@pytest.mark.parametrize(
    ("networks", "message"), [([], "--networks is missing"), (["resnet18,resnet18"], "must name each network once")]
)
def test_a_list_of_networks_that_means_nothing_is_refused(networks: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        compare("nowhere", str(tmp_path), networks=networks)


@pytest.mark.parametrize(
    ("networks", "sources", "error", "message"),
    [
        ("resnet18,resnet99", ["deck"], BundleError, "resnet99"),
        ("resnet18,alexnet", ["deck"], BundleError, "--network alexnet does not accept images of 32 pixels"),
        ("resnet18", ["deck", "nowhere"], SourceError, "no such file or folder.*nowhere"),
        ("resnet18", ["deck", "empty"], SourceError, "no images in .*empty"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(
    networks: str, sources: list[str], error: type[Exception], message: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_photos(tmp_path / "deck", 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=message):
        compare(sources, "out", networks=[networks], **{**SMALL, "image_size": 32})
    with pytest.raises(OptionError, match="--threshold must be from 0 to 1, got 7"):
        compare(["deck"], "out", networks=["resnet18"], threshold=7, **{**SMALL, "image_size": 32})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("nodes", "room"),
    [
        ([{"CPU": 2.0}], Room(1, 2, 0)),
        ([{"CPU": 8.0}, {"CPU": 4.0}, {}], Room(2, 4, 0)),
        ([{"CPU": 4.0}, {"CPU": 16.0, "GPU": 2.0}], Room(2, 7, 1)),
        ([{"CPU": 1.0, "GPU": 1.0}], Room(1, 1, 1)),
        ([{"CPU": 8.0}, {"GPU": 1.0}], Room(1, 0, 1)),
    ],
)
def test_there_is_room_for_a_training_on_each_gpu_or_each_node(nodes: list[dict[str, float]], room: Room) -> None:
    assert find_room(nodes) == room


ON_TWO_NODES = """
from ray.cluster_utils import Cluster
import crackbatch

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
crackbatch.describe_dataset("deck", "looked")
found = crackbatch.compare("deck", "out", split="looked/split.parquet", networks=["resnet18", "mobilenet_v3_small"],
                           workers=1, address=cluster.address, init="none", image_size=64, batch_size=16, epochs=1)
print("best", found.rows[0]["model_id"])
cluster.shutdown()
"""


@pytest.mark.slow
def test_two_nodes_train_two_networks_at_once(tmp_path: Path) -> None:
    make_photos(tmp_path / "deck", 20)
    out = tmp_path / "out"
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    result = subprocess.run(
        [sys.executable, "-c", ON_TWO_NODES], cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    began = {name: (out / name / "split.parquet").stat().st_mtime for name in ("resnet18", "mobilenet_v3_small")}
    assert (out / "comparison.parquet").stat().st_mtime > max(began.values())
    assert not (out / "tune").exists()
    assert f"best {pq.read_table(out / 'comparison.parquet').to_pylist()[0]['model_id']}" in result.stdout
    assert "epoch 1 of 1" not in result.stderr  # nothing was trained by the driver itself
