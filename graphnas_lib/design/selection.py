"""Which networks are drawn for a budget and which come first: the paper's rule, and one for networks that train soon.

T-CET grows with every layer, so that its best networks under a budget are the deepest and thinnest ones, and these need
long trainings. Rule "shallow" bounds depth before anything is scored, and then asks for T-CET a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from graphnas_lib.design.designs import Design
from graphnas_lib.design.fitting import BudgetUnreachable, Fitted, Target, fit_to_budget
from graphnas_lib.macro import CHANNELS, Architecture, HLArchitecture, HLTriple
from graphnas_lib.network import count
from graphnas_lib.synonyms import CellSampler

SHALLOW_CELLS = (3, 6)  # fewest and most
SHALLOW_STRIDES = 2  # at each of them widths double, as in alpha_x
SHALLOW_CANDIDATES = 4  # networks that are scored for each that is asked for
SHALLOW_ROUNDS = 3  # of as many draws as are wanted
START_WIDTH = 16  # before all widths are fitted to the budget by one factor

RANKS: dict[str, Callable[[Design], float]] = {
    "tcet": lambda made: made.tcet,  # paper: Sec. 3.3, "Final model selection"
    "shallow": lambda made: made.tcet / made.layers,
}


def shallow_networks(
    n: int, sampler: CellSampler, target: Target, task: dict, *, max_strides: int, stem_stride: int, seed: int
) -> list[Fitted]:
    """Up to n networks of a few cells of random families that meet a budget.

    Args:
        task: input shape, classes and density, as `network.count` takes them.
        max_strides, stem_stride: how often the side may be halved by cells, and the stem's stride.

    Raises:
        BudgetUnreachable: none meets it; names the nearest.
    """
    options = {"costs": partial(count, **task), "max_strides": max_strides}
    drawn: list[Fitted] = []
    for number in range(SHALLOW_ROUNDS):
        seed_of_round = SHALLOW_ROUNDS * seed + number
        source = torch.Generator().manual_seed(seed_of_round)
        macros = [shallow_macro(source, sampler.families.n_clusters, max_strides, stem_stride) for _ in range(n)]
        drawn += [fit_to_budget(one, target, **options) for one in _realised(macros, sampler, seed_of_round)]
        met = {one.architecture.key(): one for one in drawn if target.met(one.costs)}
        if len(met) >= n:
            break
    if not met:
        raise BudgetUnreachable(target, min(drawn, key=lambda one: one.error).costs)
    return list(met.values())[:n]


def shallow_macro(source: torch.Generator, n_families: int, max_strides: int, stem_stride: int) -> HLArchitecture:
    """A few cells of random families, evenly strided, twice as wide after each stride."""

    def uniform(low: int, high: int) -> int:
        return torch.randint(low, high + 1, (), generator=source).item()

    depth, strides = uniform(*SHALLOW_CELLS), min(SHALLOW_STRIDES, max_strides)
    strided = {round((i + 1) * depth / (strides + 1)) for i in range(strides)}
    triples, width = [], START_WIDTH
    for place in range(depth):
        width = min(2 * width, CHANNELS[-1]) if place in strided else width
        triples.append(HLTriple(uniform(0, n_families - 1), width, 2 if place in strided else 1))
    return HLArchitecture(tuple(triples), None, stem_stride)


def _realised(macros: list[HLArchitecture], sampler: CellSampler, seed: int) -> Iterator[Architecture]:
    """Macro designs with cells, which are drawn for all of them at once."""
    families = [triple.cluster for hl in macros for triple in hl.triples]
    cells = iter(sampler.generate_cells(families, seed=seed))
    return (hl.with_cells([next(cells) for _ in hl.triples]) for hl in macros)
