"""Stage "selection": which rule of selection, and which network by hand, trains best within one budget.

What `design` gives under its own rules, the best of one pool of random shallow networks by other rules, random networks
of the pool and of the whole space, one dense cell repeated, and references, all trained with one recipe.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from graphnas_lib import benchmarks, datasets, design, evolution, network, proxies, store
from graphnas_lib.benchmarks import SPECTRA
from graphnas_lib.clusters import ZC_NAMES
from graphnas_lib.datasets import Dataset, DivergedError
from graphnas_lib.macro import Architecture
from graphnas_lib.plots import mean_difference, mean_interval
from graphnas_lib.stages.stage import Stage
from graphnas_lib.training import RECIPES, cut_batch, evaluate, train

RECIPE = "short"
PROXIES = (*ZC_NAMES, "tcet", "tcet_none")
OFFERED = {"tcet": "design, T-CET", "shallow": "design, shallow"}  # `select` of `design` -> its group
RULES = ("tcet", "tcet_per_layer", "T-CET, guarded", "AZ-NAS", "VKDNW", "flops")  # of the pool
POOL, SPACE, REPEATED = "pool, random", "space, random", "repeated dense cell"
SEEDS = 2  # of each reference
SCORED_ON = 16  # images, and random inputs of AZ-NAS and VKDNW
# The verdict, as written before any of the networks compared here was trained: what `design` offers becomes its default
# where the protocol ranks and each of the following holds for its networks on average. The first half of the test
# images decides which reference is the best, and between two that earn it; the second half is what is reported.
REFERENCE_POINTS = 3.0  # at least the best reference less so much,
MOST_SECONDS = 2  # in at most so many times its seconds,
RANDOM_POINTS = 5.0  # and so much above random networks of the space
CHANCE = 10.0  # accuracy (%) that counts for a training that diverged
MIN_RHO = 0.8  # rank correlation of accuracy after half the epochs and all: below it the protocol cannot rank
MIN_REFERENCE = 70.0  # accuracy (%) of the best ResNet-8 on CIFAR-10: below it networks have only begun to learn
HALVES = ["deciding", "reported"]  # accuracy on each half of the test images


def make(stage: Stage) -> tuple[dict, dict]:
    """Score the pool, choose, train every distinct network once; the first dozen, before all others, also half as long.

    What was trained is kept by network and recipe, whatever else is chosen in a later run.
    """
    sizes = stage.scale.selection
    options = {"n_train": sizes["images"], "n_test": sizes["test_images"]}
    data = datasets.load("auto", resolution=stage.scale.tcet_resolution, **options)
    pool, groups = _groups(stage, data)
    names, epochs = groups.set_index("network")["name"].to_dict(), sizes["epochs"]
    first = list(dict.fromkeys([*groups.drop_duplicates("group")["network"], *names]))[: sizes["pilot"]]
    pilot = [(text, n) for text in first for n in (epochs, epochs // 2)]
    settings = {"recipe": RECIPES[RECIPE], "data": data.source, "seed": stage.seed, **options}
    settings |= {"resolution": stage.scale.tcet_resolution, "flops": sizes["flops"], "device": stage.device}
    file = stage.scores_file(stage.name, settings)

    def trained(asked: list[tuple[str, int]]) -> pd.DataFrame:
        ids = {f"{hashlib.sha256(text.encode()).hexdigest()[:12]} {n}": (text, n) for text, n in asked}
        jobs = {name: partial(measure, stage, text, data, n) for name, (text, n) in ids.items()}
        rows = pd.DataFrame(stage.trainings(jobs, "trainings", settings, file=file))
        return rows.assign(name=[names[ids[one][0]] for one in rows["id"]])

    tqdm.write(f"selection: {ranking(trained(pilot))}")
    rows = trained(list(dict.fromkeys([*pilot, *((text, epochs) for text in names)])))
    files = {"selection_rows.csv": rows, "selection_groups.csv": groups, "selection_pool.csv": pool}
    return files, settings | {"recipe": RECIPE, **sizes, "device": stage.device.type, "workers": stage.workers}


def _groups(stage: Stage, data: Dataset) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(the pool's scores; group, name and network of all that is trained), a network with the name that came first."""
    sizes, shape = stage.scale.selection, {"input_shape": data.input_shape, "classes": data.classes}
    flops, bounds = sizes["flops"], {"params": sizes["params"], "flops": sizes["flops"]}
    options = {**shape, "trained": design.Trained.load(stage.scale.name, device=stage.device)}
    options |= {"seed": stage.seed, "device": stage.device}
    images, labels = data.batch(SCORED_ON)  # a CUDA tensor cannot go to another process
    drawn = design.design(**design.below("flops", flops), n=sizes["pool"], candidates=1, select="shallow", **options)
    texts = [one.architecture.to_json() for one in drawn if one.params <= bounds["params"]]
    jobs = {text: partial(_scores, text, images, labels, data.classes, stage) for text in texts}
    pool = pd.DataFrame(stage.collect(jobs, "pool", sizes, SCORED_ON, PROXIES, SPECTRA))
    by_rule = benchmarks.Pool(pool.set_index("id"))
    ranks, rng = by_rule.ranks(np.arange(len(by_rule))[None]), np.random.default_rng(stage.seed)

    groups = [(name, f"{name} {seed}") for seed in range(SEEDS) for name in design.REFERENCES]
    feasible = evolution.budget(partial(network.count, **shape), **bounds, resolution=data.input_shape[1])
    source = torch.Generator().manual_seed(stage.seed)
    while sum(group == SPACE for group, _ in groups) < sizes["random"]:
        architecture = evolution.filled(evolution.random_architecture(source), feasible)
        groups += [(SPACE, architecture.to_json())] * feasible(architecture)
    groups += [(POOL, text) for text in rng.permutation(sorted(texts)).tolist()[: sizes["random"]]]
    for select, group in OFFERED.items():  # as anyone would call it
        made = design.design(flops=flops, n=sizes["chosen"], select=select, **options)
        groups += [(group, one.architecture.to_json()) for one in made]
    for rule in RULES:
        order = by_rule.values(rule, ranks, rng)[0].argsort()[::-1][: sizes["chosen"]]
        groups += [(rule, by_rule.table.index[row]) for row in order]
    (dense,) = design.repeated(**design.below("flops", flops), **shape, seed=stage.seed, device=stage.device)
    groups.append((REPEATED, dense.architecture.to_json()))
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


