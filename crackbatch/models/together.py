"""Joins the calls of several threads to batches."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Together(Generic[Item, Result]):
    """A function of a batch that threads call with one item each; items that wait at the same time are one batch.

    Only items with the same key share a batch. `at_once` batches are computed at the same time. Nobody waits for others
    to come: a batch grows only while earlier ones are computed.
    """

    def __init__(self, compute: Callable[[Sequence[Item]], Sequence[Result]], at_once: int) -> None:
        self._compute = compute
        self._turns = threading.Semaphore(at_once)
        self._lock = threading.Lock()
        self._waiting: dict[Hashable, deque[tuple[Item, Future[Result]]]] = defaultdict(deque)

    def __call__(self, item: Item, key: Hashable, most: int) -> Result:
        """Return the result for an item; its batch has at most `most` items."""
        future = Future[Result]()
        with self._lock:
            self._waiting[key].append((item, future))
        while not future.done():
            with self._turns:
                batch = self._take(key, most)
                self._answer(batch)
            if not batch:  # another thread has the item in its batch
                break
        return future.result()

    def _take(self, key: Hashable, most: int) -> list[tuple[Item, Future[Result]]]:
        """Return the items that have waited longest."""
        with self._lock:
            waiting = self._waiting[key]
            batch = [waiting.popleft() for _ in range(min(most, len(waiting)))]
            if not waiting:
                del self._waiting[key]
        return batch

    def _answer(self, batch: Sequence[tuple[Item, Future[Result]]]) -> None:
        try:
            results = self._compute([item for item, _ in batch]) if batch else []
        except BaseException as error:  # each thread raises it
            for _, future in batch:
                future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)
