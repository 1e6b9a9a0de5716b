"""Families of cells: a Gaussian mixture over zero-cost vectors (Eq. 3, Fig. 2a), and the one transform of z.

Everything that compares zero-cost vectors (mixture, distance d, predictor q, condition of the flow) does so after the
same stored `ZCTransform`: log10 of parameters and FLOPs, log1p of SNIP-SSNR, then standardisation and clipping. Without
it raw FLOPs (1e8) would decide every L1 distance. Components are renumbered by their mean log-parameters, so that
"family 5" means the same thing after a refit: small families first. The paper's "means and variances mu_i, sigma_i"
is a diagonal covariance.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from graphnas_lib import store

if TYPE_CHECKING:
    import pandas as pd
    from sklearn.mixture import GaussianMixture

ZC_NAMES = ("naswot", "snip_ssnr", "params", "flops")  # paper: Sec. 3.1, P = 4
HELD_OUT_SHARE = 0.2  # of the rows, in the curve that chooses K
PARAMS = ZC_NAMES.index("params")


@dataclass(frozen=True)
class ZCTransform:
    """Raw z to standardised z and back: log10(params, flops), log1p(ssnr), (. - mean) / std, clip."""

    mean: tuple[float, ...]  # of the logged columns over the labelled cells, in `ZC_NAMES` order
    std: tuple[float, ...]
    clip: float = 5.0  # bound on the standardised values; `inverse` is exact inside it

    @classmethod
    def fit(cls, zc: Tensor | np.ndarray) -> ZCTransform:
        """Transform fitted to raw vectors (n, 4); ValueError when a column is constant or a value is out of range."""
        logged = _logged(zc)
        std = logged.std(dim=0, correction=0)
        if not bool((std > 0).all()):
            raise ValueError(f"Every ZC column must vary over the labelled cells; their std are {std.tolist()}.")
        return cls(tuple(logged.mean(dim=0).tolist()), tuple(std.tolist()))

    def transform(self, zc: Tensor | np.ndarray) -> Tensor:
        """Raw z (..., 4) to standardised z (..., 4), float32, within +-clip; ValueError on non-finite values."""
        logged = _logged(zc)
        standard = (logged - logged.new_tensor(self.mean)) / logged.new_tensor(self.std)
        return standard.clamp(-self.clip, self.clip).float()

    def inverse(self, zc: Tensor | np.ndarray) -> Tensor:
        """Standardised z (..., 4) to raw z (..., 4), float64: naswot, snip_ssnr, params, flops."""
        standard = _vectors(zc)
        logged = standard * standard.new_tensor(self.std) + standard.new_tensor(self.mean)
        naswot, ssnr, params, flops = logged.unbind(-1)
        return torch.stack([naswot, torch.expm1(ssnr), 10**params, 10**flops], dim=-1)

    def hash(self) -> str:
        """Sixteen hexadecimal digits; stored beside models that were trained on this transform's output."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @classmethod
    def from_dict(cls, fields: dict) -> ZCTransform:
        """Inverse of `asdict`, by way of JSON too: floats survive it exactly."""
        return cls(tuple(fields["mean"]), tuple(fields["std"]), fields["clip"])


def zc_distance(a: Tensor, b: Tensor) -> Tensor:
    """d(a, b) = L1(z(a), z(b)) (Sec. 3.1) of standardised vectors (..., 4), broadcast; returns (...)."""
    return (a - b).abs().sum(dim=-1)


