"""95% intervals of means and of their differences, for tables of a few trained networks each."""

from __future__ import annotations

import numpy as np
from scipy.stats import sem, t, ttest_ind


def mean_interval(values: np.ndarray) -> dict[str, float]:
    """Student's 95% interval of the mean of `values`, (n,): "low" and "high", NaN below two values."""
    if len(values) < 2:
        return {"low": float("nan"), "high": float("nan")}
    half = t.ppf(0.975, len(values) - 1) * sem(values)
    return {"low": float(np.mean(values) - half), "high": float(np.mean(values) + half)}


def mean_difference(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Mean of `a` minus mean of `b`, with Welch's 95% interval: samples are small, and their variances differ.

    "difference", "low", "high"; the ends are NaN where one sample has a single value.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    difference = float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2:
        return {"difference": difference, "low": float("nan"), "high": float("nan")}
    if not a.std() and not b.std():  # scipy gives the same and warns
        return {"difference": difference, "low": difference, "high": difference}
    interval = ttest_ind(a, b, equal_var=False).confidence_interval()
    return {"difference": difference, "low": float(interval.low), "high": float(interval.high)}
