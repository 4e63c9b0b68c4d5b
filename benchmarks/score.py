"""Measures the speed of scoring, compared with the ceiling of this machine and the recipe of Ray's documentation.

    python benchmarks/score.py [--images 4000] [--device cuda]

All parts use the same images in one run, and each part has its own process. Only the ratios are meaningful.

ceiling     reading, decoding and the network in a plain loop, with one thread per core; measured before and after
crackbatch  `crackbatch score FOLDER --out OUT --engine ray`
this process  the same with `--engine local`
recipe      `read_images(size=…)` → `map_batches` → `write_parquet`, with one actor, the most that two cores allow
            (with two actors, its readers never get a CPU)

"Steady" is the middle 80 % of the images, ordered by the time of their scoring. "End to end" is the whole process.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from threading import Thread

import numpy as np

from crackbatch.machine import num_cores

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "metu.zip"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--part", choices=["ceiling", "recipe", "start", "decode", "model"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part == "ceiling":
        report({"images_per_s": ceiling(Path(arguments.folder), arguments.device)})
    elif arguments.part in ("decode", "model"):
        report({"images_per_s": stage_ceiling(Path(arguments.folder), arguments.device, arguments.part)})
    elif arguments.part == "recipe":
        recipe(arguments.folder, arguments.out)
    elif arguments.part == "start":
        start()
    else:
        with tempfile.TemporaryDirectory(prefix="crackbatch-benchmark-") as scratch:
            compare(Path(scratch), arguments.images, arguments.device)


def compare(scratch: Path, num_images: int, device: str) -> None:
    folder = scratch / "images"
    make_images(folder, num_images)
    print(f"{num_images:,} images, {num_cores()} cores, {device}", flush=True)
    before = run_part("ceiling", folder, device)["images_per_s"]
    ours = run_crackbatch(folder, scratch / "results")
    here = run_crackbatch(folder, scratch / "here", engine="local")
    after = run_part("ceiling", folder, device)["images_per_s"]
    best = (before + after) / 2
    print_row("", "steady images/s", "of ceiling", "end to end images/s", "whole process s")
    print_row("ceiling", f"{best:.1f}", "1.00", "", "")
    print_row("crackbatch", f"{ours['steady']:.1f}", f"{ours['steady'] / best:.2f}", f"{num_images / ours['wall']:.1f}",
              f"{ours['wall']:.1f}")  # fmt: skip
    print_row("this process", f"{here['steady']:.1f}", f"{here['steady'] / best:.2f}",
              f"{num_images / here['wall']:.1f}", f"{here['wall']:.1f}")  # fmt: skip
    if device == "cuda":
        for part in ("decode", "model"):
            print_row(f"{part} ceiling", f"{run_part(part, folder, device)['images_per_s']:.1f}", "", "", "")
    base = run_recipe(folder, scratch / "recipe")
    print_row("recipe", f"{base['steady']:.1f}", f"{base['steady'] / best:.2f}", f"{num_images / base['wall']:.1f}",
              f"{base['wall']:.1f}")  # fmt: skip
    print(f"crackbatch / recipe: steady {ours['steady'] / base['steady']:.2f}, "
          f"end to end {base['wall'] / ours['wall']:.2f}")  # fmt: skip
    starts = [run_part("start", folder, device)["seconds"] for _ in range(3)]
    firsts = [ours["first"], *(run_crackbatch(folder, scratch / f"small-{n}", 64)["first"] for n in range(2))]
    print(
        f"first scored image after {np.median(firsts):.1f} s; only ray.init and import torch, torchvision:"
        f" {np.median(starts):.1f} s; ratio {np.median(firsts) / np.median(starts):.2f}"
        f" (medians of {len(firsts)}; ceilings before and after: {before:.1f}, {after:.1f} images/s)"
    )


def make_images(folder: Path, num_images: int) -> None:
    """METU tiles, or drawn tiles if the data set is missing."""
    folder.mkdir(parents=True)
    if SHARED.exists():
        with zipfile.ZipFile(SHARED) as archive:
            names = archive.namelist()
            for index in range(num_images):
                name = names[index * len(names) // num_images]
                (folder / name.replace("/", "_")).write_bytes(archive.read(name))
        return
    from crackbatch.cli.demo import draw_tile

    for index in range(num_images):
        (folder / f"{index:06d}.jpg").write_bytes(draw_tile(index, cracked=index % 2 == 0))


def run_part(part: str, folder: Path, device: str, *more: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--part", part, "--folder", str(folder), "--device", device, *more]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(output.splitlines()[-1]))


def run_crackbatch(folder: Path, out: Path, limit: int | None = None, engine: str = "ray") -> dict[str, float]:
    import pyarrow.parquet as pq

    command = [str(Path(sys.executable).with_name("crackbatch")), "score", str(folder), "--out", str(out)]
    command += ["--engine", engine]
    began, clock = time.time(), time.perf_counter()
    subprocess.run([*command, *(["--limit", str(limit)] if limit else [])], check=True, capture_output=True)
    wall = time.perf_counter() - clock
    table = pq.read_table(out / "predictions", columns=["scored_at", "status"])
    assert table.column("status").unique().to_pylist() == ["ok"]
    moments = table.column("scored_at").to_numpy().astype("datetime64[us]").astype(np.int64) / 1e6
    return {"wall": wall, "steady": steady(moments), "first": float(moments.min()) - began}


def run_recipe(folder: Path, out: Path) -> dict[str, float]:
    import pyarrow.parquet as pq

    clock = time.perf_counter()
    command = [sys.executable, __file__, "--part", "recipe", "--folder", str(folder), "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    wall = time.perf_counter() - clock
    moments = pq.read_table(out, columns=["scored_at"]).column("scored_at").to_numpy()
    shutil.rmtree(out)
    return {"wall": wall, "steady": steady(moments)}


def steady(moments: np.ndarray) -> float:
    """Images/s over the middle 80 % of the images; `moments` are the seconds at which their batches were done."""
    ordered = np.sort(moments)
    low, high = ordered[len(ordered) // 10], ordered[len(ordered) * 9 // 10]
    # A moment is the end of a batch. So count the images that finished after `low`, up to `high`.
    return float(((ordered > low) & (ordered <= high)).sum() / max(high - low, 1e-9))


def ceiling(folder: Path, device: str) -> float:
    """Images/s of a plain loop over the files, with one thread per core and separate batches for each."""
    import torch

    from crackbatch.images.picture import read_image, to_input
    from crackbatch.models.model import load_model

    torch.set_num_threads(1)
    model = load_model(device=device)
    files = sorted(folder.iterdir())
    threads = num_cores()
    model.logits(np.zeros((model.batch_size, model.bundle.input_size, model.bundle.input_size, 3), np.uint8))

    def work(mine: list[Path]) -> None:
        for start in range(0, len(mine), model.batch_size):
            batch = [read_image(path.read_bytes()) for path in mine[start : start + model.batch_size]]
            model.logits(np.stack([to_input(picture, model.bundle.input_size) for picture in batch]))

    return len(files) / timed_threads(work, [files[index::threads] for index in range(threads)])


def stage_ceiling(folder: Path, device: str, stage: str) -> float:
    """Images/s of only decoding, on all cores, or of only the network, on decoded pixels."""
    from crackbatch.decoding.decoders import Decoders
    from crackbatch.images.picture import read_image, to_input
    from crackbatch.models.model import load_model

    model = load_model(device=device)
    size = model.bundle.input_size
    data = [path.read_bytes() for path in sorted(folder.iterdir())]
    if stage == "decode":
        with Decoders(size, batch_size=256, num_batches=8) as decoders:
            batches = [data[start : start + 256] for start in range(0, len(data), 256)]
            next(decoders.decode(batches))  # they have started
            began = time.perf_counter()
            for _ in decoders.decode(batches):
                pass
            return len(data) / (time.perf_counter() - began)
    pixels = np.stack([to_input(read_image(item), size) for item in data[: model.batch_size]])
    model.logits(pixels)
    began = time.perf_counter()
    rounds = max(1, len(data) // len(pixels))
    for _ in range(rounds):
        model.logits(pixels)
    return rounds * len(pixels) / (time.perf_counter() - began)


def timed_threads(work, shares) -> float:
    workers = [Thread(target=work, args=(share,)) for share in shares]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - began


def recipe(folder: str, out: str) -> None:
    """Batch inference as in Ray's documentation: pixels go through the object store, and the network is eager."""
    import ray
    import torch
    from torchvision import transforms

    from crackbatch.models.bundle import read_bundle_and_weights
    from crackbatch.models.networks import build_network

    class Classifier:
        def __init__(self) -> None:
            from safetensors.torch import load

            bundle, weights = read_bundle_and_weights()
            self.network = build_network(bundle.network)
            self.network.load_state_dict(load(weights))
            self.network.eval()

        def __call__(self, batch):
            pixels = torch.as_tensor(np.stack(batch["image"]))
            with torch.inference_mode():
                logits = self.network(pixels)
            probability = torch.softmax(logits, 1)[:, 1].numpy()
            return {"path": batch["path"], "probability": probability, "scored_at": np.full(len(pixels), time.time())}

    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    )

    def preprocess(row):
        return {"path": row["path"], "image": transform(row["image"])}

    ray.data.read_images(folder, size=(224, 224), mode="RGB", include_paths=True).map(preprocess).map_batches(
        Classifier, batch_size=64, compute=ray.data.ActorPoolStrategy(size=1)
    ).write_parquet(out)


def start() -> None:
    """Report the seconds that every run on Ray and torch needs to start."""
    began = time.perf_counter()
    import ray

    ray.init(include_dashboard=False, log_to_driver=False)
    import torch  # noqa: F401
    import torchvision  # noqa: F401

    report({"seconds": time.perf_counter() - began})


def report(values: dict[str, float]) -> None:
    print(json.dumps(values), flush=True)


def print_row(*cells: str) -> None:
    print("".join(cell.ljust(12) if index == 0 else cell.rjust(21) for index, cell in enumerate(cells)), flush=True)


if __name__ == "__main__":
    main()
