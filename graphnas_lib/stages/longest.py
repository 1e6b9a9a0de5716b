"""Stage "longest": searches with the paper's own number of evaluations under one budget, one seed each (App. A, C)."""

from __future__ import annotations

import pandas as pd

from graphnas_lib.stages import comparison, designed, evolution
from graphnas_lib.stages.reach import WHOLE
from graphnas_lib.stages.stage import Stage

COLUMNS = ["method", "budget", "seed", "evaluations", "phase", "score", "params", "flops"]
AFTER = (300, 1_000, 3_000, 10_000, 20_000)  # evaluations


def make(stage: Stage) -> tuple[dict, dict]:
    """Each method with as many evaluations as `longest` gives it, and beside them what needs no search."""
    sizes, seed = stage.scale.longest, stage.seed + comparison.SEEDS_FROM
    searches, under = evolution.Searches(stage, pooled=sizes["cells"]), sizes["budget"]
    runs = [
        comparison.shared(searches.run(name, under, seed=seed, iterations=length), length)
        for name, length in sizes["evaluations"].items()
    ]
    fixed = pd.DataFrame(designed.outside(searches, *under)).assign(seed=seed)
    return {"longest.parquet": pd.concat([*runs, fixed], ignore_index=True)[COLUMNS]}, searches.facts()


def after(searched: pd.DataFrame) -> pd.DataFrame:
    """Best score of each method of longest.parquet after so many evaluations (NaN beyond its last), and after all.

    The last column is what the far-reaching form found in all of its evaluations, over what the method found.
    """
    rows = []
    for method, (curve,) in comparison.curves(searched).items():
        best = {f"after {n:,}": curve[n - 1] if n <= len(curve) else None for n in AFTER}
        rows.append({"method": method, "evaluations": len(curve), **best, "all": curve[-1]})
    table = pd.DataFrame(rows).set_index("method")
    return table.assign(**{f"{WHOLE} / it": table.at[WHOLE, "all"] / table["all"]}).reset_index()
