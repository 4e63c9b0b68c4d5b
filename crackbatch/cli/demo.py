"""`make demo`: draws a small archive of tiles that look like concrete, with some bad files, scores it, shows the table.

    python -m crackbatch.cli.demo [FOLDER]

Nothing is downloaded: the tiles are drawn. The probabilities show that the pipeline works, not how good the model is.
"""

from __future__ import annotations

import io
import itertools
import sys
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFilter

from crackbatch.cli.output import print_summary
from crackbatch.results.predictions import read_predictions
from crackbatch.scoring.score import score
from crackbatch.storage import atomic

TILE = 227
NUM_TILES = 96


def main() -> None:
    """Draw, score, and print the first rows."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    archive, out = folder / "inspection.zip", str(folder / "results")
    if not archive.exists():  # a redrawn archive would be a new version, and its images would be scored again
        draw_archive(archive)
        print(f"drew {NUM_TILES} tiles and five bad files into {archive} ({archive.stat().st_size:,} bytes)")
    print(f"$ crackbatch score {archive} --out {out} --max-error-rate 0.1")
    summary = score([str(archive)], out, max_error_rate=0.1)
    print_summary(summary)
    rows = read_predictions(out, run_id=summary.run_id)
    rows["image"] = rows["image_uri"].str.extract(r"zip://([^:]+)::", expand=False)
    print("\nThe most probable cracks:")
    print(rows[["image", "status", "crack_probability", "label"]].head(8).to_string(index=False))
    print("\nThe images that could not be scored, and why:")
    print(rows[rows["status"] != "ok"][["image", "status", "error"]].to_string(index=False))
    print(f"\nRead the table with:  pandas.read_parquet({str(Path(out) / 'predictions')!r})")


def draw_archive(path: Path, num_tiles: int = NUM_TILES) -> None:
    """Draw a zip like those of real inspections: tiles in folders, and files that are empty, cut off or not images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.new_local_file(str(path)) as file, zipfile.ZipFile(file, "w") as archive:
        for index in range(num_tiles):
            cracked = index % 3 == 0
            # A fixed date, so that the archive is the same every time.
            entry = zipfile.ZipInfo(f"pier-{index % 4 + 1}/tile-{index:04d}.jpg", (2026, 1, 1, 12, 0, 0))
            archive.writestr(entry, draw_tile(index, cracked))
        tile = draw_tile(num_tiles, cracked=True)
        archive.writestr("pier-1/interrupted.jpg", tile[: len(tile) // 2])
        archive.writestr("pier-1/empty.jpg", b"")
        archive.writestr("pier-2/renamed.jpg", b"%PDF-1.7 a report that somebody renamed")
        archive.writestr("pier-2/notes.txt", b"wet surface, tripod 2 m")
        archive.writestr("__MACOSX/pier-1/._tile-0000.jpg", b"\0\5\x16\7")


def draw_tile(seed: int, cracked: bool) -> bytes:
    """One JPEG of 227x227 pixels: grey, grainy and stained, with or without a winding dark line."""
    random = np.random.default_rng(seed)
    coarse = random.normal(0, 1, (8, 8)).astype(np.float32)
    stains = np.asarray(PIL.Image.fromarray(coarse).resize((TILE, TILE), PIL.Image.Resampling.BICUBIC))
    grey = random.uniform(140, 190) + 6 * stains + random.normal(0, 5, (TILE, TILE))
    tint = np.array([1.0, 0.985, 0.96])
    image = PIL.Image.fromarray(np.clip(grey[..., None] * tint, 0, 255).astype(np.uint8))
    if cracked:
        _draw_crack(image, random)
    encoded = io.BytesIO()
    image.filter(PIL.ImageFilter.GaussianBlur(0.6)).save(encoded, "JPEG", quality=88)
    return encoded.getvalue()


def _draw_crack(image: PIL.Image.Image, random: np.random.Generator) -> None:
    """Draw a random walk from edge to edge, two to five pixels wide and dark like a gap."""
    steps = 24
    along = np.linspace(-5, TILE + 5, steps)
    across = random.uniform(50, TILE - 50) + np.cumsum(random.normal(0, 7, steps))
    points = list(zip(along, across, strict=True)) if random.random() < 0.5 else list(zip(across, along, strict=True))
    shade = int(random.uniform(35, 70))
    pen = PIL.ImageDraw.Draw(image)
    for start, stop in itertools.pairwise(points):
        pen.line([start, stop], fill=(shade, shade, shade), width=int(random.integers(2, 6)))


if __name__ == "__main__":
    main()
