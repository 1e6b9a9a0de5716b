"""Lines and small tables that notebooks show: no mathematics, only what a reader wants to see beside a figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from IPython.display import Markdown
from torch import Tensor

from graphnas_lib import benchmarks, datasets, network, store
from graphnas_lib.clusters import ZC_NAMES, Families
from graphnas_lib.datasets import TASKS, Dataset, MissingDataError
from graphnas_lib.design import Design
from graphnas_lib.network import ExportError
from graphnas_lib.paper import DEVIATIONS, NATS_TAU, SCALES
from graphnas_lib.plots import farthest_families, markdown
from graphnas_lib.proxies import zc_vector
from graphnas_lib.space import OPERATIONS, UNUSED, Cell, CellCodes
from graphnas_lib.stages import labels
from graphnas_lib.stages import road as stages
from graphnas_lib.store import MissingArtifactError

_SUFFIXES = ("csv", "json", "pdf", "png")


def banner(scale: str, device: str) -> str:
    """First line of every notebook: scale and device, and what the scale's numbers are worth."""
    worth = {
        "smoke": "everything from scratch in minutes; numbers are NOT comparable with the paper",
        "lite": "what two CPU cores make in hours; sizes stand in every table",
        "paper": "the paper's sizes",
    }
    return f"scale {store.check_scale(scale)}: {worth[scale]} | device {store.pick_device(device).type}"


def full(table: pd.DataFrame) -> Markdown:
    """A table whose texts are shown whole, for tables that are read rather than scanned."""
    return Markdown(markdown(table))


def written(scale: str, *, figures: Sequence[str] = (), tables: Sequence[str] = ()) -> str:
    """The files of figures and tables that are there and not empty, one line each; the check cells print this."""
    lines = []
    for name in figures:
        lines.append(f"figure {name}: {_present(store.figures_dir(scale), name, _SUFFIXES)}")
    for name in tables:
        lines.append(f"table {name}: {_present(store.results_dir(scale), name, ('csv', 'md'))}")
    return "\n".join(lines)


def _present(folder, name: str, suffixes: Sequence[str]) -> str:
    paths = [folder / f"{name}.{suffix}" for suffix in suffixes]
    return " ".join(path.suffix[1:] for path in paths if path.exists() and path.stat().st_size)


def proxy_batch(scale: str) -> tuple[Dataset, tuple[Tensor, Tensor]]:
    """The data set at the scale's resolution, and the first images and labels of it."""
    sizes = SCALES[scale]
    data = datasets.load("auto", resolution=sizes.label_resolution)
    return data, data.batch(sizes.label_batch)


def quick_sizes(scale: str) -> tuple[int | None, int | None]:
    """Training and test images of the quickstart."""
    return SCALES[scale].quick_images


def quick_epochs(scale: str) -> int:
    """Epochs of the quickstart."""
    return SCALES[scale].quick_epochs


def refusal(function: Callable, **arguments) -> str:
    """The one-line answer to a request that cannot be met."""
    try:
        function(**arguments)
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("This request was expected to be refused; it was met.")


def exported(design: Design, path: Path, formats: Sequence[str]) -> pd.DataFrame:
    """Writes a design in each format beside `path`; which file came, or why none did."""
    rows = []
    for suffix in formats:
        try:
            rows.append({"format": suffix, "file": design.save(path.with_suffix(f".{suffix}")).name, "why not": ""})
        except ExportError as error:
            rows.append({"format": suffix, "file": "-", "why not": f"not run ({error})"})
    return pd.DataFrame(rows)


def operation_costs(*, channels: int, side: int) -> pd.DataFrame:
    """Parameters, multiply-accumulates and layers of each operation inside a cell."""
    rows = []
    for name in OPERATIONS:
        layers = network.layers(name, channels, channels)
        costs = _layer_costs(layers, side)
        rows.append({"operation": name, "layers": " ".join(layer.kind for layer in layers) or "-", **costs})
    return pd.DataFrame(rows)


def _layer_costs(layers, side: int) -> dict[str, int]:
    params = sum(layer.params(2) for layer in layers)
    macs = sum(layer.macs((side, side))[0] for layer in layers)
    counted = sum(layer.macs((side, side))[1] for layer in layers)
    return {"params": params, "macs": macs, "flops": 2 * counted}


