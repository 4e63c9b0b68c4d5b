"""What a run says of itself while it works."""

from __future__ import annotations

import io
import os
import pty
import threading

import pytest

from crackbatch.progress import Progress, Step, duration


class Log(io.StringIO):
    """A log that can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Condition()

    def write(self, text: str) -> int:
        with self.written:
            self.written.notify_all()
            return super().write(text)

    def wait_for(self, words: str) -> str:
        with self.written:
            assert self.written.wait_for(lambda: words in self.getvalue(), 10), self.getvalue()
            return next(line for line in self.getvalue().splitlines() if words in line)


def read_until(terminal: int, end: str) -> str:
    """What was written to a terminal; it comes in as many pieces as it likes."""
    said = b""
    while not said.decode(errors="replace").rstrip("\r\n").endswith(end):
        said += os.read(terminal, 10_000)
    return said.decode()


def read_all(terminal: int) -> str:
    """What was written to a terminal whose other end is closed."""
    said = b""
    while True:
        try:
            said += os.read(terminal, 10_000)
        except OSError:  # Linux says EIO where the other end is closed and nothing is left
            return said.decode()


def test_a_log_says_how_far_a_run_is_also_where_nothing_comes() -> None:
    log = Log()
    with Progress(1200, 200, log, log_every_s=0.01) as progress:
        assert log.wait_for("waiting for the first results").startswith("200 of 1,200 images")
        progress.add(300, 4)
        line = log.wait_for("images/s")
        assert line.startswith("500 of 1,200 images, ")
        assert " images/s, 4 failed, " in line
        assert line.endswith(" left")
    said = log.getvalue()
    assert "\r" not in said
    assert said.count("\n") == len(said.splitlines()), "every line is whole"


def test_a_terminal_has_one_line_that_is_redrawn_and_stays() -> None:
    terminal, end = pty.openpty()
    with os.fdopen(end, "w") as stream, Progress(10, 0, stream) as progress:
        progress.add(10, 1)
    said = read_all(terminal)
    os.close(terminal)
    assert said.count("\n") == 1
    assert said.rpartition("\x1b[2K")[2].startswith("10 of 10 images, ")
    assert "1 failed" in said


def test_a_step_says_what_it_does_and_for_how_long_and_leaves_a_terminals_line_free() -> None:
    log = Log()
    with Step("starting Ray", lambda: " really", log, log_every_s=0.01):
        assert log.wait_for("starting Ray") == "starting Ray … really"
        assert log.wait_for("(1 s)") == "starting Ray … really (1 s)"
    terminal, end = pty.openpty()
    with os.fdopen(end, "w") as stream:
        with Step("refused", stream=stream):
            pass
        stream.write(".")
        stream.flush()
        assert os.read(terminal, 10_000) == b"."
        step = Step("planning", stream=stream)
        with step:
            read_until(terminal, "planning …")
        read_until(terminal, "\x1b[2K")
    os.close(terminal)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (11_100, "3 h 5 min")]
)
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said
