"""The loop of Algorithm 1 (App. C, lines 20 to 34) over any kind of individual, and random search.

A uniform parent, one mutation, the worst member of a full population removed before the child joins, a history that
keeps everything. The score is maximised (the paper writes a loss L and takes L = -T-CET). Mutations, scores and
constraints come in as callables, so that a toy problem runs in no time; `evolution` has those of the paper. A child
that breaks the constraints is discarded; unless `count_discards`, it does not use up an iteration. A score that fails
is counted and its child discarded: a failure never becomes a score.
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from joblib.externals.loky import BrokenProcessPool, ProcessPoolExecutor
from tqdm.auto import tqdm

from graphnas_lib.store import Checkpoint, single_threaded

if TYPE_CHECKING:
    import pandas as pd

AHEAD = 4  # children a worker that are drawn before the first of them is recorded
IDLE = 60  # seconds after which an idle worker ends
REDRAWS = 10  # a child equal to an earlier one is drawn again so often; Algorithm 1 is silent
MAX_FRUITLESS = 20_000  # discarded children in a row after which a search gives up
MAX_FAILURES = 100  # likewise, children without a score


class ScoreError(RuntimeError):
    """A score that could not be computed; the search counts it and discards the individual."""


class SearchError(RuntimeError):
    """A search that cannot go on: no mutation satisfies its constraints."""


@dataclass(frozen=True)
class SearchResult:
    """Outcome of a search: the best individual, its score, every recorded individual, and counts.

    `history` has one dict an individual: iteration (0 is the initial one), phase, score, parent and removed
    (iterations, -1 for none), key, evaluations (scores asked for so far, failed ones included), whatever `score` and
    `describe` added, and the individual itself. `counts` has
    "recorded", "discarded" (constraints), "failed" (score), "redrawn" and "duplicates"; `failures` the first messages.
    `seconds` are those of all the runs it took.
    """

    best: Any
    best_score: float
    history: list[dict]
    counts: dict[str, int]
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


def evolve(
    initial: Any,
    *,
    mutate: Callable[[Any, bool, torch.Generator], Any],
    score: Callable[[Any], float | dict],
    feasible: Callable[[Any], bool],
    iterations: int,
    population: int,
    seed: int,
    key: Callable[[Any], str],
    exploration_share: float = 0.5,
    count_discards: bool = False,
    workers: int = 1,
    failures: tuple[type[Exception], ...] = (ScoreError,),
    describe: Callable[[Any], dict] | None = None,
    supply: Any = None,
    checkpoint: Checkpoint | None = None,
    dump: Callable[[Any], str] | None = None,
    parse: Callable[[str], Any] | None = None,
    progress: bool = False,
) -> SearchResult:
    """Algorithm 1 over any individuals; equal arguments give equal histories.

    Args:
        initial: alpha_0; must be feasible.
        mutate: (parent, exploration, generator) -> child.
        score: higher is better; a float, or a dict with "score" whose other entries are kept in the history.
        feasible: the constraints.
        iterations: T, children to record (or to try, with `count_discards`).
        population: N.
        seed: of parents and mutations.
        key: equal keys share one score.
        exploration_share: part of the iterations whose mutations get `exploration = True` (paper: one half).
        count_discards: a discarded child uses up an iteration, as App. C's text has it; then |H| < T.
        workers: processes that score children; with more than one, a child is drawn from the population as it was
            `AHEAD` children a worker earlier, so that nobody waits; 1 is Algorithm 1.
        failures: exceptions of `score` that discard a child; any other one stops the search.
        describe: more columns of the history (parameters, FLOPs).
        supply: an object with `counts` (a list of int) that `mutate` draws on; stored with the checkpoint.
        checkpoint: where to store and resume; needs `dump` and `parse` (individual to text and back).
        progress: show a bar.

    Raises:
        ValueError: `initial` is infeasible, or a size is out of range.
        ScoreError: `initial` cannot be scored.
        SearchError: 20,000 children in a row broke the constraints, or 100 could not be scored.
    """
    if iterations < 0 or population < 1 or workers < 1:
        raise ValueError(
            f"iterations must be >= 0, population and workers >= 1; got {iterations}, {population}, {workers}."
        )
    if checkpoint is not None and checkpoint.path is not None and (dump is None or parse is None):
        raise ValueError(
            "A resumable search must get `dump` and `parse` (individual to text and back); got a checkpoint alone."
        )
    search = _Search(mutate, feasible, key, describe or (lambda _: {}), supply, seed)
    judge = _Judge(score, failures)
    checkpoint = checkpoint or Checkpoint.none()
    if not search.restore(checkpoint.load(), parse):
        search.start(initial, judge)
    pool, ahead = _Pool(judge, workers), 1 if workers == 1 else AHEAD * workers
    with tqdm(total=iterations, initial=search.step, disable=not progress, desc="evolution") as bar:
        while search.step < iterations:
            search.draw(ahead, iterations, exploration_share, count_discards)
            pool.begin({key(child): child for _, child, _ in search.pending}, search.records)
            if search.pending:  # none where discards have used up the iterations
                parent, child, phase = search.pending.popleft()
                name = key(child)
                record = search.records[name] if name in search.records else pool.record(name, child)
                search.admit(parent, child, record, phase, population, count_discards)
            bar.update(search.step - bar.n)
            if checkpoint.due():
                checkpoint.save(search.state(dump))
    if checkpoint.path is not None:
        checkpoint.save(search.state(dump))  # a later search may be killed
    best = max(search.history, key=lambda row: row["score"])
    found = best["individual"], best["score"], search.history, dict(search.counts), search.failures
    return SearchResult(*found, search.seconds)


class _Search:
    """P and H of Algorithm 1, and everything a resumed search needs."""

    def __init__(self, mutate, feasible, key, describe, supply, seed):
        self.mutate, self.feasible, self.key, self.describe = mutate, feasible, key, describe
        self.supply, self.generator = supply, torch.Generator().manual_seed(seed)
        self.history: list[dict] = []  # H
        self.population: list[int] = []  # P, as iterations into H
        self.scores: list[float] = []  # of H
        self.records: dict[str, dict | str] = {}  # key -> score and its columns, or why there is none
        self.counts = Counter(recorded=0, discarded=0, failed=0, redrawn=0, duplicates=0)
        self.failures: list[str] = []
        self.texts: list[str] = []  # dumped individuals, for checkpoints
        self.pending: deque[tuple[int, Any, str]] = deque()  # (parent, child, phase), drawn and not yet in H
        self.step = self.fruitless = 0
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Wall time so far, earlier runs included."""
        return time.monotonic() - self._began

    def start(self, initial, judge) -> None:
        if not self.feasible(initial):
            raise ValueError(
                "The initial individual of a search must satisfy its constraints; it does not. Loosen them."
            )
        record = judge(initial)
        if isinstance(record, str):
            raise ScoreError(f"The initial individual of a search must have a score; scoring failed: {record}")
        self._record(-1, initial, record, "initial", -1)

    def draw(self, n: int, iterations: int, share: float, count_discards: bool) -> None:
        """Fill `pending` up to `n` feasible children; fewer only where discards have used up the iterations."""
        while len(self.pending) < n and (drawn := self.step + len(self.pending)) < iterations:
            exploration = drawn < share * iterations  # e of line 22
            parent, child = self._new_child(exploration)
            if self.feasible(child):
                self.pending.append((parent, child, "exploration" if exploration else "exploitation"))
            else:
                self._discard("discarded", count_discards)

    def _new_child(self, exploration: bool) -> tuple[int, Any]:
        waiting = {self.key(child) for _, child, _ in self.pending}
        for attempt in range(REDRAWS + 1):
            i = torch.randint(len(self.population), (), generator=self.generator).item()  # alpha ~ U{P}
            parent = self.population[i]
            child = self.mutate(self.history[parent]["individual"], exploration, self.generator)
            if attempt == REDRAWS or ((name := self.key(child)) not in self.records and name not in waiting):
                break
            self.counts["redrawn"] += 1
        return parent, child

    def _discard(self, reason: str, count_discards: bool) -> None:
        self.counts[reason] += 1
        self.step += count_discards
        self.fruitless += 1 if reason == "discarded" else MAX_FRUITLESS // MAX_FAILURES
        if self.fruitless >= MAX_FRUITLESS:
            raise SearchError(
                f"A search must find children to record; the last {MAX_FRUITLESS:,} broke its constraints or the last "
                f"{MAX_FAILURES} could not be scored ({dict(self.counts)}; {self.failures[-1:] or 'no failures'}). "
                "Loosen the constraints, or mend the score."
            )

    def admit(self, parent: int, child, record: dict | str, phase: str, size: int, count_discards: bool) -> None:
        """Lines 26 to 31: make room, then add the child to P and H."""
        if isinstance(record, str):
            self.records[self.key(child)] = record
            self.failures = [*self.failures, record][:10]
            self._discard("failed", count_discards)
            return
        removed = -1
        if len(self.population) >= size:
            removed = min(self.population, key=self.scores.__getitem__)  # arg max of L = -score
            self.population.remove(removed)
        self._record(parent, child, record, phase, removed)
        self.step += 1

    def _record(self, parent, child, record, phase, removed) -> None:
        key = self.key(child)
        self.fruitless = 0
        self.counts["recorded"] += 1
        self.counts["duplicates"] += key in self.records
        self.records[key] = record
        self.population.append(len(self.history))
        head = {"iteration": len(self.history), "phase": phase, "score": record["score"], "parent": parent}
        head |= {"removed": removed, "key": key, "evaluations": len(self.records)}
        row = {**head, **record, **self.describe(child), "individual": child}
        self.history.append(row)
        self.scores.append(row["score"])

    def state(self, dump) -> dict:
        """What a checkpoint holds; each individual is dumped once."""
        self.texts += [dump(row["individual"]) for row in self.history[len(self.texts) :]]
        rows = [{name: value for name, value in row.items() if name != "individual"} for row in self.history]
        return {
            "rows": json.dumps(rows),
            "individuals": self.texts,
            "population": self.population,
            "pending": [[parent, dump(child), phase] for parent, child, phase in self.pending],
            "records": json.dumps(self.records),
            "counts": dict(self.counts),
            "failures": self.failures,
            "step": self.step,
            "fruitless": self.fruitless,
            "seconds": self.seconds,
            "supply": self.supply.counts if self.supply else [],
            "generator": self.generator.get_state(),
        }

    def restore(self, state: dict | None, parse) -> bool:
        if state is None:
            return False
        self.texts = state["individuals"]
        rows = zip(json.loads(state["rows"]), self.texts, strict=True)
        self.history = [{**row, "individual": parse(text)} for row, text in rows]
        self.scores = [row["score"] for row in self.history]
        self.records = json.loads(state["records"])
        self.counts = Counter(state["counts"])
        self.population, self.failures = state["population"], state["failures"]
        self.pending = deque((parent, parse(text), phase) for parent, text, phase in state["pending"])
        self.step, self.fruitless = state["step"], state["fruitless"]
        self._began -= state["seconds"]
        self.generator.set_state(state["generator"])
        if self.supply:
            self.supply.counts = state["supply"]
        return True


