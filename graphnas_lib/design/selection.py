"""Which networks are drawn for a budget and which come first: the paper's rule, and one for networks that train soon.

T-CET grows with every layer, so that its best networks under a budget are the deepest and thinnest ones, and these need
long trainings. Rule "shallow" bounds depth before anything is scored, and then asks for T-CET a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch

from graphnas_lib.design.designs import Design
from graphnas_lib.design.fitting import BudgetUnreachable, Fitted, fit_to_budget
from graphnas_lib.macro import CHANNELS, HLArchitecture, HLTriple
from graphnas_lib.network import count
from graphnas_lib.synonyms import CellSampler

if TYPE_CHECKING:
    from graphnas_lib.design.budget import Request

SHALLOW_CELLS = (3, 6)  # fewest and most
SHALLOW_STRIDES = 2  # at each of them widths double, as in alpha_x
SHALLOW_CANDIDATES = 4  # networks that are scored for each that is asked for
SHALLOW_ROUNDS = 3  # of as many draws as are wanted
START_WIDTH = 16  # before all widths are fitted to the budget by one factor


class Rule(NamedTuple):
    """How designs are ranked once they have a T-CET, and by what it is foreseen which should get one."""

    rank: Callable[[Design], float]
    promise: Callable[[Design], float]


RULES = {
    # paper: Sec. 3.3, "Final model selection"; T-CET follows layers times root of width
    "tcet": Rule(lambda made: made.tcet, lambda made: made.layers * made.width**0.5),
    "shallow": Rule(lambda made: made.tcet / made.layers, lambda made: made.width),
}


def shallow_networks(n: int, sampler: CellSampler, request: Request) -> list[Fitted]:
    """Up to n networks of a few cells of random families that meet a request.

    Raises:
        BudgetUnreachable: none meets it; names the nearest.
    """
    options = {"costs": partial(count, **request.task), "max_strides": request.max_strides}
    shape, target = (sampler.families.n_clusters, request.max_strides, request.stem_stride), request.target
    drawn: list[Fitted] = []
    for number in range(SHALLOW_ROUNDS):
        seed = (SHALLOW_ROUNDS * request.seed + number) % 2**63
        source = torch.Generator().manual_seed(seed)
        macros = [shallow_macro(source, *shape) for _ in range(n)]
        cells = iter(sampler.generate_cells([triple.cluster for hl in macros for triple in hl.triples], seed=seed))
        made = (hl.with_cells([next(cells) for _ in hl.triples]) for hl in macros)
        drawn += [fit_to_budget(one, target, **options) for one in made]
        met = {one.architecture.key(): one for one in drawn if target.met(one.costs)}
        if len(met) >= n:
            break
    if not met:
        raise BudgetUnreachable(target, min(drawn, key=lambda one: one.error).costs)
    return list(met.values())[:n]


def shallow_macro(source: torch.Generator, n_families: int, max_strides: int, stem_stride: int) -> HLArchitecture:
    """A few cells of random families."""

    def uniform(low: int, high: int) -> int:
        return torch.randint(low, high + 1, (), generator=source).item()

    families = [uniform(0, n_families - 1) for _ in range(uniform(*SHALLOW_CELLS))]
    return widening(families, min(SHALLOW_STRIDES, max_strides), stem_stride)


def widening(families: Sequence[int], strides: int, stem_stride: int) -> HLArchitecture:
    """Cells of these families, evenly strided where there are enough of them, twice as wide after each stride."""
    strided = {round((i + 1) * len(families) / (strides + 1)) for i in range(strides)} - {0}
    triples, width = [], START_WIDTH
    for place, family in enumerate(families):
        width = min(2 * width, CHANNELS[-1]) if place in strided else width
        triples.append(HLTriple(family, width, 2 if place in strided else 1))
    return HLArchitecture(tuple(triples), None, stem_stride)
