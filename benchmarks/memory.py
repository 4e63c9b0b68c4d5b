"""Measures the peak memory of a run's driver, actors and decoders with 5,000 and with 50,000 images: it must not grow.

    python benchmarks/memory.py [--small 5000] [--large 50000]

The measure is the proportional set size (shared pages are divided among the processes that share them), summed over the
driver, the predict actors and their decoder processes, and sampled twice a second. The peak of the sum is printed. The
fetch and write workers belong to Ray and are counted separately.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "metu.zip"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=5_000)
    parser.add_argument("--large", type=int, default=50_000)
    arguments = parser.parse_args()
    peaks = []
    with tempfile.TemporaryDirectory(prefix="crackbatch-memory-") as scratch:
        for num_images in (arguments.small, arguments.large):
            archive = Path(scratch, f"{num_images}.zip")
            make_zip(archive, num_images)
            peak, others, seconds = run(archive, Path(scratch, f"out-{num_images}"))
            peaks.append(peak)
            print(
                f"{num_images:,} images: driver, actors and decoders {peak / 1e6:,.0f} MB,"
                f" Ray's other workers {others / 1e6:,.0f} MB, {seconds:.0f} s",
                flush=True,
            )
    print(f"ratio {peaks[1] / peaks[0]:.2f}")


def make_zip(path: Path, num_images: int) -> None:
    """A zip of METU tiles, repeated under other names if there are too few; drawn tiles if the data set is missing."""
    from crackbatch.cli.demo import draw_tile

    with zipfile.ZipFile(path, "w") as target:
        if SHARED.exists():
            with zipfile.ZipFile(SHARED) as source:
                names = source.namelist()
                for index in range(num_images):
                    target.writestr(f"{index:06d}.jpg", source.read(names[index % len(names)]))
        else:
            tiles = [draw_tile(seed, seed % 2 == 0) for seed in range(200)]
            for index in range(num_images):
                target.writestr(f"{index:06d}.jpg", tiles[index % len(tiles)])


def run(archive: Path, out: Path) -> tuple[int, int, float]:
    """Peak bytes of driver, predict actors and decoders, peak bytes of Ray's other Python workers, and seconds."""
    command = [str(Path(sys.executable).with_name("crackbatch")), "score", str(archive), "--out", str(out)]
    command += ["--engine", "ray"]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = others = 0
    while process.poll() is None:
        ours, rest = process_sizes(process.pid)
        peak, others = max(peak, ours), max(others, rest)
        time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"crackbatch ended with exit code {process.returncode}")
    return peak, others, time.perf_counter() - began


def process_sizes(driver: int) -> tuple[int, int]:
    """Bytes of (driver, predict actors and decoders, other Ray workers), counting the driver and its descendants."""
    ours = rest = 0
    parents = {int(folder.name): parent_of(folder) for folder in Path("/proc").glob("[0-9]*")}
    for process in parents:
        folder = Path("/proc", str(process))
        ancestor = process
        while ancestor not in (0, driver):
            ancestor = parents.get(ancestor, 0)
        try:
            command = (folder / "cmdline").read_bytes()
            if ancestor != driver:
                continue
            if process == driver or b"_Scorer" in command or b"crackbatch.decoding.decoder" in command:
                ours += proportional_size(folder)
            elif command.startswith(b"ray::"):
                rest += proportional_size(folder)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return ours, rest


def parent_of(folder: Path) -> int:
    try:
        return int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def proportional_size(folder: Path) -> int:
    for line in (folder / "smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
