"""Stage "generated": what generated cells really are, their zero-cost vectors computed, beside what was asked for.

One row a cell each: do draws of the flow for a condition have it, against a neighbourhood of a cell that has it, at
equal uniqueness (Sec. 3.2); how do both spread around the NATS reference (Tab. 1); and do cells generated for a family
fall in it (Eq. 9). Besides: is a latent what was asked for, by q, and how much of all this is the solver's.
"""

from __future__ import annotations

import time

import pandas as pd
import torch

from graphnas_lib import store, synonyms
from graphnas_lib.ccnf import CCNF
from graphnas_lib.clusters import ZC_NAMES
from graphnas_lib.gvae import GVAE
from graphnas_lib.proxies import zc_matrix
from graphnas_lib.space import REFERENCE_CELL, Cell, CellCodes
from graphnas_lib.stages import labels
from graphnas_lib.stages.gvae import Data
from graphnas_lib.stages.stage import Stage
from graphnas_lib.synonyms import CellSampler

SOLVERS = (("midpoint", 5), ("midpoint", 10), ("midpoint", 20), ("rk4", 5), ("rk4", 6), ("rk4", 10))


def make(stage: Stage) -> tuple[dict, dict]:
    """Draw with the scale's own flow, compute every drawn cell's proxies; a killed run goes on with the next cell."""
    name = stage.scale.name
    sampler, data = CellSampler.load(name, device=stage.device), Data(stage)
    flows = {"fm": sampler.ccnf, "nll": CCNF.load(name, name="ccnf_nll", device=stage.device)}
    asked = sampler.gvae.predict_zc(sampler.gvae.encode(data.held_out))
    latents = latent_error(flows, sampler.gvae, asked, stage.seed)
    solvers = solver_error(sampler, stage.scale.solved_cells, stage.seed)
    family_cells, families, facts = of_families(stage, sampler, data.known)
    conditions, failed = conditional(stage, sampler, data.unseen, data.unseen_zc)
    around, failed_around = around_reference(stage, sampler)
    files = {"latents": latents, "conditions": conditions, "reference": around, "families": families}
    files |= {"family_cells": family_cells, "solvers": solvers}
    return {f"generated_{name}.csv": table for name, table in files.items()}, facts | failed | failed_around


def conditional(
    stage: Stage, sampler: CellSampler, references: CellCodes, zc: torch.Tensor
) -> tuple[pd.DataFrame, dict]:
    """Cells drawn for held-out conditions, and from neighbourhoods of the held-out cells that have them.

    A neighbourhood is the smallest that gives as many distinct cells as the flow (`synonyms.matched_neighbourhood`).

    Args:
        references: labelled cells that nothing was trained on.
        zc: their real z, standardised, (n, 4); those outside the flow's range are left out.

    Returns:
        One row a cell: draws ("flow" or "neighbourhood", as drawn or ", checked": kept by their known z, D49),
        condition, sigma, key, asked_* and z_* (standardised). And facts: how many cells failed.
    """
    scale, low, high = stage.scale, sampler.ccnf.zc_low.cpu(), sampler.ccnf.zc_high.cpu()
    inside = ((zc >= low) & (zc <= high)).all(dim=1).nonzero().flatten()[: scale.conditions]
    rows, drawn = [], []
    for i in inside.tolist():
        asked = {f"asked_{name}": value for name, value in zip(ZC_NAMES, zc[i].tolist(), strict=True)}
        found, cells = _rivals(sampler, zc[i], references[i : i + 1].cells()[0], scale.condition_cells, stage.seed + i)
        rows += [{**row, "condition": i, **asked} for row in found]
        drawn += cells
    return _scored(stage, sampler, rows, drawn, "conditional")


def around_reference(stage: Stage, sampler: CellSampler) -> tuple[pd.DataFrame, dict]:
    """As `conditional` for the NATS reference cell, whose raw z is in the labels' manifest; raw z besides, by name."""
    raw = store.load_manifest("labels", stage.scale.name)["config"]["reference"]
    zc = sampler.families.transform(torch.tensor([[raw[name] for name in ZC_NAMES]]))[0]
    rows, cells = _rivals(sampler, zc, REFERENCE_CELL, stage.scale.reference_cells, stage.seed)
    table, facts = _scored(stage, sampler, rows, cells, "reference")
    z = sampler.families.inverse(torch.tensor(table[[f"z_{name}" for name in ZC_NAMES]].to_numpy()))
    return table.assign(**{name: z[:, i].numpy() for i, name in enumerate(ZC_NAMES)}), facts


