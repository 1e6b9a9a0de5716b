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
    searches = evolution.Searches(stage)
    flat = shared(searches.under_each_budget("Evo (flat)"), stage.scale.iterations)
    return {"comparison.parquet": compared(searches, METHODS), "comparison_flat.parquet": flat}, searches.facts()


def compared(
    searches: evolution.Searches,
    methods: Sequence[str],
    budget: tuple[str, float] | None = None,
    iterations: int | None = None,
) -> pd.DataFrame:
    """The searches of some methods with each seed; budget and evaluations by default those of the scale."""
    stage, scale = searches.stage, searches.stage.scale
    seeds = range(stage.seed + SEEDS_FROM, stage.seed + SEEDS_FROM + scale.comparison_seeds)
    size, under = iterations or scale.comparison_iterations, budget or scale.compared_budget
    runs = [searches.run(name, under, seed=seed, iterations=size) for seed in seeds for name in methods]
    return shared(pd.concat(runs), size)


def shared(table: pd.DataFrame, iterations: int) -> pd.DataFrame:
    """Histories cut to as many evaluations, without their networks."""
    table = table[table["evaluations"] <= iterations + 1]  # the start is one as well
    return table.drop(columns="individual").reset_index(drop=True)


def load(scale: str, stage: str = "comparison") -> pd.DataFrame:
    """Searches of this stage, or of "variants", "reach" or "longest", evaluation by evaluation.

    Columns: method, budget, seed, evaluations, phase, score, params, flops, ...; what needs no search has one row.
    """
    return store.load(stage, f"{stage}.parquet", scale)


def flat(scale: str) -> pd.DataFrame:
    """Flat evolution with as many evaluations as the histories of HL-Evo, under each budget; columns as of `load`."""
    return store.load("comparison", "comparison_flat.parquet", scale)


def curves(compared: pd.DataFrame) -> dict[str, list[list[float]]]:
    """Best score so far after each evaluation: method -> a curve a seed, of comparison.parquet."""
    found: dict[str, list[list[float]]] = {}
    for (method, _), run in compared.groupby(["method", "seed"]):
        best = run.groupby("evaluations")["score"].max()
        found.setdefault(method, []).append(list(best.reindex(range(1, best.index.max() + 1)).ffill().cummax()))
    return found


def by_seed(compared: pd.DataFrame) -> pd.DataFrame:
    """Best score of each method with each seed of comparison.parquet, and what HL-Evo's is above."""
    table = _best_by_seed(compared)
    above = {f"HL-Evo above {name}": table["HL-Evo"] > table[name] for name in table.columns.drop("HL-Evo")}
    return table.assign(**above).reset_index().rename_axis(columns=None)


def wins(*compared: pd.DataFrame, own: Sequence[str] | None = None) -> pd.DataFrame:
    """Each method of comparison.parquet and variants.parquet: its best score by seed, and with how many HL-Evo wins.

    Columns: method, median, min and max over seeds, seeds, and the number with which each form of HL-Evo, or of those
    that `own` names, is above it.
    """
    best = _best_by_seed(pd.concat(compared))
    table = best.agg(["median", "min", "max"]).T.assign(seeds=len(best))
    for name in own or [name for name in best if name.startswith("HL-Evo")]:
        table[f"{name} above it"] = best.lt(best[name], axis=0).sum()
    return table.sort_values("median", ascending=False).reset_index().rename_axis(columns=None)


def _best_by_seed(compared: pd.DataFrame) -> pd.DataFrame:
    return compared.groupby(["seed", "method"])["score"].max().unstack("method")


def lengths(history: pd.DataFrame, flat: pd.DataFrame) -> pd.DataFrame:
    """Best score of the history's form and of flat evolution: its starts, after a third of the evaluations, after all.

    All are those of the history: what flat evolution did beyond them, or under other budgets, is left out.
    """
    longest, form = history.groupby("budget")["evaluations"].max(), history["method"].iloc[0]
    both = pd.concat([history, flat[flat["budget"].isin(longest.index)]], ignore_index=True)
    both = both[both["evaluations"] <= both["budget"].map(longest)]
    columns = {}
    for name, run in both.groupby("method", sort=False):
        columns[f"{name}, start"] = run[run["phase"] == "initial"].groupby("budget")["score"].max()
        third = run[run["evaluations"] <= run["budget"].map(longest) / 3]
        columns[f"{name}, a third"] = third.groupby("budget")["score"].max()
        columns[f"{name}, all"] = run.groupby("budget")["score"].max()
    table = pd.DataFrame({"evaluations": longest, **columns})
    table[f"{form} / Evo (flat)"] = table[f"{form}, all"] / table["Evo (flat), all"]
    return table.loc[history["budget"].unique()].reset_index()
