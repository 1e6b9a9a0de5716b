"""Verdicts of the protocols whose unit is a seed: paired differences over seeds, by the rules of `paper.PROTOCOLS`."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from graphnas_lib.benchmarks import statistics
from graphnas_lib.paper import PROTOCOLS

SAMPLE_CONTROLS = ("neighbourhood", "equal size", "edits", "random")
FAMILY_EVALUATIONS, FLAT_EVALUATIONS = 500, 1_000


def of_samples(rows: pd.DataFrame, tasks: Sequence[str]) -> pd.DataFrame:
    """P2: the flow against each control, at the best cell and on average of the held-out references, in both forms.

    Args:
        rows: means over references: seed, form, group, strategy, references, and each task.
    """
    found = []
    for (form, group), part in rows.groupby(["form", "group"], sort=False):
        by_strategy = {name: few.set_index("seed") for name, few in part.groupby("strategy")}
        for control in SAMPLE_CONTROLS:
            margin = PROTOCOLS["P2"].margin_size if control == "equal size" else None
            lines = []
            for task in tasks:
                told = {"task": f"{task}, {group}", "ours": f"flow, {form}", "control": control}
                lines.append(told | _paired(by_strategy["flow"][task], by_strategy[control][task]))
                lines[-1]["n"] = int(by_strategy["flow"]["references"].sum())
            found.append(statistics.judged(pd.DataFrame(lines).assign(table="nats"), PROTOCOLS["P2"], margin=margin))
    return pd.concat(found, ignore_index=True)


def of_smoothness(rows: pd.DataFrame) -> pd.DataFrame:
    """P3: R squared of neighbours in the regularised latent space, minus that in the naive one, on each task."""
    lines = []
    for task, part in rows.groupby("task", sort=False):
        by = {name: few.set_index("seed")["r2"] for name, few in part.groupby("by")}
        told = {"table": "nats", "task": task, "ours": "regularised", "control": "naive", "n": int(part["n"].max())}
        note = f"R squared by z {by['z'].mean():.2f}, by edits {by['edits'].mean():.2f}"
        lines.append(told | _paired(by["regularised"], by["naive"]) | {"note": note})
    return statistics.judged(pd.DataFrame(lines), PROTOCOLS["P3"])


def of_generators(rows: pd.DataFrame, table: str, tasks: Sequence[str]) -> pd.DataFrame:
    """P5 on one table: the generator against the mean of each control over its seeds, budget by budget.

    A budget for which a seed of the generator wrote no network counts for neither side, and the note says how many.

    Args:
        rows: those of `searches` and `generated` together.
    """
    means = rows.groupby(["method", "evaluations", "budget"])[list(tasks)].mean()
    asked = rows[rows["method"] == "generator"].set_index(["seed", "budget"])
    ours = asked[asked["tcet"].notna()]
    note = f"{len(asked) - len(ours)} of {len(asked)} requests without a network within the budget"
    controls = {"evolution, 1,000 evaluations": ("evolution", 1_000), "evolution, 100 evaluations": ("evolution", 100)}
    controls |= {"100 random networks": ("random", 100), "most FLOPs": ("most FLOPs", 0)}
    found = []
    for name, (method, evaluations) in controls.items():
        control = means.loc[method, evaluations].reindex(ours.index.get_level_values("budget")).set_axis(ours.index)
        margin = None if evaluations == max(at for _, at in controls.values()) else 0.0
        lines = []
        for task in tasks:
            told = {"table": table, "task": task, "ours": "generator, best of 100", "control": name, "n": len(rows)}
            pairs = (side[task].groupby("seed").mean() for side in (ours, control))
            lines.append(told | _paired(*pairs) | {"note": note})
        found.append(statistics.judged(pd.DataFrame(lines), PROTOCOLS["P5"], margin=margin))
    return pd.concat(found, ignore_index=True)


def of_cell_searches(rows: pd.DataFrame) -> pd.DataFrame:
    """P6: families after half the evaluations against flat evolution, and at equal ones against both controls."""

    def at(method: str, evaluations: int) -> pd.Series:
        return rows[(rows["method"] == method) & (rows["evaluations"] == evaluations)].set_index("seed")["accuracy"]

    flat, random = at("flat", FLAT_EVALUATIONS), at("random", FLAT_EVALUATIONS)
    pairs = {
        ("families, 500 evaluations", "flat evolution, 1,000"): (at("families", FAMILY_EVALUATIONS), flat),
        ("families, 1,000 evaluations", "flat evolution, 1,000"): (at("families", FLAT_EVALUATIONS), flat),
        ("families, 1,000 evaluations", "random search, 1,000"): (at("families", FLAT_EVALUATIONS), random),
    }
    lines = []
    for (ours, control), series in pairs.items():
        told = {"table": "nats", "task": "cifar10", "ours": ours, "control": control, "n": len(flat)}
        lines.append(told | _paired(*series))
    return statistics.judged(pd.DataFrame(lines), PROTOCOLS["P6"])


def _paired(ours: pd.Series, control: pd.Series) -> dict:
    """One row's numbers from two series over seeds; NaN with the reason where no seed has both."""
    both = pd.concat([ours.rename("ours"), control.rename("control")], axis=1).dropna()
    if both.empty:
        empty = dict.fromkeys(("value", "control_value", "advantage", "low", "high", "p"), float("nan"))
        return empty | {"seeds": 0, "note": "no seed drew enough cells of the table"}
    means = {"value": both["ours"].mean(), "control_value": both["control"].mean(), "seeds": len(both), "note": ""}
    return means | statistics.of_seeds(both["ours"] - both["control"])
