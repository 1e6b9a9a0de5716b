"""How much of the paper we run: the sizes of the three scales, and what its symbols mean here.

Symbols that collide in the paper's text are settled here once: `z` is the zero-cost vector (never the VAE latent, which
is `latent`); `t` is ODE time in `ccnf` and a triple elsewhere (never a bare `t` outside `ccnf`); `m` is latent size and
margin (`latent_dim`, `margin`); `S` is a space and a stride set; `T` is flow end time and iterations. `macs` and
`flops` are two quantities: `flops` is the paper's unit, 2 x MACs with batch normalisation, ReLU and pooling counted.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Every size of one run, from labels to tables; one code path, only these numbers differ."""

    name: str
    # corpus (App. A: 400,000 unlabelled and 50,000 labelled cells; batch 64 at 32x32)
    unlabelled: int
    law_draws: int = 2_000  # not stated: ours; draws that measure the sampling law itself
    labelled: int
    label_batch: int
    label_resolution: int
    # proxies against trained accuracy (NATS-Bench, same batch and resolution); no text states it
    validation_networks: int
    benchmark_share: dict[str, float]  # of the distinct networks of each kind (`benchmarks.KINDS`)
    evidence: dict[str, int]  # of the protocols on public tables; "networks" of a table, 0 for all
    # families (Eq. 3)
    n_clusters: int
    cluster_grid: tuple[int, ...]
    # G-VAE (Tab. 6)
    gvae_hidden: int
    latent_dim: int
    gvae_steps: int
    gvae_batch: int
    gvae_lr: float
    gvae_seeds: int  # not stated: ours, as are the three below
    gvae_ablation_steps: int
    labels_held_out: int
    cycle_cells: int
    measured_cells: int = 10_000  # held-out cells and random latents on which models are measured, at most
    # CCNF (Tab. 6)
    ccnf_hidden: int
    ccnf_layers: int
    ccnf_steps: int
    ccnf_nll_steps: int
    ccnf_batch: int
    likelihood_latents: int  # held-out latents whose exact likelihood is taken; not stated, as all below
    # generated cells, their proxies computed
    conditions: int
    condition_cells: int  # cells of each condition
    reference_cells: int  # cells around the NATS reference
    family_scored: int  # cells of a family that are scored, and that are decoded
    family_decoded: int
    solved_cells: int  # cells over which solvers are compared
    # HL-Evo (App. C: T = 20,000, N = 512) and the batch of images that T-CET is taken on
    history_form: str  # of the search whose history the generator learns: "HL-Evo" as printed, or in another form
    iterations: int
    population: int
    tcet_batch: int
    tcet_resolution: int
    budgets: tuple[tuple[str, float], ...]  # (quantity, upper bound) of each evolution run at tcet_resolution
    compared_budget: tuple[str, float]  # one of `budgets`, under which searches are compared
    comparison_iterations: int  # ours: of HL-Evo, flat evolution and random search under it, and for how many seeds
    comparison_seeds: int
    between: dict[str, Any]  # ours: budgets of short searches, from the best of `budgets` on, and compared requests
    reach: dict[str, Any]  # ours: searches that lack a part of the far-reaching form, and how many cells it pools
    longest: dict[str, Any]  # ours: searches of the paper's length under one budget, and how many cells are pooled
    requests: int = 100  # ours: asked of the sequence generator
    best_of: int = 100  # of its designs under each budget: the paper's evaluations of its generator
    # sequence generator (Tab. 6)
    sequence_hidden: int
    sequence_layers: int
    sequence_heads: int
    sequence_steps: int
    sequence_batch: int
    sequence_lr: float
    # trained comparisons (Tables 1, 2, 4, App. E)
    table1_cells: int
    table1_decodes: int = 20  # paper: Tab. 1, cells a strategy
    reference_seeds: int = 3  # ours: trainings of the NATS reference
    train_width: int
    train_repeats: int
    train_resolution: int
    train_images: int
    test_images: int
    train_epochs: int
    table2_budget: tuple[str, float]  # one of `budgets`
    table2_evaluations: tuple[int, int]  # of plain evolution, and of the sequence generator; HL-Evo has `iterations`
    table2_top: int
    table2_images: int
    table2_epochs: int
    table2_recipe: str
    reduced_training: tuple[int, int]  # models and epochs of App. E's proxy
    selection: dict[str, float]  # ours: which rule of selection trains best; FLOPs at tcet_resolution
    table3_budgets: tuple[float, ...]  # FLOPs of the paper (2 x MACs) at table3_resolution
    table3_resolution: int
    table3_classes: int
    table4_epochs: int
    table4_recipe: str
    table4_budget: tuple[str, float] | None = None  # of every network; None for the Wide-ResNet's parameters
    table4_samples: int | None = None  # of each task, at most; None for all
    # quickstart (notebook 00)
    quick_images: tuple[int | None, int | None] = (None, None)  # training and test images; None for all
    quick_epochs: int


def read(name: str) -> dict[str, dict]:
    """A TOML file beside this module."""
    return tomllib.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))


def frozen(value: Any) -> Any:
    """A value of TOML with tuples for its lists, in a table or a list too."""
    if isinstance(value, dict):
        return {key: frozen(item) for key, item in value.items()}
    return tuple(map(frozen, value)) if isinstance(value, list) else value


SCALES = {name: Scale(name=name, **frozen(entry)) for name, entry in read("scales.toml").items()}
