"""P4, P7, P8: which network would have been chosen? Rules of selection under budgets, against true accuracy.

A choice sees a hundred candidates within a budget and their scores; what its network reached when it was trained is
looked up afterwards. Intervals resample the networks of a table, so that two choices of one network count once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import scipy

from graphnas_lib.benchmarks import statistics
from graphnas_lib.paper import PROTOCOLS

CANDIDATES = 100  # of a choice; the paper's evaluations of the generator
RESAMPLES, DRAWS, DRAWS_A_RESAMPLE = 200, 15, 50  # bootstrap draws; choices a budget for each of them, and in each
BUDGETS = 10  # quantiles of parameters and of FLOPs
FREE = ("params", "flops", "layers")  # rules that cost nothing
SPECTRA = ("az_expressivity", "az_progressivity", "az_trainability")
SUMS = {  # rules that add logarithms of ranks among the candidates (AZ-NAS); larger is better for each term
    "AZ-NAS": (*SPECTRA, "flops"),
    "VKDNW": (*SPECTRA, "flops", "vkdnw_entropy"),
    "AZ-NAS without FLOPs": SPECTRA,
    "T-CET + AZ-NAS": (*SPECTRA, "tcet"),
    "NASWOT + SSNR": ("naswot", "snip_ssnr"),
    "T-CET + FLOPs": ("tcet", "flops"),
}
VALUES = ("tcet", "tcet_none", "naswot", "snip_ssnr", "vkdnw_entropy", *FREE)  # rules that are one score
GUARDED = {  # rule -> what it ranks among the half of the candidates of least layers over width (DeepMAD's ratio)
    "T-CET, guarded": "tcet",
    "T-CET per layer, guarded": "tcet_per_layer",
}
RULES = ("random", *VALUES, "tcet_per_layer", *GUARDED, *SUMS)
NAMES = {
    **{"tcet": "T-CET", "tcet_none": "T-CET, no logarithm", "naswot": "NASWOT", "snip_ssnr": "SNIP-SSNR"},
    **{"vkdnw_entropy": "VKDNW entropy", "params": "parameters", "flops": "FLOPs", "layers": "layers"},
    **{"tcet_per_layer": "T-CET per layer", "random": "random"},
}


class Pool:
    """Candidates of one table: scores as columns of numbers, and the value of every rule on drawn sets of them."""

    def __init__(self, networks: pd.DataFrame):
        layers = networks["layers"]
        derived = {"tcet_per_layer": networks["tcet"] / layers, "rho": layers / networks["width"]}
        wanted = {*VALUES, *SPECTRA, *(term for terms in SUMS.values() for term in terms)} - set(derived)
        self.table = networks[networks[sorted(wanted)].notna().all(axis=1)].assign(**derived)
        self.columns = {name: self.table[name].to_numpy(float) for name in (*sorted(wanted), *derived)}

    def __len__(self) -> int:
        return len(self.table)

    def ranks(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """Rank of each candidate by each score among its set, (draws, candidates)."""
        return {name: scipy.stats.rankdata(values[index], axis=1) for name, values in self.columns.items()}

    def values(
        self, rule: str, ranks: dict[str, np.ndarray], rng: np.random.Generator, *, ties: bool = False
    ) -> np.ndarray:
        """Value of a rule for each candidate, (draws, candidates); larger is chosen.

        Args:
            ties: keep equal values equal; else they are broken at random.
        """
        jitter = rng.random(ranks["tcet"].shape)
        if rule == "random":
            return jitter
        jitter = 0 * jitter if ties else jitter
        if rule in SUMS:
            return sum(np.log(ranks[term]) for term in SUMS[rule]) + 1e-9 * jitter
        values = ranks[GUARDED.get(rule, rule)] + 0.4 * jitter
        shallow = ranks["rho"] <= (1 + ranks["rho"].shape[1]) / 2
        return np.where(shallow, values, values - values.shape[1]) if rule in GUARDED else values

    def chosen(self, index: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Row of the candidate that each rule ranks first, (draws,)."""
        ranks, first = self.ranks(index), np.arange(len(index))
        return {rule: index[first, self.values(rule, ranks, rng).argmax(axis=1)] for rule in RULES}


def budgets(table: pd.DataFrame) -> list[np.ndarray]:
    """Rows within each of 20 budgets: quantiles 10 to 100% of parameters, then of FLOPs."""
    found = []
    for cost in ("params", "flops"):
        values = table[cost].to_numpy()
        found += [np.flatnonzero(values <= bound) for bound in np.quantile(values, np.arange(1, BUDGETS + 1) / BUDGETS)]
    return found


