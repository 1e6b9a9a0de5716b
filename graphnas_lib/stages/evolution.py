"""Stage "evolution": HL-Evo under each budget (App. C); its history is what the sequence generator learns."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial

import pandas as pd

from graphnas_lib import datasets, evolution, store
from graphnas_lib.evolution import history_table
from graphnas_lib.macro import Architecture
from graphnas_lib.network import count, depth
from graphnas_lib.stages.scores import ProxyScore
from graphnas_lib.stages.stage import Stage
from graphnas_lib.synonyms import CellSampler


class Searches:
    """Searches of a stage: one score (T-CET on one batch), one supply of cells, one rule for the population.

    Forms that take cells from a pool choose among the first `pooled` of a family.
    """

    def __init__(self, stage: Stage, pooled: int = evolution.CELLS_PER_FAMILY):
        scale = stage.scale
        data = datasets.load("auto", resolution=scale.tcet_resolution)
        batch = data.batch(scale.tcet_batch)
        self.stage, self.pooled, self.counts = stage, pooled, {}
        self.sampler = CellSampler.load(scale.name, device=stage.device)
        self.costs = partial(count, input_shape=data.input_shape, classes=data.classes)
        self.input_shape = tuple(data.input_shape)
        self.score = ProxyScore(*batch, data.classes, extra=("naswot",), seed=stage.seed, device=stage.device)
        self.options = {"score": self.score, "costs": self.costs, "progress": stage.progress}
        self.options |= {"workers": stage.workers, "dask": stage.dask}
        self.data = data.source

    @cached_property
    def pool(self) -> CellSampler:
        """The sampler whose cells are made a family at once, for searches that take them from a pool."""
        return CellSampler.load(self.stage.scale.name, device=self.stage.device, pool=self.pooled)

    def feasible(self, budget: tuple[str, float]) -> Callable[[Architecture], bool]:
        """The constraints under a budget, quantity and upper bound, at the stage's resolution."""
        return evolution.budget(self.costs, **{budget[0]: budget[1]}, resolution=self.stage.scale.tcet_resolution)

    def run(
        self,
        method: str,
        budget: tuple[str, float],
        *,
        seed: int,
        iterations: int,
        start: list[Architecture] | None = None,
    ) -> pd.DataFrame:
        """The history of one search, with columns "method", "budget" and "seed".

        Args:
            method: "HL-Evo", "Evo (flat)" or "Random", or one of these with what follows it in `FORMS`.
            budget: quantity and upper bound.
            iterations: T; the population is the scale's share of it.
            start: of HL-Evo, in place of its form's own.
        """
        scale, name = self.stage.scale, budget_name(*budget)
        kind, _, form = method.partition(", ")
        options = {
            "feasible": self.feasible(budget),
            "checkpoint": self.stage.checkpoint(
                *(f"{method} {name} {seed}", self.score.name, self.score.extra, FORMS[form]),
                *(self.pooled, self.stage.workers),
            ),
            "iterations": iterations,
            "seed": seed,
            **self.options,
            **FORMS[form],
        }
        population = max(4, round(scale.population * iterations / scale.iterations))
        supply = partial(self.sampler.generate_cell, seed=seed)
        if options.get("pooled"):  # one pool for all searches
            supply = partial(self.pool.generate_cell, seed=self.stage.seed)
            options["pooled"] = self.pooled
        cells = {"generate_cell": supply, "n_families": self.sampler.families.n_clusters}
        if kind == "HL-Evo":
            deep = options.pop("deep", None)
            if not start and deep:
                start = evolution.deep_starts(**cells, feasible=options["feasible"], layers=depth, of=self.pooled)
            start = start or evolution.hl_start(**cells)
            found = evolution.hl_evo(start, population=population, **options, **cells)
        elif kind == "Evo (flat)":
            found = evolution.flat_evo(evolution.flat_start(), population=population, **options)
        else:
            found = evolution.random_evo(**options, **cells)
        self.counts[f"{method}, {name}, seed {seed}"] = found.counts
        return history_table(found.history).assign(method=method, budget=name, seed=seed)

    def under_each_budget(self, method: str) -> pd.DataFrame:
        """The histories of one method under each of the scale's budgets, T evaluations long."""
        scale, seed = self.stage.scale, self.stage.seed
        runs = [self.run(method, b, seed=seed + i, iterations=scale.iterations) for i, b in enumerate(scale.budgets)]
        return pd.concat(runs, ignore_index=True)

    def facts(self) -> dict:
        """What to keep beside the histories: the batch, and what the searches and the supply of cells counted."""
        scale, supplies = self.stage.scale, [self.sampler, *([self.pool] if "pool" in vars(self) else [])]
        return {
            **{"data": self.data, "input_shape": list(self.input_shape), "classes": self.score.classes},
            **{"batch": scale.tcet_batch, "temperature": self.sampler.temperature, "population": scale.population},
            "workers": self.stage.workers,  # a search looks so many children ahead: histories differ with it
            "counts": self.counts,
            **{name: sum(getattr(one, name) for one in supplies) for name in ("fallbacks", "requests")},
        }


_REACH = {"deep": "alpha_0", "channel_step": "local", "filling": True, "alike": True, "pooled": True, "screened": 16}
FORMS: dict[str, dict] = {  # what follows a method's name -> options of the search
    "": {},
    "repeats": {"repeats": True},
    "as drawn": {"fill": False},
    "pooled": {"pooled": True},
    "far": _REACH,  # deviation D52; each of its parts is also left out
    "far, alpha_0 alone": _REACH | {"deep": None},
    "far, uniform widths": _REACH | {"channel_step": "uniform"},
    "far, discarding": _REACH | {"filling": False},
    "far, one by one": _REACH | {"alike": False},
    "far, unscreened": _REACH | {"screened": 1},
    "screened": {"channel_step": "local", "screened": 16},
}


def make(stage: Stage) -> tuple[dict, dict]:
    """Maximise T-CET under each budget; every recorded network goes into the history that the generator learns."""
    searches = Searches(stage)
    form = stage.scale.history_form
    return {"evolution.parquet": searches.under_each_budget(form)}, searches.facts() | {"form": form}


def load(scale: str, stage: str = "evolution") -> pd.DataFrame:
    """Every recorded network of HL-Evo, or of the searches of stage "between".

    Columns: budget, iteration, phase, score, naswot, params, flops, individual (JSON), ...
    """
    return store.load(stage, f"{stage}.parquet", scale)


def within(history: pd.DataFrame) -> pd.DataFrame:
    """Networks of a history with their "size" as a share of the budget that they were searched under."""
    asked = history["budget"].str.extract(r"(?P<quantity>\w+) <= (?P<bound>[\d.]+)M")
    size = history["params"].where(asked["quantity"] == "params", history["flops"])
    return history[["budget", "params", "flops", "score"]].assign(size=size / (1e6 * asked["bound"].astype(float)))


def budget_name(quantity: str, bound: float) -> str:
    """For example "params <= 1M"."""
    return f"{quantity} <= {bound / 1e6:g}M"
