"""What is free is what the machine has and the container is allowed, files that were read aside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crackbatch.machine import free_memory, has_gpu, num_cores


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
    monkeypatch.setattr("crackbatch.machine._GROUPS", tmp_path)
    assert free_memory() == free


def test_memory_is_told_also_where_no_file_tells_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crackbatch.machine._MEMORY", tmp_path / "not on this system")
    assert 1 << 28 < free_memory() < 1 << 50


@pytest.mark.parametrize(
    ("group", "name", "limits", "cores"),
    [
        ("", "cpu.max", "max 100000", None),
        ("", "cpu.max", "100000 100000", 1),
        ("pods.slice/pod-7", "cpu.max", "50000 100000", 1),
        ("pods.slice/pod-7", "cpu.max", "150000 100000", 2),
        ("", "cpu/cpu.cfs_quota_us", "-1", None),
        ("", "cpu/cpu.cfs_quota_us", "100000", 1),
    ],
)
def test_cores_are_those_of_the_containers_quota_and_not_of_its_host(
    group: str, name: str, limits: str, cores: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / group
    (own / name).parent.mkdir(parents=True, exist_ok=True)
    (own / name).write_text(limits)
    (own / name).with_name("cpu.cfs_period_us").write_text("100000")
    monkeypatch.setattr("crackbatch.machine._GROUPS", tmp_path)
    monkeypatch.setattr("crackbatch.machine._own_groups", lambda: [own, *own.parents[: group.count("/") + bool(group)]])
    allowed = len(os.sched_getaffinity(0))
    assert num_cores() == (allowed if cores is None else min(allowed, cores))


def test_cores_are_those_that_the_process_is_bound_to() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert num_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_memory_that_ray_would_end_workers_for_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_RAYLET_PID", raising=False)
    alone = free_memory()
    monkeypatch.setenv("RAY_RAYLET_PID", "1")
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.5")
    assert free_memory() < alone - (1 << 30)


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_gpus_that_a_variable_hides_are_none(hidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert not has_gpu()
