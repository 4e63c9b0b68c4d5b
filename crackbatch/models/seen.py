"""Which images a model was trained and tuned on, kept in its bundle so that it is not measured on them by mistake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from crackbatch.errors import BundleError
from crackbatch.models.bundle import resolve
from crackbatch.storage import locations
from crackbatch.storage.documents import read_table, write_table
from crackbatch.storage.redaction import masked

FILE = "seen.parquet"
# A model learns from the images that it is trained on, and from the images that it is tuned on.
LEARNT = ("train", "validation")


def write_seen(
    location: str, sha256: Sequence[str], splits: Sequence[str], before: Mapping[int, str] | None = None
) -> None:
    """Write each image's split and the first 64 bits of its sha256, which identify the image, into a bundle.

    `before` holds the images that the initial model of the training learnt from, as `read_learnt` returns them.
    """
    own, learnt = dict(zip(map(_code, sha256), splits, strict=True)), before or {}
    images = sorted(own.keys() | learnt.keys())
    columns = {
        "split": pa.array([own.get(image) for image in images], pa.string()).dictionary_encode(),
        "before": pa.array([learnt.get(image) for image in images], pa.string()).dictionary_encode(),
    }
    write_table(locations.join(location, FILE), pa.table({"image": np.array(images, np.uint64), **columns}))


def read_seen(location: str) -> dict[int, str]:
    """Return image code → split for the images of a bundle; empty if the bundle does not list them."""
    return _read(location)[0]


def read_learnt(location: str) -> dict[int, str]:
    """Return image code → `train` or `validation`, for a bundle and the models that it was trained from."""
    own, before = _read(location)
    return {**before, **{image: split for image, split in own.items() if split in LEARNT}}


def _read(location: str) -> tuple[dict[int, str], dict[int, str]]:
    """The splits of a bundle's own images, and the splits of the images that its initial model had learnt from."""
    try:
        table = read_table(locations.join(resolve(location), FILE))
        images, own = table.column("image").to_pylist(), table.column("split").to_pylist()
        # Bundles of older versions do not have this column.
        before = table.column("before").to_pylist() if "before" in table.column_names else [None] * len(images)
    except (FileNotFoundError, NotADirectoryError):
        return {}, {}
    except (pa.ArrowException, KeyError) as error:
        raise BundleError(f"model {masked(location)}: {FILE} cannot be read ({error})") from None
    return _known(images, own), _known(images, before)


def _known(images: list[int], splits: list[str | None]) -> dict[int, str]:
    return {image: split for image, split in zip(images, splits, strict=True) if split is not None}


def splits_of(sha256: Sequence[str], seen: dict[int, str]) -> list[str | None]:
    """Return the split that each image had when the model was made, None for an image that was not in the data."""
    return [seen.get(_code(digest)) for digest in sha256]


def _code(digest: str) -> int:
    return int(digest[:16], 16)
