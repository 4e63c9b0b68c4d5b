"""What passes by itself is asked again, and nothing else."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable

import pytest

from builders.archives import zip_with
from builders.faulty import FAULTS, Faults
from builders.plans import fetch_all
from builders.servers import put
from crackbatch.images.formats import EXTENSIONS
from crackbatch.sources.plan import make_plan
from crackbatch.storage import retry
from crackbatch.storage.retry import num_retries


@pytest.mark.parametrize("kind", FAULTS)
def test_what_passes_by_itself_is_asked_again(
    kind: str, s3: str, bucket: str, through: Callable[[Faults], None], tiles: dict[str, bytes]
) -> None:
    for name, data in tiles.items():
        put(s3, f"{bucket}/{name}", data)
    put(s3, f"{bucket}/tiles.zip", zip_with(zipfile.ZIP_DEFLATED, tiles))
    faults = Faults(share=0.3, kinds=(kind,), silence_s=0.2)
    through(faults)
    before = num_retries()
    plan = make_plan([f"s3://inspections/{bucket}"], EXTENSIONS)
    rows = fetch_all(plan)
    assert plan.listing.problems == []
    assert [row["status"] for row in rows] == [None] * 2 * len(tiles)
    for row in rows:
        assert row["bytes"] == tiles[str(row["image_uri"]).partition("::")[0].rpartition("/")[2]]
    assert faults.made[kind] > 0
    retries = num_retries() - before  # the HTTP client itself asks again on a connection that was reset
    assert retries <= faults.made[kind]
    assert (retries > 0) == (kind != "silence")


def test_nothing_is_asked_again_that_stays_as_it_is() -> None:
    assert not retry.is_transient(FileNotFoundError("x"))
    assert not retry.is_transient(PermissionError("x"))
    assert not retry.is_transient(OSError(28, os.strerror(28)))
    assert not retry.is_transient(ValueError("x"))
    assert retry.is_transient(ConnectionResetError("x"))
    assert retry.is_transient(TimeoutError("x"))
