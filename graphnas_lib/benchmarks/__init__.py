"""Public tables of trained networks, scores of them at initialisation, and what both say of the paper's claims.

`cells()`, `nb_macro_networks()` and `tnb_macro_networks()` are the tables, `score_networks` scores what they hold, and
`networks(...)` sets both side by side. Protocols P1 to P8 (`paper.PROTOCOLS`) take that: `family_premise`, `samples`
and `smoothness`, `budget_selection`, `searches` and `generated`, `cell_searches`, `reduced_training`, `latency`.
"""

from graphnas_lib.benchmarks.latent import Subspace, Training, compared, family_pools, samples, smoothness
from graphnas_lib.benchmarks.nats import OPERATIONS, is_connected, sample, string
from graphnas_lib.benchmarks.premise import family_premise
from graphnas_lib.benchmarks.released import released_networks
from graphnas_lib.benchmarks.scores import (
    BATCH,
    HUNDREDTHS,
    KINDS,
    NETWORKS,
    PROXIES,
    SPECTRA,
    TASKS,
    every_network,
    mean_width,
    networks,
    score_networks,
    weighted_layers,
)
from graphnas_lib.benchmarks.search import MacroSpace, cell_searches, generated, searches
from graphnas_lib.benchmarks.selection import Pool, budget_selection, latency, reduced_training
from graphnas_lib.benchmarks.statistics import CONTRADICTED, OPEN, REPRODUCED, VERDICTS, not_decided
from graphnas_lib.benchmarks.tables import (
    CELL_TASKS,
    NATS_TASKS,
    NB360_TASKS,
    TNB_TASKS,
    accuracies,
    available,
    cells,
    distinct,
    latencies,
    nats_string,
    nb_macro_architecture,
    nb_macro_key,
    nb_macro_networks,
    noise,
    tnb_macro_architecture,
    tnb_macro_networks,
)
from graphnas_lib.benchmarks.validation import DISCONNECTED, RESAMPLES, not_run, score_all, tau_table
from graphnas_lib.benchmarks.verdicts import of_cell_searches, of_generators, of_samples, of_smoothness
