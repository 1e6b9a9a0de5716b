"""Stage "comparison": HL-Evo beside flat evolution and random search, with equal evaluations (Fig. 1, Table 2)."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from graphnas_lib import store
from graphnas_lib.stages import evolution
from graphnas_lib.stages.stage import Stage

METHODS = ("HL-Evo", "Evo (flat)", "Random")
SEEDS_FROM = 100  # other draws than those of the histories


def make(stage: Stage) -> tuple[dict, dict]:
    """All methods under `compared_budget` with each seed, and flat evolution as long as HL-Evo's histories under each.

    A score that failed is an evaluation too: what a search recorded beyond its evaluations is left out.
    """
    searches, scale = evolution.Searches(stage), stage.scale
    flat = [
        searches.run("Evo (flat)", budget, seed=stage.seed + i, iterations=scale.iterations)
        for i, budget in enumerate(scale.budgets)
    ]
    files = {
        "comparison.parquet": compared(searches, METHODS),
        "comparison_flat.parquet": _shared(flat, scale.iterations),
    }
    return files, searches.facts()


def compared(searches: evolution.Searches, methods: Sequence[str]) -> pd.DataFrame:
    """The searches of some methods under `compared_budget`, with each seed."""
    stage, scale = searches.stage, searches.stage.scale
    seeds = range(stage.seed + SEEDS_FROM, stage.seed + SEEDS_FROM + scale.comparison_seeds)
    size = scale.comparison_iterations
    runs = [searches.run(name, scale.compared_budget, seed=seed, iterations=size) for seed in seeds for name in methods]
    return _shared(runs, size)


def _shared(tables: list[pd.DataFrame], iterations: int) -> pd.DataFrame:
    table = pd.concat(tables, ignore_index=True).drop(columns="individual")
    return table[table["evaluations"] <= iterations + 1].reset_index(drop=True)  # the start is one as well


def load(scale: str) -> pd.DataFrame:
    """Methods at equal evaluations under one budget, for each seed: method, seed, evaluations, phase, score, ..."""
    return store.load("comparison", "comparison.parquet", scale)


def flat(scale: str) -> pd.DataFrame:
    """Flat evolution with as many evaluations as the histories of HL-Evo, under each budget; columns as of `load`."""
    return store.load("comparison", "comparison_flat.parquet", scale)
