"""The shards of a plan hold each of its rows once."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from builders.archives import write_files
from builders.credentials import KEY, SIGNATURE
from builders.plans import plan_of
from crackbatch.archives.members import Object
from crackbatch.sources.rows import Rows, add_loose
from crackbatch.sources.shards import read_shard, shard_sizes, write_shards


def test_shards_hold_every_row_once_and_row_groups_whole(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    write_files(tmp_path, {f"in/{index:04d}.jpg": b"x" for index in range(700)})
    pq.write_table(pa.table({"bytes": [b"y"] * 500}), tmp_path / "in" / "p.parquet", row_group_size=200)
    table = plan_of(tmp_path / "in").table
    shards = list(map(read_shard, write_shards(table, str(tmp_path / "plan"))))
    assert pa.concat_tables(shards).to_pylist() == table.to_pylist()
    for shard in shards:
        groups = [group for group in shard["row_group"].unique().to_pylist() if group is not None]
        assert len(groups) <= 1 or len(shard) == sum(shard_sizes(shard))
    holders = [sum(shard["row_group"].to_pylist().count(group) > 0 for shard in shards) for group in range(3)]
    assert holders == [1, 1, 1]


def test_secrets_of_locations_are_in_no_file_and_in_every_shard(tmp_path: Path) -> None:
    urls = [
        f"https://user:{KEY}@host/{number}.jpg?sig={SIGNATURE}" if number % 3 else f"https://host/{number}.jpg?page=1"
        for number in range(2000)
    ]
    rows = Rows()
    for url in urls:
        add_loose(rows, Object(url, 1, "v", None), None)
    table = rows.table()
    shards = write_shards(table, str(tmp_path / "plan"))
    assert len(shards) > 2
    assert pa.concat_tables(map(read_shard, shards)).to_pylist() == table.to_pylist()
    for file in tmp_path.rglob("*.arrow"):
        with pa.ipc.open_file(file) as reader:
            written = str(reader.read_all().to_pylist())
        assert KEY not in written
        assert SIGNATURE not in written
        assert "https://host/3.jpg?page=1" in written
