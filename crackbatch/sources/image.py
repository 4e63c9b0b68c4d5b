"""Opens images by the URI that stands in the table, also where fsspec cannot."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from crackbatch.archives.members import Listing
from crackbatch.sources.fetch import fetch
from crackbatch.sources.manifest import URI_COLUMN, Manifest, plan_manifest
from crackbatch.sources.prefixes import Prefixes
from crackbatch.sources.rows import CARRIED
from crackbatch.storage.redaction import masked

_PLACE = "place"


def open_image(image_uri: str, version: str | None = None) -> io.BytesIO:
    """Return the encoded bytes of an image of the table as an open file, by its `image_uri`.

    `fsspec.open(image_uri)` does the same for most images. It cannot open members of `.tgz`, `.tbz2`, `.txz` and
    `.tar.zst` files and of archives with a wrong ending, nor names that begin with `/` or contain `::`. `version` is
    needed for the second of two members with the same name. Raises FileNotFoundError if the image is not there any
    more, and OSError if its bytes cannot be read.
    """
    ((_, found),) = open_images([(image_uri, version)])
    if isinstance(found, OSError):
        raise found
    return io.BytesIO(found)


def open_images(images: Sequence[tuple[str, str | None]]) -> Iterator[tuple[int, bytes | OSError]]:
    """Yield the place of each image in `images` and its encoded bytes, or why it cannot be opened.

    An image is named by `image_uri` and `version`. Each archive is opened once, so the order is another.
    """
    names = pa.table({URI_COLUMN: [uri for uri, _ in images], _PLACE: pa.array(range(len(images)), pa.int64())})
    manifest = Manifest(os.path.join(os.getcwd(), "manifest"), names)
    with tempfile.TemporaryDirectory(prefix="crackbatch-") as scratch:
        plan = plan_manifest(manifest, Listing(), scratch, Prefixes())
        places = plan.column(CARRIED + _PLACE).to_pylist()
        wanted: dict[int, int] = {}  # place → row of the plan
        for row, (place, version) in enumerate(zip(places, plan.column("version").to_pylist(), strict=True)):
            if images[place][1] in (None, version):
                wanted.setdefault(place, row)
        for place, (uri, version) in enumerate(images):
            if place not in wanted:
                yield place, FileNotFoundError(f"{masked(uri)} has no version {version}")
        for block in fetch(plan.take(pa.array(wanted.values(), pa.int64()))):
            for row in block.to_pylist():
                place = row[CARRIED + _PLACE]
                yield place, _bytes_of(row, images[place][0])


def _bytes_of(row: dict[str, Any], image_uri: str) -> bytes | OSError:
    if row["bytes"] is not None:
        data: bytes = row["bytes"]
        return data
    kind = FileNotFoundError if row["status"] == "missing" else OSError
    return kind(f"{masked(image_uri)} cannot be opened: {row['error'] or row['status']}")
