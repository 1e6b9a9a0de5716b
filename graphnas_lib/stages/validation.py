"""Stage "validation": the proxies against trained accuracies of NATS-Bench's topology space."""

from __future__ import annotations

import pandas as pd

from graphnas_lib import benchmarks, datasets
from graphnas_lib.paper import NATS_TAU
from graphnas_lib.stages.stage import Stage
from graphnas_lib.store import processes


def make(stage: Stage) -> tuple[dict, dict]:
    """Score a random sample on both skeletons, each network kept at once; Kendall's tau with CIFAR-10 test accuracy.

    Raises:
        MissingDataError: the benchmark's accuracies are not at hand.
    """
    scale = stage.scale
    accuracies = benchmarks.accuracies("cifar10")  # first of all: without it nothing is worth scoring
    data = datasets.load("auto", resolution=scale.label_resolution)
    images, targets = data.batch(2 * scale.label_batch, device=stage.device)
    facts = {"data": data.source, "batch": scale.label_batch, "resolution": scale.label_resolution}
    scores = benchmarks.score_all(
        benchmarks.sample(scale.validation_networks, seed=stage.seed),
        images,
        targets,
        seed=stage.seed,
        out=stage.scores_file("validation-scores", facts | {"seed": stage.seed, "device": stage.device.type}),
        classes=data.classes,
        workers=processes(stage.device),
        progress=stage.progress,
        dask=stage.dask,
    )
    facts |= {"networks": scale.validation_networks, "resamples": benchmarks.RESAMPLES}
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
