"""A location names the same object wherever it was listed, and its file by the name's end."""

from __future__ import annotations

from pathlib import Path

import pytest

from crackbatch.storage import locations


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


def test_a_new_folder_of_a_file_url_has_the_name_that_the_url_means(tmp_path: Path) -> None:
    meant = tmp_path / "my results"
    assert locations.normalize(meant.as_uri()) == str(meant)
    assert locations.normalize(f"file:{meant}") == str(meant)
    assert locations.normalize(f"FILE://localhost{meant}") == str(meant)
    literal = tmp_path / "100%20"
    assert locations.normalize(str(literal)) == str(literal)
    literal.mkdir()
    assert locations.normalize(f"file://{literal}") == str(literal)


def test_only_http_is_read_as_web_servers_are() -> None:
    assert [locations.is_web(f"{scheme}://host/a.jpg") for scheme in ("http", "HTTPS", "webdav", "davs")] == [
        True, True, False, False
    ]  # fmt: skip
