"""What generated cells really are: their zero-cost vectors computed, beside what was asked for (part of stage "ccnf").

One row a cell each: do draws of the flow for a condition have it, against a neighbourhood of a cell that has it, at
equal uniqueness (Sec. 3.2); how do both spread around the NATS reference (Tab. 1); and do cells generated for a family
fall in it (Eq. 9).
"""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd
import torch

from graphnas_lib import artifacts, synonyms
from graphnas_lib.clusters import ZC_NAMES
from graphnas_lib.codes import CellCodes
from graphnas_lib.corpus import zc_matrix
from graphnas_lib.space import REFERENCE_CELL, Cell
from graphnas_lib.stages import Stage, labels
from graphnas_lib.synonyms import CellSampler


class Sizes(NamedTuple):
    """Conditions, cells of each, cells around the reference; cells a family that are scored, and that are decoded."""

    conditions: int
    cells: int
    reference: int
    family_scored: int
    family_decoded: int


DRAWS = ("flow", "flow, checked", "neighbourhood", "neighbourhood, checked")
SIZES = {"smoke": Sizes(2, 4, 4, 1, 10), "lite": Sizes(20, 25, 40, 5, 100), "paper": Sizes(50, 40, 200, 25, 1_000)}


def conditional(stage: Stage, sampler: CellSampler, references: CellCodes, zc: torch.Tensor) -> pd.DataFrame:
    """Cells drawn for held-out conditions, and from neighbourhoods of the held-out cells that have them.

    A neighbourhood is the smallest that gives as many distinct cells as the flow (`synonyms.matched_neighbourhood`).

    Args:
        stage: whose scale and seed decide; facts go into its `config`.
        sampler: of the scale.
        references: labelled cells that nothing was trained on.
        zc: their real z, standardised, (n, 4); those outside the flow's range are left out.

    Returns:
        One row a cell: draws (of `DRAWS`; "checked" ones are kept by their known z, D49), condition, sigma, key,
        asked_* and z_* (standardised).
    """
    size, flow = SIZES[stage.scale.name], sampler.ccnf
    inside = ((zc >= flow.zc_low) & (zc <= flow.zc_high)).all(dim=1).nonzero().flatten()[: size.conditions]
    rows, drawn = [], []
    for i in inside.tolist():
        asked = dict(zip([f"asked_{name}" for name in ZC_NAMES], zc[i].tolist(), strict=True))
        found, cells = _rivals(sampler, zc[i], references[i : i + 1].cells()[0], size.cells, stage.seed + i)
        rows += [{**row, "condition": i, **asked} for row in found]
        drawn += cells
    return _scored(stage, sampler, rows, drawn, "conditional")


def around_reference(stage: Stage, sampler: CellSampler) -> pd.DataFrame:
    """As `conditional` for the NATS reference cell, whose raw z is in the labels' manifest; raw z besides, by name."""
    raw = artifacts.load_manifest("labels", stage.scale.name)["config"]["reference"]
    zc = sampler.families.transform(torch.tensor([[raw[name] for name in ZC_NAMES]]))[0]
    rows, cells = _rivals(sampler, zc, REFERENCE_CELL, SIZES[stage.scale.name].reference, stage.seed)
    table = _scored(stage, sampler, rows, cells, "reference")
    z = sampler.families.inverse(torch.tensor(table[[f"z_{name}" for name in ZC_NAMES]].to_numpy()))
    return table.assign(**{name: z[:, i].numpy() for i, name in enumerate(ZC_NAMES)})


def _rivals(
    sampler: CellSampler, zc: torch.Tensor, reference: Cell, n: int, seed: int
) -> tuple[list[dict], list[Cell]]:
    """n cells of each of `DRAWS`; the neighbourhood of `reference` is the smallest as distinct as the flow."""
    zc = zc.float()
    of_flow = synonyms.ccnf_cells(sampler, zc, 2 * n, seed=seed).valid[:n]
    near, sigma = synonyms.matched_neighbourhood(sampler, reference, of_flow, 2 * n, seed=seed)
    cells = (
        of_flow,
        synonyms.ccnf_cells(sampler, zc, n, seed=seed, checked=True).valid,
        near.valid[:n],
        synonyms.neighbourhood_cells(sampler, reference, n, seed=seed, sigma=sigma, near=zc).valid,
    )
    rows, drawn = [], []
    for draws, found in zip(DRAWS, cells, strict=True):
        width = sigma if draws.startswith("neighbourhood") else 0.0
        rows += [{"draws": draws, "sigma": width, "key": cell.key()} for cell in found]
        drawn += found
    return rows, drawn


def of_families(stage: Stage, sampler: CellSampler, known: set[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Cells generated for each family: one row a scored cell, and one row a family.

    Args:
        stage, sampler: as in `conditional`.
        known: keys of the training cells.

    Returns:
        Scored cells with family, key, "drawn" ("kept": as `generate_cells` gives them; "once": as the flow drew them),
        z_* and "falls_in", the family of their real z. And families with the shares "valid" (of decodes), "distinct"
        and "new" (of the kept), "inside" and "inside_once" (of the scored).
    """
    size, families = SIZES[stage.scale.name], sampler.families
    rows, drawn, shares = [], [], []
    for family in range(families.n_clusters):
        asked, seed = [family] * size.family_decoded, 1_000 * stage.seed + family
        once, kept = sampler.sample(sampler.centres(asked), seed=seed), sampler.generate_cells(asked, seed=seed)
        unique = {cell.key() for cell in kept}
        shares.append(
            {
                "family": family,
                "decoded": once.n_attempts,
                "valid": len(once.valid) / once.n_attempts,
                "distinct": len(unique) / len(kept),
                "new": len(unique - known) / len(unique),
            }
        )
        for name, cells in (("kept", kept[: size.family_scored]), ("once", once.valid[: size.family_scored])):
            rows += [{"family": family, "drawn": name, "key": cell.key()} for cell in cells]
            drawn += cells
    cells = _scored(stage, sampler, rows, drawn, "families")
    z = torch.tensor(cells[[f"z_{name}" for name in ZC_NAMES]].to_numpy())
    cells["falls_in"] = families.assign(z, standardised=True).numpy()
    inside = (cells["falls_in"] == cells["family"]).groupby([cells["family"], cells["drawn"]]).mean().unstack()
    inside = inside.reindex(columns=["kept", "once"]).set_axis(["inside", "inside_once"], axis=1)
    scored = cells[cells["drawn"] == "kept"].groupby("family").size().rename("scored")
    return cells, pd.DataFrame(shares).set_index("family").join(inside).join(scored).reset_index()


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
