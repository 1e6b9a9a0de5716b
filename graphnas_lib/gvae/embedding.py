"""Pictures and numbers of a latent space: t-SNE (Fig. 2b-c), and how well it keeps the families of z.

t-SNE is a picture; the claim of Sec. 3.1 is decided by numbers taken in the full latent space, each beside the same
number with shuffled labels (a control that must be at chance).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd


def embed(latents, seed: int = 0) -> np.ndarray:
    """Two-dimensional t-SNE map of latent cells, (n, 2), the same for the same seed.

    L1 distance as in Sec. 3.1, exact neighbours, perplexity 50 (less below 151 points), one thread.

    Args:
        latents: (n, m), n at least 8.
        seed: of the optimiser.
    """
    from openTSNE import TSNE

    x = np.asarray(latents, dtype=float)
    if len(x) < 8:
        raise ValueError(f"t-SNE needs at least 8 points; got {len(x)}. Embed more cells.")
    tsne = TSNE(
        perplexity=min(50.0, (len(x) - 1) / 3),
        metric="manhattan",
        neighbors="exact",
        initialization="pca",
        n_jobs=1,
        random_state=seed,
    )
    return np.asarray(tsne.fit(x))


def cluster_metrics(latents, zc, labels, seed: int = 0, *, neighbours: int = 10, pairs: int = 100_000) -> pd.DataFrame:
    """How well a latent space keeps the ZC space and its families; one row a metric.

    Args:
        latents: (n, m); distances are L1 of the latents as they are (Sec. 3.1).
        zc: standardised ZC vectors, (n, 4).
        labels: family of each cell, (n,).
        seed: of k-means, of the pairs and of the control's shuffle.
        neighbours: k of the kNN purity.
        pairs: number of random pairs for the rank correlation.

    Returns:
        columns metric, value, shuffled (the same with permuted labels and ZC vectors), n. Higher is better for all;
        a metric that is not defined (one family) is NaN.

    Raises:
        ValueError: the three differ in length, or n < 4 * neighbours.
    """
    x, zc, labels = np.asarray(latents, dtype=float), np.asarray(zc, float), np.asarray(labels)
    if not len(x) == len(zc) == len(labels):
        raise ValueError(f"latents, zc and labels must have one row a cell; got {len(x)}, {len(zc)} and {len(labels)}.")
    if len(x) < 4 * neighbours:
        raise ValueError(f"Cluster metrics with {neighbours} neighbours need {4 * neighbours} cells; got {len(x)}.")
    near = _nearest(x, neighbours)
    found = _kmeans(x, len(np.unique(labels)), seed)
    a, b = np.random.default_rng(seed).integers(len(x), size=(2, min(pairs, 50 * len(x))))
    a, b = a[a != b], b[a != b]
    apart = np.abs(x[a] - x[b]).sum(1)
    metrics: dict[str, Callable] = {
        f"kNN purity (k = {neighbours})": lambda z, y: (y[near] == y[:, None]).mean(),
        "silhouette": lambda z, y: _silhouette(x, y, seed),
        "ARI of k-means": lambda z, y: _ari(found, y),
        "trustworthiness (k = 15)": lambda z, y: _trustworthiness(z, x),
        "Spearman of L1(f) and d(z)": lambda z, y: _spearman(apart, np.abs(z[a] - z[b]).sum(1)),
    }
    order = np.random.default_rng(seed + 1).permutation(len(x))
    rows = [
        {"metric": name, "value": metric(zc, labels), "shuffled": metric(zc[order], labels[order]), "n": len(x)}
        for name, metric in metrics.items()
    ]
    return pd.DataFrame(rows)


def _nearest(x: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k nearest neighbours in L1, the point itself left out. (n, k)."""
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=k, metric="manhattan").fit(x).kneighbors(return_distance=False)


def _kmeans(x: np.ndarray, k: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    return KMeans(k, n_init=3, random_state=seed).fit_predict(x)


def _silhouette(x: np.ndarray, labels: np.ndarray, seed: int) -> float:
    from sklearn.metrics import silhouette_score

    if not 2 <= len(np.unique(labels)) < len(x):
        return float("nan")
    return float(silhouette_score(x, labels, metric="manhattan", sample_size=min(3000, len(x)), random_state=seed))


def _ari(found: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(labels, found)) if len(np.unique(labels)) > 1 else float("nan")


def _trustworthiness(zc: np.ndarray, x: np.ndarray) -> float:
    """Share of latent neighbours that are neighbours in z, ranked; first 3,000 cells (quadratic in memory)."""
    from sklearn.manifold import trustworthiness

    k = min(15, (len(x[:3000]) - 1) // 2)
    return float(trustworthiness(zc[:3000], x[:3000], n_neighbors=k, metric="manhattan"))


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)
