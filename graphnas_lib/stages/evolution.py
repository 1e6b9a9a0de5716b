"""Stage "evolution": HL-Evo for each budget (App. C), and beside two baselines at equal evaluations over seeds."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pandas as pd
import torch

from graphnas_lib import artifacts, evolution
from graphnas_lib.evolution import HLIndividual
from graphnas_lib.macro import Architecture, Triple
from graphnas_lib.network import count
from graphnas_lib.scores import ProxyScore
from graphnas_lib.search import SearchResult, history_table, random_search
from graphnas_lib.space import REFERENCE_CELL
from graphnas_lib.stages import Stage
from graphnas_lib.synonyms import CellSampler
from graphnas_lib.workers import ON_CPU

COMPARED = 100  # first seed of the comparison: other draws than those of the histories


def make(stage: Stage) -> dict:
    """Maximise T-CET under each budget; every recorded network goes into the history that the generator learns."""
    scale = stage.scale
    data = stage.dataset(resolution=scale.tcet_resolution)
    images, labels = data.batch(scale.tcet_batch, device=stage.device)
    score = ProxyScore(images, labels, data.classes, extra=("naswot",), seed=stage.seed)
    costs = partial(count, input_shape=data.input_shape, classes=data.classes)
    sampler = CellSampler.load(scale.name, device=stage.device)
    options = {"score": score, "costs": costs, "population": scale.population, "progress": stage.progress}
    options |= {"workers": ON_CPU if stage.device.type == "cpu" else 1}
    tables, counts, compared = [], {}, []
    for i, (quantity, bound) in enumerate(scale.budgets):
        name = budget_name(quantity, bound)
        feasible = evolution.budget(costs, **{quantity: bound}, resolution=scale.tcet_resolution)
        run = {"seed": stage.seed + i, "iterations": scale.iterations, "feasible": feasible, **options}
        found = _hl_evo(sampler, stage.checkpoint(f"hl{i}"), **run)
        tables.append(history_table(found.history).assign(method="HL-Evo", budget=name))
        counts[f"HL-Evo {name}"] = found.counts
        if i == 0:
            compared = _compared(stage, sampler, counts, name, feasible=feasible, **options)
    stage.config.update(
        counts=counts, fallbacks=sampler.fallbacks, requests=sampler.requests, input_shape=list(data.input_shape)
    )
    stage.config.update(classes=data.classes, batch=scale.tcet_batch, temperature=sampler.temperature)
    return {
        "evolution.parquet": pd.concat(tables, ignore_index=True),
        "evolution_comparison.parquet": pd.concat(compared, ignore_index=True),
    }


def _compared(stage: Stage, sampler: CellSampler, counts: dict, budget: str, **options) -> list[pd.DataFrame]:
    """HL-Evo, evolution in the flat space and random search with equal evaluations, for each seed."""
    methods = {"HL-Evo": partial(_hl_evo, sampler), "Evo (flat)": _flat, "Random": partial(_random, sampler)}
    tables, size = [], stage.scale.comparison_iterations
    for seed in range(stage.seed + COMPARED, stage.seed + COMPARED + stage.scale.comparison_seeds):
        for method, search in methods.items():
            name = f"{method} {budget} seed {seed}"
            found = search(stage.checkpoint(name.replace(" ", "_")), seed=seed, iterations=size, **options)
            table = history_table(found.history).drop(columns="individual")
            tables.append(table.assign(method=method, budget=budget, seed=seed))
            counts[name] = found.counts
    return tables


def _hl_evo(sampler: CellSampler, checkpoint, *, seed: int, **options) -> SearchResult:
    families, generate = sampler.families.n_clusters, partial(generate_cell, sampler, seed)
    return evolution.hl_evo(
        small_start(generate, families),
        generate_cell=generate,
        n_families=families,
        seed=seed,
        checkpoint=checkpoint,
        **options,
    )


def _flat(checkpoint, **options) -> SearchResult:
    return evolution.flat_evo(flat_start(), checkpoint=checkpoint, **options)


def load(scale: str) -> pd.DataFrame:
    """Every recorded network of HL-Evo: budget, iteration, phase, score, naswot, params, flops, individual (JSON)."""
    return artifacts.load("evolution", "evolution.parquet", scale)


def comparison(scale: str) -> pd.DataFrame:
    """Methods at equal evaluations on the first budget, for each seed: method, seed, iteration, phase, score, ..."""
    return artifacts.load("evolution", "evolution_comparison.parquet", scale)


def budget_name(quantity: str, bound: float) -> str:
    """For example "params <= 1M"."""
    return f"{quantity} <= {bound / 1e6:g}M"


def generate_cell(sampler: CellSampler, seed: int, family: int, index: int):
    """GenCell (Algorithm 1, line 1) for a search: the family's index-th cell under the search's own seed."""
    return sampler.generate_cell(family, index=index, seed=seed)


def flat_start() -> Architecture:
    """The flat searches' start: alpha_0's widths and strides (halved, to fit every budget) with one plain cell."""
    return Architecture(tuple(Triple(REFERENCE_CELL, c // 4, s) for _, c, s in evolution.ALPHA_0))


def small_start(generate, n_families: int) -> HLIndividual:
    """alpha_0 of App. C with a quarter of its widths, so that it satisfies every budget whatever its cell costs."""
    individual = evolution.initial_individual(partial(generate, index=0), n_families)
    pairs = [(family, replace(triple, channels=triple.channels // 4)) for family, triple in individual.pairs()]
    return HLIndividual.from_pairs(pairs)


def _random(sampler: CellSampler, checkpoint, *, costs, population, seed, **options) -> SearchResult:
    """Independent draws from the HL space; `population` has no meaning here."""
    supply = evolution.CellSupply(partial(generate_cell, sampler, seed + 1_000), sampler.families.n_clusters)

    def draw(generator: torch.Generator) -> Architecture:
        individual = evolution.random_individual(
            generator, generate_cell=supply, n_families=sampler.families.n_clusters, max_cells=6
        )
        return individual.architecture

    return random_search(
        draw,
        seed=seed,
        key=Architecture.key,
        describe=lambda architecture: evolution.cost_columns(costs, architecture),
        supply=supply,
        checkpoint=checkpoint,
        dump=Architecture.to_json,
        parse=Architecture.from_json,
        **options,
    )