def measure(stage: Stage, text: str, data: Dataset, epochs: int, *, checkpoint: store.Checkpoint) -> dict:
    """One network trained once: its costs, its accuracy on all test images and on each half of them, its seconds."""
    shape, seed = {"input_shape": data.input_shape, "classes": data.classes}, stage.seed
    kind, _, number = text.rpartition(" ")
    if kind in design.REFERENCES:
        made = design.reference(kind, flops=stage.scale.selection["flops"], **shape)
        model, costs, seed = made.model, made.costs, seed + int(number)
    else:
        architecture = Architecture.from_json(text)
        model, costs = network.build(architecture, **shape, seed=seed), network.count(architecture, **shape)
    half, options = data.size("test") // 2, {"seed": seed, "device": stage.device, "epochs": epochs}
    options["batch_size"] = cut_batch(RECIPES[RECIPE].batch_size, data.size("train"))
    result = train(model, data.subset(n_test=half), RECIPE, checkpoint=checkpoint, **options)
    told = {"epochs": epochs, "params": costs.params, "flops": costs.flops, "seed": seed}
    told |= {"layers": len(benchmarks.weighted_layers(model)), "seconds": round(result.seconds, 1)}
    lost = told | dict.fromkeys(["accuracy", *HALVES], None)
    if (first := result.accuracy) is None:
        return lost
    rest, share = (data.test_images[half:], data.test_labels[half:]), half / data.size("test")
    try:
        second = evaluate(model, *rest, mean=data.mean, std=data.std, device=stage.device)
    except DivergedError:
        return lost
    return told | {"accuracy": share * first + (1 - share) * second, "deciding": first, "reported": second}


