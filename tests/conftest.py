"""What the tests share: drawn tiles, servers of storages, Ray started once, and the real images where they are."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from crackbatch.demo import draw_tile

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def tiles() -> dict[str, bytes]:
    """Twelve drawn JPEG tiles, every one different, by name."""
    return {f"tile-{index:02d}.jpg": draw_tile(index, cracked=index % 2 == 0) for index in range(12)}


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images, which lies beside the project on its developers' machines."""
    if not SHARED.is_dir():
        pytest.skip(f"the real images are not here ({SHARED.parent.name}/{SHARED.name})")
    return SHARED


SECRET = "a-secret-that-is-written-nowhere"


@pytest.fixture(scope="session")
def ports() -> Iterator[dict[str, socket.socket]]:
    """Ports kept for the storage servers, whose addresses must be known before Ray starts its workers."""
    held = {name: socket.create_server(("127.0.0.1", 0)) for name in ("s3",)}
    number = {name: holder.getsockname()[1] for name, holder in held.items()}
    before = dict(os.environ)
    os.environ.update(
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{number['s3']}",
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY=SECRET,
        AWS_DEFAULT_REGION="us-east-1",
    )
    yield held
    os.environ.clear()
    os.environ.update(before)
    for holder in held.values():
        holder.close()


def release(holder: socket.socket) -> int:
    """The number of a port that was kept, free now for its server."""
    number = int(holder.getsockname()[1])
    holder.close()
    return number


@pytest.fixture(scope="session")
def s3(ports: dict[str, socket.socket]) -> Iterator[str]:
    """A real S3 server over HTTP on loopback, known to this process and to those it starts; yields its address."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=release(ports["s3"]), verbose=False)
    server.start()
    boto3.client("s3").create_bucket(Bucket="inspections")
    yield os.environ["AWS_ENDPOINT_URL"]
    server.stop()


@pytest.fixture(scope="session")
def ray_here(ports: dict[str, socket.socket]) -> Iterator[None]:
    """Ray on this machine, started once for all tests that score in this process."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(params=["here", "s3"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An output location, once in a folder and once in a bucket."""
    if request.param == "here":
        return str(tmp_path / "out")
    request.getfixturevalue("s3")
    return f"s3://inspections/{tmp_path.name}"


FAULTS_MADE = pytest.StashKey[list[tuple[str, int, int, int]]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table of `make test-faults`: each fault, how often it was made, and what it did to the rows."""
    made = config.stash.get(FAULTS_MADE, [])
    if made:
        terminalreporter.write_line(f"\n{'fault':52}{'times made':>12}{'rows lost':>12}{'rows twice':>12}")
    for fault, times, lost, twice in made:
        terminalreporter.write_line(f"{fault:52}{times:>12}{lost:>12}{twice:>12}")
