"""An object is created only where there is none, and an output that cannot be written to is refused."""

from __future__ import annotations

import pytest

from builders.servers import Place
from crackbatch.errors import OutputError
from crackbatch.storage import atomic, objects


def test_an_object_is_created_only_where_there_is_none(place: Place) -> None:
    path = objects.filesystem(f"{place.url}/created")[1]
    place.filesystem.pipe_file(path, b"first", mode="create")
    with pytest.raises(FileExistsError):
        place.filesystem.pipe_file(path, b"second", mode="create")
    place.filesystem.invalidate_cache()
    assert place.filesystem.cat_file(path) == b"first"


def test_results_in_a_bucket_that_is_not_there_are_refused_in_one_line(place: Place) -> None:
    out = f"{place.url.removesuffix('/storage')}-no-such-bucket/results"
    with pytest.raises(OutputError, match=r"does not exist|no such bucket") as raised:
        atomic.check_output(out)
    assert out in str(raised.value)
    assert "\n" not in str(raised.value)
