"""A published file has the columns of the contract and says what made it."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders.runs import Scored
from crackbatch.errors import SourceError
from crackbatch.models.model import load_model
from crackbatch.results.table import COLUMNS, schema_with


def test_the_file_has_the_contracts_schema_and_says_what_made_it(scored: Scored) -> None:
    summary = scored.summary
    assert summary.files == [str(scored.out / f"predictions/date=2026-03-01/{summary.run_id}-00000.parquet")]
    schema = pq.read_schema(summary.files[0])
    assert schema.remove_metadata() == COLUMNS
    about = {key.decode(): value.decode() for key, value in schema.metadata.items()}
    assert about["crackbatch.model_id"] == summary.model_id == load_model().bundle.model_id
    assert "balanced" in json.loads(about["crackbatch.operating_points"])
    run = scored.out / "runs" / summary.run_id
    assert json.loads((run / "run.json").read_text())["versions"]["ray"]
    assert sorted(path.name for path in run.iterdir()) == ["run.json", "summary.json"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["Label"], "column 'Label' has the same name as a column of the results"),
        (["DATE"], "column 'DATE' has the same name as a column of the results"),
        (["Pier", "pier"], "column 'pier' has the same name as its column 'Pier'"),
    ],
)
def test_columns_that_differ_only_in_case_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(SourceError, match=f"{message}; rename it"):
        schema_with([pa.field(name, pa.string()) for name in names])
    assert schema_with([pa.field("Pier", pa.string())]).names[-1] == "Pier"
