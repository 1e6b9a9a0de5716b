"""P1: do cells of one family train alike? Families by the ZC vector against families by size, by edits, by chance."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import scipy

from graphnas_lib.benchmarks import statistics
from graphnas_lib.benchmarks.scores import ALPHA
from graphnas_lib.clusters import Families, ZCTransform
from graphnas_lib.paper import PROTOCOLS
from graphnas_lib.space import nats_operations

CLUSTERS = 32  # the paper's K, which decides; a half and a quarter of it are shown beside
DRAWS = 1_000
PAIRS = 20_000
SIZE = [ALPHA.index("alpha_params"), ALPHA.index("alpha_flops")]


def one_hot(archs: pd.Series) -> np.ndarray:
    """(n, 30): operations of a NATS-Bench cell's six edges; half a squared distance counts the edits."""
    codes = np.array([nats_operations(text) for text in archs])
    return (codes[:, :, None] == np.unique(codes)).reshape(len(codes), -1).astype(float)


def standardised_logs(values: np.ndarray) -> np.ndarray:
    """Logarithms of positive values (n, m), each column with mean 0 and deviation 1."""
    logs = np.log(values)
    return (logs - logs.mean(0)) / logs.std(0)


def family_sets(cells: pd.DataFrame, k: int, *, seed: int, shuffled: bool = False) -> dict[str, np.ndarray]:
    """Family of each cell: by z as the paper has it, by size, by edits.

    Args:
        shuffled: give "z" the permuted families too: the control that must not win.
    """
    from sklearn.cluster import KMeans
    from sklearn.mixture import GaussianMixture

    rng = np.random.default_rng(seed)
    zc = cells[list(ALPHA)].to_numpy(float, copy=True)
    z = Families.fit(zc, n_clusters=k, seed=seed).assign(zc).numpy()
    sizes = standardised_logs(zc[:, SIZE])
    mixture = GaussianMixture(k, covariance_type="diag", n_init=5, reg_covar=1e-4, random_state=seed)
    return {
        "z": rng.permutation(z) if shuffled else z,
        "size": mixture.fit_predict(sizes),
        "edits": KMeans(k, n_init=5, random_state=seed).fit_predict(one_hot(cells["arch"])),
    }


