"""Stage "variants": other forms of the searches of "comparison", under the same budget, with the same seeds and score.

Evolution whose inserted cells repeat their neighbour, as the released code's stages do; and random search that
discards draws above the budget, as evolution does, in place of scaling their widths to it.
"""

from __future__ import annotations

import pandas as pd

from graphnas_lib import store
from graphnas_lib.stages import comparison, evolution
from graphnas_lib.stages.stage import Stage

METHODS = ("HL-Evo, repeats", "Evo (flat), repeats", "Random, as drawn")


def make(stage: Stage) -> tuple[dict, dict]:
    """All variants under `compared_budget` with each seed."""
    searches = evolution.Searches(stage)
    return {"variants.parquet": comparison.compared(searches, METHODS)}, searches.facts()


def counts(scale: str) -> pd.DataFrame:
    """Recorded, discarded, failed and redrawn individuals of each search of the stages that search alone."""
    stages = ("evolution", "comparison", "variants", "reach", "longest")
    found = [pd.DataFrame(store.load_manifest(stage, scale)["config"]["counts"]).T for stage in stages]
    return pd.concat(found).rename_axis("search").reset_index()
