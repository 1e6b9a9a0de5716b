"""What T-CET to expect of an architecture before it is taken: a ridge regression on what its cells hold, and where.

T-CET adds up over layers, and follows the root of their width and the log of their side. So an architecture is
described by its operations and edges, each counted as it is, times the root of its width, and times the log of its
side; the weights of these counts are learnt from the networks that the search itself has scored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from graphnas_lib.macro import Architecture
from graphnas_lib.space import OPERATIONS, Cell

RIDGE = 3.0  # penalty on standardised features
LEARNT_FROM = 1_000  # latest scored networks
REFIT_EVERY = 25  # scored networks
FIRST_FIT = 50  # scored networks from which on the regression is asked


def describe(architecture: Architecture) -> np.ndarray:
    """Features of an architecture, (91,): contents of its cells by width and side, and its depth."""
    side, rows = -math.log2(architecture.stem_stride), []
    for triple in architecture.triples:
        side -= math.log2(triple.stride)
        rows.append((1.0, math.sqrt(triple.channels), side))
    contents = np.array([_contents(triple.cell) for triple in architecture.triples])  # (cells, 30)
    return np.append(contents.T @ np.array(rows), len(rows))


@lru_cache(maxsize=100_000)
def _contents(cell: Cell) -> tuple[float, ...]:
    """How often each operation occurs on a path through the cell, its edges, and 1 for the cell."""
    live = [cell.operations[node - 1] for node in cell.live]
    return (*(float(live.count(name)) for name in OPERATIONS), float(cell.adjacency.sum()), 1.0)


@dataclass
class Surrogate:
    """Expected scores of architectures, learnt from those that a search has scored; a function of its history alone."""

    _known: list[np.ndarray] = field(default_factory=list)  # features of the history, row by row
    _fitted: int = 0  # rows that the regression has seen
    _model: Any = None

    def best(self, individuals: list, history: list[dict]) -> int:
        """Place of the most promising of some individuals; the first while there is too little history."""
        self.learn(history)
        return int(self.expected(*individuals).argmax()) if self._model else 0

    def expected(self, *individuals) -> np.ndarray:
        """What the regression expects of individuals, after `learn`."""
        return self._model.predict(np.array([describe(one) for one in individuals]))

    def learn(self, history: list[dict]) -> None:
        """Fit the regression to the latest networks of a history, where there are `REFIT_EVERY` new ones."""
        rows = len(history) - len(history) % REFIT_EVERY
        if rows < FIRST_FIT or rows == self._fitted:
            return
        from sklearn.linear_model import Ridge
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self._known += [describe(row["individual"]) for row in history[len(self._known) : rows]]
        learnt = slice(max(0, rows - LEARNT_FROM), rows)
        scores = np.array([row["score"] for row in history[learnt]])
        self._model = make_pipeline(StandardScaler(), Ridge(RIDGE)).fit(np.array(self._known[learnt]), scores)
        self._fitted = rows
