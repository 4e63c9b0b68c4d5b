"""Reads the files in which labelling tools write what people answered about images.

.csv    the answers of `crackbatch review`, Label Studio's CSV, or any table with a name and a label of each image
.json   Label Studio (JSON, JSON-MIN), or COCO: an image with an annotation of a crack is cracked, others are sound
.xml    CVAT for images: tags, and shapes with the label of a crack
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple
from urllib.parse import unquote

from crackbatch.datasets.labels import parse_label
from crackbatch.errors import SourceError
from crackbatch.sources.manifest import NAME_COLUMNS
from crackbatch.storage import locations, ranges
from crackbatch.storage.redaction import masked

# The columns and keys in which tools write labels, the best first.
LABEL_COLUMNS = ("answer", "label", "choice", "class", "category")
_MAX_BYTES = 512 << 20
_MAX_CELL = 1 << 20
_LOCAL_FILES = re.compile(r"^/?data/local-files/\?d=")  # how Label Studio names files of its own disk
_UPLOADED = re.compile(r"^/?data/upload/(?:\d+/)?(?:[0-9a-f]{8}-)?")


class Answer(NamedTuple):
    """An image as its tool names it, and its label: 1 for a crack, 0 for none, None if there is no answer."""

    name: str
    label: int | None


def read_answers(location: str, words: Counter[str]) -> Iterator[Answer]:
    """Yield the answers in a file, and count the words that are no label. Raises SourceError if it cannot be read."""
    data = ranges.read_whole(location, _MAX_BYTES)
    shown = masked(location)
    if len(data) > _MAX_BYTES:
        raise SourceError(f"{shown} has more than {_MAX_BYTES:,} bytes; split it")
    ending = os.path.splitext(locations.file_name(location))[1].lower()
    readers = {".csv": _read_csv, ".json": _read_json, ".xml": _read_xml}
    if ending not in readers:
        raise SourceError(f"{shown} is no file of answers; give .csv, .json (Label Studio, COCO) or .xml (CVAT)")
    try:
        yield from readers[ending](data, shown, words)
    except (ValueError, RecursionError, csv.Error, ElementTree.ParseError) as error:
        raise SourceError(f"{shown} cannot be read: {error}; export it again") from None
    except (KeyError, TypeError, AttributeError) as error:  # valid JSON of another form
        raise SourceError(f"{shown} cannot be read: it is damaged ({error!r}); export it again") from None


def _label(value: object, words: Counter[str]) -> int | None:
    """Return the label of a cell; words that mean no answer, and words that mean nothing, give None."""
    word = "" if value is None else str(value).strip()
    if not word or word.lower() in ("unsure", "skip", "none", "nan"):
        return None
    if (label := parse_label(word)) is None:
        words[word[:80]] += 1
    return label


def _one_of(names: Iterable[str], wanted: Iterable[str], what: str, shown: str) -> str:
    known = {name.strip().lower(): name for name in names}
    for name in wanted:
        if name in known:
            return known[name]
    raise SourceError(
        f"{shown} has no {what} (its columns: {', '.join(known) or 'none'}); name one of them {next(iter(wanted))!r}"
    )


def _read_csv(data: bytes, shown: str, words: Counter[str]) -> Iterator[Answer]:
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_CELL))
    text = data.decode("utf-8-sig")
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    lines = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    columns = list(lines.fieldnames or [])
    name = _one_of(columns, NAME_COLUMNS, "column with the names of images", shown)
    label = _one_of(columns, LABEL_COLUMNS, "column with answers", shown)
    for line in lines:
        if line[name]:
            yield Answer(_unquoted(line[name]), _choice(line[label], words))


def _unquoted(name: str) -> str:
    """Return a cell without the apostrophe that lists for spreadsheets put before what looks like a formula."""
    return name[1:] if re.match(r"'[=+\-@\t\r]", name) else name


def _choice(cell: str | None, words: Counter[str]) -> int | None:
    """Return the label of a cell; Label Studio writes several choices as JSON."""
    if cell and cell.strip().startswith(("{", "[")):
        value = json.loads(cell)
        choices = value.get("choices", []) if isinstance(value, dict) else value
        return _agreed(_label(choice, words) for choice in choices)
    return _label(cell, words)


def _agreed(labels: Iterable[int | None]) -> int | None:
    """Return the label of all that give one; None if they differ, or if none gives one."""
    found = {label for label in labels if label is not None}
    return found.pop() if len(found) == 1 else None


def _read_json(data: bytes, shown: str, words: Counter[str]) -> Iterator[Answer]:
    value = json.loads(data)
    if isinstance(value, dict) and isinstance(value.get("images"), list):
        yield from _read_coco(value)
    elif isinstance(value, list) and all(isinstance(task, dict) for task in value):
        for task in value:
            yield _read_task(task, shown, words)
    else:
        raise SourceError(f"{shown} is neither an export of Label Studio (JSON, JSON-MIN) nor of COCO")


def _read_task(task: dict[str, Any], shown: str, words: Counter[str]) -> Answer:
    """Return the answer to one of Label Studio's tasks (https://labelstud.io/guide/export)."""
    told = task["data"] if isinstance(task.get("data"), dict) else task
    name = _local(str(told[_one_of(told, NAME_COLUMNS, "name of an image", shown)]))
    if "annotations" not in task:  # JSON-MIN
        found = next((told[key] for key in LABEL_COLUMNS if key in told and told is task), None)
        return Answer(name, _choice(found if isinstance(found, str) else json.dumps(found or []), words))
    labels = []
    for annotation in task["annotations"]:
        if not annotation.get("was_cancelled"):
            results = annotation.get("result", [])
            choices = [choice for result in results for choice in result.get("value", {}).get("choices", [])]
            regions = [key for result in results for key in _regions(result.get("value", {}))]
            labels.append(_agreed(_label(word, words) for word in choices or regions))
    return Answer(name, _agreed(labels))


