"""The shards of a plan hold each of its rows once."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from builders.archives import write_files
from builders.plans import plan_of
from crackbatch.sources.shards import read_shard, shard_sizes, write_shards


def test_shards_hold_every_row_once_and_row_groups_whole(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    write_files(tmp_path, {f"in/{index:04d}.jpg": b"x" for index in range(700)})
    pq.write_table(pa.table({"bytes": [b"y"] * 500}), tmp_path / "in" / "p.parquet", row_group_size=200)
    table = plan_of(tmp_path / "in").table
    num = write_shards(table, str(tmp_path / "plan"))
    shards = [read_shard(str(tmp_path / "plan"), index) for index in range(num)]
    assert pa.concat_tables(shards).to_pylist() == table.to_pylist()
    for shard in shards:
        groups = [group for group in shard["row_group"].unique().to_pylist() if group is not None]
        assert len(groups) <= 1 or len(shard) == sum(shard_sizes(shard))
    holders = [sum(shard["row_group"].to_pylist().count(group) > 0 for shard in shards) for group in range(3)]
    assert holders == [1, 1, 1]
