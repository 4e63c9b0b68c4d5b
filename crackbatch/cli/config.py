"""A file with options: a TOML table for each command, with the names of its options.

[score]
out = "s3://bridges/results"
max-error-rate = 0.1
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

from crackbatch.errors import OptionError
from crackbatch.storage import locations, ranges
from crackbatch.storage.redaction import masked

_MAX_BYTES = 1 << 20


def read_config(location: str, options: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, Any]]:
    """Return the values of each command's parameters.

    `options` gives the names of each command's options, without dashes in front, and the parameter of each. Raises
    OptionError for a file that is not TOML, and for a name that no command or option has.
    """
    shown = masked(location)
    try:
        data = ranges.read_whole(locations.normalize(location), _MAX_BYTES)
        tables = tomllib.loads(data.decode())
    except FileNotFoundError:
        raise OptionError(f"--config {shown} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise OptionError(f"--config {shown} cannot be read as TOML: {error}") from None
    found: dict[str, dict[str, Any]] = {}
    for command, values in tables.items():
        if command not in options or not isinstance(values, dict):
            raise OptionError(f"--config {shown}: {command!r} is no command; write its options below [score], say")
        known = options[command]
        for name, value in values.items():
            plain = name.replace("_", "-")
            if plain not in known:
                raise OptionError(
                    f"--config {shown}: {command} has no option {name!r}; it has {', '.join(sorted(known))}"
                )
            found.setdefault(command, {})[known[plain]] = value
    return found
