"""The command line: one command for each public function, with no logic of its own.

The options of a command have the names and defaults of the function's parameters, and are passed to it unchanged.

Exit codes: 0 done; 1 failed, run again to continue; 2 the request is wrong; 3 published, but more images failed than
allowed or an archive was damaged or not opened; 4 (nightly) published, but the night is not as those before; 130
interrupted, run again to continue.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from typing import Annotated, Any

import typer

from crackbatch import __version__, log
from crackbatch.cli import learning, results, scoring
from crackbatch.errors import CrackbatchError, Interrupted, RunError
from crackbatch.storage.redaction import redact
from crackbatch.storage.retry import giving_up

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Find cracked concrete in archives of inspection images. Write one Parquet row for each image.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"crackbatch {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version, and stop.")
    ] = False,
    config: Annotated[
        str | None, typer.Option(help="A TOML file with a table of options for each command, such as [score].")
    ] = None,
) -> None:
    if config is not None:
        from crackbatch.cli.config import read_config

        commands: dict[str, Any] = context.command.commands  # type: ignore[attr-defined]
        context.default_map = read_config(config, {name: _names(command) for name, command in commands.items()})


def _names(command: Any) -> dict[str, str]:
    """Return the names of a command's options and arguments, and the parameter of each."""
    return {
        option.lstrip("-").replace("_", "-"): parameter.name
        for parameter in command.params
        for option in (*parameter.opts, parameter.name)
        if parameter.name != "help"
    }


for _command in (
    scoring.score,
    learning.train,
    learning.dataset,
    learning.evaluate,
    results.show,
    results.report,
    results.review,
    results.export,
    results.compare_runs,
    learning.site_check,
    learning.calibrate,
    learning.compare,
    scoring.nightly,
    scoring.runs,
    scoring.clean,
    learning.models,
):
    app.command()(_command)


def main() -> None:
    """Entry point of the `crackbatch` command. An error is one line on standard error and an exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with giving_up(lambda why: RunError(f"storage failed ({why}); run again")):
            _run_app()
    except Interrupted as error:  # its message was printed when it happened
        os._exit(error.exit_code)  # do not wait for a listing thread that still works
    except CrackbatchError as error:
        print(log.line("failed", redact(str(error)), "error", exit_code=error.exit_code), file=sys.stderr)
        if any(not thread.daemon for thread in threading.enumerate()[1:]):  # do not wait here either
            with suppress(OSError):
                sys.stdout.flush()
            os._exit(error.exit_code)
        sys.exit(error.exit_code)


def _run_app() -> None:
    try:
        app()
    except BrokenPipeError:  # `crackbatch … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
