"""A job waits for what it needs of a cluster, says for what and how long, and gives up in time."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import crackbatch
from crackbatch.capacity import Capacity
from crackbatch.cluster import Cluster
from crackbatch.errors import OptionError, RunError

SMALL, LARGE = {"CPU": 4.0}, {"CPU": 8.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("gpus", "used"), [(None, [0, 4, 4]), (0, [0, 0, 0]), (1, [0, 1, 0]), (6, [0, 4, 2]), (9, [0, 4, 4])]
)
def test_a_job_uses_no_more_gpus_than_it_asked_for(gpus: int | None, used: list[int]) -> None:
    usable = Capacity(gpus).usable([SMALL, LARGE, LARGE])
    assert [node.get("GPU", 0) for node in usable] == used
    assert [node["CPU"] for node in usable] == [4, 8, 8]


@pytest.mark.parametrize(("options", "said"), [({"gpus": -1}, "--gpus must be 0"), ({"max_wait": -1}, "--max-wait")])
def test_amounts_that_make_no_sense_are_refused(options: dict[str, float], said: str, image: Path) -> None:
    with pytest.raises(OptionError, match=said):
        crackbatch.score(image, image.parent / "out", **options)  # type: ignore[arg-type]


@pytest.mark.usefixtures("ray_here")
def test_a_job_that_gets_no_gpu_in_time_says_what_it_waited_for(capfd: pytest.CaptureFixture[str]) -> None:
    with Cluster(None) as cluster, pytest.raises(RunError) as raised, Capacity(1, 0.02).asked_of(cluster, 1):
        pass
    expected = (
        "waited 1 s for a node with GPUs in the Ray cluster, which has none; add a worker node, or run again later"
    )
    assert str(raised.value).startswith(expected)
    assert "waiting up to 1 s for a node with GPUs in the Ray cluster, which has none …" in capfd.readouterr().err


@pytest.mark.usefixtures("ray_here")
def test_a_job_waits_until_others_free_what_it_needs(capfd: pytest.CaptureFixture[str]) -> None:
    import ray

    @ray.remote(num_cpus=2)
    class Other:
        def hold(self) -> None: ...

    other = Other.remote()  # type: ignore[attr-defined]
    ray.get(other.hold.remote())
    begun = threading.Event()

    def work() -> None:
        with Cluster(None) as cluster, Capacity().asked_of(cluster, 1):
            begun.set()

    job = threading.Thread(target=work)
    job.start()
    said = ""
    for _ in range(300):
        said += capfd.readouterr().err
        if "waiting up to" in said or begun.wait(0.1):
            break
    assert "waiting up to 30 min for a free CPU: other jobs hold 2 of the 2 in the Ray cluster …" in said
    assert not begun.is_set()
    ray.kill(other)
    assert begun.wait(60)
    job.join()
