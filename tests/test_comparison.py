"""Networks are compared on the same images."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from crackbatch import compare
from crackbatch.bundle import read_bundle
from crackbatch.errors import OptionError
from test_dataset import make_photos

SMALL = {"workers": 0, "init": "none", "image_size": 64, "batch_size": 16, "epochs": 1}


def test_each_network_is_trained_and_measured_on_one_split(tmp_path: Path) -> None:
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
    ("networks", "message"), [([], "--networks is missing"), (["resnet18,resnet18"], "stands there twice")]
)
def test_a_list_of_networks_that_means_nothing_is_refused(networks: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        compare("nowhere", str(tmp_path), networks=networks)
