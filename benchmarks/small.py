"""Measures small runs on one machine: whole processes, compared with a plain loop.

    python benchmarks/small.py [--rounds 3]

plain       one process that imports torch and torchvision, loads the model, and scores the images in a loop
crackbatch  `crackbatch score FOLDER --view whole --out OUT`, from the command to the table

Eight photographs of about 16 megapixels, and 100 tiles. Both run in turn; only the ratio is meaningful. Photographs are
scaled to the network's input here, as in the plain loop; `photo.py` measures them in windows.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image

from crackbatch.cli.demo import draw_tile

PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "photos"
PLAIN = """
import sys
from pathlib import Path
import numpy as np
import torch, torchvision
from crackbatch.images.picture import read_image, to_input
from crackbatch.models.model import load_model
model = load_model()
files = sorted(Path(sys.argv[1]).iterdir())
for start in range(0, len(files), model.batch_size):
    pictures = [read_image(path.read_bytes()) for path in files[start : start + model.batch_size]]
    print(model.probability(model.logits(np.stack([to_input(picture, 224) for picture in pictures]))))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="crackbatch-small-") as scratch:
        for name, images in (
            ("8 photographs", photographs()),
            ("100 tiles", [draw_tile(n, n % 2 == 0) for n in range(100)]),
        ):
            folder = Path(scratch, name)
            folder.mkdir()
            for index, data in enumerate(images):
                (folder / f"{index:03d}.jpg").write_bytes(data)
            plain, ours = [], []
            for number in range(rounds):
                plain.append(seconds([sys.executable, "-c", PLAIN, str(folder)]))
                command = [str(Path(sys.executable).with_name("crackbatch")), "score", str(folder), "--view", "whole"]
                ours.append(seconds([*command, "--out", f"{scratch}/{name}-{number}"]))
            ratio = np.median(np.array(ours) / np.array(plain))
            print(
                f"{name}: plain {np.median(plain):.1f} s, crackbatch {np.median(ours):.1f} s, ratio {ratio:.2f}",
                flush=True,
            )


def photographs() -> list[bytes]:
    """Eight photographs, or drawn ones if the data set is missing, enlarged to 16 megapixels."""
    if PHOTOS.exists():
        pictures = [PIL.Image.open(path) for path in sorted(PHOTOS.glob("*.jpg"))]
    else:
        pictures = [PIL.Image.open(io.BytesIO(draw_tile(index, index % 2 == 0))) for index in range(8)]
    found = []
    for picture in pictures[:8]:
        target = io.BytesIO()
        picture.convert("RGB").resize((4608, 3456), PIL.Image.Resampling.BICUBIC).save(target, "JPEG", quality=92)
        found.append(target.getvalue())
    return found


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