def family_table(families: Families) -> pd.DataFrame:
    """One row a family: cells, weight, centre in natural units, operations of its medoid."""
    centres = families.inverse(families.means)
    rows = []
    for k in range(families.n_clusters):
        medoid = Cell.from_dict(families.medoid_cells[k])
        centre = dict(zip(ZC_NAMES, centres[k].tolist(), strict=True))
        ops = " ".join(name for name in medoid.operations if name)
        rows.append({"family": k, "cells": families.counts[k], "weight": families.weights[k], **centre, "medoid": ops})
    return pd.DataFrame(rows)


def distant_families(scale: str, n: int = 4) -> list[int]:
    """The families that Fig. 2 colours: far apart in standardised z, chosen by rule."""
    families = Families.load(scale)
    zc = labels.vectors(labels.load(scale))
    return farthest_families(families.transform(zc), families.assign(zc), n)


def cycle_errors(cycle: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mean absolute errors of q a component, and the points (draws, component, z, q) behind them, of gvae_cycle.csv."""
    told = {"q": "q of the latent", "again": "q of the cell encoded again"}
    points = pd.concat(
        pd.DataFrame({"draws": cycle["draws"], "component": name}).assign(
            **{part: cycle[f"{part}_{name}"] for part in ("z", *told)}
        )
        for name in ZC_NAMES
    )
    off = pd.concat(
        points.assign(of=text, error=(points[part] - points["z"]).abs())[["draws", "of", "component", "error"]]
        for part, text in told.items()
    )
    table = off.pivot_table(index=["draws", "of"], columns="component", values="error")[list(ZC_NAMES)]
    return table.assign(mean=table.mean(axis=1)), points


RATIOS = (
    ("flow", "neighbourhood"),
    ("flow, checked", "neighbourhood"),
    ("flow, checked", "neighbourhood, checked"),
)


def real_errors(real: pd.DataFrame) -> pd.DataFrame:
    """Mean |z - asked| a component (generated_conditions.csv), in standard deviations; the share of distinct cells.

    The last rows are the flow's errors as shares of the neighbourhood's.
    """
    off = {name: (real[f"z_{name}"] - real[f"asked_{name}"]).abs() for name in ZC_NAMES}
    grouped = pd.DataFrame(off).assign(mean=pd.DataFrame(off).mean(axis=1)).groupby(real["draws"], sort=False).mean()
    distinct = real.groupby(["draws", "condition"])["key"].agg(lambda keys: keys.nunique() / len(keys))
    facts = {"conditions": ("condition", "nunique"), "cells": ("key", "size"), "sigma": ("sigma", "mean")}
    shares = real.groupby("draws").agg(**facts).join(distinct.groupby("draws").mean().rename("distinct"))
    return _with_ratio(grouped).join(shares)


def _with_ratio(table: pd.DataFrame) -> pd.DataFrame:
    """A table by draws, and below it the flow's values as shares of the neighbourhood's."""
    pairs = [(a, b) for a, b in RATIOS if a in table.index and b in table.index]
    ratios = pd.DataFrame([table.loc[a] / table.loc[b] for a, b in pairs], index=[f"{a} / {b}" for a, b in pairs])
    return pd.concat([table, ratios]).rename_axis("draws")


def reference_spread(around: pd.DataFrame, reference: dict) -> pd.DataFrame:
    """Around the NATS reference: standard deviation of both scores, and median sizes as a share of its own.

    Args:
        around: generated_reference.csv, raw z by name.
        reference: its raw z by name.
    """
    groups = around.groupby("draws", sort=False)
    table = groups[["naswot", "snip_ssnr"]].std().add_prefix("std ")
    medians = pd.DataFrame({f"median {n} / reference": groups[n].median() / reference[n] for n in ("params", "flops")})
    facts = groups.agg(cells=("key", "size"), distinct=("key", "nunique"), sigma=("sigma", "mean"))
    return _with_ratio(table).join(medians).join(facts)


def compared_curves(compared: pd.DataFrame) -> dict[str, list[list[float]]]:
    """Best score so far after each evaluation: method -> a curve a seed, of comparison.parquet."""
    curves: dict[str, list[list[float]]] = {}
    for (method, _), run in compared.groupby(["method", "seed"]):
        best = run.groupby("evaluations")["score"].max()
        curves.setdefault(method, []).append(list(best.reindex(range(1, best.index.max() + 1)).ffill().cummax()))
    return curves


def seed_table(compared: pd.DataFrame) -> pd.DataFrame:
    """Best score of each method with each seed of comparison.parquet, and what HL-Evo's is above."""
    table = _best_by_seed(compared)
    above = {f"HL-Evo above {name}": table["HL-Evo"] > table[name] for name in table.columns.drop("HL-Evo")}
    return table.assign(**above).reset_index().rename_axis(columns=None)


def win_table(*compared: pd.DataFrame) -> pd.DataFrame:
    """Each method of comparison.parquet and variants.parquet: its best score by seed, and with how many HL-Evo wins.

    Columns: method, median, min and max over seeds, seeds, and the number with which each form of HL-Evo is above it.
    """
    best = _best_by_seed(pd.concat(compared))
    table = best.agg(["median", "min", "max"]).T.assign(seeds=len(best))
    for own in (name for name in best if name.startswith("HL-Evo")):
        table[f"{own} above it"] = best.lt(best[own], axis=0).sum()
    return table.sort_values("median", ascending=False).reset_index().rename_axis(columns=None)


def _best_by_seed(compared: pd.DataFrame) -> pd.DataFrame:
    return compared.groupby(["seed", "method"])["score"].max().unstack("method")


def length_table(history: pd.DataFrame, flat: pd.DataFrame) -> pd.DataFrame:
    """Best score of HL-Evo and of flat evolution under each budget, after a third of the evaluations and after all.

    Args:
        history: evolution.parquet.
        flat: comparison_flat.parquet.
    """
    both = pd.concat([history.assign(method="HL-Evo"), flat], ignore_index=True)
    lengths = both.groupby("budget")["evaluations"].max()
    columns = {}
    for name, run in both.groupby("method", sort=False):
        third = run[run["evaluations"] <= run["budget"].map(lengths) / 3]
        columns[f"{name}, a third"] = third.groupby("budget")["score"].max()
        columns[f"{name}, all"] = run.groupby("budget")["score"].max()
    table = pd.DataFrame({"evaluations": lengths, **columns})
    table["HL-Evo / Evo (flat)"] = table["HL-Evo, all"] / table["Evo (flat), all"]
    return table.loc[history["budget"].unique()].reset_index()


FLAT_EQUAL = "Evo (flat), as many"


def best_table(best: pd.DataFrame, flat: pd.DataFrame) -> pd.DataFrame:
    """Best T-CET under each budget by method, and the generator's as a share of the others'.

    Flat evolution stands there twice: after as many evaluations as the generator's, and as a whole.

    Args:
        best: designed_best.csv.
        flat: comparison_flat.parquet.
    """
    as_many = flat[flat["evaluations"] <= best.loc[best["method"] == "SG", "evaluations"].max()]
    for name, part in ((FLAT_EQUAL, as_many), ("Evo (flat)", flat)):
        runs = part.groupby("budget").agg(evaluations=("evaluations", "max"), score=("score", "max")).reset_index()
        best = pd.concat([best, runs.assign(method=name)], ignore_index=True)
    table = best.pivot(index="budget", columns="method", values="score").rename_axis(columns=None)
    asked = best.groupby("method")["evaluations"].max()
    shares = {f"SG / {name}": table["SG"] / table[name] for name in ("HL-Evo", FLAT_EQUAL, "Evo (flat)")}
    named = table.rename(columns={name: f"{name}, {asked[name]:,} evaluations" for name in table})
    return named.assign(**shares).loc[best["budget"].unique()].reset_index()


def count_table(counts: Mapping[str, Mapping[str, int]]) -> pd.DataFrame:
    """Recorded, discarded, failed and redrawn individuals of each search."""
    return pd.DataFrame(counts).T.rename_axis("search").reset_index()


def request_table(requests: pd.DataFrame) -> pd.DataFrame:
    """How well the generator follows a request, by quantity."""
    rows = []
    for quantity, group in requests.groupby("quantity"):
        error = (group["realised"] / group["requested"] - 1).abs()
        rows.append(
            {
                "quantity": quantity,
                "requests": len(group),
                "legal": group["legal_masked"].mean(),
                "legal without mask": group["legal_unmasked"].mean(),
                "median error": error.median(),
                "Spearman": group[["requested", "realised"]].corr("spearman").iloc[0, 1],
                "distinct designs": group["design"].nunique(),
            }
        )
    return pd.DataFrame(rows)


def search_curves(curves: pd.DataFrame, methods: Sequence[str]) -> dict[str, list[float]]:
    """Best-so-far of some methods of Table 2; those without evaluations are left out."""
    found = {name: steps.set_index("evaluation")["best"] for name, steps in curves.groupby("method", sort=False)}
    return {
        name: list(found[name].reindex(range(1, found[name].index.max() + 1)).ffill())
        for name in methods
        if name in found
    }


def search_shares(curves: pd.DataFrame) -> dict[str, list[float]]:
    """Best-so-far of every method of Table 2 as a share of the best that it found: proxies of all units on one axis."""
    found = search_curves(curves, curves["method"].unique())
    return {method: [value / best[-1] for value in best] for method, best in found.items()}


def table2_reasons(facts: Mapping) -> dict[str, str]:
    """Why numbers of Table 2 are missing."""
    missing = "" if "cifar100" in facts["datasets"] else "no CIFAR-100 files here; "
    return {"": f"{missing}ImageNet-1k not trained on; pretraining cost in Table 5"}


def listing(facts: Mapping) -> pd.DataFrame:
    """Named numbers as a one-column table."""
    return pd.Series(dict(facts)).to_frame("value")


def live_nodes(codes: CellCodes) -> pd.Series:
    """How many cells have 1, 2, ... operation nodes on an input-output path."""
    used = pd.Series((codes.operations != UNUSED).sum(dim=1), name="nodes")
    return used.value_counts().sort_index().rename("cells")


def zc_table(cells: Mapping[str, Cell], batch: tuple[Tensor, Tensor], classes: int, *, seed: int) -> pd.DataFrame:
    """Raw ZC vectors of named cells."""
    rows = {name: zc_vector(cell, *batch, seed=seed, classes=classes).tolist() for name, cell in cells.items()}
    return pd.DataFrame(rows, index=["NASWOT", "SNIP-SSNR", "parameters", "FLOPs"]).T


def validation_table(scale: str, *, seed: int, device: str) -> pd.DataFrame:
    """Kendall's tau of each proxy with trained accuracy, for a reader: "-" where nothing is published.

    Every tau reads `not run (why)` where the benchmark's accuracies or the scale's artifact are missing.
    """
    try:
        stages.produce("validation", scale, seed=seed, device=device)
        table = store.load("validation", "validation.csv", scale)
    except (MissingArtifactError, MissingDataError) as error:
        table = benchmarks.not_run(str(error))
    return table.astype(object).where(table.notna(), "-")


def tau_figure(table: pd.DataFrame) -> dict:
    """Arguments of `report.plot_intervals` for the table of `validation_table`."""
    return {
        "names": table["proxy"],
        "values": table["tau"],
        "low": table["low"],
        "high": table["high"],
        "xlabel": "Kendall's tau with CIFAR-10 test accuracy (95% interval)",
        "groups": table["skeleton"],
        "marks": {source: table[source] for source in NATS_TAU},
    }


def task_table(available: Sequence[str]) -> pd.DataFrame:
    """The eight tasks of Table 4, and which have their files here."""
    return pd.DataFrame(
        [
            {"task": name, "metric": task.metric, "kind": task.kind, "outputs": task.classes, "here": name in available}
            for name, task in TASKS.items()
        ]
    )


def deviation_table() -> pd.DataFrame:
    """Every entry of `paper.DEVIATIONS`."""
    return pd.DataFrame([{"id": d.id, "paper": d.paper, "ours": d.ours, "why": d.why} for d in DEVIATIONS])
