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
    return {**families.save(), "criterion.csv": curve}, facts


def table(families: Families) -> pd.DataFrame:
    """One row a family: cells, weight, centre in natural units, operations of its medoid."""
    medoids = [" ".join(filter(None, Cell.from_dict(cell).operations)) for cell in families.medoid_cells]
    centres = pd.DataFrame(families.inverse(families.means).numpy(), columns=list(ZC_NAMES))
    facts = pd.DataFrame({"family": range(len(medoids)), "cells": families.counts, "weight": families.weights})
    return facts.join(centres).assign(medoid=medoids)


def contours(families: Families, points: int = 90) -> dict[int, torch.Tensor]:
    """Each family's ellipse of one standard deviation in NASWOT and log-parameters, as raw ZC vectors (points, 4)."""
    angle = torch.linspace(0.0, 2 * math.pi, points)
    circle = torch.zeros(points, len(ZC_NAMES))
    circle[:, ZC_NAMES.index("params")], circle[:, ZC_NAMES.index("naswot")] = angle.cos(), angle.sin()
    spread = torch.tensor(families.covariances)
    if families.covariance == "full":
        spread = spread.diagonal(dim1=-2, dim2=-1)
    return {k: families.inverse(families.means[k] + spread[k].sqrt() * circle) for k in range(families.n_clusters)}


def distant(scale: str, n: int = 4) -> list[int]:
    """The families that Fig. 2 colours: far apart in standardised z, chosen by rule."""
    families = Families.load(scale)
    zc = zc_matrix(labels.load(scale))
    return farthest_families(families.transform(zc), families.assign(zc), n)