def budget_selection(
    networks: pd.DataFrame, table: str, tasks: Sequence[str], *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, pd.DataFrame]:
    """P4 on the networks of one table.

    Returns:
        "verdicts": `statistics.ROW`, T-CET against the best of `FREE`. "rules": table, task, rule, mean accuracy of
        its choices with interval over networks, its regret to the best candidate, Kendall's tau over the whole table.
        "best": the mean accuracy of the best candidates and of all, by task.
    """
    pool, rng = Pool(networks), np.random.default_rng(seed)
    accuracy = pool.table[list(tasks)].to_numpy(float)  # (n, tasks)
    inside = budgets(pool.table)
    point = _choices(pool, accuracy, inside, DRAWS * resamples, rng)
    drawn = {name: [] for name in point}
    for _ in range(resamples):
        sample = rng.integers(len(pool), size=len(pool))
        counts = np.bincount(sample, minlength=len(pool))
        within = [np.repeat(rows, counts[rows]) for rows in inside]
        for name, mean in _choices(pool, accuracy, within, DRAWS_A_RESAMPLE, rng).items():
            drawn[name].append(mean)
    spread = {name: np.array(values) for name, values in drawn.items()}  # (resamples, tasks)
    rows, verdicts = [], []
    taus = tau(pool, tasks, seed=seed)
    for i, task in enumerate(tasks):
        for rule in RULES:
            low, high = np.quantile(spread[rule][:, i], [0.025, 0.975])
            told = {"table": table, "task": task, "rule": NAMES.get(rule, rule), "accuracy": point[rule][i]}
            told |= {"low": low, "high": high, "regret": point["best"][i] - point[rule][i], "tau": taus[rule][i]}
            rows.append(told | {"best": point["best"][i], "n": len(pool)})
        best = max(FREE, key=lambda name: point[name][i])
        told = {"table": table, "task": task, "ours": "T-CET", "value": point["tcet"][i], "control": NAMES[best]}
        gap, gaps = point["tcet"][i] - point[best][i], spread["tcet"][:, i] - spread[best][:, i]
        note = f"random {point['random'][i]:.3f}, best of the candidates {point['best'][i]:.3f}"
        told |= {"control_value": point[best][i], **statistics.of_draws(gap, gaps), "n": len(pool), "note": note}
        verdicts.append(told)
    return {"verdicts": statistics.judged(pd.DataFrame(verdicts), PROTOCOLS["P4"]), "rules": pd.DataFrame(rows)}


