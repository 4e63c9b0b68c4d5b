"""What can go wrong, and how the command line answers.

    CrackbatchError
    ├── RequestError         exit 2: the request is wrong, nothing was written
    │   ├── OptionError      an option's value, a column, a run that does not exist
    │   ├── SourceError      no such source, nothing to score in it
    │   ├── BundleError      a model that cannot be used
    │   └── OutputError      OUT cannot be read or written
    ├── RunError             exit 1: the run failed; the same command continues it
    │   ├── PublishError     the rows are not the planned images: nothing was published
    │   ├── HeldError        another process works on the same run
    │   └── LeaseLostError   another process took the run over
    └── Interrupted          exit 130: somebody stopped it; the same command continues it

An image that cannot be scored is no exception: it is a row with a status.
"""


class CrackbatchError(Exception):
    """Base of all errors that a user is meant to read; `exit_code` is the command line's answer."""

    exit_code = 1


class RequestError(CrackbatchError):
    """The request is wrong; nothing was written."""

    exit_code = 2


class OptionError(RequestError):
    """An option has a value that means nothing here."""


class SourceError(RequestError):
    """A source does not exist, cannot be read, or holds no image."""


class BundleError(RequestError):
    """A model bundle is absent, incomplete, damaged or of another version."""


class OutputError(RequestError):
    """The output location cannot be read or written, or holds no predictions."""


class RunError(CrackbatchError):
    """The run failed on its way; giving the same command again continues it."""


class PublishError(RunError):
    """The rows that were made are not exactly the images that were planned."""


class HeldError(RunError):
    """Another process is working on the same run."""


class LeaseLostError(RunError):
    """Another process took the run over, since this one was silent for too long."""


class Interrupted(CrackbatchError):
    """The run was stopped by Ctrl-C or SIGTERM; giving the same command again continues it."""

    exit_code = 130
