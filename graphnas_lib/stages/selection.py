"""Stage "selection": which rule of selection, and which network by hand, trains best within one budget of FLOPs.

Every rule chooses from one pool of random shallow networks; the paper's own choice, T-CET among what the generator
writes, random networks of the whole space, and references stand beside them, all trained with one recipe.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from graphnas_lib import benchmarks, datasets, design, evolution, network, proxies, store
from graphnas_lib.benchmarks import SPECTRA
from graphnas_lib.clusters import ZC_NAMES
from graphnas_lib.datasets import Dataset
from graphnas_lib.macro import Architecture
from graphnas_lib.plots import mean_difference, mean_interval
from graphnas_lib.stages.stage import Stage
from graphnas_lib.training import RECIPES, cut_batch, train

RECIPE = "short"
PROXIES = (*ZC_NAMES, "tcet", "tcet_none")
RULES = ("tcet", "tcet_per_layer", "T-CET, guarded", "AZ-NAS", "VKDNW", "naswot", "params")  # of the pool
GENERATOR, POOL, SPACE = "generator, T-CET", "pool, random", "space, random"
SEEDS = 2  # of each reference
SCORED_ON = 16  # images, and random inputs of AZ-NAS and VKDNW
# The verdict, as written before any network was trained: a rule is offered as default where its five networks are on
# average above the pool's random ones with a 95% interval that excludes 0, and no other rule's mean is higher.
REFERENCE_POINTS = 3.0  # the default must come within so much of the best reference
MOST_SECONDS = 2  # in at most so many times its seconds
RANDOM_POINTS = 5.0  # and so much above random networks of the space
CHANCE = 10.0  # accuracy (%) that counts for a training that diverged
MIN_RHO = 0.8  # rank correlation of accuracy after half the epochs and all: below it the protocol cannot rank
MIN_REFERENCE = 70.0  # accuracy (%) of the best ResNet-8 on CIFAR-10: below it networks have only begun to learn


def make(stage: Stage) -> tuple[dict, dict]:
    """Score the pool, choose, train every distinct network once; the first dozen also for half as long.

    Raises:
        BudgetUnreachable: the generator or a reference cannot meet the budget.
    """
    sizes = stage.scale.selection
    options = {"n_train": sizes["images"], "n_test": sizes["test_images"]}
    data = datasets.load("auto", resolution=stage.scale.tcet_resolution, **options)
    pool, groups = _groups(stage, data)
    texts, epochs = groups.drop_duplicates("name").set_index("name")["network"].to_dict(), sizes["epochs"]
    pilot = list(dict.fromkeys([*groups.drop_duplicates("group")["name"], *texts]))[: sizes["pilot"]]
    asked = [(name, epochs) for name in pilot] + [(name, epochs // 2) for name in pilot]
    asked = dict.fromkeys([*asked, *((name, epochs) for name in texts)])
    jobs = {f"{name}, {n} epochs": partial(measure, stage, name, texts[name], data, n) for name, n in asked}
    rows = pd.DataFrame(stage.trainings(jobs, "trainings", RECIPES[RECIPE], sizes, data.source, texts))
    facts = {"data": data.source, "recipe": RECIPE, **sizes, "resolution": stage.scale.tcet_resolution}
    return {"selection_rows.csv": rows, "selection_groups.csv": groups, "selection_pool.csv": pool}, facts


def _groups(stage: Stage, data: Dataset) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(the pool's scores; group, name and network of all that is trained), a network with the name that came first."""
    sizes, shape = stage.scale.selection, {"input_shape": data.input_shape, "classes": data.classes}
    trained, flops = design.Trained.load(stage.scale.name, device=stage.device), sizes["flops"]
    groups = [(name, f"{name} {seed}") for seed in range(SEEDS) for name in design.REFERENCES]
    images, labels = data.batch(SCORED_ON)  # a CUDA tensor cannot go to another process
    options = {**shape, "images": images, "labels": labels, "trained": trained}
    options |= {"seed": stage.seed, "device": stage.device}
    best = design.design(**design.below("flops", flops), n=sizes["chosen"], candidates=sizes["pool"], **options)
    groups += [(GENERATOR, one.architecture.to_json()) for one in best]
    drawn = design.design(
        **design.below("flops", flops), n=sizes["pool"], candidates=sizes["pool"], select="shallow", **options
    )
    texts = [one.architecture.to_json() for one in drawn]
    jobs = {text: partial(_scores, text, images, labels, data.classes, stage) for text in texts}
    pool = pd.DataFrame(stage.collect(jobs, "pool", sizes, SCORED_ON, PROXIES, SPECTRA))
    by_rule = benchmarks.Pool(pool.set_index("id"))
    ranks, rng = by_rule.ranks(np.arange(len(by_rule))[None]), np.random.default_rng(stage.seed)
    for rule in RULES:
        order = by_rule.values(rule, ranks, rng)[0].argsort()[::-1][: sizes["chosen"]]
        groups += [(rule, by_rule.table.index[row]) for row in order]
    feasible = evolution.budget(partial(network.count, **shape), flops=flops, resolution=data.input_shape[1])
    source = torch.Generator().manual_seed(stage.seed)
    while sum(group == SPACE for group, _ in groups) < sizes["random"]:
        architecture = evolution.filled(evolution.random_architecture(source), feasible)
        groups += [(SPACE, architecture.to_json())] * feasible(architecture)
    shuffled = rng.permutation(sorted(texts)).tolist()
    groups += [(POOL, text) for text in shuffled[: sizes["random"]]]
    table = pd.DataFrame(groups, columns=["group", "network"])
    table["name"] = table["group"] + ", " + table.groupby("group").cumcount().add(1).astype(str)
    return pool, table.assign(name=table.groupby("network")["name"].transform("first"))


