"""Show what a run does in one line, even while no results arrive.

A terminal redraws the line every second; a log gets a new line every ten seconds, as text or as a JSON object.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

from crackbatch import log

# Clears the current line of a terminal.
REDRAW = "\r\x1b[2K"
_LOG_EVERY_S = 10.0
_REDRAW_EVERY_S = 1.0
# A request that is refused at once has nothing to say before that.
_FIRST_S = 0.8
# Parts come every few seconds. After this time without a part, something may be wrong, so the line says so.
_QUIET_S = 30.0
_silenced = threading.Event()


def silence() -> None:
    """Show no more progress: the last message of a stopped command stays the last line."""
    _silenced.set()


class _Line:
    """Shows the text of `_line` on `stream` (default: standard error) again and again until the block ends."""

    _event = ""

    def __init__(self, stream: TextIO | None = None, log_every_s: float = _LOG_EVERY_S) -> None:
        self._stream = stream or sys.stderr
        self._started = time.monotonic()
        self._redraws = self._stream.isatty() and not log.is_json()
        self._every_s = _REDRAW_EVERY_S if self._redraws else log_every_s
        self._is_shown = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="show progress", daemon=True)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _tick(self) -> None:
        wait_s = min(_FIRST_S, self._every_s)
        while not self._stop.wait(wait_s):
            self._show()
            self._is_shown, wait_s = True, self._every_s

    def _show(self) -> None:
        now = time.monotonic()
        line = log.line(self._event, self._line(now), **self._figures(now))
        self._write(f"{REDRAW}{line}" if self._redraws else f"{line}\n")

    def _write(self, text: str) -> None:
        if _silenced.is_set():
            return
        self._stream.write(text)
        self._stream.flush()

    def _line(self, now: float) -> str:
        raise NotImplementedError

    def _figures(self, now: float) -> dict[str, Any]:
        """What the line says, for a JSON object."""
        return {"seconds": round(now - self._started, 1)}


class Step(_Line):
    """Says within a second what the block does, such as `planning`, and then for how long it has done it.

    `more` adds what is known meanwhile.
    """

    _event = "step"

    def __init__(
        self,
        text: str,
        more: Callable[[], str] = str,
        stream: TextIO | None = None,
        log_every_s: float = _LOG_EVERY_S,
    ) -> None:
        super().__init__(stream, log_every_s)
        self._text, self._more = text, more

    def __enter__(self) -> Step:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop; on a terminal, remove the line, for what comes next."""
        super().__exit__()
        if self._redraws and self._is_shown:
            self._write(REDRAW)

    def _line(self, now: float) -> str:
        seconds = now - self._started
        return f"{self._text} …{self._more()}" + (f" ({duration(seconds)})" if seconds >= _REDRAW_EVERY_S else "")


class Progress(_Line):
    """Counts the images and failures of a run and shows them."""

    _event = "progress"

    def __init__(
        self, total: int, done: int = 0, stream: TextIO | None = None, log_every_s: float = _LOG_EVERY_S
    ) -> None:
        super().__init__(stream, log_every_s)
        self._total, self._done, self._failed = total, done, 0
        self._first = done
        self._last_part = self._started

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
        super().__exit__()
        if self._redraws:
            self._show()
            self._write("\n")

    def _line(self, now: float) -> str:
        said = f"{self._done:,} of {counted(self._total, 'image')}"
        if self._done == self._first:
            return f"{said}, waiting for the first results for {duration(now - self._started)}"
        speed = (self._done - self._first) / max(now - self._started, 1e-9)
        left = f"{duration((self._total - self._done) / speed)} left"
        if now - self._last_part > _QUIET_S:
            left = f"nothing new for {duration(now - self._last_part)}"
        return f"{said}, {speed:,.1f} images/s, {self._failed:,} failed, {left}"

    def _figures(self, now: float) -> dict[str, Any]:
        return {"images": self._total, "done": self._done, "failed": self._failed, **super()._figures(now)}


def say(text: str, event: str = "note", level: str = "info", **figures: Any) -> None:
    """Print a line on standard error, in place of a progress line that a terminal shows.

    The event and the figures are for a JSON object.
    """
    redraw = REDRAW if sys.stderr.isatty() and not log.is_json() else ""
    print(redraw + log.line(event, text, level, **figures), file=sys.stderr, flush=True)


def counted(num: int, noun: str) -> str:
    """Return a number and its noun: `1 image`, `1,200 images`."""
    return f"{num:,} {noun}" if num == 1 else f"{num:,} {noun}s"


def duration(seconds: float) -> str:
    """Return seconds as a short text: `42 s`, `7 min`, `3 h 5 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