def _rivals(
    sampler: CellSampler, zc: torch.Tensor, reference: Cell, n: int, seed: int
) -> tuple[list[dict], list[Cell]]:
    """n cells each of the flow and of the smallest neighbourhood of `reference` as distinct; as drawn, and checked."""
    zc = zc.float()
    options = {"n": 2 * n, "seed": seed}
    rows, drawn = [], []
    for suffix, near in (("", None), (", checked", zc)):
        flow = synonyms.ccnf_cells(sampler, zc, checked=near is not None, **options).valid[:n]
        around, sigma = synonyms.matched_neighbourhood(sampler, reference, flow, near=near, **options)
        for name, cells, width in (("flow", flow, 0.0), ("neighbourhood", around.valid[:n], sigma)):
            rows += [{"draws": f"{name}{suffix}", "sigma": width, "key": cell.key()} for cell in cells]
            drawn += cells
    return rows, drawn


def of_families(stage: Stage, sampler: CellSampler, known: set[str]) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    """Cells generated for each family: one row a scored cell, and one row a family.

    `known` are keys of the training cells. Scored cells have family, key, "drawn" ("kept": as `generate_cells` gives
    them; "once": as the flow drew them), z_* and "falls_in", the family of their real z; families the shares "valid"
    (of decodes), "distinct" and "new" (of the kept), "inside" and "inside_once" (of the scored).
    """
    scale, families = stage.scale, sampler.families
    rows, drawn, shares = [], [], []
    for family in range(families.n_clusters):
        asked, seed = [family] * scale.family_decoded, 1_000 * stage.seed + family
        once, kept = sampler.sample(sampler.centres(asked), seed=seed), sampler.generate_cells(asked, seed=seed)
        unique = {cell.key() for cell in kept}
        share = {"family": family, "decoded": once.n_attempts, "valid": len(once.valid) / once.n_attempts}
        shares.append(share | {"distinct": len(unique) / len(kept), "new": len(unique - known) / len(unique)})
        for name, cells in (("kept", kept[: scale.family_scored]), ("once", once.valid[: scale.family_scored])):
            rows += [{"family": family, "drawn": name, "key": cell.key()} for cell in cells]
            drawn += cells
    cells, facts = _scored(stage, sampler, rows, drawn, "families")
    z = torch.tensor(cells[[f"z_{name}" for name in ZC_NAMES]].to_numpy())
    cells["falls_in"] = families.assign(z, standardised=True).numpy()
    inside = (cells["falls_in"] == cells["family"]).groupby([cells["family"], cells["drawn"]]).mean().unstack()
    inside = inside.reindex(columns=["kept", "once"]).set_axis(["inside", "inside_once"], axis=1)
    scored = cells[cells["drawn"] == "kept"].groupby("family").size().rename("scored")
    return cells, pd.DataFrame(shares).set_index("family").join(inside).join(scored).reset_index(), facts


def _scored(
    stage: Stage, sampler: CellSampler, rows: list[dict], cells: list[Cell], name: str
) -> tuple[pd.DataFrame, dict]:
    """The rows with real z_*; equal cells are scored once, cells whose proxies fail are left out and counted."""
    distinct = {cell.key(): cell for cell in cells}
    table, facts = labels.score(stage, list(distinct.values()), f"{stage.name}-{stage.identity}-{name}")
    good = (table["error"] == "").to_numpy()
    z = sampler.families.transform(zc_matrix(table[good]))
    real = pd.DataFrame(z.numpy(), columns=[f"z_{name}" for name in ZC_NAMES])
    real["key"] = [key for key, kept in zip(distinct, good, strict=True) if kept]
    facts[f"{name}_failed"] = int((~good).sum())
    return pd.DataFrame(rows).merge(real, on="key", how="inner"), facts


