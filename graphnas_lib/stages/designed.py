"""Stage "designed": what the generator answers to requests, and how good its designs are beside those of HL-Evo."""

from __future__ import annotations

import math
from functools import partial

import pandas as pd
import torch
from torch import Tensor

from graphnas_lib import benchmarks, datasets
from graphnas_lib.design import SCORED, Trained, below, design, repeated
from graphnas_lib.sequence import CONDITIONS
from graphnas_lib.stages import evolution
from graphnas_lib.stages.scores import ProxyScore
from graphnas_lib.stages.stage import Stage


def make(stage: Stage) -> tuple[dict, dict]:
    """A hundred requests inside the range of the history, and the best of its designs under each of its budgets."""
    searches, history = evolution.Searches(stage), evolution.load(stage.scale.name)
    trained = Trained.load(stage.scale.name, device=stage.device)
    requests = drawn_requests(history, stage.scale.requests, stage.seed)
    answered = answers(trained, searches, requests)
    files = {
        "designed_requests.csv": answered,
        "designed_anywhere.csv": anywhere(trained, searches, answered.head(stage.scale.between["asked"])),
        "designed_best.csv": best_designs(trained, searches, history),
    }
    return files, searches.facts()


def drawn_requests(history: pd.DataFrame, n: int, seed: int) -> Tensor:
    """Budgets log-uniform between the 5th and 95th percentile of the history: parameters and FLOPs by turns."""
    generator = torch.Generator().manual_seed(seed)
    ends = history[list(CONDITIONS[:2])].quantile([0.05, 0.95]).map(math.log).to_numpy()
    rows = torch.full((n, len(CONDITIONS)), math.nan, dtype=torch.float64)
    for i in range(n):
        column = i % 2
        low, high = ends[:, column]
        rows[i, column] = math.exp(low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item())
    return rows


def answers(trained: Trained, searches: evolution.Searches, requests: Tensor) -> pd.DataFrame:
    """What the generator answers: legality with and without the mask, sizes with kept cells, before any fit."""
    masked = trained.generator.generate_many(requests)
    free = trained.generator.generate_many(requests, masked=False)
    rows = []
    for i, (request, (hl,), (unmasked,)) in enumerate(zip(requests, masked, free, strict=True)):
        column = int(torch.isfinite(request).nonzero()[0])
        name, requested = CONDITIONS[column], request[column].item()
        costs = searches.costs(trained.near(**{name: requested}).realise(hl, seed=i))
        row = {"quantity": name, "requested": requested, "realised": getattr(costs, name)}
        row |= {"legal_masked": hl is not None, "legal_unmasked": unmasked is not None}
        rows.append(row | {"cells": len(hl.triples), "design": hl.to_json()})
    return pd.DataFrame(rows)


def anywhere(trained: Trained, searches: evolution.Searches, requests: pd.DataFrame) -> pd.DataFrame:
    """Requests that were no search's budget: the best T-CET of ten designs, and of the best repeated cell.

    Columns: quantity, requested, SG, repeated, and the first as a share of the second.
    """
    options = {**_task(searches), "seed": searches.stage.seed}
    asked = {f"{row.quantity} {row.requested:.6g}": below(row.quantity, row.requested) for row in requests.itertuples()}
    jobs = {name: partial(_both, trained, {**size, **options}) for name, size in asked.items()}
    found = pd.DataFrame(searches.stage.collect(jobs, "anywhere", RESCORED, workers=1)).drop(columns="id")
    told = requests[["quantity", "requested"]].reset_index(drop=True)
    return told.join(found).assign(share=found["SG"] / found["repeated"])


def _task(searches: evolution.Searches) -> dict:
    """The images that the searches score on, as arguments of `design` and `repeated`."""
    score, place = searches.score, {"input_shape": searches.input_shape, "device": searches.stage.device}
    return {"images": score.images, "labels": score.labels, "classes": score.classes, **place}


def _both(trained: Trained, asked: dict) -> dict:
    designs = design(n=RESCORED, candidates=RESCORED, trained=trained, **asked)
    return {"SG": max(one.tcet for one in designs), "repeated": repeated(**asked)[0].tcet}


