"""Stage "sequence": the generator h, trained on the history of HL-Evo (Eq. 10), and what it learnt."""

from __future__ import annotations

import math
import os

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from graphnas_lib import sequence
from graphnas_lib.design import Trained, below, design
from graphnas_lib.evolution import HLIndividual
from graphnas_lib.kept import FILE, KeptCells
from graphnas_lib.paper import Scale
from graphnas_lib.sequence import SequenceConfig, SequenceGenerator
from graphnas_lib.stages import Stage, evolution
from graphnas_lib.synonyms import realise
from graphnas_lib.vocabulary import CONDITIONS

PRETRAINED = "GRAPHNAS_GPT_NEO"  # names a folder with the weights of GPT-Neo 125M, from which paper scale starts
REQUESTS = 100
BEST_OF = 10
ALIKE = 0.25  # sizes so near, in ln, are ranked together


def make(stage: Stage) -> dict:
    """Train on every network that HL-Evo recorded; conditions are params, FLOPs and NASWOT where it was taken."""
    scale = stage.scale
    table = evolution.load(scale.name)
    individuals = [HLIndividual.from_json(text) for text in table["individual"]]
    designs = [individual.hl for individual in individuals]
    conditions = torch.tensor(
        [[row.params, row.flops, row.naswot, math.nan] for row in table.itertuples()], dtype=torch.float64
    )
    searches = evolution.Searches(stage)
    sizes = {"n_families": searches.sampler.families.n_clusters, "input_shape": searches.input_shape}
    config, pretrained = settings(scale, **sizes)
    generator, log = sequence.train(
        designs,
        conditions,
        config=config,
        weights=_weights(table),
        steps=scale.sequence_steps,
        seed=stage.seed,
        pretrained=pretrained,
        device=stage.device,
        checkpoint=stage.checkpoint(),
        log_every=max(1, scale.sequence_steps // 50),
        progress=stage.progress,
    )
    files = generator.to_files(half=scale.name != "paper")
    generator = SequenceGenerator.from_files(files)  # what ships is what is measured
    kept = KeptCells.of(individuals, conditions[:, :2], torch.tensor(table["score"].to_numpy()))
    stage.config.update(trunk="pretrained GPT-Neo" if pretrained else "from scratch")
    stage.config.update(n_designs=len(designs), n_distinct=len(set(designs)), steps=log.steps)
    stage.config.update(parameters=sum(p.numel() for p in generator.model.parameters()))
    trained = Trained(generator, searches.sampler, kept)
    return {
        **files,
        FILE: kept.to_tensors(),
        "sequence_log.csv": pd.DataFrame(log.rows),
        "sequence_requests.csv": _realised(trained, searches, _requests(conditions, stage.seed)),
        "sequence_best.csv": _best(trained, searches, table),
    }


def _weights(history: pd.DataFrame) -> Tensor:
    """How often each network is learnt from, (n,): its rank by T-CET among those of its size, to the fourth power.

    Among those of its parameters or of its FLOPs, whichever is higher: conditions ask for either.
    """
    ranks = []
    for cost in ("params", "flops"):
        sizes = np.floor(np.log(history[cost]) / ALIKE)
        ranks.append(history["score"].groupby(sizes).rank(pct=True))
    return torch.tensor(np.maximum(*ranks).to_numpy() ** 4)


def settings(scale: Scale, **sizes) -> tuple[SequenceConfig, str | None]:
    """The generator of a scale, and where the weights that it starts from are: at paper scale, `$GRAPHNAS_GPT_NEO`."""
    if scale.name == "paper":
        return SequenceConfig(**sizes), os.environ.get(PRETRAINED) or None
    small = SequenceConfig.small(
        **sizes,
        hidden=scale.sequence_hidden,
        layers=scale.sequence_layers,
        heads=scale.sequence_heads,
        batch_size=scale.sequence_batch,
        warmup=min(500, scale.sequence_steps // 10),
        lr=2e-3 if scale.name == "smoke" else 1e-3,
    )
    return small, None


def _requests(conditions: Tensor, seed: int) -> Tensor:
    """Budgets log-uniform between the 5th and 95th percentile of the history: parameters and FLOPs by turns."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.full((REQUESTS, len(CONDITIONS)), math.nan, dtype=torch.float64)
    for i in range(REQUESTS):
        column = i % 2
        low, high = torch.log(torch.quantile(conditions[:, column], torch.tensor([0.05, 0.95], dtype=torch.float64)))
        u = torch.rand((), generator=generator, dtype=torch.float64)
        rows[i, column] = torch.exp(low + u * (high - low))
    return rows


def _realised(trained: Trained, searches: evolution.Searches, requests: Tensor) -> pd.DataFrame:
    """What the generator answers: legality with and without the mask, sizes with the cells of `design`, unfitted."""
    masked = trained.generator.generate_many(requests)
    free = trained.generator.generate_many(requests, masked=False)
    rows = []
    for i, (request, (hl,), (unmasked,)) in enumerate(zip(requests, masked, free, strict=True)):
        column = int(torch.isfinite(request).nonzero()[0])
        cells = trained.cells(**{CONDITIONS[column]: request[column].item()})
        costs = searches.costs(realise(hl, cells, seed=i))
        rows.append(
            {
                "quantity": CONDITIONS[column],
                "requested": request[column].item(),
                "realised": (costs.params, costs.flops)[column],
                "legal_masked": hl is not None,
                "legal_unmasked": unmasked is not None,
                "cells": len(hl.triples),
                "design": hl.to_json(),
            }
        )
    return pd.DataFrame(rows)


def _best(trained: Trained, searches: evolution.Searches, history: pd.DataFrame) -> pd.DataFrame:
    """Under each budget: the best T-CET of ten designs, with fresh cells too, and of HL-Evo; all on the same images."""
    score, stage = searches.score, searches.stage
    rows = []
    for i, (quantity, bound) in enumerate(stage.scale.budgets):
        name = evolution.budget_name(quantity, bound)
        for method, fresh in (("SG", False), ("SG, fresh cells", True)):
            made = design(
                **below(quantity, bound),
                input_shape=searches.input_shape,
                classes=score.classes,
                n=BEST_OF,
                seed=stage.seed + i,
                images=score.images,
                labels=score.labels,
                device=stage.device.type,
                fresh=fresh,
                trained=trained,
            )
            found = [score(one.architecture)["score"] for one in made]
            rows.append({"budget": name, "method": method, "evaluations": len(found), "score": max(found)})
        runs = history[history["budget"] == name]
        rows.append({"budget": name, "method": "HL-Evo", "evaluations": len(runs), "score": runs["score"].max()})
    return pd.DataFrame(rows)
