"""Pictures and numbers of a latent space: t-SNE (Fig. 2b-c), and how well it keeps the families of z.

t-SNE is a picture; the claim of Sec. 3.1 is decided by numbers taken in the full latent space, each beside the same
number with shuffled labels (a control that must be at chance).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

NEIGHBOURS = 10  # k of the kNN purity
MAX_PAIRS = 100_000  # random pairs for the rank correlation
MAX_TRUSTWORTHINESS_CELLS = 3_000  # memory grows with the square


def embed(latents, seed: int = 0) -> np.ndarray:
    """Two-dimensional t-SNE map, (n, 2), of at least 8 latent cells (n, m), the same for the same seed.

    L1 distance as in Sec. 3.1, exact neighbours, perplexity 50 (less below 151 points), one thread.
    """
    from openTSNE import TSNE

    x = np.asarray(latents, dtype=float)
    if len(x) < 8:
        raise ValueError(f"t-SNE needs at least 8 points; got {len(x)}. Embed more cells.")
    settings = {"metric": "manhattan", "neighbors": "exact", "initialization": "pca", "n_jobs": 1}
    return np.asarray(TSNE(perplexity=min(50.0, (len(x) - 1) / 3), random_state=seed, **settings).fit(x))


def cluster_metrics(latents, zc, labels, seed: int = 0) -> pd.DataFrame:
    """How well a latent space keeps the ZC space and its families; one row a metric.

    Distances are L1 of the latents (n, m) as they are (Sec. 3.1); `zc` (n, 4) is standardised, `labels` (n,) are the
    families, and `seed` is that of k-means, of the pairs and of the control's shuffle.

    Returns:
        columns metric, value, shuffled (the same with permuted labels and ZC vectors), n. Higher is better for all;
        a metric that is not defined (one family) is NaN.

    Raises:
        ValueError: the three differ in length, or n < 4 * NEIGHBOURS.
    """
    import pandas as pd
    from scipy import stats
    from sklearn import cluster, manifold, metrics, neighbors

    x, zc, labels = np.asarray(latents, dtype=float), np.asarray(zc, float), np.asarray(labels)
    if not len(x) == len(zc) == len(labels):
        raise ValueError(f"latents, zc and labels must have one row a cell; got {len(x)}, {len(zc)} and {len(labels)}.")
    if len(x) < 4 * NEIGHBOURS:
        raise ValueError(f"Cluster metrics with {NEIGHBOURS} neighbours need {4 * NEIGHBOURS} cells; got {len(x)}.")
    l1 = {"metric": "manhattan"}
    index = neighbors.NearestNeighbors(n_neighbors=NEIGHBOURS, **l1).fit(x)
    near = index.kneighbors(return_distance=False)  # (n, k), the point itself left out
    families, most = len(np.unique(labels)), MAX_TRUSTWORTHINESS_CELLS
    found = cluster.KMeans(families, n_init=3, random_state=seed).fit_predict(x)
    a, b = np.random.default_rng(seed).integers(len(x), size=(2, min(MAX_PAIRS, 50 * len(x))))
    a, b = a[a != b], b[a != b]
    apart = np.abs(x[a] - x[b]).sum(1)
    silhouette = partial(metrics.silhouette_score, **l1, sample_size=min(most, len(x)), random_state=seed)
    k = min(15, (len(x[:most]) - 1) // 2)
    by_name = {
        f"kNN purity (k = {NEIGHBOURS})": lambda z, y: (y[near] == y[:, None]).mean(),
        "silhouette": lambda z, y: silhouette(x, y) if 2 <= families < len(x) else np.nan,
        "ARI of k-means": lambda z, y: metrics.adjusted_rand_score(y, found) if families > 1 else np.nan,
        "trustworthiness (k = 15)": lambda z, y: manifold.trustworthiness(z[:most], x[:most], n_neighbors=k, **l1),
        "Spearman of L1(f) and d(z)": lambda z, y: stats.spearmanr(apart, np.abs(z[a] - z[b]).sum(1)).statistic,
    }
    order = np.random.default_rng(seed + 1).permutation(len(x))
    rows = [(name, of(zc, labels), of(zc[order], labels[order]), len(x)) for name, of in by_name.items()]
    return pd.DataFrame(rows, columns=["metric", "value", "shuffled", "n"])
