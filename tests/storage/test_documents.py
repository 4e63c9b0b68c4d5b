"""Documents and tables are read as they were written, or said to be damaged; the same request has the same digest."""

from __future__ import annotations

import pyarrow as pa
import pytest

from crackbatch.errors import OutputError
from crackbatch.storage import atomic, locations, objects
from crackbatch.storage.documents import fingerprint_of, read_json, read_table, write_json, write_table


def test_a_document_and_a_table_are_read_as_they_were_written(out: str) -> None:
    document, table = locations.join(out, "a.json"), locations.join(out, "a.parquet")
    assert read_json(document) is None
    for value in ({"name": "Brücke", "images": 3}, {}):  # the second in the first's place
        write_json(document, value)
        assert read_json(document) == value
    images = pa.table({"image": ["a", "b"], "size": [1, 2]})
    write_table(table, images)
    assert read_table(table).equals(images)
    assert read_table(table, ["size"]).equals(images.select(["size"]))


@pytest.mark.parametrize("damaged", [b"", b'{"a": ', b"\xff", b"[1]", b"null"])
def test_a_damaged_document_is_named_in_one_line(damaged: bytes, out: str) -> None:
    location = locations.join(out, "run.json")
    atomic.write_whole(location, damaged)
    with pytest.raises(OutputError, match=r"run\.json is damaged \(.*\); remove it and run again$") as raised:
        read_json(location)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("place", [slice(-20, None), slice(4, 60)])
def test_a_damaged_table_is_invalid(place: slice, out: str) -> None:
    location = locations.join(out, "a.parquet")
    write_table(location, pa.table({"image": [f"{number}.jpg" for number in range(5000)]}))
    data = bytearray(objects.read_bytes(location))
    data[place] = bytes(len(data[place]))
    atomic.write_whole(location, bytes(data))
    with pytest.raises(pa.ArrowInvalid):
        read_table(location)


def test_the_order_of_options_makes_no_other_request() -> None:
    assert fingerprint_of({"a": 1, "b": [2, 3]}) == fingerprint_of({"b": [2, 3], "a": 1})
    assert fingerprint_of({"a": 1, "b": [2, 3]}) != fingerprint_of({"a": 1, "b": [3, 2]})