def whole(rows: pd.DataFrame) -> pd.DataFrame:
    """The trainings of full length; one that "diverged" counts at `CHANCE`, and its seconds not at all."""
    rows = rows[rows["epochs"] == rows["epochs"].max()]
    lost, filled = rows["accuracy"].isna(), rows[["accuracy", *HALVES]].fillna(CHANCE)
    return rows.assign(diverged=lost, seconds=rows["seconds"].mask(lost), **filled)


def by_group(rows: pd.DataFrame, groups: pd.DataFrame) -> pd.DataFrame:
    """Each rule's and reference's mean accuracy with its 95% interval; a training that diverged counts at chance."""
    joined = groups.merge(whole(rows), on="name").groupby("group", sort=False)
    table = pd.DataFrame({"n": joined.size(), "mean": joined["accuracy"].mean()})
    intervals = pd.DataFrame([mean_interval(part) for _, part in joined["accuracy"]], index=table.index)
    costs = joined[["params", "flops", "layers", "seconds"]].mean().round(1)
    return table.join([intervals, costs]).reset_index()


def ranking(rows: pd.DataFrame) -> dict[str, float]:
    """Whether the protocol ranks: Spearman of accuracy after half the epochs and all of them, and of how many networks.

    "best" is the best accuracy of a ResNet-8: networks below `MIN_REFERENCE` have only begun to learn.
    """
    lengths = rows.fillna({"accuracy": CHANCE}).pivot_table(index="name", columns="epochs", values="accuracy")
    longest, both = lengths[lengths.columns.max()], lengths.dropna()
    rho = float(both.corr("spearman").iloc[0, -1]) if len(both) > 2 and both.shape[1] > 1 else float("nan")
    return {"rho": rho, "n": len(both), "best": float(longest[longest.index.str.startswith("ResNet-8")].max())}


def verdicts(rows: pd.DataFrame, groups: pd.DataFrame) -> pd.DataFrame:
    """Each condition that is written above, for each `select` that `design` offers, on the half that is reported.

    Columns: select, condition, value, control (which), control_value, difference with its 95% interval, floor (of the
    difference; of the value where it has no control), holds; n of its networks; deciding, their mean on the other half.
    """
    told, joined = ranking(rows), groups.merge(whole(rows), on="name")
    means = joined.groupby("group")[[*HALVES, "seconds"]].mean()
    hand = means.loc[list(design.REFERENCES), "deciding"].idxmax()
    table = pd.DataFrame()
    for select, group in OFFERED.items():
        ours = joined[joined["group"] == group]
        lines = [
            {"condition": "rank correlation of half and all epochs", "value": told["rho"], "floor": MIN_RHO},
            {"condition": "best ResNet-8", "value": told["best"], "floor": MIN_REFERENCE},
        ]
        for control, floor in ((hand, -REFERENCE_POINTS), (SPACE, RANDOM_POINTS)):
            gap = mean_difference(ours["reported"], joined.loc[joined["group"] == control, "reported"])
            lines.append({"condition": "accuracy", "control": control, "column": "reported", **gap, "floor": floor})
        lines.append({"condition": "seconds", "control": hand, "column": "seconds"})
        for line in lines[2:]:
            column = line.pop("column")
            line |= {"value": means[column][group], "control_value": means[column][line["control"]]}
        lines = pd.DataFrame(lines).assign(select=select, n=len(ours), deciding=means["deciding"][group])
        table = pd.concat([table, lines], ignore_index=True)
    reached = table["difference"].fillna(table["value"]) >= table["floor"]
    within = table["value"] <= MOST_SECONDS * table["control_value"]
    return table.assign(holds=reached.where(table["condition"] != "seconds", within))


def default(table: pd.DataFrame) -> str | None:
    """The `select` that earned to be the default: where all `verdicts` hold, the best on the half that decides."""
    earned = table.groupby("select").agg({"holds": "all", "deciding": "first"}).query("holds")
    return None if earned.empty else earned["deciding"].idxmax()
