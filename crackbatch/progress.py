"""Show the progress of a run in one line, even while no results arrive.

A terminal redraws the line every second; a log gets a new line every ten seconds.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import TextIO

# Clears the current line of a terminal.
REDRAW = "\r\x1b[2K"
_LOG_EVERY_S = 10.0
_REDRAW_EVERY_S = 1.0
# Parts come every few seconds. After this time without a part, something may be wrong, so the line says so.
_QUIET_S = 30.0


class Progress:
    """Counts the images and failures of a run and shows them on `stream` (default: standard error)."""

    def __init__(
        self, total: int, done: int = 0, stream: TextIO | None = None, log_every_s: float = _LOG_EVERY_S
    ) -> None:
        self._stream = stream or sys.stderr
        self._total, self._done, self._failed = total, done, 0
        self._first = done
        self._started = self._last_part = time.monotonic()
        self._redraws = self._stream.isatty()
        self._every_s = _REDRAW_EVERY_S if self._redraws else log_every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="show progress", daemon=True)

    def add(self, images: int, failed: int) -> None:
        """Count finished images."""
        self._done += images
        self._failed += failed
        self._last_part = time.monotonic()

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop; on a terminal, draw the last line once more and end it."""
        self._stop.set()
        self._thread.join()
        if self._redraws:
            self._show()
            self._stream.write("\n")
            self._stream.flush()

    def _tick(self) -> None:
        while not self._stop.wait(self._every_s):
            self._show()

    def _line(self, now: float) -> str:
        said = f"{self._done:,} of {self._total:,} images"
        if self._done == self._first:
            return f"{said}, waiting for the first results for {duration(now - self._started)}"
        speed = (self._done - self._first) / max(now - self._started, 1e-9)
        left = f"{duration((self._total - self._done) / speed)} left"
        if now - self._last_part > _QUIET_S:
            left = f"nothing new for {duration(now - self._last_part)}"
        return f"{said}, {speed:,.1f} images/s, {self._failed:,} failed, {left}"

    def _show(self) -> None:
        line = self._line(time.monotonic())
        self._stream.write(f"{REDRAW}{line}" if self._redraws else f"{line}\n")
        self._stream.flush()


def duration(seconds: float) -> str:
    """Return seconds as a short text: `42 s`, `7 min`, `3 h 5 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