@dataclass(frozen=True)
class Families:
    """K families of cells: a fitted mixture with its transform, sorted by mean log-parameters."""

    zc_transform: ZCTransform
    weights: tuple[float, ...]  # mixture weights pi, (K,)
    centres: tuple  # component means mu in standardised z, (K, 4); `means` is the same as a tensor
    covariances: tuple  # variances, (K, 4)
    covariance: str  # "diag"
    counts: tuple[int, ...]  # labelled cells assigned to each family, (K,)
    medoids: tuple[int, ...]  # index, into the fitted rows, of the cell nearest to each centre by d, (K,)
    medoid_cells: tuple[dict, ...] = ()  # those cells as dicts, empty when `fit` got no cells
    dropped: int = 0  # rows left out of the fit because a proxy was not finite
    seed: int = 0

    @classmethod
    def fit(
        cls,
        zc: Tensor | np.ndarray,
        *,
        n_clusters: int = 32,  # paper: K, implied by 10^78 = (K * 127 * 2)^20
        seed: int = 0,
        cells: Sequence | None = None,
        n_init: int = 5,
    ) -> Families:
        """Fit the mixture of Eq. 3 by expectation-maximisation to raw ZC vectors.

        Args:
            zc: raw vectors, (n, 4) in `ZC_NAMES` order; rows with a non-finite value are dropped and counted.
            seed: of the k-means starts.
            cells: the n cells (anything with `to_dict`), to keep each family's medoid.
            n_init: restarts; the most likely fit is kept.

        Raises:
            ValueError: fewer usable rows than clusters, or a constant column.
        """
        rows, kept = _usable(zc)
        transform = ZCTransform.fit(rows)
        standard = transform.transform(rows)
        mixture = _mixture(standard, n_clusters, seed=seed, n_init=n_init)
        order = np.argsort(mixture.means_[:, PARAMS], kind="stable")
        centres = mixture.means_[order]
        distances = zc_distance(standard[:, None].double(), torch.from_numpy(centres)[None])  # (n, K)
        medoids = kept[distances.argmin(dim=0)].tolist()
        families = cls(
            zc_transform=transform,
            weights=_frozen(mixture.weights_[order]),
            centres=_frozen(centres),
            covariances=_frozen(mixture.covariances_[order]),
            covariance="diag",
            counts=(),
            medoids=tuple(medoids),
            medoid_cells=tuple(cells[i].to_dict() for i in medoids) if cells is not None else (),
            dropped=len(zc) - len(rows),
            seed=seed,
        )
        counts = torch.bincount(families.assign(rows), minlength=n_clusters)
        return replace(families, counts=tuple(counts.tolist()))

    @property
    def n_clusters(self) -> int:
        """K."""
        return len(self.weights)

    @property
    def means(self) -> Tensor:
        """Centres mu (K, 4), standardised, float32: the conditions of the flow (Eq. 9)."""
        return torch.tensor(self.centres, dtype=torch.float32)

    def transform(self, zc: Tensor | np.ndarray) -> Tensor:
        """Raw z (..., 4) to standardised z, float32."""
        return self.zc_transform.transform(zc)

    def inverse(self, zc: Tensor | np.ndarray) -> Tensor:
        """Standardised z (..., 4) to raw z, float64."""
        return self.zc_transform.inverse(zc)

    def log_responsibilities(self, standard: Tensor) -> Tensor:
        """log p(k | z), (n, K) float64, of standardised vectors (n, 4)."""
        offset = standard.double()[:, None] - standard.new_tensor(self.centres, dtype=torch.float64)  # (n, K, 4)
        variance = standard.new_tensor(self.covariances, dtype=torch.float64)
        log_density = -0.5 * (offset**2 / variance + variance.log()).sum(dim=-1)
        return torch.log_softmax(log_density + standard.new_tensor(self.weights, dtype=torch.float64).log(), dim=-1)

    def assign(self, zc: Tensor | np.ndarray, *, standardised: bool = False) -> Tensor:
        """Most likely family (n,), int64, of RAW vectors (n, 4); of standardised ones with `standardised=True`."""
        standard = _vectors(zc) if standardised else self.transform(zc)
        return self.log_responsibilities(standard).argmax(dim=-1)

    def to_dict(self) -> dict:
        """JSON-ready fields; `from_dict(json.loads(json.dumps(.)))` is equal to the original."""
        return {**asdict(self), "names": list(ZC_NAMES)}

    @classmethod
    def from_dict(cls, fields: dict) -> Families:
        """Inverse of `to_dict`."""
        fields = {name: value for name, value in fields.items() if name != "names"}
        transform = ZCTransform.from_dict(fields.pop("zc_transform"))
        cells = tuple(fields.pop("medoid_cells"))
        return cls(zc_transform=transform, medoid_cells=cells, **{k: _frozen(v) for k, v in fields.items()})

    @classmethod
    def load(cls, scale: str | None = None) -> Families:
        """Families of a scale's artifacts; MissingArtifactError says how to make them."""
        return cls.from_dict(store.load("families", "families.json", scale or store.default_scale("families")))


def criterion_curve(
    zc: Tensor | np.ndarray, ks: Sequence[int], *, seed: int = 0, covariance: str = "diag", n_init: int = 5
) -> pd.DataFrame:
    """BIC and AIC against the number of clusters (Sec. 3.1), from raw ZC vectors (n, 4).

    Each mixture is fitted to all but `HELD_OUT_SHARE` of the rows; the criteria are of those, `held_out` is the mean
    log-density (nats a point, standardised z) of the rest.

    Returns:
        DataFrame with columns k, bic, aic, held_out, min_weight, converged; lower bic and aic are better.
    """
    import pandas as pd

    rows, _ = _usable(zc)
    standard = ZCTransform.fit(rows).transform(rows)
    shuffled = standard[torch.randperm(len(standard), generator=torch.Generator().manual_seed(seed))]
    n_test = max(1, int(len(shuffled) * HELD_OUT_SHARE))
    train, test = shuffled[n_test:].double().numpy(), shuffled[:n_test].double().numpy()
    records = []
    for k in ks:
        mixture = _mixture(train, k, seed=seed, covariance=covariance, n_init=n_init)
        criteria = (mixture.bic(train), mixture.aic(train), mixture.score(test))
        records.append((int(k), *criteria, mixture.weights_.min(), bool(mixture.converged_)))
    return pd.DataFrame(records, columns=["k", "bic", "aic", "held_out", "min_weight", "converged"])


