"""Stage "families": the mixture of Eq. 3 on the labelled cells, and the curve that chooses K."""

from __future__ import annotations

import math

import pandas as pd
import torch

from graphnas_lib.clusters import ZC_NAMES, Families, criterion_curve, stability
from graphnas_lib.plots import farthest_families
from graphnas_lib.proxies import zc_matrix
from graphnas_lib.space import Cell
from graphnas_lib.stages import cells, labels
from graphnas_lib.stages.stage import Stage


def make(stage: Stage) -> tuple[dict, dict]:
    """Fit the families, the BIC and AIC curve, and how stable the fit is over seeds."""
    scale, table = stage.scale, labels.load(stage.scale.name)
    zc, labelled = zc_matrix(table), labels.codes_of(table, cells.load(scale.name)).cells()
    families = Families.fit(zc, n_clusters=scale.n_clusters, seed=stage.seed, cells=labelled)
    grid = [k for k in scale.cluster_grid if k <= len(zc) // 10]
    curve = criterion_curve(zc, grid, seed=stage.seed, n_init=2)
    full = criterion_curve(zc, [scale.n_clusters], seed=stage.seed, covariance="full", n_init=2)
    agreement = stability(zc, n_clusters=scale.n_clusters, seeds=range(stage.seed, stage.seed + 3), n_init=2)
    facts = {"n_clusters": scale.n_clusters, "n": len(zc) - families.dropped, "seed_agreement": round(agreement, 4)}
    facts["bic_full"] = float(full["bic"].iloc[0])
    return {"families.json": families.to_dict(), "criterion.csv": curve}, facts


def table(families: Families) -> pd.DataFrame:
    """One row a family: cells, weight, centre in natural units, operations of its medoid."""
    named = [" ".join(filter(None, cell.operations)) for cell in medoids(families).values()]
    centres = pd.DataFrame(families.inverse(families.means).numpy(), columns=list(ZC_NAMES))
    facts = pd.DataFrame({"family": range(len(named)), "cells": families.counts, "weight": families.weights})
    return facts.join(centres).assign(medoid=named)


def medoids(families: Families) -> dict[int, Cell]:
    """Each family's medoid: the labelled cell that is nearest to its centre."""
    return dict(enumerate(map(Cell.from_dict, families.medoid_cells)))


def contours(families: Families, points: int = 90) -> dict[int, torch.Tensor]:
    """Each family's ellipse of one standard deviation in NASWOT and log-parameters, as raw ZC vectors (points, 4)."""
    angle = torch.linspace(0.0, 2 * math.pi, points)
    circle = torch.zeros(points, len(ZC_NAMES))
    circle[:, ZC_NAMES.index("params")], circle[:, ZC_NAMES.index("naswot")] = angle.cos(), angle.sin()
    spread = torch.tensor(families.covariances)
    return {k: families.inverse(families.means[k] + spread[k].sqrt() * circle) for k in range(families.n_clusters)}


def of_one_size(families: Families) -> tuple[int, ...]:
    """The two families that differ most in NASWOT, of those within 0.1 deviations of log-parameters, or none."""
    naswot, size = (families.means[:, ZC_NAMES.index(name)] for name in ("naswot", "params"))
    gaps = (naswot[:, None] - naswot).abs() * ((size[:, None] - size).abs() < 0.1)
    pair = divmod(int(gaps.argmax()), families.n_clusters)
    return pair if gaps.max() else ()


def found(families: Families) -> str:
    """What Fig. 2a shows: how many families there are, and how far the two of one size are apart in NASWOT."""
    told, pair = f"{families.n_clusters} families lie one behind the other in size", of_one_size(families)
    if not pair:
        return told
    raw = families.inverse(families.means[list(pair)])
    (low, high), size = raw[:, ZC_NAMES.index("naswot")].tolist(), raw[:, ZC_NAMES.index("params")].mean()
    return (
        f"{told}; {pair[0]} and {pair[1]}, of {size / 1e6:.2g}M parameters both, have NASWOT {low:.0f} and {high:.0f}"
    )


def distant(scale: str, n: int = 5) -> list[int]:
    """The families that Fig. 2 colours, by rule: the two of `of_one_size`, then the farthest away in standardised z."""
    families = Families.load(scale)
    zc = zc_matrix(labels.load(scale))
    return farthest_families(families.transform(zc), families.assign(zc), n, first=of_one_size(families))
