"""Algorithm 1 (App. C, lines 20 to 34) over any kind of individual, and random search.

A uniform parent, one mutation, the worst member of a full population removed before the child joins, a history that
keeps everything. The score is maximised (the paper writes a loss L and takes L = -T-CET). What is searched is a
`Problem`, so that a toy one runs in no time; `algorithms` has those of the paper. A child that breaks the constraints
is discarded and uses up no iteration. A score that fails is counted and its child discarded: a failure never becomes a
score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from tqdm.auto import tqdm

from graphnas_lib.evolution.evaluation import Evaluator, ScoreError
from graphnas_lib.evolution.history import MAX_DISCARDS_IN_A_ROW, Child, History, SearchError
from graphnas_lib.store import Checkpoint

CHILDREN_AHEAD_PER_WORKER = 4  # drawn before the first of them is recorded
MAX_REDRAWS = 10  # a child equal to an earlier one is drawn again so often; Algorithm 1 is silent


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a search needs to know of its individuals.

    `mutate` is (parent, exploration, generator) -> child; random search asks it with parent None. `score` gives a
    float, higher is better, or a dict with "score" whose other entries are kept in the history; `ScoreError` discards a
    child, any other exception stops the search.
    """

    start: Any = None  # alpha_0, or a list of several; must be feasible. Random search does without
    mutate: Callable[[Any, bool, torch.Generator], Any]
    score: Callable[[Any], float | dict]
    feasible: Callable[[Any], bool]  # the constraints
    key: Callable[[Any], str]  # equal keys share one score
    describe: Callable[[Any], dict] = lambda _: {}  # more columns of the history (parameters, FLOPs)
    surrogate: Any = None  # tells the most promising of some children; see `surrogate.Surrogate`
    supply: Any = None  # an object with `counts` (a list of int) that `mutate` draws on; stored with the checkpoint
    dump: Callable[[Any], str] | None = None  # individual to text, for checkpoints
    parse: Callable[[str], Any] | None = None  # and back


@dataclass(frozen=True)
class SearchResult:
    """Outcome of a search: the best individual, its score, every recorded individual, and counts.

    `history` has one dict an individual: iteration (0 is the initial one), phase, score, parent and removed
    (iterations, -1 for none), key, evaluations (scores asked for so far, failed ones included), whatever `score` and
    `describe` added, and the individual itself. `counts` has "recorded", "discarded" (constraints), "failed" (score),
    "redrawn" and "duplicates"; `failures` the first messages. `seconds` are those of all the runs it took.
    """

    best: Any
    best_score: float
    history: list[dict]
    counts: dict[str, int]
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


def evolve(
    problem: Problem,
    *,
    iterations: int,
    population: int,
    seed: int,
    screened: int = 1,
    workers: int = 1,
    dask: str | None = None,
    checkpoint: Checkpoint | None = None,
    progress: bool = False,
) -> SearchResult:
    """Algorithm 1; equal arguments give equal histories.

    Args:
        iterations: T, children to record; the population has at most N.
        seed: of parents and mutations.
        screened: children that are drawn for each that is scored, the one that the problem's `surrogate` expects most
            of; 1 is Algorithm 1.
        workers: processes that score children; with more than one, a child is drawn from the population as it was
            `CHILDREN_AHEAD_PER_WORKER` children a worker earlier, so that nobody waits; 1 is Algorithm 1.
        dask: address of a dask scheduler, whose workers score in place of processes of this machine; the history is
            that of `workers`.
        checkpoint: where to store and resume; needs the problem's `dump` and `parse`.

    Raises:
        ValueError: the start is infeasible, or a size is out of range.
        ScoreError: the start cannot be scored.
        SearchError: 20,000 children in a row broke the constraints, or 100 could not be scored.
    """
    if iterations < 0 or min(population, workers, screened) < 1:
        came = f"{iterations}, {population}, {workers} and {screened}"
        raise ValueError(f"iterations must be >= 0, population, workers and screened >= 1; got {came}.")
    if screened > 1 and problem.surrogate is None:
        raise ValueError(f"A search must have a surrogate to choose among {screened} children; its problem has none.")
    checkpoint = checkpoint or Checkpoint()
    evaluator = Evaluator(problem.score, workers, dask)
    ahead = 1 if workers == 1 else CHILDREN_AHEAD_PER_WORKER * workers
    history = History(describe=problem.describe, seed=seed)
    _begin(history, problem, evaluator, checkpoint, population)  # lines 20, 21: H = {alpha_0}, P = H
    with tqdm(total=iterations, initial=history.step, disable=not progress, desc="evolution") as bar:
        while history.step < iterations:  # line 23
            while len(history.waiting) < ahead and history.drawn < iterations:
                exploration = history.drawn < iterations / 2  # line 22: e
                history.waiting += _drawn(problem, history, exploration, screened)  # lines 24, 25
            evaluator.begin((one.key, one.individual) for one in history.waiting if one.key not in history.records)
            child = history.waiting.popleft()
            record = history.records.get(child.key) or evaluator.record(child.key, child.individual)
            if isinstance(record, str):
                history.fail(child, record)
            else:
                removed = -1
                if len(history.population) >= population:  # line 26
                    removed = min(history.population, key=lambda i: history.rows[i]["score"])  # line 27, L = -score
                    history.population.remove(removed)  # line 28
                history.add(child, record, removed=removed)  # lines 30, 31
            bar.update(history.step - bar.n)
            if checkpoint.due():
                _save(history, problem, checkpoint)
    if checkpoint.path is not None:
        _save(history, problem, checkpoint)  # a later search may be killed
    best = max(history.rows, key=lambda row: row["score"])  # line 34
    remembered = (history.rows, history.counts, history.failures, history.seconds)
    return SearchResult(best["individual"], best["score"], *remembered)


