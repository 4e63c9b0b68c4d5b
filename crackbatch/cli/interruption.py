"""Ctrl-C and SIGTERM: a command that is stopped says so in one line, at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from crackbatch.errors import Interrupted
from crackbatch.progress import REDRAW

_STOPPING = (signal.SIGINT, signal.SIGTERM)
_PATIENCE_S = 2.5  # `ray job stop` kills after three


@contextmanager
def interruptible(mend: str) -> Iterator[None]:
    """Ctrl-C and SIGTERM end a command in one line that says what becomes of its work, at once: Ray takes its time.

    A second one does not wait for Ray either, nor does the process for longer than a moment.
    """

    def stop(*_: object) -> None:
        for number in (*_STOPPING, signal.SIGALRM):
            signal.signal(number, lambda *_: os._exit(Interrupted.exit_code))
        signal.setitimer(signal.ITIMER_REAL, _PATIENCE_S)
        redraw = REDRAW if os.isatty(terminal) else ""  # instead of the line that says how far it is
        with suppress(OSError):  # `2>&1 | tee log`, whose reader the same Ctrl-C has ended
            os.write(terminal, f"{redraw}crackbatch: interrupted; {mend}\n".encode())
        raise KeyboardInterrupt

    terminal = os.dup(2)  # while Ray starts, standard error itself leads nowhere
    before = {number: signal.signal(number, stop) for number in _STOPPING}
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(mend) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(terminal)
