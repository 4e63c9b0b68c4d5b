"""Measures the cost of an image as runs grow: runs on 10,000, 100,000 and 1,000,000 images, with a predict stage that
does nothing.

    python benchmarks/scale.py [--sizes 10000,100000,1000000]

Each run has its own process. Planning, Ray, fetching, writing parts and publishing work as usual; only decoding and
the network are left out. For each run it prints the microseconds per image in the pipeline, the seconds of the whole
process, the microseconds for each image that the previous run did not have, and the peak memory of the driver. Then it
prints how long the largest run takes with --new-only when all its images are published already. The exit code is 1 if
a figure is above its limit. docs/scale.md says what these figures mean for 100 million images.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

ASKED_GROWTH, ASKED_GB, ASKED_PLAN_S = 1.1, 2.0, 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10000,100000,1000000")
    parser.add_argument("--folder", help="where archives and results go [default: a temporary folder]")
    parser.add_argument("--run", nargs=3, metavar=("ARCHIVE", "OUT", "RUN_ID"), help=argparse.SUPPRESS)
    parser.add_argument("--new-only", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run_one(*arguments.run, new_only=arguments.new_only)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        compare([int(size) for size in arguments.sizes.split(",")], Path(folder))


def compare(sizes: list[int], folder: Path) -> None:
    print(f"{'images':>12}{'pipeline':>14}{'whole process':>16}{'each added':>16}{'driver peak':>16}")
    costs, further, before = [], [], (0, 0.0)
    for size in sizes:
        archive = write_zip(folder / f"{size}.zip", size)
        found = run_apart(archive, folder / "out", str(size))
        costs.append(found["pipeline_s"] / size)
        # The difference of two sizes cancels the start-up time, which is nearly all of the smallest run.
        further.append((found["seconds"] - before[1]) / (size - before[0]))
        before = (size, found["seconds"])
        print(
            f"{size:>12,}{costs[-1] * 1e6:>9.0f} us/im{found['seconds']:>14.1f} s{further[-1] * 1e6:>11.0f} us/im"
            f"{found['peak_gb']:>13.2f} GB",
            flush=True,
        )
    growths = costs[-1] / costs[0], further[-1] / further[min(1, len(sizes) - 1)]
    print(
        f"per image, the largest run costs {growths[0]:.2f} times as much as the smallest (the limit is {ASKED_GROWTH})"
    )
    print(f"an image added to the largest run costs {growths[1]:.2f} times one added to the second run")
    print(f"peak memory of the driver: {found['peak_gb']:.2f} GB (the limit is {ASKED_GB:g})")
    again = run_apart(archive, folder / "out", "again", "--new-only")
    assert again["images"] == 0
    print(
        f"--new-only with {sizes[-1]:,} images, all already published: {again['seconds']:.1f} s (the limit"
        f" is {ASKED_PLAN_S:g}), {again['peak_gb']:.2f} GB"
    )
    if max(growths) > ASKED_GROWTH or found["peak_gb"] > ASKED_GB or again["seconds"] > ASKED_PLAN_S:
        sys.exit(1)


def write_zip(path: Path, num_images: int) -> Path:
    """Write a zip of files of a few bytes: only their number matters, not their content."""
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(num_images):
            archive.writestr(f"span-{index // 1000:05d}/{index:08d}.jpg", b"%08d" % index)
    return path


def run_apart(archive: Path, out: Path, run_id: str, *options: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--run", str(archive), str(out), run_id, *options]
    began = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {**json.loads(done.stdout.splitlines()[-1]), "seconds": time.monotonic() - began}


def run_one(archive: str, out: str, run_id: str, new_only: bool) -> None:
    """Run in this process, with a predict stage that does nothing."""
    import crackbatch
    from crackbatch.scoring import pipeline

    pipeline._Scorer = Nothing  # type: ignore[misc]
    summary = crackbatch.score(archive, out, run_id=run_id, new_only=new_only, max_error_rate=1.0, engine="ray")
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    seconds = summary.stages["pipeline"]["seconds"] if summary.stages else 0
    print(json.dumps({"images": summary.images, "pipeline_s": seconds, "peak_gb": peak_gb}))


class Nothing:
    """The predict stage without decoder and network. It still makes a row for each image."""

    def __init__(self, stamp: Any, **_: object) -> None:
        from crackbatch.scoring.predictor import Predictor

        bundle = SimpleNamespace(classes=("no_crack", "crack"))
        model: Any = SimpleNamespace(bundle=bundle, probability=lambda logits: np.zeros(len(logits), np.float32))
        decoders: Any = SimpleNamespace(batch_size=8192, decode=not_decoded)
        self._predict = Predictor(lambda: model, stamp, decoders)

    def __call__(self, block: pa.Table) -> pa.Table:
        rows = self._predict(block)
        for name in ("_fetch_seconds", "_fetch_retries"):
            rows = rows.append_column(name, block.column(name))
        return rows.append_column("_predict_seconds", pa.array([0.0] * rows.num_rows))


def not_decoded(batches: Iterable[list[bytes]]) -> Iterator[Any]:
    from crackbatch.decoding.decoder import FACTS
    from crackbatch.decoding.decoders import Decoded

    for batch in batches:
        known = {"status": "failed", "error": "not decoded"}
        yield Decoded({name: [known.get(name)] * len(batch) for name in FACTS}, np.empty((0, 1, 1, 3), np.uint8))


if __name__ == "__main__":
    main()
