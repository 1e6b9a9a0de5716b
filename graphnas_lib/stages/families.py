"""Stage "families": the mixture of Eq. 3 on the labelled cells, and the curve that chooses K."""

from __future__ import annotations

from graphnas_lib.clusters import Families, criterion_curve, stability
from graphnas_lib.stages import cells, labels
from graphnas_lib.stages.stage import Stage


def make(stage: Stage) -> tuple[dict, dict]:
    """Fit the families, the BIC and AIC curve, and how stable the fit is over seeds."""
    scale, table = stage.scale, labels.load(stage.scale.name)
    zc, corpus = labels.vectors(table), cells.load(scale.name)
    families = Families.fit(zc, n_clusters=scale.n_clusters, seed=stage.seed, cells=labels.cells_of(table, corpus))
    grid = [k for k in scale.cluster_grid if k <= len(zc) // 10]
    curve = criterion_curve(zc, grid, seed=stage.seed, n_init=2)
    full = criterion_curve(zc, [scale.n_clusters], seed=stage.seed, covariance="full", n_init=2)
    agreement = stability(zc, n_clusters=scale.n_clusters, seeds=range(stage.seed, stage.seed + 3), n_init=2)
    facts = {
        "n_clusters": scale.n_clusters,
        "n": len(zc) - families.dropped,
        "seed_agreement": round(agreement, 4),
        "bic_full": float(full["bic"].iloc[0]),
    }
    return {**families.save(), "criterion.csv": curve}, facts
