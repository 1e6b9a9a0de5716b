"""Stage "reach": the far-reaching form of HL-Evo (deviation D52) with other seeds, and what its parts are worth."""

from __future__ import annotations

import pandas as pd

from graphnas_lib.stages import comparison, designed, evolution
from graphnas_lib.stages.stage import Stage

WHOLE = "HL-Evo, far"


def make(stage: Stage) -> tuple[dict, dict]:
    """The whole form under `compared_budget`, and beside forms that lack a part under a cheaper one, with each seed.

    What needs no search stands beside them: one repeated dense cell, and the authors' best network where one fits.
    """
    scale, cheap, few = stage.scale, stage.scale.reach["budget"], stage.scale.reach["iterations"]
    searches = evolution.Searches(stage, pooled=scale.reach["cells"])
    whole = comparison.compared(searches, [WHOLE])
    parts = comparison.compared(searches, scale.reach["methods"], budget=cheap, iterations=few)
    fixed = [row for budget in (scale.compared_budget, cheap) for row in designed.outside(searches, *budget)]
    beside = pd.DataFrame(fixed).merge(whole[["seed"]].drop_duplicates(), how="cross")
    return {"reach.parquet": pd.concat([whole, parts, beside], ignore_index=True)}, searches.facts()


def parts(reached: pd.DataFrame) -> pd.DataFrame:
    """Best score by method under each budget of reach.parquet, and what share of it the whole form's median is.

    Columns: budget, median, min and max over seeds, seeds, the number with which the whole form is above it, share.
    """
    tables = []
    for budget, runs in reached.groupby("budget", sort=False):
        table = comparison.wins(runs, own=[WHOLE])
        whole = table.set_index("method").at[WHOLE, "median"]
        tables.append(table.assign(**{f"{WHOLE} / it": whole / table["median"]}).assign(budget=budget))
    found = pd.concat(tables, ignore_index=True)
    return found[["budget", *found.columns.drop("budget")]]


def beside(compared: pd.DataFrame, reached: pd.DataFrame) -> pd.DataFrame:
    """comparison.parquet, and the whole form's searches of reach.parquet under the same budget."""
    whole = reached[(reached["method"] == WHOLE) & reached["budget"].isin(compared["budget"])]
    return pd.concat([compared, whole], ignore_index=True)