@dataclass(frozen=True)
class _Judge:
    """`score` as a picklable function to a record, or to the message of an admitted failure."""

    score: Callable
    failures: tuple[type[Exception], ...]

    def __call__(self, individual) -> dict | str:
        try:
            value = self.score(individual)
        except self.failures as error:
            return f"{type(error).__name__}: {error}"
        record = dict(value) if isinstance(value, dict) else {"score": value}
        record = {name: x.item() if hasattr(x, "item") else x for name, x in record.items()}
        if record["score"] != record["score"]:
            raise ValueError("A score must be a number; got NaN. Raise ScoreError instead.")
        return record


class _Pool:
    """Records of children from processes of one thread each; with one worker from this one, when asked for."""

    def __init__(self, judge: _Judge, workers: int):
        self.judge, self.workers, self.begun = judge, workers, {}

    def begin(self, children: dict[str, Any], known) -> None:
        """Have the children that are neither known nor begun (key -> child) scored in the background."""
        for name, child in children.items() if self.workers > 1 else ():
            if name not in known and name not in self.begun:
                self.begun[name] = _executor(self.workers).submit(_judged, self.judge, child)

    def record(self, name: str, child) -> dict | str:
        """The record of a child."""
        if name not in self.begun:
            return self.judge(child)
        try:
            return self.begun.pop(name).result()
        except BrokenProcessPool:
            _executor.cache_clear()  # another attempt gets processes of its own
            raise