def _regions(value: dict[str, Any]) -> list[str]:
    """Return the labels of a region that was drawn: rectanglelabels, polygonlabels, brushlabels, …"""
    return [str(label) for key, labels in value.items() if key.endswith("labels") for label in labels]


def _local(name: str) -> str:
    if _LOCAL_FILES.match(name):
        return "/" + unquote(_LOCAL_FILES.sub("", name)).lstrip("/")
    return unquote(_UPLOADED.sub("", name)) if _UPLOADED.match(name) else name


def _read_coco(value: dict[str, Any]) -> Iterator[Answer]:
    """Yield the answers of COCO (https://cocodataset.org/#format-data)."""
    categories = {one["id"]: parse_label(one.get("name")) for one in value.get("categories", [])}
    drawn: dict[Any, list[int | None]] = defaultdict(list)
    for annotation in value.get("annotations", []):
        drawn[annotation["image_id"]].append(categories.get(annotation["category_id"]))
    for image in value["images"]:
        labels = drawn.get(image["id"], [])
        yield Answer(str(image["file_name"]), 1 if 1 in labels else 0 if set(labels) <= {0} else None)


def _read_xml(data: bytes, shown: str, words: Counter[str]) -> Iterator[Answer]:
    """Yield the answers of CVAT for images 1.1 (https://docs.cvat.ai/docs/manual/advanced/formats/format-cvat/)."""
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise SourceError(f"{shown} defines entities, which answers do not need; export it again from CVAT")
    root = ElementTree.fromstring(data)
    if root.tag != "annotations":
        raise SourceError(f"{shown} is no export of CVAT for images: it begins with <{root.tag}>")
    for image in root.iter("image"):
        tags = [_label(tag.get("label"), words) for tag in image.iter("tag")]
        shapes = [_label(shape.get("label"), words) for shape in image if shape.tag != "tag" and shape.get("label")]
        yield Answer(str(image.get("name")), _agreed(tags or shapes))