def offspring(problem: Problem, history: History, exploration: bool) -> Child:
    """Lines 24 and 25: a mutation of a uniform parent; one that has been seen is drawn again, `MAX_REDRAWS` times."""
    waiting = {child.key for child in history.waiting}
    for attempt in range(MAX_REDRAWS + 1):
        i = torch.randint(len(history.population), (), generator=history.generator).item()
        parent = history.population[i]  # line 24: alpha ~ U{P}
        individual = problem.mutate(history.rows[parent]["individual"], exploration, history.generator)  # line 25
        key = problem.key(individual)
        if attempt == MAX_REDRAWS or (key not in history.records and key not in waiting):
            return Child(parent, individual, key, "exploration" if exploration else "exploitation")
        history.counts["redrawn"] += 1


def _drawn(problem: Problem, history: History, exploration: bool, screened: int) -> list[Child]:
    """A feasible child, the most promising of `screened`; none where the only one that was drawn is not feasible."""
    children: list[Child] = []
    while len(children) < screened:
        child = offspring(problem, history, exploration)
        if problem.feasible(child.individual):
            children.append(child)
        else:
            history.discard()
            if screened == 1:
                return []
    best = problem.surrogate.best([one.individual for one in children], history.rows) if screened > 1 else 0
    return [children[best]]


def _begin(history: History, problem: Problem, evaluator: Evaluator, checkpoint: Checkpoint, population: int) -> None:
    """Fill a new history from the checkpoint, or with alpha_0; of several the best `population` are alive."""
    if checkpoint.path is not None and (problem.dump is None or problem.parse is None):
        raise ValueError(
            "A resumable search must get `dump` and `parse` (individual to text and back); got a checkpoint alone."
        )
    if (supplied := history.restore(checkpoint, problem.parse)) is not None:
        if problem.supply:
            problem.supply.counts = supplied
        return
    starts = problem.start if isinstance(problem.start, list) else [problem.start]
    if not all(map(problem.feasible, starts)):
        raise ValueError("The initial individual of a search must satisfy its constraints; it does not. Loosen them.")
    keyed = {problem.key(start): start for start in starts}
    evaluator.begin(keyed.items())
    for key, start in keyed.items():
        record = evaluator.record(key, start)
        if isinstance(record, str):
            raise ScoreError(f"The initial individual of a search must have a score; scoring failed: {record}")
        history.add(Child(-1, start, key, "initial"), record, removed=-1)
    best_first = sorted(history.population, key=lambda i: -history.rows[i]["score"])
    history.population = sorted(best_first[:population])


def _save(history: History, problem: Problem, checkpoint: Checkpoint) -> None:
    history.save(checkpoint, problem.dump, problem.supply.counts if problem.supply else [])


def random_search(problem: Problem, *, iterations: int, seed: int, **options) -> SearchResult:
    """Independent draws that satisfy the constraints; the baseline with equal evaluations (`iterations` + 1).

    The problem's `mutate` gives a draw, whatever the parent; its start is not used. Options are those of `evolve`.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(MAX_DISCARDS_IN_A_ROW):
        if problem.feasible(first := problem.mutate(None, True, generator)):
            break
    else:
        raise SearchError(f"Random search must find a first feasible draw; {MAX_DISCARDS_IN_A_ROW:,} draws had none.")
    options |= {"iterations": iterations, "seed": seed + 1}
    result = evolve(replace(problem, start=first), population=1, **options)
    history = [{**row, "phase": "random", "parent": -1, "removed": -1} for row in result.history]
    return replace(result, history=history)
