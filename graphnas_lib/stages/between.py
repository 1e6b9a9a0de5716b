"""Stage "between": short searches at sizes between the budgets of the history, which start with its best networks.

Every network of a history lies near its budget, so that a generator which has seen nothing else knows sizes between
them from chance finds alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pandas as pd
import torch

from graphnas_lib import evolution as search
from graphnas_lib.macro import Architecture
from graphnas_lib.stages import evolution
from graphnas_lib.stages.stage import Stage

FIRST_SEED = 200  # other draws than those of the history and of the comparisons


def make(stage: Stage) -> tuple[dict, dict]:
    """The history's form of search under each budget of `between`; where there is none, no rows."""
    searches, sizes, history = evolution.Searches(stage), stage.scale.between, evolution.load(stage.scale.name)
    best = history.sort_values("score", ascending=False).groupby("budget").head(sizes["starts"])
    networks, runs = [Architecture.from_json(text) for text in best["individual"]], [history.head(0)]
    for seed, budget in enumerate(sizes["budgets"], start=stage.seed + FIRST_SEED):
        options = {"seed": seed, "iterations": sizes["iterations"]}
        start = fitted(networks, searches.feasible(budget), seed)
        runs.append(searches.run(stage.scale.history_form, budget, start=start, **options))
    return {"between.parquet": pd.concat(runs, ignore_index=True)}, searches.facts()


def fitted(networks: Sequence[Architecture], feasible: Callable[[Architecture], bool], seed: int) -> list[Architecture]:
    """The networks with as many of their first cells, and then as wide, as the constraints let them be; distinct."""
    source, found = torch.Generator().manual_seed(seed), {}
    for network in networks:
        for cells in range(len(network.triples), 0, -1):
            made = search.filled(replace(network, triples=network.triples[:cells]), feasible)
            if feasible(made):
                made = search.to_the_edge(made, feasible, source)
                found.setdefault(made.key(), made)
                break
    return list(found.values())