def eta_squared(values: np.ndarray, families: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of the variance of `values` (n,) that lies between families (n,), for each row of weights (draws, n).

    Adjusted for the number of families, so that it is 0 on average where they mean nothing (Kelley's epsilon squared).
    """
    member = np.eye(families.max() + 1)[families]  # (n, K)
    count, total = weights @ member, (weights * values) @ member
    n, mean = weights.sum(1), (weights @ values) / weights.sum(1)
    between = (total**2 / np.maximum(count, 1e-9)).sum(1) / n - mean**2
    return _adjusted(between / (weights @ values**2 / n - mean**2), n, (count > 0).sum(1))


def _adjusted(share, n, families):
    """A share of variance between families, less what n cells in so many of them show by chance; numbers or arrays."""
    return 1 - (1 - share) * (n - 1) / np.maximum(n - families, 1)


def family_premise(
    cells: pd.DataFrame,
    tasks: Mapping[str, float],
    *,
    k: int = CLUSTERS,
    seed: int = 0,
    draws: int = DRAWS,
    shuffled: bool = False,
) -> dict[str, pd.DataFrame]:
    """P1 on every task.

    Args:
        cells: `networks("nats", ...)`.
        tasks: task -> standard deviation of training a cell anew, NaN where no table tells.

    Returns:
        "verdicts": `statistics.ROW`, for the paper's K. "families": eta squared of accuracy ranks with interval for
        each K and set of families, `chance` being the mean of permuted ones. "neighbours": how unlike each cell is to
        its nearest one by z, by size, by edits, and to a random one.
    """
    rng, protocol = np.random.default_rng(seed), PROTOCOLS["P1"]
    families, verdicts = [], []
    sets = {n: family_sets(cells, n, seed=seed, shuffled=shuffled) for n in (k // 4, k // 2, k)}
    for task, noise in tasks.items():
        known = cells[task].notna().to_numpy()
        ranks = scipy.stats.rankdata(cells[task].to_numpy()[known])
        half = np.tile(np.arange(len(ranks)) < len(ranks) // 2, (draws, 1))  # halves differ as samples of all do
        weights = rng.permuted(half, axis=1).astype(float)
        true = 1 - noise**2 / cells[task].var()
        for n, labels in sets.items():
            found = {name: _resampled(ranks, family[known], weights) for name, family in labels.items()}
            found["permuted"] = _permuted(ranks, labels["z"][known], draws, rng)
            for name, (value, drawn) in found.items():
                low, high = np.quantile(drawn, [0.025, 0.975])
                told = {"task": task, "k": n, "families": name, "eta2": value, "low": low, "high": high}
                pairs = _pairs(cells[task], labels[name], rng) if name in labels else {}
                families.append(told | {"n": len(ranks), "not_noise": true, **pairs})
            if n == k:
                verdicts.append(_row(task, found, len(ranks)))
    rows = statistics.judged(pd.DataFrame(verdicts), protocol)
    return {
        "verdicts": rows,
        "families": pd.DataFrame(families),
        "neighbours": pd.concat([neighbours(cells, task, rng) for task in tasks], ignore_index=True),
    }


def _resampled(values: np.ndarray, families: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """Eta squared, and that of random halves of the cells."""
    return float(eta_squared(values, families, np.ones((1, len(values))))[0]), eta_squared(values, families, weights)


def _permuted(
    values: np.ndarray, families: np.ndarray, draws: int, rng: np.random.Generator
) -> tuple[float, np.ndarray]:
    """Mean and draws of eta squared when families of these sizes mean nothing."""
    sizes = np.bincount(families, minlength=families.max() + 1)
    standard = (values - values.mean()) / values.std()
    ends = np.cumsum(sizes)
    found = []
    for _ in range(draws):
        sums = np.diff(np.concatenate([[0.0], np.cumsum(rng.permutation(standard))])[np.concatenate([[0], ends])])
        found.append((sums**2 / np.maximum(sizes, 1)).sum() / len(values))
    found = _adjusted(np.array(found), len(values), (sizes > 0).sum())
    return float(found.mean()), found


def _row(task: str, found: dict, n: int) -> dict:
    (z, drawn), (size, drawn_size) = found["z"], found["size"]
    told = {"table": "nats", "task": task, "ours": "families by z", "value": z, "control": "families by size"}
    floor = {"floor_value": float(np.quantile(drawn, 0.025)), "n": n}
    others = f"eta squared by edits {found['edits'][0]:.2f}, permuted {found['permuted'][0]:.3f}"
    return told | {"control_value": size, **statistics.of_draws(z - size, drawn - drawn_size), **floor, "note": others}


def _pairs(accuracy: pd.Series, family: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    """Median difference of accuracy in pairs of one family, as a share of that in random pairs."""
    values = accuracy.to_numpy()
    a, b = rng.integers(len(values), size=(2, PAIRS))
    apart = np.abs(values[a] - values[b])
    every = ~np.isnan(apart) & (a != b)
    same = every & (family[a] == family[b])
    return {"pair_ratio": float(np.median(apart[same]) / np.median(apart[every])), "pairs": int(same.sum())}


def neighbours(cells: pd.DataFrame, task: str, rng: np.random.Generator) -> pd.DataFrame:
    """Each cell against its nearest by L1 of z, of size, by edits, and a random one: differences and rank agreement."""
    from sklearn.neighbors import NearestNeighbors

    known = cells[cells[task].notna()]
    zc, accuracy = known[list(ALPHA)].to_numpy(float, copy=True), known[task].to_numpy()
    z = ZCTransform.fit(zc).transform(zc).numpy()
    spaces = {"z": z, "size": z[:, SIZE], "edits": one_hot(known["arch"])}
    nearest = {"random": (np.arange(len(known)) + rng.integers(1, len(known), len(known))) % len(known)}
    for name, points in spaces.items():
        points = points + 1e-6 * rng.standard_normal(points.shape)  # ties are broken at random
        search = NearestNeighbors(n_neighbors=2, metric="manhattan").fit(points)
        nearest[name] = search.kneighbors(return_distance=False, n_neighbors=1)[:, 0]
    ranks, rows = scipy.stats.rankdata(accuracy), []
    for name, index in nearest.items():
        told = {"task": task, "by": name, "median_difference": float(np.median(np.abs(accuracy - accuracy[index])))}
        rows.append(told | {"rank_correlation": float(np.corrcoef(ranks, ranks[index])[0, 1]), "n": len(known)})
    return pd.DataFrame(rows)