def latent_error(flows: dict[str, CCNF], model: GVAE, zc: torch.Tensor, seed: int) -> pd.DataFrame:
    """|q(f) - z| of draws for held-out conditions, and of a random pair, in standard deviations a component.

    Conditions outside the range that training saw are left out: there every flow extrapolates.
    """
    low, high = (torch.stack([getattr(flow, end) for flow in flows.values()]) for end in ("zc_low", "zc_high"))
    inside = (zc >= low.max(dim=0).values) & (zc <= high.min(dim=0).values)
    zc = zc[inside.all(dim=1)][:200]
    shuffled = zc[torch.randperm(len(zc), generator=torch.Generator().manual_seed(seed)).to(zc.device)]
    errors = {f"ccnf_{name}": model.predict_zc(flow.sample(zc, seed=seed)) - zc for name, flow in flows.items()}
    errors["random pair"] = shuffled - zc
    means = {name: error.abs().mean(dim=0).tolist() for name, error in errors.items()}
    return pd.DataFrame(means, index=ZC_NAMES).T.assign(n=len(zc)).rename_axis("model").reset_index()


def solver_error(sampler: CellSampler, n: int, seed: int) -> pd.DataFrame:
    """Fixed-step solvers against dopri5 at 1e-5: latent error, share of equal decoded cells, seconds of the solve."""
    zc = sampler.centres([i % sampler.families.n_clusters for i in range(n)])
    rows, known, reference = [], [], None
    for method, steps in (("dopri5", 0), *SOLVERS):
        began = time.perf_counter()
        latent = sampler.ccnf.sample(zc, seed=seed, method=method, steps=steps or 1)
        if latent.is_cuda:  # else these are the seconds of launching it
            torch.cuda.synchronize(latent.device)
        seconds = time.perf_counter() - began
        keys = [cell.key() if cell else "" for cell in sampler.gvae.decode(latent)]
        if reference is None:
            reference, known = latent, keys
        same = sum(a == b for a, b in zip(keys, known, strict=True)) / n
        error = (latent - reference).abs().max().item()
        rows.append({"solver": method, "steps": steps, "error": error, "same_cells": same, "seconds": seconds})
    return pd.DataFrame(rows).assign(n=n)


def real_errors(real: pd.DataFrame) -> pd.DataFrame:
    """Mean |z - asked| a component (generated_conditions.csv), in standard deviations; the share of distinct cells.

    The last rows are the flow's errors as shares of the neighbourhood's.
    """
    off = {name: (real[f"z_{name}"] - real[f"asked_{name}"]).abs() for name in ZC_NAMES}
    grouped = pd.DataFrame(off).assign(mean=pd.DataFrame(off).mean(axis=1)).groupby(real["draws"], sort=False).mean()
    distinct = real.groupby(["draws", "condition"])["key"].agg(lambda keys: keys.nunique() / len(keys))
    facts = {"conditions": ("condition", "nunique"), "cells": ("key", "size"), "sigma": ("sigma", "mean")}
    shares = real.groupby("draws").agg(**facts).join(distinct.groupby("draws").mean().rename("distinct"))
    return _with_ratio(grouped).join(shares)


def _with_ratio(table: pd.DataFrame) -> pd.DataFrame:
    """A table by draws, and below it the flow's values as shares of the neighbourhood's."""
    flow, near = "flow, checked", "neighbourhood"
    pairs = (("flow", near), (flow, near), (flow, f"{near}, checked"))
    ratios = {f"{a} / {b}": table.loc[a] / table.loc[b] for a, b in pairs if {a, b} <= set(table.index)}
    return pd.concat([table, pd.DataFrame(ratios).T]).rename_axis("draws")


def reference_spread(around: pd.DataFrame, reference: dict) -> pd.DataFrame:
    """Around the NATS reference: standard deviation of both scores, and median sizes as a share of its own.

    Both are raw z by name: `around` of generated_reference.csv, `reference` of its cell.
    """
    groups = around.groupby("draws", sort=False)
    table = groups[["naswot", "snip_ssnr"]].std().add_prefix("std ")
    medians = pd.DataFrame({f"median {n} / reference": groups[n].median() / reference[n] for n in ("params", "flops")})
    facts = groups.agg(cells=("key", "size"), distinct=("key", "nunique"), sigma=("sigma", "mean"))
    return _with_ratio(table).join(medians).join(facts)


def asked(wanted: torch.Tensor, found: torch.Tensor) -> pd.DataFrame:
    """Conditions and what q says of the draws for them, both (n, 4) and standardised: a row for each component of each.

    Columns: component, asked, found.
    """
    parts = [pd.DataFrame(part.numpy(), columns=list(ZC_NAMES)).melt(var_name="component") for part in (wanted, found)]
    return parts[0].rename(columns={"value": "asked"}).assign(found=parts[1]["value"])
