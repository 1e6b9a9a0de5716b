"""Stage "validation": the proxies against trained accuracies of NATS-Bench's topology space."""

from __future__ import annotations

import pandas as pd

from graphnas_lib import benchmarks
from graphnas_lib.paper import NATS_TAU
from graphnas_lib.stages import labels
from graphnas_lib.stages.stage import Stage


def make(stage: Stage) -> tuple[dict, dict]:
    """Score a random sample on both skeletons, each network kept at once; Kendall's tau with CIFAR-10 test accuracy.

    Raises:
        MissingDataError: the benchmark's accuracies are not at hand.
    """
    accuracies = benchmarks.accuracies()  # first of all: without it nothing is worth scoring
    networks = benchmarks.sample(stage.scale.validation_networks, seed=stage.seed)
    scores, facts = labels.score(stage, networks, "validation", benchmarks.score_all, batches=2)
    facts |= {"networks": len(networks), "resamples": benchmarks.RESAMPLES}
    facts["failed"] = int((~scores["error"].isin(["", benchmarks.DISCONNECTED])).sum())
    files = {
        "validation_scores.parquet": scores,
        "validation.csv": benchmarks.tau_table(scores, accuracies, seed=stage.seed),
    }
    return files, facts


def intervals(taus: pd.DataFrame) -> dict:
    """Arguments of `plots.plot_intervals` for the stage's validation.csv."""
    return {
        **{"names": taus["proxy"], "values": taus["tau"], "low": taus["low"], "high": taus["high"]},
        "xlabel": "Kendall's tau with CIFAR-10 test accuracy (95% interval)",
        "groups": taus["skeleton"],
        "marks": {source: taus[source] for source in NATS_TAU},
    }
