"""What a search remembers: history H and population P of Algorithm 1, counts, and the state that a checkpoint holds."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from itertools import accumulate, islice
from typing import Any, NamedTuple

import pandas as pd
import torch

from graphnas_lib.store import Checkpoint

MAX_DISCARDS_IN_A_ROW = 20_000  # children after which a search gives up
MAX_FAILURES_IN_A_ROW = 100  # likewise, children without a score
COUNTED = ("recorded", "discarded", "failed", "redrawn", "duplicates")
STORED = ("population", "step", "fruitless", "counts", "failures")  # attributes that a checkpoint holds as they are


class SearchError(RuntimeError):
    """A search that cannot go on: no mutation satisfies its constraints."""


class Child(NamedTuple):
    """An individual that is drawn and not yet in H: its parent's iteration, its key, and the phase it is drawn in."""

    parent: int
    individual: Any
    key: str
    phase: str


@dataclass(kw_only=True)
class History:
    """H, P and everything else that a resumed search needs; see also `search.SearchResult`."""

    describe: Callable[[Any], dict]
    seed: InitVar[int]  # of parents and mutations
    rows: list[dict] = field(default_factory=list)  # H
    population: list[int] = field(default_factory=list)  # P, as iterations into H
    records: dict[str, dict | str] = field(default_factory=dict)  # key -> score and its columns, or why there is none
    waiting: deque[Child] = field(default_factory=deque)  # children that are drawn and not yet in H
    step: int = 0  # iterations that are used up
    fruitless: int = 0  # children in a row that did not enter H, a failure counted as 200
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))
    failures: list[str] = field(default_factory=list)
    saved: tuple[int, int] = (0, 0)  # rows and records that stand in the checkpoint's log

    def __post_init__(self, seed: int):
        self.generator, self.began = torch.Generator().manual_seed(seed), time.monotonic()

    @property
    def drawn(self) -> int:
        """Iterations that are used up or have a child waiting."""
        return self.step + len(self.waiting)

    @property
    def seconds(self) -> float:
        """Wall time so far, earlier runs included."""
        return time.monotonic() - self.began

    def add(self, child: Child, record: dict, *, removed: int) -> None:
        """Put a scored child into P and H; `removed` is the iteration of the one that left P for it, -1 for none."""
        self.step += child.parent >= 0  # alpha_0 uses up none
        self.fruitless = 0
        self.counts["recorded"] += 1
        self.counts["duplicates"] += child.key in self.records
        self.records[child.key] = record
        self.population.append(len(self.rows))
        head = {"iteration": len(self.rows), "phase": child.phase, "score": record["score"], "parent": child.parent}
        head |= {"removed": removed, "key": child.key, "evaluations": len(self.records)}
        self.rows.append({**head, **record, **self.describe(child.individual), "individual": child.individual})

    def fail(self, child: Child, message: str) -> None:
        """Remember that a child has no score."""
        self.records[child.key] = message
        self.failures = [*self.failures, message][:10]
        self.discard("failed", weight=MAX_DISCARDS_IN_A_ROW // MAX_FAILURES_IN_A_ROW)

    def discard(self, reason: str = "discarded", *, weight: int = 1) -> None:
        """Count a child that does not enter H; SearchError where there were too many in a row."""
        self.counts[reason] += 1
        self.fruitless += weight
        if self.fruitless >= MAX_DISCARDS_IN_A_ROW:
            raise SearchError(
                f"A search must find children to record; the last {MAX_DISCARDS_IN_A_ROW:,} broke its constraints or "
                f"the last {MAX_FAILURES_IN_A_ROW} could not be scored ({self.counts}; "
                f"{self.failures[-1:] or 'no failures'}). Loosen the constraints, or mend the score."
            )

    def save(self, checkpoint: Checkpoint, dump: Callable[[Any], str], supplied: list[int]) -> None:
        """Store all of it; `supplied` counts the cells that were drawn. Costs what is new since the last call."""
        rows, records = self.saved
        lines = [json.dumps({**row, "individual": dump(row["individual"])}) for row in self.rows[rows:]]
        lines += [json.dumps(pair) for pair in islice(self.records.items(), records, None)]
        state = {name: getattr(self, name) for name in STORED} | {"seconds": self.seconds, "supplied": supplied}
        state["waiting"] = [[child.parent, dump(child.individual), child.key, child.phase] for child in self.waiting]
        checkpoint.save(state | {"generator": self.generator.get_state()}, lines)
        self.saved = len(self.rows), len(self.records)

    def restore(self, checkpoint: Checkpoint, parse: Callable[[str], Any]) -> list[int] | None:
        """Inverse of `save`: gives `supplied`, or None where nothing is stored."""
        if (state := checkpoint.load()) is None:
            return None
        for name in STORED:
            setattr(self, name, state[name])
        for entry in map(json.loads, checkpoint.lines()):
            if isinstance(entry, dict):
                self.rows.append({**entry, "individual": parse(entry["individual"])})
            else:
                self.records[entry[0]] = entry[1]
        self.saved = len(self.rows), len(self.records)
        self.waiting = deque(Child(parent, parse(text), key, phase) for parent, text, key, phase in state["waiting"])
        self.began -= state["seconds"]
        self.generator.set_state(state["generator"])
        return state["supplied"]


def best_so_far(history: list[dict]) -> list[float]:
    """Best score after each recorded individual; never decreases."""
    return list(accumulate((row["score"] for row in history), max))


def history_table(history: list[dict]) -> pd.DataFrame:
    """History as a table for parquet: individuals as JSON text in column "individual"."""
    return pd.DataFrame([{**row, "individual": row["individual"].to_json()} for row in history])