def choose_k(curve: pd.DataFrame, *, tolerance: float = 0.02) -> int:
    """K at which BIC and AIC have both plateaued: the paper's "plateauing" criterion made a rule.

    For each criterion, the smallest K whose value is within `tolerance` of the whole fall from K = 1 to the minimum;
    of the two, the larger. On thousands of points the criteria keep falling for long, so the minimum says little.

    Raises:
        ValueError: the curve has no row for K = 1.
    """
    if 1 not in set(curve["k"]):
        raise ValueError(f"The curve must hold k = 1 to measure the fall from; it has {list(curve['k'])}.")
    criteria = curve.set_index("k").sort_index()[["bic", "aic"]]
    lowest = criteria.min()
    return int((criteria - lowest <= tolerance * (criteria.loc[1] - lowest)).idxmax().max())


def stability(zc: Tensor | np.ndarray, *, n_clusters: int, seeds: Sequence[int], n_init: int = 5) -> float:
    """Mean adjusted Rand index between fits of different seeds (1: the same families; 0: chance)."""
    from sklearn.metrics import adjusted_rand_score

    rows, _ = _usable(zc)
    fits = (Families.fit(rows, n_clusters=n_clusters, seed=seed, n_init=n_init) for seed in seeds)
    labels = [families.assign(rows).numpy() for families in fits]
    return fmean(adjusted_rand_score(a, b) for a, b in combinations(labels, 2))


def _mixture(
    standard: Tensor | np.ndarray, k: int, *, seed: int, covariance: str = "diag", n_init: int
) -> GaussianMixture:
    from sklearn.mixture import GaussianMixture

    if len(standard) < max(k, 2):
        raise ValueError(f"A mixture of {k} needs at least {max(k, 2)} labelled cells; got {len(standard)}.")
    options = {"covariance_type": covariance, "n_init": n_init, "random_state": seed}
    mixture = GaussianMixture(k, reg_covar=1e-3, tol=1e-4, max_iter=500, **options)
    return mixture.fit(np.asarray(standard, dtype=np.float64))


def _vectors(zc: Tensor | np.ndarray) -> Tensor:
    zc = torch.as_tensor(zc, dtype=torch.float64)
    if zc.dim() == 0 or zc.shape[-1] != len(ZC_NAMES):
        raise ValueError(f"zc must be (..., 4) in the order {', '.join(ZC_NAMES)}; got {tuple(zc.shape)}.")
    return zc


def _valid_rows(zc: Tensor) -> Tensor:
    positive = (zc[..., 1] >= 0) & (zc[..., 2] > 0) & (zc[..., 3] > 0)
    return torch.isfinite(zc).all(dim=-1) & positive


def _usable(zc: Tensor | np.ndarray) -> tuple[Tensor, Tensor]:
    """Usable raw rows and their indices; failed cells (non-finite proxies) are left out, never scored."""
    zc = _vectors(zc)
    kept = torch.nonzero(_valid_rows(zc)).squeeze(-1)
    return zc[kept], kept


def _logged(zc: Tensor | np.ndarray) -> Tensor:
    """Raw vectors (..., 4), checked, with logarithms of all but the first column."""
    zc = _vectors(zc)
    if not bool((valid := _valid_rows(zc)).all()):
        wanted = "finite, with snip_ssnr >= 0 and params, flops > 0"
        raise ValueError(f"Raw ZC vectors must be {wanted}; got {zc[~valid][0].tolist()}. Leave failed cells out.")
    naswot, ssnr, params, flops = zc.unbind(-1)
    return torch.stack([naswot, torch.log1p(ssnr), torch.log10(params), torch.log10(flops)], dim=-1)


def _frozen(value: object) -> object:
    """Nested lists or arrays as nested tuples of Python numbers; anything else as it is."""
    value = value.tolist() if isinstance(value, np.ndarray) else value
    return tuple(_frozen(item) for item in value) if isinstance(value, (list, tuple)) else value
