"""Runs made by hand (begun, with parts, published) and runs that are scored."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa

import crackbatch
from crackbatch.results.parts import write_part as write_rows
from crackbatch.results.publish import publish as publish_run
from crackbatch.results.run import Run
from crackbatch.results.summary import count_rows
from crackbatch.results.table import COLUMNS
from crackbatch.sources.rows import IDENTITY
from crackbatch.storage import atomic, locations

BLOCK = pa.table({name: [f"{name}-{row}" for row in range(3)] for name in IDENTITY})

MODEL = "concrete-resnet18@0123456789ab"


def begin(out: str, run_id: str, day: int = 1) -> Run:
    """A run that was planned."""
    run = Run(out, run_id, f"2026-01-{day:02d}")
    about = {"fingerprint": run_id, "created_at": f"{run.date}T10:00:00.000000+00:00", "model_id": MODEL}
    run.begin({**about, "threshold": 0.5})
    return run


def write_part(run: Run, uris: Sequence[str], status: str = "ok") -> None:
    rows = [{"image_uri": uri, "version": "1", "status": status} for uri in uris]
    write_rows(run, pa.Table.from_pylist(rows, COLUMNS))


def publish(run: Run, uris: str) -> None:
    """The run's rows become visible; what it needed while it worked is still there."""
    publish_run(run, pa.table({"image_uri": list(uris), "version": ["1"] * len(uris)}), COLUMNS)


def summary_of(run: Run, **changed: object) -> dict[str, object]:
    statuses = count_rows(run).statuses
    about = {"run_id": run.run_id, "date": run.date, "model_id": MODEL, "statuses": statuses, "exit_code": 0}
    return {**about, "images": sum(statuses.values()), "seconds": 12.5, **changed}


def write(out: str, files: dict[str, bytes]) -> dict[str, bytes]:
    for name, data in files.items():
        atomic.write_whole(locations.join(out, name), data)
    return files


FOREIGN = {
    "readme.txt": b"x",
    "parts/a.part": b"x",
    "runs/readme.txt": b"x",
    "runs/experiment-1/run.json": b'{"run_id": "experiment-1", "lr": 0.1}',
    "runs/experiment-1/parts/a.part": b"x",
    "runs/experiment-2/summary.json": b'{"loss": 1}',
    "runs/experiment-2/scratch/x.images": b"x",
    "runs/experiment-3/parts/part-0001.parquet": b"x",
    "runs/experiment-4/parts/0123456789abcdef01234567.part": b"x",
    "runs/experiment-4/model.pt": b"x",
    "runs/experiment-5/failure.json": b"{}",
    "runs/an experiment/plan/00000.arrow": b"x",
}


def score(source: object, out: Path, **options: object) -> crackbatch.RunSummary:
    options.setdefault("max_error_rate", 1.0)
    sources = [str(item) for item in source] if isinstance(source, list) else str(source)
    return crackbatch.score(sources, str(out), **options)  # type: ignore[arg-type]


def rows(out: Path, **options: object) -> pd.DataFrame:
    return crackbatch.read_predictions(str(out), **options)  # type: ignore[arg-type]


class Scored(NamedTuple):
    """A run that several tests look at: twelve tiles and what is no image."""

    folder: Path
    out: Path
    summary: crackbatch.RunSummary

    def copy(self, target: Path) -> Path:
        """Its results, to be written to; the same call as before goes on in them."""
        shutil.copytree(self.out, target)
        return target


def count_lost_and_twice(rows: pd.DataFrame, images: int) -> tuple[int, int]:
    """How many of the planned images have no row, and how many rows stand there again."""
    identities = rows[["image_uri", "version"]]
    return images - len(identities.drop_duplicates()), int(identities.duplicated().sum())
