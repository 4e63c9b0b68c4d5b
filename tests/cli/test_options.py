"""A command has the parameters and the defaults of its public function, and comparing has those of training."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

import crackbatch
from crackbatch.cli import commands


@pytest.mark.parametrize(
    ("command", "function"),
    [
        (commands.score, crackbatch.score),
        (commands.train, crackbatch.train),
        (commands.dataset, crackbatch.describe_dataset),
        (commands.evaluate, crackbatch.evaluate),
        (commands.compare, crackbatch.compare),
        (commands.clean, crackbatch.clean),
    ],
)
def test_a_command_has_the_parameters_and_defaults_of_its_function(
    command: Callable[..., None], function: Callable[..., Any]
) -> None:
    given, taken = (dict(inspect.signature(each).parameters) for each in (command, function))
    given.pop("context", None)
    if taken.pop("training", None):  # what compare hands on to train
        taken = {**inspect.signature(crackbatch.train).parameters, **taken}
        assert given.keys() >= taken.keys() - {"name", "network"}
    else:
        assert given.keys() == taken.keys()
    for name, option in given.items():
        default = taken[name].default
        if default is not inspect.Parameter.empty and name != "out":
            assert (option.default or None) == (default or None), name


def test_networks_can_be_compared_with_all_that_they_can_be_trained_with() -> None:
    trained, compared = (set(inspect.signature(command).parameters) for command in (commands.train, commands.compare))
    assert trained - compared == {"name", "network"}
