"""Evolution (Algorithm 1) in the space of families and in the flat space, its mutations, and random search."""

from graphnas_lib.evolution.algorithms import (
    budget,
    filled,
    flat_evo,
    flat_start,
    hl_evo,
    hl_start,
    max_strides,
    random_evo,
)
from graphnas_lib.evolution.mutations import HLIndividual, random_architecture, round_channels
from graphnas_lib.evolution.search import (
    ScoreError,
    SearchError,
    SearchResult,
    best_so_far,
    evolve,
    history_table,
    random_search,
)

__all__ = [
    "HLIndividual",
    "ScoreError",
    "SearchError",
    "SearchResult",
    "best_so_far",
    "budget",
    "evolve",
    "filled",
    "flat_evo",
    "flat_start",
    "history_table",
    "hl_evo",
    "hl_start",
    "max_strides",
    "random_architecture",
    "random_evo",
    "random_search",
    "round_channels",
]
