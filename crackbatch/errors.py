"""The errors for users, and the exit codes of the command line.

    CrackbatchError
    ├── RequestError         exit 2: the request is wrong, nothing was written
    │   ├── OptionError      an option's value is not valid, or a column or run does not exist
    │   ├── SourceError      a source does not exist, cannot be read, or holds no image
    │   ├── BundleError      a model cannot be used
    │   └── OutputError      OUT cannot be read or written
    ├── RunError             exit 1: the run failed; run the same command again to continue it
    │   ├── PublishError     the rows do not match the planned images; nothing was published
    │   ├── HeldError        another process is working on the same run
    │   └── LeaseLostError   another process took over the run
    └── Interrupted          exit 130: the run was stopped; run the same command again to continue it

An image that cannot be scored raises no error: it becomes a row with a status.
"""


class CrackbatchError(Exception):
    """Base of all errors with a message for the user; the command line exits with `exit_code`."""

    exit_code = 1


class RequestError(CrackbatchError):
    """The request is wrong; nothing was written."""

    exit_code = 2


class OptionError(RequestError):
    """An option's value is not valid, or it names a column or run that does not exist."""


class SourceError(RequestError):
    """A source does not exist, cannot be read, or holds no image."""


class BundleError(RequestError):
    """A model bundle is missing, incomplete, damaged or has another version."""


class OutputError(RequestError):
    """The output location cannot be read or written, or holds no predictions."""


class RunError(CrackbatchError):
    """The run failed before its end; run the same command again to continue it."""


class PublishError(RunError):
    """The rows do not match the planned images exactly."""


class HeldError(RunError):
    """Another process is working on the same run."""


class LeaseLostError(RunError):
    """Another process took over the run, because this one did not renew its lease in time."""


class Interrupted(CrackbatchError):
    """Ctrl-C or SIGTERM stopped the run; run the same command again to continue it."""

    exit_code = 130
