"""Stage "sequence": the generator h, trained on the history of HL-Evo (Eq. 10), and what it learnt."""

from __future__ import annotations

import math

import pandas as pd
import torch
from torch import Tensor

from graphnas_lib import artifacts, sequence
from graphnas_lib.clusters import Families
from graphnas_lib.evolution import HLIndividual
from graphnas_lib.macro import Architecture, HLArchitecture, Triple
from graphnas_lib.network import count
from graphnas_lib.sequence import SequenceConfig, SequenceGenerator
from graphnas_lib.space import Cell
from graphnas_lib.stages import Stage, evolution
from graphnas_lib.vocabulary import CONDITIONS

HELD_OUT_REQUESTS = 100


def make(stage: Stage) -> dict:
    """Train on every network that HL-Evo recorded; conditions are params, FLOPs and NASWOT where it was taken."""
    scale = stage.scale
    facts = artifacts.load_manifest("evolution", scale.name)["config"]
    table = evolution.load(scale.name)
    designs = [HLIndividual.from_json(text).hl for text in table["individual"]]
    conditions = torch.tensor(
        [[row.params, row.flops, row.naswot, math.nan] for row in table.itertuples()], dtype=torch.float64
    )
    families = Families.load(scale.name)
    if scale.name == "paper":
        config = SequenceConfig(n_families=families.n_clusters, input_shape=tuple(facts["input_shape"]))
    else:
        config = SequenceConfig.small(
            n_families=families.n_clusters,
            hidden=scale.sequence_hidden,
            layers=scale.sequence_layers,
            heads=scale.sequence_heads,
            batch_size=scale.sequence_batch,
            warmup=min(500, scale.sequence_steps // 10),
            lr=2e-3 if scale.name == "smoke" else 5e-4,
            input_shape=tuple(facts["input_shape"]),
        )
    generator, log = sequence.train(
        designs,
        conditions,
        config=config,
        steps=scale.sequence_steps,
        seed=stage.seed,
        device=stage.device,
        checkpoint=stage.checkpoint(),
        log_every=max(1, scale.sequence_steps // 50),
        progress=stage.progress,
    )
    generator.to("cpu")
    requests = _requests(conditions, stage.seed)
    stage.config.update(n_designs=len(designs), n_distinct=len(set(designs)), steps=log.steps)
    stage.config.update(parameters=sum(p.numel() for p in generator.model.parameters()))
    return {
        **generator.to_files(half=False),
        "sequence_log.csv": pd.DataFrame(log.rows),
        "sequence_requests.csv": _realised(generator, families, requests, facts),
    }


def _requests(conditions: Tensor, seed: int) -> Tensor:
    """Budgets log-uniform between the 5th and 95th percentile of the history: parameters and FLOPs by turns."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.full((HELD_OUT_REQUESTS, len(CONDITIONS)), math.nan, dtype=torch.float64)
    for i in range(HELD_OUT_REQUESTS):
        column = i % 2
        low, high = torch.log(torch.quantile(conditions[:, column], torch.tensor([0.05, 0.95], dtype=torch.float64)))
        u = torch.rand((), generator=generator, dtype=torch.float64)
        rows[i, column] = torch.exp(low + u * (high - low))
    return rows


def _realised(generator: SequenceGenerator, families: Families, requests: Tensor, facts: dict) -> pd.DataFrame:
    """What the generator answers: legality with and without the mask, size with each family's medoid as its cell."""
    masked = generator.generate_many(requests)
    free = generator.generate_many(requests, masked=False)
    rows = []
    for request, (design,), (unmasked,) in zip(requests, masked, free, strict=True):
        column = int(torch.isfinite(request).nonzero()[0])
        costs = _with_medoids(design, families, facts)
        rows.append(
            {
                "quantity": CONDITIONS[column],
                "requested": request[column].item(),
                "realised": (costs.params, costs.flops)[column],
                "legal_masked": design is not None,
                "legal_unmasked": unmasked is not None,
                "cells": len(design.triples),
                "design": design.to_json(),
            }
        )
    return pd.DataFrame(rows)


def _with_medoids(design: HLArchitecture, families: Families, facts: dict):
    """Costs of a macro design with every family's medoid as its cell."""
    cells = [Cell.from_dict(families.medoid_cells[triple.cluster]) for triple in design.triples]
    triples = tuple(Triple(cell, t.channels, t.stride) for cell, t in zip(cells, design.triples, strict=True))
    architecture = Architecture(triples, design.head_channels, design.stem_stride)
    return count(architecture, input_shape=tuple(facts["input_shape"]), classes=facts["classes"])