@lru_cache(maxsize=1)
def _executor(workers: int) -> ProcessPoolExecutor:
    """Processes that searches share, and that leave when they are idle; joblib's own are not for others to use."""
    return ProcessPoolExecutor(max_workers=workers, timeout=IDLE)


def _judged(judge: _Judge, child) -> dict | str:
    with single_threaded():
        return judge(child)


def random_search(
    sample: Callable[[torch.Generator], Any],
    *,
    score: Callable[[Any], float | dict],
    feasible: Callable[[Any], bool],
    iterations: int,
    seed: int,
    key: Callable[[Any], str],
    **options,
) -> SearchResult:
    """Independent draws that satisfy the constraints; the baseline with equal evaluations (`iterations` + 1)."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(MAX_FRUITLESS):
        if feasible(first := sample(generator)):
            break
    else:
        raise SearchError(f"Random search must find a first feasible draw; {MAX_FRUITLESS:,} draws had none.")
    result = evolve(
        first,
        mutate=lambda _, __, source: sample(source),
        score=score,
        feasible=feasible,
        iterations=iterations,
        population=1,
        seed=seed + 1,
        key=key,
        **options,
    )
    history = [{**row, "phase": "random", "parent": -1, "removed": -1} for row in result.history]
    return replace(result, history=history)


# ---- history


def best_so_far(history: list[dict]) -> list[float]:
    """Best score after each recorded individual; never decreases."""
    best, curve = float("-inf"), []
    for row in history:
        best = max(best, row["score"])
        curve.append(best)
    return curve


def history_table(history: list[dict]) -> pd.DataFrame:
    """History as a table for parquet: individuals as JSON text in column "individual"."""
    import pandas as pd

    return pd.DataFrame([{**row, "individual": row["individual"].to_json()} for row in history])
