"""Stage "table2": every search of Table 2 and App. E under one budget, its best networks trained with one recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from torch import nn

from graphnas_lib import datasets, network, store, zennet
from graphnas_lib.datasets import Dataset, MissingDataError
from graphnas_lib.macro import Architecture
from graphnas_lib.paper import SCALES
from graphnas_lib.plots import mean_difference, mean_interval
from graphnas_lib.stages.evolution import budget_name
from graphnas_lib.stages.methods import Methods
from graphnas_lib.stages.stage import Stage
from graphnas_lib.training import RECIPES, cut_batch, evaluate, train
from graphnas_lib.zennet import ZenNet

COLUMNS = {"cifar10": "C-10", "digits": "C-10", "cifar100": "C-100"}
CHANCE = {"cifar10": 10.0, "digits": 10.0, "cifar100": 1.0}  # accuracy of guessing (%)
LEARNT = {"cifar10": 20.0, "digits": 20.0, "cifar100": 25.0}  # mean accuracy (%) below which networks have only begun
UNDECIDED = "not decided"
PAPER_BUDGET = budget_name(*SCALES["paper"].table2_budget)
HELD_OUT = 0.1  # of the training images: the split on which a method's network is chosen
MAX_EQUAL_POINTS = 1.0  # gap within which two accuracies count as equal, and at most
MAX_EQUAL_SHARE = 0.1  # this share of the second: a point is much where accuracies are low

ZEN, FLAT, SIZE = "ZenNet: Evo(T-CET)", "GraphNet: Evo(T-CET)", "GraphNet: Evo(parameters)"
HL, SG = "GraphNet: HL-Evo(T-CET)+CCNF", "GraphNet: SG+CCNF"
E1, E2 = "GraphNet: SG+CCNF, reduced training (App. E.1)", "GraphNet: Evo(reduced training) (App. E.2)"
BY_TCET = (ZEN, FLAT, HL, SG, "GraphNet: random in budget")  # whose curves share a unit
CELL_STAGES = ("cells", "labels", "families", "gvae", "ccnf")
PRETRAINED = {HL: CELL_STAGES, SG: (*CELL_STAGES, "evolution", "sequence"), E1: (*CELL_STAGES, "evolution", "sequence")}


def make(stage: Stage) -> tuple[dict, dict]:
    """Search once per method on the first data set's images; train the best networks on every data set at hand."""
    scale = stage.scale
    scoring = datasets.load("auto", resolution=scale.tcet_resolution)
    every, facts = _data(stage)
    found = Methods(stage, scoring, every[0]).find()
    jobs, sets = {}, {}
    for data in every:
        sets[data.name] = {"source": data.source, "n_train": data.size("train"), "n_test": data.size("test")}
        for name, result in found.items():
            for rank, text in enumerate(result.individuals):
                key = {"method": name, "rank": rank, "score": result.scores[rank], "evaluations": result.evaluations}
                key["search_seconds"] = round(result.seconds, 2)
                jobs[f"{name} {rank} | {data.name}"] = partial(measure, stage, key, text, data)
    texts = [result.individuals for result in found.values()]
    table = pd.DataFrame(stage.trainings(jobs, "trainings", RECIPES[scale.table2_recipe], HELD_OUT, texts))
    curves = pd.concat([improvements(result.curve).assign(method=name) for name, result in found.items()])
    pretraining = {
        name: sum(store.load_manifest(earlier, scale.name)["seconds"] for earlier in stages)
        for name, stages in PRETRAINED.items()
    }
    facts |= {
        **{"data": scoring.source, "datasets": sets, "budget": budget_name(*scale.table2_budget)},
        **{"top": scale.table2_top, "recipe": scale.table2_recipe, "epochs": scale.table2_epochs},
        **{"scored_on": scoring.source, "batch": scale.tcet_batch, "pretraining_seconds": pretraining},
    }
    return {"table2_rows.csv": table, "table2_curves.csv": curves}, facts


def improvements(curve: Sequence[float]) -> pd.DataFrame:
    """A best-so-far curve by its steps: "evaluation" (from 1) and "best" where it rises, and at its end."""
    table = pd.DataFrame({"evaluation": range(1, len(curve) + 1), "best": curve})
    return table[(table["best"].diff() != 0) | (table["evaluation"] == len(curve))]


