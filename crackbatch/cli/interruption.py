"""Ctrl-C and SIGTERM: a command that is stopped says so at once, in one line."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from crackbatch import log
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
        raise KeyboardInterrupt

    terminal = os.dup(2)  # while Ray starts, standard error is redirected to nowhere
    heard, told = socket.socketpair()
    told.setblocking(False)
    watcher = threading.Thread(target=_watch, args=(heard, terminal, mend), name="interruption", daemon=True)
    watcher.start()
    fd_before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, stop) for number in _STOPPING}
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(mend) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(fd_before)
        told.close()
        watcher.join()
        heard.close()
        os.close(terminal)


def _watch(heard: socket.socket, terminal: int, mend: str) -> None:
    """Say that the command is interrupted, and see that it ends.

    A thread of its own, because Python handles signals in the main thread only after the call that it is in. Ray can
    wait for half a minute in one call.
    """
    is_stopping = False
    while number := heard.recv(1):
        if number[0] not in _STOPPING:
            continue
        if is_stopping:
            os._exit(Interrupted.exit_code)
        is_stopping = True
        silence()
        redraw = REDRAW if os.isatty(terminal) and not log.is_json() else ""  # replaces the progress line
        line = log.line("interrupted", f"interrupted; {mend}", "error", exit_code=Interrupted.exit_code)
        with suppress(OSError):  # with `2>&1 | tee log`, the same Ctrl-C has ended tee
            os.write(terminal, f"{redraw}{line}\n".encode())
        patience = threading.Timer(_PATIENCE_S, os._exit, [Interrupted.exit_code])
        patience.daemon = True
        patience.start()
