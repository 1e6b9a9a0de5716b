"""Public tables of trained networks, scores of those networks at initialisation, and how well these predict accuracy.

`cells()`, `nb_macro_networks()` and `tnb_macro_networks()` are the tables, `score_networks` scores what they hold.
"""

from graphnas_lib.benchmarks.nats import accuracies, sample
from graphnas_lib.benchmarks.scores import BATCH, KINDS, PROXIES, SPECTRA, every_network, score_networks
from graphnas_lib.benchmarks.tables import (
    CELL_TASKS,
    NATS_TASKS,
    NB360_TASKS,
    TNB_TASKS,
    available,
    cells,
    distinct,
    latencies,
    nb_macro_architecture,
    nb_macro_networks,
    noise,
    tnb_macro_architecture,
    tnb_macro_networks,
)
from graphnas_lib.benchmarks.validation import DISCONNECTED, RESAMPLES, not_run, score_all, tau_table
