"""Stage "validation": the proxies against trained accuracies of NATS-Bench's topology space."""

from __future__ import annotations

import shutil

import pandas as pd

from graphnas_lib import benchmarks, store
from graphnas_lib.paper import NATS_TAU
from graphnas_lib.stages.road import Stage
from graphnas_lib.store import processes


def make(stage: Stage) -> dict:
    """Score a random sample on both skeletons, shard by shard; Kendall's tau with CIFAR-10 test accuracy.

    Raises:
        MissingDataError: the benchmark's accuracies are not at hand.
    """
    scale = stage.scale
    accuracies = benchmarks.accuracies("cifar10")  # first of all: without it nothing is worth scoring
    data = stage.dataset(resolution=scale.label_resolution)
    images, targets = data.batch(2 * scale.label_batch, device=stage.device)
    # The shards are named after what decides a score; at smoke, after the library's code too.
    name = stage.identity if scale.name == "smoke" else "scores"
    folder = store.data_dir(scale.name) / "checkpoints" / f"validation-{name}"
    if stage.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    scores = benchmarks.score_all(
        benchmarks.sample(scale.validation_networks, seed=stage.seed),
        images,
        targets,
        seed=stage.seed,
        out=folder,
        classes=data.classes,
        workers=processes(stage.device),
        progress=stage.progress,
    )
    stage.config.update(
        networks=scale.validation_networks,
        failed=int((~scores["error"].isin(["", benchmarks.DISCONNECTED])).sum()),
        batch=scale.label_batch,
        resolution=scale.label_resolution,
        resamples=benchmarks.RESAMPLES,
    )
    return {
        "validation_scores.parquet": scores,
        "validation.csv": benchmarks.tau_table(scores, accuracies, seed=stage.seed),
    }


def intervals(taus: pd.DataFrame) -> dict:
    """Arguments of `plots.plot_intervals` for the stage's validation.csv."""
    return {
        **{"names": taus["proxy"], "values": taus["tau"], "low": taus["low"], "high": taus["high"]},
        "xlabel": "Kendall's tau with CIFAR-10 test accuracy (95% interval)",
        "groups": taus["skeleton"],
        "marks": {source: taus[source] for source in NATS_TAU},
    }
