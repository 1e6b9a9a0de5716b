"""Public tables of trained networks (NATS-Bench), and how well scores predict their accuracy."""

from graphnas_lib.benchmarks.nats import accuracies, sample
from graphnas_lib.benchmarks.validation import DISCONNECTED, RESAMPLES, not_run, score_all, tau_table
