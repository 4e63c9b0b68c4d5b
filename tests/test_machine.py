"""What is free is what the machine has and the container is allowed, files that were read aside."""

from __future__ import annotations

from pathlib import Path

import pytest

from crackbatch.machine import free_memory


@pytest.mark.parametrize(
    ("allowed", "used", "inactive", "active", "free"),
    [
        ("4000", 1000, 0, 0, 3000),
        ("4000", 3900, 2000, 1000, 3100),
        ("4000", 3900, 3000, 1000, 4000),  # counted at two moments: never more than is allowed
        ("4000", 5000, 0, 0, 0),
        ("64000", 3900, 2000, 1000, 10240),  # which the machine has free
        ("max", 3900, 0, 0, 10240),
    ],
)
def test_free_is_what_the_container_may_still_take_with_room_made_of_files_that_were_read(
    allowed: str, used: int, inactive: int, active: int, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  20 kB\nMemFree:  1 kB\nMemAvailable:  10 kB\n")
    (tmp_path / "memory.max").write_text(f"{allowed}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    (tmp_path / "memory.stat").write_text(
        f"anon 700\nfile 3000\nshmem 5\nfile_mapped 9\ninactive_anon 0\nactive_anon 700\n"
        f"inactive_file {inactive}\nactive_file {active}\nworkingset_refault_file 8\n"
    )
    monkeypatch.setattr("crackbatch.machine._MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr("crackbatch.machine._GROUP", tmp_path)
    assert free_memory() == free


def test_memory_is_told_also_where_no_file_tells_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crackbatch.machine._MEMORY", tmp_path / "not on this system")
    assert 1 << 28 < free_memory() < 1 << 50
