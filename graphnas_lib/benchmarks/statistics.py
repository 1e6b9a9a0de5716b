"""From sampling distributions to verdicts: intervals, Holm's adjustment over tasks, and the rule of a protocol.

A row says of one task by how much ours exceeds a control (`advantage`), with its 95% interval and one-sided p. The
margins and floors come from `paper.PROTOCOLS`, which were written down before the runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy

from graphnas_lib.paper import Protocol

LEVEL = 0.05
ROW = (
    *("protocol", "table", "task", "ours", "value", "control", "control_value", "advantage", "low", "high"),
    *("p", "p_holm", "n", "seeds", "verdict", "note"),
)
VERDICTS = REPRODUCED, CONTRADICTED, OPEN = "reproduced", "contradicted", "open"


def of_draws(value: float, draws: np.ndarray) -> dict[str, float]:
    """Percentile interval of resampled draws, and p of a normal distribution of their deviation.

    A share of the draws could not be smaller than one of them, which Holm over 27 tasks would never let pass.
    """
    draws = np.asarray(draws, float)
    low, high = np.quantile(draws, [LEVEL / 2, 1 - LEVEL / 2])
    error = float(draws.std(ddof=1))
    p = float(scipy.stats.norm.sf(value / error)) if error else float(value <= 0)
    return {"advantage": float(value), "low": float(low), "high": float(high), "p": p}


def of_seeds(differences: Sequence[float]) -> dict[str, float]:
    """Mean of paired differences over seeds, Student's t interval, one-sided p; NaN bounds for a single seed."""
    d = np.asarray(differences, float)
    mean, n = float(d.mean()), len(d)
    if n < 2:
        return {"advantage": mean, "low": np.nan, "high": np.nan, "p": np.nan}
    error = float(d.std(ddof=1)) / n**0.5
    half = float(scipy.stats.t.ppf(1 - LEVEL / 2, n - 1)) * error
    p = float(scipy.stats.t.sf(mean / error, n - 1)) if error else float(mean <= 0)
    return {"advantage": mean, "low": mean - half, "high": mean + half, "p": p}


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjustment; NaN stays NaN and counts for nothing."""
    p = np.asarray(p, float)
    adjusted, known = p.copy(), np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known])]
    steps = (len(order) - np.arange(len(order))) * p[order]
    adjusted[order] = np.minimum(1, np.maximum.accumulate(steps)) if len(order) else steps
    return adjusted


def judged(rows: pd.DataFrame, protocol: Protocol, *, margin: float | None = None) -> pd.DataFrame:
    """`ROW` columns, with p adjusted over these rows and a verdict each.

    Args:
        rows: columns table, task, ours, value, control, control_value, advantage, low, high, p, n; seeds and note where
            there are any. A row whose advantage is NaN says in `note` why. `floor_value`, where the protocol has a
            floor, is what must exceed it.
        margin: None takes the protocol's.
    """
    margin = protocol.margin if margin is None else margin
    rows = rows.assign(protocol=protocol.id, p_holm=holm(rows["p"]))
    rows["verdict"] = [_verdict(row, margin, protocol.floor) for row in rows.to_dict("records")]
    told = {"seeds": 1, "note": ""}
    return rows.assign(**{name: rows.get(name, value) for name, value in told.items()}).reindex(columns=list(ROW))


def not_decided(protocol: Protocol, why: str) -> pd.DataFrame:
    """One row of a protocol that did not run, and why."""
    return pd.DataFrame([{"protocol": protocol.id, "verdict": OPEN, "note": why, "seeds": 0}], columns=list(ROW))


def _verdict(row: dict, margin: float, floor: float | None) -> str:
    if np.isnan(row["advantage"]) or np.isnan(row["low"]):
        return OPEN
    if row["high"] < margin or (margin >= 0 and row["high"] <= 0):
        return CONTRADICTED
    above = floor is None or row["floor_value"] > floor
    better = row["low"] > 0 and row["p_holm"] < LEVEL and row["advantage"] > margin
    clear = row["low"] > margin if margin < 0 else better  # below 0 it asks for no more than not to be worse by it
    return REPRODUCED if clear and above else OPEN