def best_designs(trained: Trained, searches: evolution.Searches, history: pd.DataFrame) -> pd.DataFrame:
    """Under each budget: the best T-CET of designs, of fresh ones, and of HL-Evo; all on the same images."""
    score, stage = searches.score, searches.stage
    options = {**_task(searches), "trained": trained}
    budgets = {evolution.budget_name(*budget): budget for budget in stage.scale.budgets}
    jobs, size = {}, {"n": RESCORED, "candidates": stage.scale.best_of}
    for i, (name, budget) in enumerate(budgets.items()):
        for method, fresh in (("SG", False), ("SG, fresh", True)):
            asked = {**below(*budget), **size, "seed": stage.seed + i, "fresh": fresh, **options}
            jobs[f"{name}, {method}"] = partial(_best, name, method, score, asked)
    rows = stage.collect(jobs, "designs", RESCORED, workers=1)
    for name, budget in budgets.items():
        runs = history[history["budget"] == name]
        rows.append({"budget": name, "method": "HL-Evo", "evaluations": len(runs), "score": runs["score"].max()})
        rows += outside(searches, *budget)
    return pd.DataFrame(rows).drop(columns="id")


def _best(name: str, method: str, score: ProxyScore, asked: dict) -> dict:
    best = max(score(one.architecture)["score"] for one in design(**asked))
    return {"budget": name, "method": method, "evaluations": asked["candidates"], "score": best}


def outside(searches: evolution.Searches, quantity: str, bound: float) -> list[dict]:
    """What needs no generator and no search: the best network of one repeated cell, and the authors' best one."""
    plain = repeated(**below(quantity, bound), **_task(searches), seed=searches.stage.seed)
    budget = {"budget": evolution.budget_name(quantity, bound)}
    rows = [{**budget, "method": REPEATED, "evaluations": SCORED, "score": plain[0].tcet}]
    try:
        known = [network for network, _ in benchmarks.released_networks()]
    except datasets.MissingDataError:
        return rows
    within = [one for one in known if 0.5 * bound <= getattr(searches.costs(one), quantity) <= bound]
    if within:
        best = max(searches.score(one)["score"] for one in within)
        rows.append({**budget, "method": RELEASED, "evaluations": len(within), "score": best})
    return rows


RESCORED = 10  # of the designs, those of highest T-CET; with the weights that all networks of the table have
NEAR = 25.0  # percent of a request: what is further off before any fit counts as missed
FLAT_EQUAL = "Evo (flat), as many"
REPEATED, RELEASED = "Repeated cell", "Released"


def best_table(best: pd.DataFrame, flat: pd.DataFrame, form: str = "HL-Evo") -> pd.DataFrame:
    """Best T-CET under each budget by method, and the generator's as a share of the others'; `form` is the history's.

    Flat evolution (comparison_flat.parquet) stands there twice: after as many evaluations as the generator's, and as a
    whole.
    """
    as_many = flat[flat["evaluations"] <= best.loc[best["method"] == "SG", "evaluations"].max()]
    for name, part in ((FLAT_EQUAL, as_many), ("Evo (flat)", flat)):
        runs = part.groupby("budget").agg(evaluations=("evaluations", "max"), score=("score", "max")).reset_index()
        best = pd.concat([best, runs.assign(method=name)], ignore_index=True)
    best = best.replace({"method": {"HL-Evo": form}})
    table = best.pivot(index="budget", columns="method", values="score").rename_axis(columns=None)
    asked = best.groupby("method")["evaluations"].max()
    beside = [name for name in (form, FLAT_EQUAL, "Evo (flat)", REPEATED, RELEASED) if name in table]
    shares = {f"SG / {name}": table["SG"] / table[name] for name in beside}
    named = table.rename(columns={name: f"{name}, {asked[name]:,} evaluations" for name in table})
    return named.assign(**shares).loc[best["budget"].unique()].reset_index()


def errors(requests: pd.DataFrame) -> pd.DataFrame:
    """How far each design is from its request: "error" in percent, and a "panel" that says how often one is near.

    Columns besides: quantity, requested, realised.
    """
    table = requests[["quantity", "requested", "realised"]]
    table = table.assign(error=100 * (table["realised"] / table["requested"] - 1))
    told = {}
    for quantity, off in table["error"].abs().groupby(table["quantity"]):
        near = f"{(off <= NEAR).sum()} of {len(off)} within {NEAR:.0f}%"
        told[quantity] = f"{quantity}: half within {off.median():.0f}%, {near}"
    return table.assign(panel=table["quantity"].map(told))


def request_table(requests: pd.DataFrame) -> pd.DataFrame:
    """How well the generator follows a request, by quantity."""
    groups = requests.assign(error=(requests["realised"] / requests["requested"] - 1).abs()).groupby("quantity")
    shares = {"legal": ("legal_masked", "mean"), "legal without mask": ("legal_unmasked", "mean")}
    table = groups.agg(requests=("requested", "size"), **shares, **{"median error": ("error", "median")})
    table["Spearman"] = groups[["requested", "realised"]].corr("spearman")["requested"].xs("realised", level=1)
    return table.assign(**{"distinct designs": groups["design"].nunique()}).reset_index()
