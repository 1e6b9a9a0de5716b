"""Evolution (Algorithm 1) in the space of families and in the flat space, its mutations, and random search.

An individual is a `macro.Architecture`; `evolve` searches any `Problem`, `hl_evo`, `flat_evo` and `random_evo` the
paper's. Beside the loop (`search`) stand what asks for scores (`evaluation`) and what is remembered (`history`).
"""

from graphnas_lib.evolution.algorithms import (
    CELLS_PER_FAMILY,
    budget,
    deep_starts,
    filled,
    flat_evo,
    flat_start,
    hl_evo,
    hl_start,
    max_strides,
    network_problem,
    promise,
    random_evo,
    to_the_edge,
)
from graphnas_lib.evolution.evaluation import ScoreError
from graphnas_lib.evolution.history import SearchError, best_so_far, history_table
from graphnas_lib.evolution.mutations import random_architecture, round_channels, scale_widths
from graphnas_lib.evolution.search import Problem, SearchResult, evolve, random_search
from graphnas_lib.evolution.surrogate import Surrogate