def _data(stage: Stage) -> tuple[list[Dataset], dict]:
    """CIFAR-10 or digits, and CIFAR-100 where it is there, cut to the scale; and why it is not there."""
    scale = stage.scale
    options = {"resolution": scale.train_resolution, "n_train": scale.table2_images, "n_test": scale.test_images}
    found = [datasets.load("auto", **options)]
    try:
        return [*found, datasets.load("cifar100", **options)], {}
    except MissingDataError as error:
        return found, {"C-100": str(error)}


# ---- training


def measure(stage: Stage, key: dict, text: str, data: Dataset, *, checkpoint: store.Checkpoint) -> dict:
    """One row: a network trained once; its accuracy on held-out training images, and on the test images."""
    held, recipe = data.split_validation(HELD_OUT, seed=stage.seed), stage.scale.table2_recipe
    options = {
        "seed": stage.seed,
        "device": stage.device,
        "epochs": stage.scale.table2_epochs,
        "checkpoint": checkpoint,
    }
    model, costs = rebuild(text, data, stage.seed)
    result = train(model, held, recipe, batch_size=cut_batch(RECIPES[recipe].batch_size, data.size("train")), **options)
    accuracy = None
    if not result.diverged:
        given = RECIPES[recipe]  # as it was trained
        norm = {"mean": given.mean or data.mean, "std": given.std or data.std}
        accuracy = evaluate(model, data.test_images, data.test_labels, device=stage.device, **norm)
    return {
        **key,
        **{"dataset": data.name, "accuracy": accuracy, "validation": result.accuracy},
        **{"params": costs.params, "macs": costs.macs, "flops": costs.flops},
        **{"training_seconds": round(result.seconds, 2), "seed": stage.seed, "network": text},
    }


def rebuild(text: str, data: Dataset, seed: int) -> tuple[nn.Module, network.Costs]:
    """The trainable network of a stored individual of either space, with residual links, and its costs in our units."""
    if text.startswith("Super"):
        net, resolution = ZenNet.parse(text), data.input_shape[1]
        costs = zennet.count(net, resolution=resolution, classes=data.classes)
        return zennet.build(net, classes=data.classes, seed=seed), costs
    architecture, shape = Architecture.from_json(text), {"input_shape": data.input_shape, "classes": data.classes}
    return network.build(architecture, **shape, seed=seed), network.count(architecture, **shape)


# ---- reading


def load(scale: str) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    """(trained rows, best-so-far curves, the stage's facts)."""
    files = (store.load("table2", name, scale) for name in ("table2_rows.csv", "table2_curves.csv"))
    return *files, store.load_manifest("table2", scale)["config"]


def methods(table: pd.DataFrame, facts: dict) -> pd.DataFrame:
    """One line a method and data set: the network chosen on held-out images, and all that were trained.

    Columns: method, dataset, chosen (test accuracy of the chosen network), mean, std and n of all, low and high (95%
    interval of the mean, by Student's t), params, macs, flops (of the chosen one), evaluations, and seconds of search,
    of pretraining and of all trainings.
    """
    lines = []
    for (method, dataset), group in table.groupby(["method", "dataset"], sort=False):
        good = group.dropna(subset=["accuracy"])
        chosen = (good if len(good) else group).sort_values(["validation", "rank"], ascending=[False, True]).iloc[0]
        line = {"method": method, "dataset": dataset, "chosen": chosen["accuracy"]}
        line |= {"mean": good["accuracy"].mean(), "std": good["accuracy"].std(), "n": len(good)}
        line |= mean_interval(good["accuracy"].to_numpy())
        line |= {name: int(chosen[name]) for name in ("params", "macs", "flops", "evaluations")}
        line["search_seconds"] = chosen["search_seconds"]
        line["pretraining_seconds"] = round(facts["pretraining_seconds"].get(method, 0.0), 1)
        lines.append(line | {"training_seconds": group["training_seconds"].sum()})
    return pd.DataFrame(lines)


