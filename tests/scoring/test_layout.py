"""Actors fill each node of a cluster and leave room for reading and for another run."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("nodes", "layout"),
    [
        ([{"CPU": 2}], ("cpu", 1, 2)),
        ([{"CPU": 1}], ("cpu", 1, 1)),
        ([{"CPU": 0}, {"CPU": 8}, {"CPU": 8}], ("cpu", 2, 8)),
        ([{"CPU": 64}], ("cpu", 4, 16)),
        ([{"CPU": 4}, {"CPU": 9}], ("cpu", 3, 4)),
        ([{"CPU": 16, "GPU": 2}, {"CPU": 8, "GPU": 1}, {"CPU": 8}], ("cuda", 3, 8)),
    ],
)
def test_actors_leave_room_for_reading_and_writing(nodes: list[dict], layout: tuple) -> None:
    from crackbatch.cluster import IO_CPUS
    from crackbatch.scoring.layout import lay_out

    found = lay_out(nodes)
    assert (found.kind, found.num_actors, found.threads) == layout
    if found.kind == "cpu":
        assert sum(int(node["CPU"] / found.threads) for node in nodes) == found.num_actors
        # Also those of a node that died: twice as many on a node, and still room for reading.
        assert all(node["CPU"] - 2 * int(node["CPU"] / found.threads) * found.num_cpus >= IO_CPUS
                   for node in nodes if node["CPU"])  # fmt: skip
        # And another run's beside one that reads and predicts.
        taken = found.num_actors * found.num_cpus + found.num_readers * IO_CPUS
        assert 2 * taken <= sum(node["CPU"] for node in nodes)
