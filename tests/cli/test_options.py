"""A command has the parameters and the defaults of its public function, and comparing has those of training."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

import crackbatch
from crackbatch.cli import learning, results, scoring


@pytest.mark.parametrize(
    ("command", "function"),
    [
        (scoring.score, crackbatch.score),
        (scoring.nightly, crackbatch.nightly),
        (scoring.clean, crackbatch.clean),
        (learning.train, crackbatch.train),
        (learning.dataset, crackbatch.describe_dataset),
        (learning.evaluate, crackbatch.evaluate),
        (learning.calibrate, crackbatch.calibrate),
        (learning.site_check, crackbatch.site_check),
        (learning.compare, crackbatch.compare),
        (results.show, crackbatch.show),
        (results.report, crackbatch.report),
        (results.review, crackbatch.review),
        (results.export, crackbatch.export),
        (results.compare_runs, crackbatch.compare_runs),
    ],
)
def test_a_command_has_the_parameters_and_defaults_of_its_function(
    command: Callable[..., None], function: Callable[..., Any]
) -> None:
    given, taken = (dict(inspect.signature(each).parameters) for each in (command, function))
    given.pop("context", None)
    given.pop("log_format", None)  # how a command writes, not what it does
    if taken.pop("training", None):  # what compare hands on to train
        taken = {**inspect.signature(crackbatch.train).parameters, **taken}
        assert given.keys() >= taken.keys() - {"name", "network"}
    else:
        assert given.keys() == taken.keys()
    for name, option in given.items():
        default = taken[name].default
        if default is not inspect.Parameter.empty and name not in ("out", "file"):
            assert (option.default or None) == (default or None), name


def test_networks_can_be_compared_with_all_that_they_can_be_trained_with() -> None:
    trained, compared = (set(inspect.signature(command).parameters) for command in (learning.train, learning.compare))
    assert trained - compared == {"name", "network", "log_format"}
