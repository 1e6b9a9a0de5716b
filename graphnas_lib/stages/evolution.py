"""Stage "evolution": HL-Evo under each budget (App. C); its history is what the sequence generator learns."""

from __future__ import annotations

from functools import partial

import pandas as pd

from graphnas_lib import datasets, evolution, store
from graphnas_lib.evolution import SearchResult, history_table
from graphnas_lib.network import count
from graphnas_lib.stages.scores import ProxyScore
from graphnas_lib.stages.stage import Stage
from graphnas_lib.synonyms import CellSampler


class Searches:
    """Searches of a stage: one score (T-CET on one batch), one supply of cells, one rule for the population."""

    def __init__(self, stage: Stage):
        scale = stage.scale
        data = datasets.load("auto", resolution=scale.tcet_resolution)
        batch = data.batch(scale.tcet_batch, device=stage.device)
        self.stage, self.sampler, self.counts = stage, CellSampler.load(scale.name, device=stage.device), {}
        self.costs = partial(count, input_shape=data.input_shape, classes=data.classes)
        self.input_shape = tuple(data.input_shape)
        self.score = ProxyScore(*batch, data.classes, extra=("naswot",), seed=stage.seed)
        self.options = {
            "score": self.score,
            "costs": self.costs,
            "workers": stage.workers,
            "progress": stage.progress,
        }
        self.data = data.source

    def run(self, method: str, budget: tuple[str, float], *, seed: int, iterations: int) -> pd.DataFrame:
        """The history of one search, with columns "method", "budget" and "seed".

        Args:
            method: "HL-Evo", "Evo (flat)" or "Random"; the first two also with ", repeats", the last ", as drawn".
            budget: quantity and upper bound.
            seed: of the search and of its cells.
            iterations: T; the population is the scale's share of it.
        """
        scale, name = self.stage.scale, budget_name(*budget)
        options = {
            "feasible": evolution.budget(self.costs, **{budget[0]: budget[1]}, resolution=scale.tcet_resolution),
            "checkpoint": self.stage.checkpoint(f"{method} {name} {seed}", self.score.name, self.score.extra),
            "iterations": iterations,
            "seed": seed,
            **self.options,
        }
        found = self._found(method, options, population=max(4, round(scale.population * iterations / scale.iterations)))
        self.counts[f"{method}, {name}, seed {seed}"] = found.counts
        return history_table(found.history).assign(method=method, budget=name, seed=seed)

    def facts(self) -> dict:
        """What to keep beside the histories: the batch, and what the searches and the supply of cells counted."""
        scale, sampler = self.stage.scale, self.sampler
        return {
            **{"data": self.data, "input_shape": list(self.input_shape), "classes": self.score.classes},
            **{"batch": scale.tcet_batch, "temperature": sampler.temperature, "population": scale.population},
            **{"counts": self.counts, "fallbacks": sampler.fallbacks, "requests": sampler.requests},
        }

    def _found(self, method: str, options: dict, *, population: int) -> SearchResult:
        method, _, form = method.partition(", ")
        options |= _FORMS[form]
        if method == "Evo (flat)":
            return evolution.flat_evo(evolution.flat_start(), population=population, **options)
        families = self.sampler.families.n_clusters
        options |= {"generate_cell": partial(self.sampler.generate_cell, seed=options["seed"]), "n_families": families}
        if method == "Random":
            return evolution.random_evo(**options)
        start = evolution.hl_start(options["generate_cell"], families)
        return evolution.hl_evo(start, population=population, **options)


_FORMS = {"": {}, "repeats": {"repeats": True}, "as drawn": {"fill": False}}  # what follows a method's name -> options


def make(stage: Stage) -> tuple[dict, dict]:
    """Maximise T-CET under each budget; every recorded network goes into the history that the generator learns."""
    searches, scale = Searches(stage), stage.scale
    tables = [
        searches.run("HL-Evo", budget, seed=stage.seed + i, iterations=scale.iterations)
        for i, budget in enumerate(scale.budgets)
    ]
    return {"evolution.parquet": pd.concat(tables, ignore_index=True)}, searches.facts()


def load(scale: str) -> pd.DataFrame:
    """Every recorded network of HL-Evo: budget, iteration, phase, score, naswot, params, flops, individual (JSON)."""
    return store.load("evolution", "evolution.parquet", scale)


def budget_name(quantity: str, bound: float) -> str:
    """For example "params <= 1M"."""
    return f"{quantity} <= {bound / 1e6:g}M"
