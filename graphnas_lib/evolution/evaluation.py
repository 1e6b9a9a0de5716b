"""Scores of individuals, asked for in this process or ahead of time in worker processes of one thread each.

A score that fails gives a message in place of a record: a failure never becomes a number.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

from joblib.externals.loky import BrokenProcessPool, ProcessPoolExecutor

from graphnas_lib.store import single_threaded

IDLE_SECONDS = 60  # after which a worker without work ends


class ScoreError(RuntimeError):
    """A score that could not be computed; the search counts it and discards the individual."""


class Evaluator:
    """Records of individuals: {"score": ..., and whatever else the score gave}, or the message of a `ScoreError`.

    With more than one worker, each a process, `score` must be picklable.
    """

    def __init__(self, score: Callable[[Any], float | dict], workers: int):
        self.score, self.workers, self._begun = score, workers, {}

    def begin(self, individuals: Iterable[tuple[str, Any]]) -> None:
        """Have individuals, given with their keys, scored in the background; with one worker this does nothing."""
        for key, individual in individuals if self.workers > 1 else ():
            if key not in self._begun:
                self._begun[key] = _processes(self.workers).submit(_record, self.score, individual, os.getpid())

    def record(self, key: str, individual: Any) -> dict | str:
        """The record of an individual, or the message of its failure."""
        if key not in self._begun:
            return _record(self.score, individual)
        try:
            return self._begun.pop(key).result()
        except BrokenProcessPool:
            _processes.cache_clear()  # another attempt gets processes of its own
            raise


@lru_cache(maxsize=1)
def _processes(workers: int) -> ProcessPoolExecutor:
    """Processes that searches share, and that leave when they are idle; joblib's own are not for others to use."""
    return ProcessPoolExecutor(max_workers=workers, timeout=IDLE_SECONDS)


def _record(score: Callable, individual: Any, master: int | None = None) -> dict | str:
    try:
        with single_threaded(master) if master is not None else nullcontext():
            value = score(individual)
    except ScoreError as error:
        return f"{type(error).__name__}: {error}"
    record = value if isinstance(value, dict) else {"score": value}
    record = {name: x.item() if hasattr(x, "item") else x for name, x in record.items()}
    if record["score"] != record["score"]:
        raise ValueError("A score must be a number; got NaN. Raise ScoreError instead.")
    return record
