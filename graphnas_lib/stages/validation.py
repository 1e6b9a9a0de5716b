"""Stage "validation": the proxies against trained accuracies of NATS-Bench's topology space."""

from __future__ import annotations

import shutil

import pandas as pd

from graphnas_lib import benchmarks, store
from graphnas_lib.datasets import MissingDataError
from graphnas_lib.paper import NATS_TAU
from graphnas_lib.stages.road import Stage, produce
from graphnas_lib.store import MissingArtifactError, processes


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


def table(scale: str, *, seed: int, device: str) -> pd.DataFrame:
    """Kendall's tau of each proxy with trained accuracy, for a reader: "-" where nothing is published.

    Every tau reads `not run (why)` where the benchmark's accuracies or the scale's artifact are missing.
    """
    try:
        produce("validation", scale, seed=seed, device=device)
        taus = store.load("validation", "validation.csv", scale)
    except (MissingArtifactError, MissingDataError) as error:
        taus = benchmarks.not_run(str(error))
    return taus.astype(object).where(taus.notna(), "-")


def intervals(taus: pd.DataFrame) -> dict:
    """Arguments of `plots.plot_intervals` for the result of `table`."""
    return {
        "names": taus["proxy"],
        "values": taus["tau"],
        "low": taus["low"],
        "high": taus["high"],
        "xlabel": "Kendall's tau with CIFAR-10 test accuracy (95% interval)",
        "groups": taus["skeleton"],
        "marks": {source: taus[source] for source in NATS_TAU},
    }
