"""Measures the time and memory of planning: a zip of a million members, a bucket of a million keys, 200,000 files.

    python benchmarks/plan.py [--members 1000000] [--keys 1000000] [--files 200000]

Each plan is made in its own process. The peak memory is that of the whole process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=1_000_000)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--plan", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plan:
        plan(arguments.plan)
        return
    with tempfile.TemporaryDirectory(prefix="crackbatch-plan-") as scratch:
        archive, folder = Path(scratch, "million.zip"), Path(scratch, "files")
        make_zip(archive, arguments.members)
        show(f"zip of {arguments.members:,} members", archive)
        with serve_bucket(arguments.keys) as address:
            show(f"bucket of {arguments.keys:,} keys", "s3://archive", AWS_ENDPOINT_URL=address)
        make_files(folder, arguments.files)
        show(f"{arguments.files:,} loose files", folder)


def make_zip(path: Path, members: int) -> None:
    """A zip with tiny members and names of realistic length, because only the zip's directory matters."""
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(members):
            archive.writestr(f"bridge-{index // 10_000:03d}/span-{index // 100 % 100:02d}/IMG_{index:08d}.jpg", b"x")


def make_files(folder: Path, files: int) -> None:
    for index in range(files):
        if index % 1000 == 0:
            (folder / f"span-{index // 1000:04d}").mkdir(parents=True)
        (folder / f"span-{index // 1000:04d}" / f"IMG_{index:08d}.jpg").write_bytes(b"x")


@contextmanager
def serve_bucket(keys: int) -> Iterator[str]:
    """The address of a bucket that a separate process serves."""
    command = [sys.executable, str(Path(__file__).with_name("bucket.py")), str(keys)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield server.stdout.readline().strip()
    finally:
        server.communicate("")


def show(what: str, source: Path | str, **environment: str) -> None:
    command = [sys.executable, __file__, "--plan", str(source)]
    keys = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_DEFAULT_REGION": "us-east-1"}
    environment = {**os.environ, **(keys if environment else {}), **environment}
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)
    print(
        f"{what}: {found['images']:,} planned in {found['seconds']:.1f} s (shards written: {found['written']:.1f} s),"
        f" peak memory {found['peak_bytes'] / 1e9:.2f} GB",
        flush=True,
    )


def plan(source: str) -> None:
    from crackbatch.images.formats import EXTENSIONS
    from crackbatch.sources.plan import make_plan
    from crackbatch.sources.shards import write_shards

    began = time.perf_counter()
    made = make_plan([source], EXTENSIONS)
    seconds = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        write_shards(made.table, folder)
    written = time.perf_counter() - began - seconds
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"images": made.table.num_rows, "seconds": seconds, "written": written, "peak_bytes": peak}))


if __name__ == "__main__":
    main()
