"""Stage "benchmark_scores": proxies of every network that the public tables trained, for the evidence on accuracy."""

from __future__ import annotations

from graphnas_lib import benchmarks
from graphnas_lib.stages import labels
from graphnas_lib.stages.stage import Stage


def make(stage: Stage) -> tuple[dict, dict]:
    """Score a share of the distinct networks of each kind, each kept at once.

    Raises:
        MissingDataError: a table of accuracies is not at hand.
    """
    networks = benchmarks.every_network(share=stage.scale.benchmark_share, seed=stage.seed)
    scores, facts = labels.score(stage, networks, "benchmark_scores", benchmarks.score_networks)
    facts |= {
        "networks": len(networks),
        "share": stage.scale.benchmark_share,
        "part": benchmarks.BATCH,
        "failed": int((scores["error"] != "").sum()),
        "process_seconds": round(float(scores["seconds"].sum()), 1),  # of all runs, where noted
    }
    return {f"benchmark_{kind}.parquet": rows.reset_index(drop=True) for kind, rows in scores.groupby("kind")}, facts
