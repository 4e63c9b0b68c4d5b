"""Checkpoints of a training, on any storage: one for each epoch. The last two and the best weights are kept.

OUT/training/request.json     the request
OUT/training/epoch-0003.pt    everything that the next epoch needs
OUT/training/best-0003.pt     the averaged weights of the best epoch so far
OUT/training/seen.parquet     the images that these weights have seen
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from typing import Any

from crackbatch.errors import RunError
from crackbatch.storage import atomic, locations, objects
from crackbatch.storage.redaction import masked

_KEPT = 2
_OLD_BEST = "best.pt"  # older versions of crackbatch stored the best weights under this name, for any epoch


class Checkpoints:
    """Reads and writes checkpoints in a folder. They hold plain values and tensors; nothing else is loaded."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def save(self, epoch: int, state: dict[str, Any], best: set[int]) -> None:
        """Write an epoch's checkpoint; then remove all but the last two, and all weights but those of `best` epochs."""
        atomic.write_whole(self._location(epoch), _dump(state))
        files = self._files()
        # Checkpoints of later epochs could not be read, so this training continued from an earlier one.
        for number in _epochs(files):
            if number > epoch or number <= epoch - _KEPT:
                objects.remove(self._location(number))
        # Use the listing: some storages report a file as missing when the look-up only failed.
        needed = {name if (name := _best_name(number)) in files else _OLD_BEST for number in best}
        for name, file in files.items():
            if is_best(name) and name not in needed:
                objects.remove(file)

    def latest(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read, or None."""
        for epoch in reversed(_epochs(self._files())):
            if (state := _parse(objects.read_bytes(self._location(epoch)))) is not None:
                return state
        return None

    def save_best(self, epoch: int, weights: dict[str, Any]) -> None:
        """Save the weights of the best epoch so far; earlier ones stay until this epoch has its checkpoint."""
        atomic.write_whole(locations.join(self.folder, _best_name(epoch)), _dump(weights))

    def best_location(self, epoch: int) -> str:
        """The location of the best epoch's weights."""
        location = locations.join(self.folder, _best_name(epoch))
        return location if objects.exists(location) else locations.join(self.folder, _OLD_BEST)

    def best(self, epoch: int) -> dict[str, Any]:
        """The weights of the best epoch; raises RunError if they are missing or damaged."""
        try:
            weights = _parse(objects.read_bytes(self.best_location(epoch)))
        except FileNotFoundError:
            weights = None
        if weights is None:
            raise RunError(
                f"the weights of the best epoch ({epoch}) are missing from {masked(self.folder)} or damaged; remove the"
                " folder and train again"
            )
        return weights

    def _files(self) -> dict[str, str]:
        """Name → location."""
        return {file.rsplit("/", 1)[-1]: file for file in objects.list_files(self.folder, ".pt")}

    def _location(self, epoch: int) -> str:
        return locations.join(self.folder, f"epoch-{epoch:04d}.pt")


def _epochs(names: Iterable[str]) -> list[int]:
    """The epochs that have a checkpoint, in ascending order."""
    found = (re.fullmatch(r"epoch-(\d+)\.pt", name) for name in names)
    return sorted(int(match[1]) for match in found if match)


def is_best(name: str) -> bool:
    """Whether a file with this name holds the best weights of a training."""
    return re.fullmatch(r"best(-\d+)?\.pt", name) is not None


def _best_name(epoch: int) -> str:
    return f"best-{epoch:04d}.pt"


def _dump(state: dict[str, Any]) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _parse(data: bytes) -> dict[str, Any] | None:
    """The dumped state, or None if the file is cut off or damaged."""
    import torch

    try:
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception:  # damaged bytes make torch's reader raise errors of any type
        return None
    return state