def _choices(
    pool: Pool, accuracy: np.ndarray, within: list[np.ndarray], draws: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Mean accuracy, over budgets and draws, of each rule's choices and of the best candidates, (tasks,)."""
    index = np.concatenate([rows[rng.integers(len(rows), size=(draws, CANDIDATES))] for rows in within if len(rows)])
    found = {rule: accuracy[rows].mean(0) for rule, rows in pool.chosen(index, rng).items()}
    return found | {"best": np.stack([column[index].max(1).mean() for column in accuracy.T])}


def tau(pool: Pool, tasks: Sequence[str], *, seed: int) -> dict[str, np.ndarray]:
    """Kendall's tau of each rule with accuracy, (tasks,), over all networks of a table, isomorphic ones each."""
    rng, ranks = np.random.default_rng(seed), pool.ranks(np.arange(len(pool))[None])
    rows = np.repeat(np.arange(len(pool)), pool.table["copies"])
    values = {rule: pool.values(rule, ranks, rng, ties=True)[0][rows] for rule in RULES}
    known = [pool.table[task].to_numpy(float)[rows] for task in tasks]
    return {rule: np.array([scipy.stats.kendalltau(v, k).statistic for k in known]) for rule, v in values.items()}


# ---- P7 and P8: one choice among equals


def _mean_choice(score: np.ndarray, accuracy: np.ndarray, index: np.ndarray, rng: np.random.Generator) -> float:
    """Mean accuracy of the candidates with the highest score in each row of `index`, ties at random."""
    values = scipy.stats.rankdata(score[index], axis=1) + 0.4 * rng.random(index.shape)
    return float(accuracy[index[np.arange(len(index)), values.argmax(1)]].mean())


def _interval(
    n: int, statistic: Callable[[np.ndarray, int], float], rng: np.random.Generator, resamples: int
) -> tuple[float, np.ndarray]:
    """A statistic of rows 0..n-1 (rows, draws), and its draws over resampled rows."""
    value = statistic(np.arange(n), draws := DRAWS * resamples)
    return value, np.array([statistic(rng.integers(n, size=n), draws // 5) for _ in range(resamples)])


def reduced_training(cells: pd.DataFrame, *, n: int = 40, seed: int = 0, resamples: int = RESAMPLES) -> dict:
    """P7: choose one of n cells by T-CET, by 12 epochs of training, by what costs nothing.

    Returns:
        "verdicts" and "choices" (rule, n, accuracy of the chosen on CIFAR-10).
    """
    rng = np.random.default_rng(seed)
    accuracy = cells["cifar10"].to_numpy()
    columns = {"T-CET": "tcet", "12 epochs": "epoch12", "parameters": "params", "FLOPs": "flops", "layers": "layers"}
    scores = {name: cells[column].to_numpy(float) for name, column in columns.items()}
    scores |= {"random": np.zeros(len(cells)), "best of the candidates": accuracy}
    rows = []
    for size in (8, n, 100):
        index = rng.integers(len(cells), size=(DRAWS * resamples, size))
        for name, score in scores.items():
            rows.append({"rule": name, "n": size, "accuracy": _mean_choice(score, accuracy, index, rng)})

    def gap(sample: np.ndarray, draws: int) -> float:
        index = sample[rng.integers(len(sample), size=(draws, n))]
        chosen = [_mean_choice(scores[name], accuracy, index, rng) for name in ("T-CET", "12 epochs")]
        return chosen[0] - chosen[1]

    found = {(row["rule"], row["n"]): row["accuracy"] for row in rows}
    told = {"table": "nats", "task": "cifar10", "ours": "T-CET", "value": found["T-CET", n], "control": "12 epochs"}
    told |= {"control_value": found["12 epochs", n], "n": len(cells), "note": f"one of {n} cells"}
    told |= statistics.of_draws(*_interval(len(cells), gap, rng, resamples))
    return {"verdicts": statistics.judged(pd.DataFrame([told]), PROTOCOLS["P7"]), "choices": pd.DataFrame(rows)}


def latency(
    cells: pd.DataFrame,
    milliseconds: pd.DataFrame,
    *,
    quantile: float = 0.25,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict:
    """P8: the cell with the highest T-CET within a bound on measured latency, or on FLOPs, for each device setting.

    Args:
        milliseconds: one column a setting, a row a cell of `cells`.

    Returns:
        "verdicts", and "devices": accuracy by both bounds, by the best cell within each, the share of choices under the
        FLOPs bound that break the latency bound, and Spearman's correlation of FLOPs with latency.
    """
    rng, accuracy, score = np.random.default_rng(seed), cells["cifar100"].to_numpy(), cells["tcet"].to_numpy()
    flops, rows, verdicts = cells["flops"].to_numpy(), [], []
    by_flops = flops <= np.quantile(flops, quantile)
    for device in milliseconds:
        took = milliseconds[device].to_numpy()
        by_latency = took <= np.quantile(took, quantile)

        def gap(sample: np.ndarray, draws: int, by_latency=by_latency) -> float:
            means = []
            for inside in (by_latency, by_flops):
                rows = sample[inside[sample]]
                index = rows[rng.integers(len(rows), size=(draws, CANDIDATES))]
                means.append(_mean_choice(score, accuracy, index, rng))
            return means[0] - means[1]

        value, draws = _interval(len(cells), gap, rng, resamples)
        index = np.flatnonzero(by_flops)[rng.integers(by_flops.sum(), size=(DRAWS * resamples, CANDIDATES))]
        picked = index[np.arange(len(index)), score[index].argmax(1)]
        breaks = float((took[picked] > np.quantile(took, quantile)).mean())
        base = float(accuracy[picked].mean())
        ceilings = accuracy[by_latency].max(), accuracy[by_flops].max()
        agree = float(np.corrcoef(scipy.stats.rankdata(flops), scipy.stats.rankdata(took))[0, 1])
        told = {"device": device, "by_latency": base + value, "by_flops": base, "breaks": breaks, "spearman": agree}
        rows.append(told | {"best_by_latency": ceilings[0], "best_by_flops": ceilings[1], "n": len(cells)})
        told = {"table": "nats", "task": device, "ours": "bound on latency", "value": base + value, "n": len(cells)}
        told |= {"control": "bound on FLOPs", "control_value": base, **statistics.of_draws(value, draws)}
        verdicts.append(told | {"note": f"{breaks:.0%} of the choices by FLOPs break the latency bound"})
    return {"verdicts": statistics.judged(pd.DataFrame(verdicts), PROTOCOLS["P8"]), "devices": pd.DataFrame(rows)}