def _scores(text: str, images: Tensor, labels: Tensor, classes: int, stage: Stage) -> dict[str, float]:
    """What the rules ask of one network; NaN where a proxy fails, and then no rule may choose the network."""
    shape, seed = tuple(images.shape[1:]), stage.seed
    images, labels = images.to(stage.device), labels.to(stage.device)
    with store.single_threaded():
        model = network.build(Architecture.from_json(text), input_shape=shape, classes=classes, seed=seed)
        model = network.moved(model, stage.device)
        found = dict.fromkeys((*PROXIES, *SPECTRA), float("nan"))
        with suppress(proxies.ProxyError):
            found |= proxies.score(model, images, labels, PROXIES, seed=seed)
            found |= proxies.az_terms(model, tuple(images.shape), seed=seed)
            found["vkdnw_entropy"] = proxies.vkdnw_entropy(model, tuple(images.shape), seed=seed)
    return found | {"layers": float(len(benchmarks.weighted_layers(model))), "width": benchmarks.mean_width(model)}


def measure(stage: Stage, name: str, text: str, data: Dataset, epochs: int, *, checkpoint: store.Checkpoint) -> dict:
    """One network trained once: its costs, test accuracy and seconds."""
    shape = {"input_shape": data.input_shape, "classes": data.classes}
    kind, _, number = text.rpartition(" ")
    if kind in design.REFERENCES:
        seed, made = stage.seed + int(number), design.reference(kind, flops=stage.scale.selection["flops"], **shape)
        model, costs = made.model, made.costs
    else:
        seed, architecture = stage.seed, Architecture.from_json(text)
        model, costs = network.build(architecture, **shape, seed=seed), network.count(architecture, **shape)
    size = cut_batch(RECIPES[RECIPE].batch_size, data.size("train"))
    options = {"seed": seed, "device": stage.device, "epochs": epochs, "batch_size": size, "checkpoint": checkpoint}
    result = train(model, data, RECIPE, **options)
    told = {
        "name": name,
        "epochs": epochs,
        "accuracy": result.accuracy,
        "layers": len(benchmarks.weighted_layers(model)),
    }
    return told | {"params": costs.params, "flops": costs.flops, "seconds": round(result.seconds, 1), "seed": seed}


def _whole(rows: pd.DataFrame) -> pd.DataFrame:
    """The trainings of full length; one that diverged counts at `CHANCE`."""
    return rows[rows["epochs"] == rows["epochs"].max()].assign(accuracy=lambda table: table["accuracy"].fillna(CHANCE))


def by_group(rows: pd.DataFrame, groups: pd.DataFrame) -> pd.DataFrame:
    """Each rule's and reference's mean accuracy with its 95% interval; a training that diverged counts at chance."""
    joined = groups.merge(_whole(rows), on="name")
    lines = []
    for name, part in joined.groupby("group", sort=False):
        interval = mean_interval(part["accuracy"])
        means = part[["params", "layers", "seconds"]].mean().round(1).to_dict()
        lines.append({"group": name, "n": len(part), "mean": part["accuracy"].mean(), **interval, **means})
    return pd.DataFrame(lines)


def ranking(rows: pd.DataFrame) -> dict[str, float]:
    """Whether the protocol ranks: Spearman of accuracy after half the epochs and all of them, and of how many networks.

    "best" is the best accuracy of a ResNet-8: networks below `MIN_REFERENCE` have only begun to learn.
    """
    lengths = rows.pivot_table(index="name", columns="epochs", values="accuracy", sort=False)
    whole = lengths[lengths.columns.max()]
    both = lengths.dropna()
    rho = float(both.corr("spearman").iloc[0, -1]) if len(both) > 2 and both.shape[1] > 1 else float("nan")
    return {"rho": rho, "n": len(both), "best": float(whole[whole.index.str.startswith("ResNet-8")].max())}


def default(table: pd.DataFrame, rows: pd.DataFrame, groups: pd.DataFrame) -> str | None:
    """The rule that earns to be the default by what is written above: `table` is `by_group`'s; None where none does.

    None too where the protocol does not rank: `ranking` below `MIN_RHO`, or its best below `MIN_REFERENCE`.
    """
    told, known = ranking(rows), table.set_index("group")
    best = known.loc[[*RULES, GENERATOR], "mean"].idxmax()
    hand = known.loc[list(design.REFERENCES)].sort_values("mean").iloc[-1]
    whole = _whole(rows).set_index("name")["accuracy"]
    accuracy = {name: whole[part["name"]].to_numpy() for name, part in groups.groupby("group")}
    earned = (
        told["rho"] >= MIN_RHO and told["best"] >= MIN_REFERENCE,
        mean_difference(accuracy[best], accuracy[POOL])["low"] > 0,
        known["mean"][best] >= max(hand["mean"] - REFERENCE_POINTS, known["mean"][SPACE] + RANDOM_POINTS),
        known["seconds"][best] <= MOST_SECONDS * hand["seconds"],
    )
    return best if all(earned) else None
