"""The pages that people open: what stands on the page of a report, and HTML that needs no other file."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import jinja2

from crackbatch import __version__
from crackbatch.progress import counted, duration
from crackbatch.reports.compare_runs import CHANGES
from crackbatch.reports.exports import place
from crackbatch.storage import locations
from crackbatch.storage.redaction import printable

if TYPE_CHECKING:
    from crackbatch.reports.charts import Bar, PositionMap
    from crackbatch.reports.compare_runs import RunComparison
    from crackbatch.reports.folders import Folder
    from crackbatch.reports.thumbnails import Thumbnail
    from crackbatch.results.states import ListedRun


class Pictured(NamedTuple):
    """A row of the table, and its thumbnail."""

    row: dict[str, Any]
    thumbnail: Thumbnail


class Failures(NamedTuple):
    """The images with one status, and a few of them with their errors."""

    status: str
    num: int
    examples: list[dict[str, Any]]


@dataclass(frozen=True)
class Kind:
    """The scored tiles of a run, or its photographs: the threshold, how many are above it, and what that means.

    `point` is the name of the operating point with this threshold, and `reached` what it reached on labelled images.
    """

    name: str
    images: int
    cracks: int
    threshold: float
    bars: list[Bar]
    point: str | None = None
    reached: dict[str, float] = field(default_factory=dict)
    expected: Expected | None = None


class Expected(NamedTuple):
    """What to expect of the tiles of a run if they are like the validation images.

    `prevalence` is the share of tiles that show a crack, `true` how many of the flagged ones do, and `missed` how many
    others do.
    """

    prevalence: float
    true: float
    missed: float


@dataclass(frozen=True, eq=False)
class Content:
    """Everything on the page. `asked` and `summary` are run.json and summary.json."""

    run: ListedRun
    asked: dict[str, Any]
    summary: dict[str, Any]
    statuses: dict[str, int]
    kinds: list[Kind]
    folders: Folder
    positions: PositionMap | None
    most_probable: list[Pictured]
    nearest: list[Pictured]
    failures: list[Failures]
    comparison: RunComparison | None
    notes: list[str]


def render(template: str, **values: Any) -> bytes:
    """Return a page as HTML. Every text in it is escaped: names of files can hold anything."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "text": _text, "number": _number, "short": _short, "share": _share, "counted": counted, "duration": duration,
        "jpeg": _jpeg, "link": _link, "name": _name, "folder": _folder,
    }  # fmt: skip
    made_at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    html = environment.get_template(template).render(version=__version__, made_at=made_at, changes=CHANGES, **values)
    return html.encode("utf-8", "backslashreplace")


def _text(value: object) -> str:
    """Return text without characters that would change how the text around it looks."""
    return printable(str(value))


def _number(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _short(number: int) -> str:
    """Return a number in at most five characters."""
    for unit, name in ((1_000_000, "M"), (1_000, "k")):
        if number >= 10 * unit:
            return f"{number / unit:.0f}{name}"
    return str(number)


def _share(part: float, whole: float = 1.0) -> str:
    """Return a share in percent, with the digits that a small share needs."""
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.2g} %" if 0 < percent < 10 else f"{percent:.0f} %"


def _jpeg(data: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def _link(row: dict[str, Any]) -> str | None:
    """Return a link that opens an image; None for a member of an archive and for what a browser cannot open."""
    uri = row["image_uri"]
    if row["archive"] is not None:
        return None
    if locations.is_local(uri):
        return f"file://{quote(uri)}" if uri.startswith("/") else None
    return str(uri) if uri.startswith(("https://", "http://")) else None


def _name(row: dict[str, Any]) -> str:
    return str(place(row["image_uri"], row["archive"])["file"]).rpartition("/")[2]


def _folder(row: dict[str, Any]) -> str:
    """Return where an image lies: its folder, or its archive and the folder in it."""
    found = place(row["image_uri"], row["archive"])
    above = str(found["file"]).rpartition("/")[0]
    return " : ".join(part for part in (found["archive"], above) if part)
