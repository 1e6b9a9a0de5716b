"""Do the proxies predict accuracy? Scores of NATS-Bench architectures, and Kendall's tau with their trained accuracy.

Every sampled architecture is scored at initialisation on the benchmark's own skeleton and on the paper's alpha_x
(Eq. 1-2). A disconnected one computes a constant and never reaches a proxy: it ranks below all others, for every proxy.
One that a proxy cannot score keeps the reason in `error` and takes no part; it is counted, never given a number.
Intervals are percentile bootstrap over networks; published values (`published.NATS_TAU`) are over all 15,625.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy
import torch
from torch import Tensor

from graphnas_lib import proxies, store
from graphnas_lib.benchmarks import nats
from graphnas_lib.paper import NATS_TAU
from graphnas_lib.proxies import ProxyError
from graphnas_lib.store import single_threaded

SCORES = (
    *("snip_ssnr", "tcet_train", "tcet_none", "tcet", "lnwot", "naswot", "naswot_relu", "snip"),
    *("grad_norm", "synflow", "zen", "zico", "params", "flops"),
)
DISCONNECTED = "disconnected"
RESAMPLES = 1_000
MAX_TAU_GAP = 0.05  # "within" a published tau
# what each paper prints for a proxy; NaN where it prints nothing
PUBLISHED = {name: {paper: taus.get(name, np.nan) for paper, taus in NATS_TAU.items()} for name in SCORES}
TAU_COLUMNS = ("skeleton", "proxy", "tau", "low", "high", "n", "disconnected", "failed", *NATS_TAU, "within")


def row(text: str, skeleton: str, images: Tensor, labels: Tensor, *, seed: int, classes: int, device=None) -> dict:
    """One row: arch, skeleton, `SCORES` at initialisation, error; NaN where disconnected or failed, which error says.

    It is computed on `device`, the images' own by default, and the same wherever it is made: one thread. "naswot_relu"
    is NASWOT as published (ReLU units, train mode), but at B images; "tcet" has the paper's log1p and "tcet_none" the
    T-CET paper's formula, both with the saliency in eval mode (D18); "tcet_train" is that formula with it in train
    mode. flops are 2 x MACs (`proxies`).

    Args:
        images: (2 B, C, H, W), normalised. The first B serve every proxy; ZiCo takes both halves as its two batches.
        seed: of the initial weights and of Zen-score's draws.
    """
    values, error, half = dict.fromkeys(SCORES, float("nan")), DISCONNECTED, len(images) // 2
    if nats.is_connected(text):
        images, labels = images.to(device or images.device), labels.to(device or images.device)
        others, second = [name for name in SCORES if name != "naswot_relu"], (images[half:], labels[half:])
        try:
            with single_threaded():
                model = nats.skeleton(text, skeleton, classes=classes, seed=seed)
                model.to(images.device, memory_format=torch.channels_last)
                values["naswot_relu"] = proxies.naswot(model, images[:half], variant="relu", mode="train")
                values |= proxies.score(model, images[:half], labels[:half], others, seed=seed, second=second)
            error = ""
        except ProxyError as reason:
            values, error = dict.fromkeys(SCORES, float("nan")), str(reason)
    return {"arch": text, "skeleton": skeleton, **values, "error": error}


def score_all(
    architectures: Sequence[str],
    images: Tensor,
    labels: Tensor,
    *,
    seed: int,
    out: Path | str,
    classes: int = 10,
    device: torch.device | None = None,
    **how: Any,
) -> pd.DataFrame:
    """Rows of every architecture on both skeletons, in parallel, each kept at once; a killed run goes on.

    Architectures are strings of NATS-Bench-TSS, images (2 B, C, H, W) as in `row`; else as in `proxies.label`.

    Returns:
        Columns arch, skeleton, `SCORES`, error; in the order of `architectures`, skeletons in turn.

    Raises:
        ValueError: the number of images is odd, or `out` holds rows of other settings.
        RuntimeError: processes were killed; what was finished is kept, and the same call goes on from there.
    """
    if len(images) % 2 or not len(images):
        raise ValueError(f"images must be two batches of one size, one after the other; got {len(images)} images.")
    options = {"seed": seed, "classes": classes}
    batch = images.cpu(), labels.cpu()  # a CUDA tensor cannot go to another process
    settings = {"scores": SCORES, "batch": proxies.batch_name(*batch), "device": (device or images.device).type}
    job = partial(row, images=batch[0], labels=batch[1], device=device or images.device, **options)
    jobs = {f"{name} {text}": partial(job, text, name) for text in architectures for name in nats.SKELETONS}
    how = {"progress": True} | how | {"desc": "scores", "unit": "net"}
    rows = store.collect(jobs, store.Journal(out, options | settings), **how)
    return pd.DataFrame(rows, columns=["arch", "skeleton", *SCORES, "error"])


def kendall_tau(x, y, *, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float, float]:
    """Kendall's tau-b of two series, and its percentile bootstrap 95% interval over pairs (x_i, y_i).

    Infinite values rank at the ends, equal ones tie. Resamples in which a series is constant have no tau and are left
    out; without any other, low and high are NaN.

    Raises:
        ValueError: lengths differ, fewer than two pairs, or NaN.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 2 or np.isnan(x).any() or np.isnan(y).any():
        raise ValueError(f"Kendall's tau needs two series of one length >= 2 without NaN; got {x.shape} and {y.shape}.")

    def tau(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        return scipy.stats.kendalltau(x, y, axis=axis).statistic

    drawn = np.empty(0)
    if resamples:
        options = {"paired": True, "n_resamples": resamples, "rng": np.random.default_rng(seed)}
        unused = scipy.stats.DegenerateDataWarning  # of scipy's own interval
        with warnings.catch_warnings(action="ignore", category=unused):
            drawn = scipy.stats.bootstrap((x, y), tau, method="percentile", **options).bootstrap_distribution
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (np.nan, np.nan)
    return float(tau(x, y)), float(low), float(high)


def tau_table(scores: pd.DataFrame, accuracies: pd.Series, *, seed: int = 0) -> pd.DataFrame:
    """Kendall's tau of each proxy on each skeleton (`score_all`) with accuracy (`accuracies`), beside published values.

    Returns:
        `TAU_COLUMNS`: low and high bound the 95% interval; n networks, of which `disconnected` rank lowest; `failed`
        are left out; the published values (NaN where there is none); within: "yes" when every published value lies
        within `MAX_TAU_GAP` of ours or in our interval, "no" when one does not, "-" when there is none.
    """
    known, lines = scores[scores["arch"].isin(accuracies.index)], []
    options = {"resamples": RESAMPLES, "seed": seed}
    for (skeleton, group), name in product(known.groupby("skeleton", sort=False), SCORES):
        lowest = group["error"] == DISCONNECTED
        used = group[lowest | (group["error"] == "")]
        values = used[name].where(used["error"] == "", -np.inf)
        tau, low, high = kendall_tau(values, accuracies[used["arch"]], **options)
        printed = PUBLISHED[name]
        counts = {"n": len(used), "disconnected": int(lowest.sum()), "failed": len(group) - len(used)}
        line = {"skeleton": skeleton, "proxy": name, "tau": tau, "low": low, "high": high, **counts, **printed}
        lines.append(line | {"within": within(tau, low, high, [v for v in printed.values() if not np.isnan(v)])})
    return pd.DataFrame(lines, columns=list(TAU_COLUMNS))


def within(tau: float, low: float, high: float, printed: Sequence[float]) -> str:
    """Verdict "yes" when each printed tau is within `MAX_TAU_GAP` of ours or in [low, high], else "no"; "-": none."""
    if not printed or np.isnan(tau):
        return "-"
    near = [round(abs(value - tau), 9) <= MAX_TAU_GAP or low <= value <= high for value in printed]
    return "yes" if all(near) else "no"


def not_run(why: str) -> pd.DataFrame:
    """`tau_table` without results: the published values, and `not run (why)` in place of each tau."""
    keys, told = product(nats.SKELETONS, SCORES), {"tau": f"not run ({why})", "within": "-"}
    lines = [{"skeleton": skeleton, "proxy": name, **PUBLISHED[name], **told} for skeleton, name in keys]
    return pd.DataFrame(lines, columns=list(TAU_COLUMNS))
