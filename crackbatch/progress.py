"""One line that says how far a run is: redrawn on a terminal, printed every ten seconds in a log."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_LOG_EVERY_S = 10.0


class Progress:
    """Counts images and failures of a run and shows them on `stream` (standard error unless given)."""

    def __init__(self, total: int, done: int = 0, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._total, self._done, self._failed = total, done, 0
        self._first = done
        self._started = time.monotonic()
        self._shown = self._started
        self._redraws = self._stream.isatty()

    def add(self, images: int, failed: int) -> None:
        """Count finished images and show the line if it is time."""
        self._done += images
        self._failed += failed
        now = time.monotonic()
        if self._redraws or now - self._shown >= _LOG_EVERY_S:
            self._shown = now
            self._show(self._line(now))

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the last line standing."""
        if self._redraws:
            self._show(self._line(time.monotonic()))
            self._stream.write("\n")
            self._stream.flush()

    def _line(self, now: float) -> str:
        speed = (self._done - self._first) / max(now - self._started, 1e-9)
        left = (self._total - self._done) / speed if speed else 0.0
        return (
            f"{self._done:,} of {self._total:,} images, {speed:,.1f} images/s, {self._failed:,} failed,"
            f" {duration(left)} left"
        )

    def _show(self, line: str) -> None:
        self._stream.write(f"\r\x1b[2K{line}" if self._redraws else f"{line}\n")
        self._stream.flush()


def duration(seconds: float) -> str:
    """Seconds as people say them: `42 s`, `7 min`, `3 h 5 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
