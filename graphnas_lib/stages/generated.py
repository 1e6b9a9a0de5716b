"""What generated cells really are: their zero-cost vectors computed, beside what was asked for (part of stage "ccnf").

Three questions, one row a cell each: do draws of the flow for a condition have it, against a neighbourhood of a cell
that has it, at equal uniqueness (Sec. 3.2, Tab. 1); and do cells generated for a family fall in it (Eq. 9).
"""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd
import torch

from graphnas_lib import synonyms
from graphnas_lib.clusters import ZC_NAMES
from graphnas_lib.codes import CellCodes
from graphnas_lib.corpus import zc_matrix
from graphnas_lib.space import Cell
from graphnas_lib.stages import Stage, labels
from graphnas_lib.synonyms import CellSampler


class Sizes(NamedTuple):
    """Conditions, cells of each; cells a family that are scored, and that are only decoded."""

    conditions: int
    cells: int
    family_scored: int
    family_decoded: int


SIZES = {"smoke": Sizes(2, 4, 1, 10), "lite": Sizes(20, 25, 10, 100), "paper": Sizes(50, 40, 25, 1_000)}


def conditional(stage: Stage, sampler: CellSampler, references: CellCodes, zc: torch.Tensor) -> pd.DataFrame:
    """Cells drawn for held-out conditions, and from neighbourhoods of the held-out cells that have them.

    A neighbourhood is the smallest that gives as many distinct cells as the flow (`synonyms.matched_neighbourhood`).

    Args:
        stage: whose scale and seed decide; facts go into its `config`.
        sampler: of the scale.
        references: labelled cells that nothing was trained on.
        zc: their real z, standardised, (n, 4); those outside the flow's range are left out.

    Returns:
        One row a cell: draws ("flow" or "neighbourhood"), condition, sigma, key, asked_* and z_* (standardised).
    """
    size, flow = SIZES[stage.scale.name], sampler.ccnf
    inside = ((zc >= flow.zc_low) & (zc <= flow.zc_high)).all(dim=1).nonzero().flatten()[: size.conditions]
    rows, drawn = [], []
    for i in inside.tolist():
        asked = dict(zip([f"asked_{name}" for name in ZC_NAMES], zc[i].tolist(), strict=True))
        found = synonyms.ccnf_cells(sampler, zc[i].float(), 2 * size.cells, seed=stage.seed + i)
        of_flow = found.valid[: size.cells]
        near, sigma = synonyms.matched_neighbourhood(
            sampler, references[i : i + 1].cells()[0], of_flow, 2 * size.cells, seed=stage.seed + i
        )
        for draws, cells, width in (("flow", of_flow, 0.0), ("neighbourhood", near.valid[: size.cells], sigma)):
            rows += [{"draws": draws, "condition": i, "sigma": width, "key": cell.key(), **asked} for cell in cells]
            drawn += cells
    return _scored(stage, sampler, rows, drawn, "conditional")


def of_families(stage: Stage, sampler: CellSampler, known: set[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Cells generated for each family: one row a scored cell, and one row a family.

    Args:
        stage, sampler: as in `conditional`.
        known: keys of the training cells.

    Returns:
        Cells with family, key, z_* and "falls_in", the family of their real z; and families with the shares "valid"
        (of decodes), "distinct" and "new" (of the valid), "inside" (of the scored).
    """
    size, families = SIZES[stage.scale.name], sampler.families
    rows, drawn, shares = [], [], []
    for family in range(families.n_clusters):
        found = sampler.sample(sampler.centres([family] * size.family_decoded), seed=1_000 * stage.seed + family)
        keys = [cell.key() for cell in found.valid]
        unique = set(keys)
        shares.append(
            {
                "family": family,
                "decoded": found.n_attempts,
                "valid": len(keys) / found.n_attempts,
                "distinct": len(unique) / max(len(keys), 1),
                "new": len(unique - known) / max(len(unique), 1),
            }
        )
        scored = found.valid[: size.family_scored]
        rows += [{"family": family, "key": cell.key()} for cell in scored]
        drawn += scored
    cells = _scored(stage, sampler, rows, drawn, "families")
    z = torch.tensor(cells[[f"z_{name}" for name in ZC_NAMES]].to_numpy())
    cells["falls_in"] = families.assign(z, standardised=True).numpy()
    inside = (cells["falls_in"] == cells["family"]).groupby(cells["family"]).agg(["mean", "size"])
    table = pd.DataFrame(shares).set_index("family").join(inside.set_axis(["inside", "scored"], axis=1)).reset_index()
    return cells, table


def _scored(stage: Stage, sampler: CellSampler, rows: list[dict], cells: list[Cell], name: str) -> pd.DataFrame:
    """The rows with real z_*; equal cells are scored once, cells whose proxies fail are left out and counted."""
    distinct = {cell.key(): cell for cell in cells}
    table, _ = labels.score(stage, list(distinct.values()), f"ccnf-{stage.identity}-{name}")
    good = (table["error"] == "").to_numpy()
    z = sampler.families.transform(zc_matrix(table[good]))
    real = pd.DataFrame(z.numpy(), columns=[f"z_{name}" for name in ZC_NAMES])
    real["key"] = [key for key, kept in zip(distinct, good, strict=True) if kept]
    stage.config[f"{name}_failed"] = int((~good).sum())
    return pd.DataFrame(rows).merge(real, on="key", how="inner")
