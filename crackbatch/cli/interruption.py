"""Ctrl-C and SIGTERM: a command that is stopped says so at once, in one line."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from crackbatch.errors import Interrupted
from crackbatch.progress import REDRAW, silence

_STOPPING = (signal.SIGINT, signal.SIGTERM)
_PATIENCE_S = 2.5  # `ray job stop` kills after three


@contextmanager
def interruptible(mend: str) -> Iterator[None]:
    """On Ctrl-C or SIGTERM, print one line with `mend` (what is kept and what to do) at once, then end the command.

    Ray takes long to stop. So the process exits after `_PATIENCE_S` seconds, or at once on a second Ctrl-C or SIGTERM.
    Raises Interrupted.
    """

    def stop(*_: object) -> None:
        for number in (*_STOPPING, signal.SIGALRM):
            signal.signal(number, lambda *_: os._exit(Interrupted.exit_code))
        signal.setitimer(signal.ITIMER_REAL, _PATIENCE_S)
        silence()
        redraw = REDRAW if os.isatty(terminal) else ""  # replaces the progress line
        with suppress(OSError):  # with `2>&1 | tee log`, the same Ctrl-C has ended tee
            os.write(terminal, f"{redraw}crackbatch: interrupted; {mend}\n".encode())
        raise KeyboardInterrupt

    terminal = os.dup(2)  # while Ray starts, standard error is redirected to nowhere
    before = {number: signal.signal(number, stop) for number in _STOPPING}
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(mend) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(terminal)
