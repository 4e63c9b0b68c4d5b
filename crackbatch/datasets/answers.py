"""Turns what people answered about images into a manifest that `train` and `evaluate` take."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from crackbatch.archives.members import split_uri
from crackbatch.datasets.answer_files import Answer, read_answers
from crackbatch.errors import OptionError, SourceError
from crackbatch.sources.manifest import URI_COLUMN
from crackbatch.storage import atomic, locations
from crackbatch.storage.redaction import masked


@dataclass(frozen=True)
class Answers:
    """The manifest that was written, and what it holds: `labels` counts images by label.

    `unanswered` counts the images without an answer, `contradictory` those with two different ones, which are left out.
    `unknown` are names that are no image of the results, `not_understood` the words that are no label.
    """

    file: str
    labels: dict[str, int]
    unanswered: int
    contradictory: list[str]
    unknown: list[str]
    not_understood: dict[str, int]


def import_answers(
    file: locations.Location, manifest: locations.Location, uris: Iterable[str] | None = None
) -> Answers:
    """Write a manifest (`image_uri`, `label`) of the answers in a file.

    With `uris`, names are looked up among them: the whole name, or its end if only one image ends like this. Without,
    names are paths from the folder of the file on. Raises SourceError for a file that is none of these.
    """
    source = locations.normalize(os.fspath(file))
    location = locations.normalize(os.fspath(manifest))
    if not locations.file_name(location).lower().endswith(".csv"):
        raise OptionError(f"the name of the manifest must end in .csv, got {masked(os.fspath(manifest))!r}")
    words = Counter[str]()
    answers = list(read_answers(source, words))
    find = _Finder(uris) if uris is not None else _beside(source)
    found: dict[str, set[int]] = defaultdict(set)
    unknown, unanswered = list[str](), 0
    for name, label in answers:
        uri = find(name)
        if uri is None:
            unknown.append(name)
        elif label is None:
            unanswered += 1
        else:
            found[uri].add(label)
    known = {uri: next(iter(labels)) for uri, labels in found.items() if len(labels) == 1}
    if not known:
        raise SourceError(_nothing(source, answers, unknown, words))
    with atomic.new_file(location) as opened:
        text = io.TextIOWrapper(opened, "utf-8", newline="", write_through=True)
        lines = csv.writer(text)
        lines.writerow([URI_COLUMN, "label"])
        lines.writerows((uri, ("no_crack", "crack")[label]) for uri, label in known.items())
        text.flush()
        text.detach()
    counts = Counter(("no_crack", "crack")[label] for label in known.values())
    return Answers(
        masked(location), {name: counts[name] for name in ("crack", "no_crack")}, unanswered,
        [uri for uri, labels in found.items() if len(labels) > 1], unknown, dict(words),
    )  # fmt: skip


def _nothing(source: str, answers: list[Answer], unknown: list[str], words: Counter[str]) -> str:
    shown = masked(source)
    if not answers:
        return f"{shown} has no images"
    if len(unknown) == len(answers):
        return f"{shown}: none of its images is in the results, such as {unknown[0]}"
    if words:
        return f"{shown}: no label is understood, such as {words.most_common(1)[0][0]!r}; write crack or no_crack"
    return f"{shown}: none of its {len(answers):,} images has an answer; write crack or no_crack beside each"


class _Finder:
    """Finds images among known ones by their URI, or by the end of it."""

    def __init__(self, uris: Iterable[str]) -> None:
        self._uris = set(uris)
        self._ends: dict[str, list[str]] = defaultdict(list)
        for uri in self._uris:
            inner = split_uri(uri)
            self._ends[(inner[1] if inner else uri).rpartition("/")[2]].append(uri)

    def __call__(self, name: str) -> str | None:
        if name in self._uris:
            return name
        plain = name.replace("\\", "/").removeprefix("./")
        candidates = self._ends.get(plain.rpartition("/")[2], [])
        found = [uri for uri in candidates if _ends(uri, plain)]
        return found[0] if len(found) == 1 else None


def _ends(uri: str, name: str) -> bool:
    inner = split_uri(uri)
    return f"/{inner[1] if inner else uri}".endswith(f"/{name.lstrip('/')}")


def _beside(source: str) -> Callable[[str], str]:
    folder = locations.without_query(source).rpartition("/")[0]

    def find(name: str) -> str:
        is_whole = "://" in name or name.startswith("/") or not locations.is_local(name)
        return name if is_whole else locations.join(folder, name)

    return find
