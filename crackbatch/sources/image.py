"""Opens one image by the URI that stands in the table, also where fsspec cannot."""

from __future__ import annotations

import io
import os
import tempfile

import pyarrow as pa
import pyarrow.compute as pc

from crackbatch.archives.members import Listing
from crackbatch.sources.fetch import fetch
from crackbatch.sources.manifest import URI_COLUMN, Manifest, plan_manifest
from crackbatch.sources.prefixes import Prefixes
from crackbatch.storage.redaction import masked


def open_image(image_uri: str, version: str | None = None) -> io.BytesIO:
    """Return the encoded bytes of an image of the table as an open file, by its `image_uri`.

    `fsspec.open(image_uri)` does the same for most images. It cannot open members of `.tgz`, `.tbz2`, `.txz` and
    `.tar.zst` files and of archives with a wrong ending, nor names that begin with `/` or contain `::`. `version` is
    needed for the second of two members with the same name. Raises FileNotFoundError if the image is not there any
    more, and OSError if its bytes cannot be read.
    """
    manifest = Manifest(os.path.join(os.getcwd(), "manifest"), pa.table({URI_COLUMN: pa.array([image_uri])}))
    with tempfile.TemporaryDirectory(prefix="crackbatch-") as scratch:
        plan = plan_manifest(manifest, Listing(), scratch, Prefixes())
        if version is not None:
            plan = plan.filter(pc.equal(plan.column("version"), version))
        if not plan.num_rows:
            raise FileNotFoundError(f"{masked(image_uri)} has no version {version}")
        (row,) = (row for block in fetch(plan.slice(0, 1)) for row in block.to_pylist())
    if row["bytes"] is None:
        kind = FileNotFoundError if row["status"] == "missing" else OSError
        raise kind(f"{masked(image_uri)} cannot be opened: {row['error'] or row['status']}")
    return io.BytesIO(row["bytes"])
