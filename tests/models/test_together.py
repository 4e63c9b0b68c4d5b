"""Threads that ask at the same time share a batch, and each gets its own answer."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from crackbatch.models.together import Together


class Squares:
    """Squares numbers, remembers its batches, and can be held up before its first answer."""

    def __init__(self) -> None:
        self.batches = list[list[int]]()
        self.begun, self.may_go_on = threading.Event(), threading.Event()

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.batches.append(list(numbers))
        self.begun.set()
        assert self.may_go_on.wait(20)
        if -1 in numbers:
            raise ValueError("-1")
        return [number**2 for number in numbers]


def ask_all(squares: Squares, numbers: Sequence[int], most: int) -> list[int | Exception | None]:
    """Ask from a thread for each number, while the first batch is held up until all have asked."""
    together, asked = Together(squares, at_once=1), threading.Semaphore(0)

    def ask(number: int) -> int | Exception | None:
        asked.release()
        try:
            return together(number, number % 2, most)
        except ValueError as error:
            return error

    with ThreadPoolExecutor(len(numbers)) as threads:
        first = threads.submit(ask, numbers[0])
        assert squares.begun.wait(20)
        others = [threads.submit(ask, number) for number in numbers[1:]]
        for _ in numbers:
            asked.acquire()
        while sum(map(len, together._waiting.values())) < len(numbers) - 1:
            threading.Event().wait(0.001)
        squares.may_go_on.set()
        return [future.result(20) for future in (first, *others)]


def test_what_waits_at_the_same_time_is_one_batch_of_one_kind() -> None:
    squares = Squares()
    numbers = list(range(17))
    assert ask_all(squares, numbers, most=5) == [number**2 for number in numbers]
    assert sorted(number for batch in squares.batches for number in batch) == numbers, "each once"
    assert all(len({number % 2 for number in batch}) == 1 and len(batch) <= 5 for batch in squares.batches)
    assert sorted(map(len, squares.batches)) == [1, 3, 3, 5, 5]  # 0 alone, then 8 even and 8 odd numbers


def test_an_error_is_raised_in_the_threads_of_its_batch_only() -> None:
    found = ask_all(Squares(), [0, -1, 15, 2], most=5)
    assert (found[0], found[3]) == (0, 4)
    assert [type(answer) for answer in found[1:3]] == [ValueError, ValueError]


@pytest.mark.parametrize("at_once", [1, 3])
def test_many_threads_never_wait_for_each_other_in_a_circle(at_once: int) -> None:
    squares = Squares()
    squares.may_go_on.set()
    together = Together(squares, at_once)
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda number: together(number, number % 3, 4), range(2000), timeout=60))
    assert found == [number**2 for number in range(2000)]
    assert sum(map(len, squares.batches)) == 2000
