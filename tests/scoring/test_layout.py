"""Actors fill each node of a cluster and leave room for reading and for another run."""

from __future__ import annotations

import pyarrow as pa
import pytest

from crackbatch.cluster import IO_CPUS
from crackbatch.scoring.layout import lay_out, rows_per_call

Node = dict[str, float]


@pytest.mark.parametrize(
    ("nodes", "num_actors", "size"),
    [
        ([{"CPU": 2}], 1, 2),
        ([{"CPU": 1}], 1, 1),
        ([{"CPU": 0}, {"CPU": 8}, {"CPU": 8}], 2, 8),
        ([{"CPU": 64}], 4, 16),
        ([{"CPU": 20}], 2, 10),
        ([{"CPU": 4}, {"CPU": 9}], 3, 4),
        ([{"CPU": 64}] * 10 + [{"CPU": 2}], 40, 16),
        ([{"CPU": 3}] * 5, 5, 3),
    ],
)
def test_actors_on_cpus_fill_each_node_and_leave_room(nodes: list[Node], num_actors: int, size: int) -> None:
    found = lay_out(nodes)
    assert (found.device, found.num_actors, found.calls, found.num_decoders) == ("cpu", num_actors, size, size)
    assert sum(int(node["CPU"]) // size for node in nodes) == num_actors
    # Also those of a node that died: twice as many on a node, and still room for reading.
    assert all(node["CPU"] - 2 * int(node["CPU"] // size) * found.num_cpus >= IO_CPUS for node in nodes if node["CPU"])
    # And another run's beside one that reads and predicts.
    taken = found.num_actors * found.num_cpus + found.num_readers * found.reader_cpus
    assert 2 * taken <= sum(node["CPU"] for node in nodes)


@pytest.mark.parametrize(
    ("nodes", "num_actors", "num_decoders"),
    [
        ([{"CPU": 16, "GPU": 1}], 1, 16),
        ([{"CPU": 16, "GPU": 2}, {"CPU": 8, "GPU": 1}, {"CPU": 8}], 3, 8),
        ([{"CPU": 0, "GPU": 1}], 1, 0),
        ([{"GPU": 2}], 2, 0),
        ([{"CPU": 1, "GPU": 4}], 4, 0),
        ([{"CPU": 4, "GPU": 1}, {"CPU": 0, "GPU": 1}], 2, 0),
    ],
)
def test_every_gpu_has_an_actor_that_can_be_placed_on_its_node_beside_tasks_that_read(
    nodes: list[Node], num_actors: int, num_decoders: int
) -> None:
    found = lay_out(nodes)
    assert (found.device, found.num_gpus, found.num_actors, found.num_decoders) == ("cuda", 1, num_actors, num_decoders)
    assert all(found.num_cpus * node["GPU"] <= node.get("CPU", 0) for node in nodes if "GPU" in node)
    left = sum(node.get("CPU", 0) for node in nodes) - num_actors * found.num_cpus
    assert found.num_readers >= 1
    assert found.reader_cpus <= left


TILE, PHOTO = 9_000, 6_000_000


@pytest.mark.parametrize(
    ("sizes", "batch_size", "default", "rows"),
    [
        ([TILE] * 1000, None, 256, 256),
        ([TILE] * 1000, 1024, 256, 1024),
        ([TILE] * 1000, None, 0, None),
        ([TILE] * 1000, 64, 0, 64),
        ([PHOTO] * 100, None, 256, 16),
        ([TILE] * 1000 + [PHOTO] * 100, None, 256, 16),
        ([None] * 10, None, 256, 256),
        ([2_000_000_000], None, 256, 1),
    ],
)
def test_a_call_gets_a_batch_unless_its_images_are_large(
    sizes: list[int | None], batch_size: int | None, default: int, rows: int | None
) -> None:
    assert rows_per_call(pa.table({"size_bytes": pa.array(sizes, pa.int64())}), batch_size, default) == rows
