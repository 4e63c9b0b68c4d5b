"""Plans of sources, and what is fetched by them."""

from __future__ import annotations

from pathlib import Path

from crackbatch.images.formats import EXTENSIONS
from crackbatch.sources.fetch import fetch
from crackbatch.sources.plan import Plan, make_plan
from crackbatch.sources.shards import shard_sizes


def plan_of_archive(path: Path, **options: object) -> Plan:
    """The plan of one archive, which is unpacked beside it if it is compressed."""
    return make_plan([str(path)], EXTENSIONS, scratch=str(path.parent / "scratch"), **options)


def contents(plan: Plan) -> dict[str, bytes | str]:
    """Bytes, or the status where there are none, by the member's name or the file's."""
    found: dict[str, bytes | str] = {}
    for block in fetch(plan.table):
        for row in block.to_pylist():
            found[row["image_uri"].split("://")[-1].split("::")[0]] = row["bytes"] if row["bytes"] else row["status"]
    assert len(found) == plan.table.num_rows
    return found


def fetch_all(plan: Plan) -> list[dict[str, object]]:
    """Every row of a plan with its bytes, fetched shard by shard."""
    start, rows = 0, []
    for size in shard_sizes(plan.table):
        for block in fetch(plan.table.slice(start, size)):
            rows.extend(block.to_pylist())
        start += size
    return rows


def plan_of(*sources: object, **options: object) -> Plan:
    return make_plan([str(source) for source in sources], EXTENSIONS, **options)


def names(plan: Plan) -> list[str]:
    """The names of the files in a plan, in its order."""
    return [uri.rsplit("/", 1)[-1] for uri in plan.table["image_uri"].to_pylist()]