def summary(table: pd.DataFrame, facts: dict) -> dict[str, dict[str, dict]]:
    """Our Table 2 for `plots.compare`: the chosen network's test accuracy; "spread" is that of the n trained ones."""
    ours = {}
    for line in methods(table, facts).to_dict("records"):
        source, column = facts["datasets"][line["dataset"]], COLUMNS[line["dataset"]]
        row = ours.setdefault(line["method"], {"Evals.": {"value": int(line["evaluations"]), "n": 1}})
        if not line["n"]:
            continue  # every training diverged
        note = (
            f"{source['source'].replace('; ', ', ')}; {source['n_train']} training images, {facts['epochs']} epochs; "
        )
        note += "of the chosen network; spread and n are of all that were trained"
        row[f"{column} Acc. (%)"] = {"value": line["chosen"], "spread": line["std"], "n": line["n"], "note": note}
        cost = {"value": line["search_seconds"] / 3600, "n": 1, "note": "hours of search on this machine"}
        row[f"{column} Cost"] = cost
        if seconds := line["pretraining_seconds"]:
            row["Pretrain"] = {"value": seconds / 3600, "n": 1, "note": "hours of all stages before, on this machine"}
    return ours


@dataclass(frozen=True)
class Question:
    """A claim that method a is above method b, decided by the interval of their difference in accuracy."""

    text: str
    a: str
    b: str
    ties: bool = False  # whether a gap that counts as equal confirms it too

    def verdict(self, a: np.ndarray, b: np.ndarray, gap: dict, dataset: str) -> str:
        """What test accuracies (%) of the two methods say, given the interval of their difference."""
        if min(len(a), len(b)) < 2:
            return "open"
        if max(a.mean(), b.mean()) < LEARNT[dataset]:
            return UNDECIDED
        return "confirmed" if gap["low"] > -self.margin(b) else "contradicted" if gap["high"] < 0 else "open"

    def margin(self, b: np.ndarray) -> float:
        """Points by which method a may stay below method b, of test accuracies b (%), and still count as equal."""
        return min(MAX_EQUAL_POINTS, MAX_EQUAL_SHARE * float(b.mean())) if self.ties and len(b) else 0.0


QUESTIONS = {
    "superior": Question("the generator in GraphNet beats evolution with T-CET in ZenNet", SG, ZEN),
    "space-is-not-enough": Question("the larger space hurts plain evolution with T-CET", ZEN, FLAT),
    "hl-evo": Question("HL-Evo beats plain evolution in GraphNet with fewer evaluations", HL, FLAT),
    "hl-evo-zennet": Question("HL-Evo beats plain evolution in ZenNet with fewer evaluations", HL, ZEN),
    "sequence-generator": Question("the generator matches HL-Evo", SG, HL, ties=True),
    "reduced-training-selection": Question("T-CET selects better than reduced training (E.1)", SG, E1),
    "flat-evolution": Question("reduced training fails on the flat space (E.2)", SG, E2),
    "parameters": Question("selecting by parameters alone is level with HL-Evo", SIZE, HL, ties=True),
}


def verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """One line a question and data set: the difference of mean test accuracies, its interval, and what it says.

    A claim is confirmed where the interval begins above minus the "margin". Where neither method reaches the accuracy
    `LEARNT`, networks have hardly begun to learn and nothing is decided.
    """
    lines = []
    for name, asked in QUESTIONS.items():
        for dataset, group in table.dropna(subset=["accuracy"]).groupby("dataset", sort=False):
            a, b = (group.loc[group["method"] == method, "accuracy"].to_numpy() for method in (asked.a, asked.b))
            line = {"question": name, "claim": asked.text, "dataset": dataset, "a": asked.a, "b": asked.b}
            gap = mean_difference(a, b) if len(a) and len(b) else dict.fromkeys(("difference", "low", "high"))
            line |= {**gap, "margin": asked.margin(b), "n": f"{len(a)}, {len(b)}"}
            lines.append(line | {"verdict": asked.verdict(a, b, gap, dataset)})
    return pd.DataFrame(lines)


def search_curves(curves: pd.DataFrame, methods: Sequence[str]) -> dict[str, list[float]]:
    """Best-so-far of some methods of Table 2; those without evaluations are left out."""
    found = {name: steps.set_index("evaluation")["best"] for name, steps in curves.groupby("method", sort=False)}
    whole = {name: best.reindex(range(1, best.index.max() + 1)).ffill().tolist() for name, best in found.items()}
    return {name: whole[name] for name in methods if name in whole}


def reasons(facts: Mapping) -> dict[str, str]:
    """Why numbers of Table 2 are missing."""
    missing = "" if "cifar100" in facts["datasets"] else "no CIFAR-100 files here; "
    return {"": f"{missing}ImageNet-1k not trained on; pretraining cost in Table 5"}
