"""Scores of individuals, asked for in this process or ahead of time in worker processes of one thread each.

A score that fails gives a message in place of a record: a failure never becomes a number.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from joblib.externals.loky import ProcessPoolExecutor

from graphnas_lib.store import TRIES, died, single_threaded

IDLE_SECONDS = 60  # after which a worker without work ends


class ScoreError(RuntimeError):
    """A score that could not be computed; the search counts it and discards the individual."""


class Evaluator:
    """Records of individuals: {"score": ..., and whatever else the score gave}, or the message of a `ScoreError`.

    With more than one worker, each a process, `score` must be picklable. A worker that dies is replaced, and what it
    was at is done again.

    Args:
        workers: processes of this machine; 1 scores in this one.
        dask: address of a dask scheduler, whose workers replace those processes.
    """

    def __init__(self, score: Callable[[Any], float | dict], workers: int, dask: str | None = None):
        self.score, self.workers, self.dask, self._begun = score, workers, dask, {}

    def begin(self, individuals: Iterable[tuple[str, Any]]) -> None:
        """Have individuals, given with their keys, scored in the background; in one process this does nothing."""
        if self.workers == 1 and self.dask is None:
            return
        for key, individual in individuals:
            if key not in self._begun and self.dask is not None:
                self._begun[key] = _client(self.dask).submit(_in_worker, self.score, individual, pure=False)
            elif key not in self._begun:
                job = (_in_worker, self.score, individual, os.getpid())
                try:
                    self._begun[key] = _processes(self.workers).submit(*job)
                except died():  # while nobody waited for them
                    self._forget()
                    self._begun[key] = _processes(self.workers).submit(*job)

    def record(self, key: str, individual: Any) -> dict | str:
        """The record of an individual, or the message of its failure.

        Raises:
            RuntimeError: workers died `TRIES` times over this individual.
        """
        for left in reversed(range(TRIES)):
            self.begin([(key, individual)])
            if key not in self._begun:
                return _record(self.score, individual)
            try:
                return self._begun.pop(key).result()
            except died() as error:
                self._forget()
                if not left:
                    raise RuntimeError(
                        f"A worker process was killed, from outside or for want of memory, {TRIES} times. Run the same "
                        "command again to go on."
                    ) from error

    def _forget(self) -> None:
        """Another attempt gets processes of its own."""
        _processes.cache_clear()
        self._begun.clear()


@lru_cache(maxsize=1)
def _processes(workers: int) -> ProcessPoolExecutor:
    """Processes that searches share, and that leave when they are idle; joblib's own are not for others to use."""
    return ProcessPoolExecutor(max_workers=workers, timeout=IDLE_SECONDS)


@lru_cache(maxsize=1)
def _client(address: str) -> Any:
    """The connection to a cluster that searches share."""
    from distributed import Client

    return Client(address, set_as_default=False)


def _in_worker(score: Callable, individual: Any, master: int | None = None) -> dict | str:
    with single_threaded(master):
        return _record(score, individual)


def _record(score: Callable, individual: Any) -> dict | str:
    try:
        value = score(individual)
    except ScoreError as error:
        return f"{type(error).__name__}: {error}"
    record = value if isinstance(value, dict) else {"score": value}
    record = {name: x.item() if hasattr(x, "item") else x for name, x in record.items()}
    if record["score"] != record["score"]:
        raise ValueError("A score must be a number; got NaN. Raise ScoreError instead.")
    return record
