"""What a network can be trained with it can be compared with, under the same names."""

from __future__ import annotations

import inspect

from crackbatch.cli import commands


def test_networks_can_be_compared_with_all_that_they_can_be_trained_with() -> None:
    trained, compared = (set(inspect.signature(command).parameters) for command in (commands.train, commands.compare))
    assert trained - compared == {"name", "network"}
