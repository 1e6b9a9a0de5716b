"""Stage "cells": distinct random cells, the unlabelled corpus (App. A), stored as integer codes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from graphnas_lib import store
from graphnas_lib.space import EDGES, UNUSED, CellCodes, random_cell, sample_cells
from graphnas_lib.stages.stage import Stage

HELD_OUT = 0.1  # last tenth of the corpus: no model sees it in training


def make(stage: Stage) -> tuple[dict, dict]:
    """Sample the corpus; also measure how raw draws fall out before pruning and de-duplication."""
    codes = CellCodes.of(sample_cells(stage.scale.unlabelled, seed=stage.seed), canonical=True)
    generator = torch.Generator().manual_seed(stage.seed)
    draws = [random_cell(generator) for _ in range(stage.scale.law_draws)]
    valid = [cell for cell in draws if cell.is_valid]
    law = {
        "valid": len(valid) / len(draws),
        "strict": sum(cell.strict for cell in draws) / len(draws),
        "mean_live": sum(len(cell.live) for cell in valid) / len(valid),
    }
    packed = torch.from_numpy(np.packbits(codes.edges.numpy(), axis=1))  # (n, 4): 28 bits
    facts = {"n": len(codes), "held_out": round(HELD_OUT * len(codes)), "law": law}
    return {"cells.safetensors": {"edges": packed, "operations": codes.operations}}, facts


def load(scale: str) -> CellCodes:
    """The whole corpus, training cells first."""
    found = store.load("cells", "cells.safetensors", scale)
    edges = np.unpackbits(found["edges"].numpy(), axis=1, count=len(EDGES))
    return CellCodes(torch.from_numpy(edges), found["operations"])


def split(codes: CellCodes) -> tuple[CellCodes, CellCodes]:
    """(training cells, held-out cells)."""
    n = len(codes) - round(HELD_OUT * len(codes))
    return codes[:n], codes[n:]


def law(scale: str) -> pd.DataFrame:
    """How raw draws fall out, and how many cells came of them."""
    facts = store.load_manifest("cells", scale)["config"]
    return pd.Series(facts["law"] | {"cells in the corpus": facts["n"]}).to_frame("value")


def live_nodes(codes: CellCodes) -> pd.Series:
    """How many cells have 1, 2, ... operation nodes on an input-output path."""
    used = pd.Series((codes.operations != UNUSED).sum(dim=1).numpy(), name="nodes")
    return used.value_counts().sort_index().rename("cells")
