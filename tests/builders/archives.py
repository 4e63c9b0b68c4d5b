"""Folders and archives of files, written as the tools that people use write them."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


class Unseekable(io.RawIOBase):
    """A pipe: zipfile cannot go back to write sizes, so they follow the data."""

    def __init__(self, target: io.BytesIO) -> None:
        self._target = target

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:
        return self._target.write(data)


def zip_with(method: int, tiles: dict[str, bytes], streamed: bool = False, zip64: bool = False) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(Unseekable(buffer) if streamed else buffer, "w", method) as archive:  # type: ignore[arg-type]
        for name, data in tiles.items():
            with archive.open(name, "w", force_zip64=zip64) as member:
                member.write(data)
    return buffer.getvalue()


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def tar_of(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, f"w:{path.suffix[1:]}" if path.suffix != ".tar" else "w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def archive_of(kind: str, images: dict[str, bytes], folder: Path) -> bytes:
    """The bytes of an archive of any kind that holds these images."""
    if kind == "zip":
        return zip_with(zipfile.ZIP_STORED, images)
    if kind == "parquet":
        pq.write_table(pa.table({"bytes": list(images.values())}), folder / "a.parquet", row_group_size=5)
        return (folder / "a.parquet").read_bytes()
    return tar_of(folder / f"a.{kind}", images).read_bytes()
