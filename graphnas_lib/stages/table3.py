"""Stage "table3": three designs for each FLOPs budget of Table 3; trained on ImageNet-1k where that is at hand."""

from __future__ import annotations

import os
from functools import partial

import pandas as pd
from torch import nn

from graphnas_lib import datasets, store
from graphnas_lib.datasets import ImageFolderDataset
from graphnas_lib.design import Design, Trained, design
from graphnas_lib.paper import TABLE_3
from graphnas_lib.stages import together
from graphnas_lib.stages.stage import Stage, measured
from graphnas_lib.training import RECIPES, TEACHER, load_teacher, train

SEARCHES = 3  # paper: mean and deviation of three searches, one training each
BUDGETS = ("450M", "600M", "1000M")  # the paper's names, in the order of `Scale.table3_budgets`
RECIPE = "zennas_imagenet"
WITHOUT_TEACHER = "GRAPHNAS_TEACHER"  # names a variable: "none" trains without a teacher


def make(stage: Stage) -> tuple[dict, dict]:
    """Search at every scale; train (ZenNAS's recipe) only at paper scale with the files there."""
    scale = stage.scale
    shape = (3, scale.table3_resolution, scale.table3_resolution)
    options = {"input_shape": shape, "classes": scale.table3_classes}
    options |= {"device": stage.device, "trained": Trained.load(scale.name, device=stage.device)}
    data, jobs = imagenet(scale.name), {}
    taught = teacher()[1] if data is not None else "none"  # asked for before hours of search and days of training
    found = together.shared(stage.name, lambda: searched(stage, options))
    for (name, search), best in found.items() if data is not None else ():
        jobs[f"{name} {search}"] = partial(measure, stage, best, data, stage.seed + search)
    asked = dict(zip(BUDGETS, scale.table3_budgets, strict=True))
    table = pd.DataFrame(
        {"budget": name, "requested": asked[name], "search": search, "design": best.to_json()}
        | {cost: getattr(best, cost) for cost in ("params", "flops", "macs", "tcet")}
        for (name, search), best in found.items()
    )
    best = list(found.values())[-1]
    facts = {"input_shape": list(shape), "classes": scale.table3_classes, "batch": best.batch, "trained": bool(jobs)}
    paper = scale.name == "paper"
    facts["why"] = "needs ImageNet-1k (480 epochs)" if paper else f"ImageNet-1k is not trained on at {scale.name} scale"
    if jobs:
        workers = None if together.accelerator(stage.name) is None else 1
        decides = (RECIPES[RECIPE], [one.architecture.to_json() for one in found.values()], taught)
        rows = stage.trainings(jobs, "trainings", *decides, workers=workers)
        table["accuracy"] = [row["accuracy"] for row in rows]
        facts["teacher"] = rows[0]["teacher"]
    return {"table3_rows.csv": table}, facts


def searched(stage: Stage, options: dict) -> dict[tuple[str, int], Design]:
    """The best design of each search: (budget, search) -> it."""
    return {
        (name, search): design(flops=flops, n=3, seed=stage.seed + search, **options)[0]
        for name, flops in zip(BUDGETS, stage.scale.table3_budgets, strict=True)
        for search in range(SEARCHES)
    }


def imagenet(scale: str) -> ImageFolderDataset | None:
    """ImageNet-1k at paper scale when `imagenet/train` and `imagenet/val` are in the data folders."""
    folders = [root / "imagenet" for root in datasets.roots() if (root / "imagenet" / "train").is_dir()]
    return ImageFolderDataset(folders[0]) if scale == "paper" and folders else None


def measure(stage: Stage, chosen: Design, data: ImageFolderDataset, seed: int, *, checkpoint: store.Checkpoint) -> dict:
    """One row: a design trained on ImageNet-1k, with ZenNAS's teacher unless `$GRAPHNAS_TEACHER` says none."""
    network, name = teacher()
    options = {"seed": seed, "device": stage.device, "teacher": network, "checkpoint": checkpoint}
    several = together.accelerator(stage.name)
    result = train(chosen.build(seed=seed), data, RECIPE, accelerator=several, **options)
    return {"accuracy": result.accuracy, "seconds": result.seconds, "teacher": name}


def teacher() -> tuple[nn.Module | None, str]:
    """ZenNAS's teacher and its name; nobody and "none" where `$GRAPHNAS_TEACHER` says so.

    Raises:
        RuntimeError: its package, or the network that its weights come from, is not there.
    """
    if os.environ.get(WITHOUT_TEACHER) == "none":
        return None, "none"
    try:
        return load_teacher(), TEACHER
    except (ImportError, OSError, RuntimeError) as error:  # no package, no network, no such weights
        raise RuntimeError(
            f"Training on ImageNet-1k needs ZenNAS's teacher: {error} Run `make setup EXTRAS=paper` and let its "
            f"weights be downloaded once, or set {WITHOUT_TEACHER}=none to train without one."
        ) from error


def load(scale: str) -> tuple[pd.DataFrame, dict]:
    """Rows of searched networks, and the stage's facts."""
    return store.load("table3", "table3_rows.csv", scale), store.load_manifest("table3", scale)["config"]


def summary(table: pd.DataFrame, facts: dict) -> dict[str, dict[str, dict]]:
    """Our rows of Table 3; accuracy only where networks were trained on ImageNet-1k."""
    ours = {}
    for budget, group in table.groupby("budget", sort=False):
        note = f"at {facts['input_shape'][1]} px, request {group['requested'].iloc[0] / 1e6:g}M FLOPs (2 x MACs)"
        row = {"Params. (M)": measured(group["params"] / 1e6), "FLOPs (M)": measured(group["flops"] / 1e6)}
        row["Acc. (%)"] = measured(group["accuracy"]) if facts["trained"] else {"value": None, "note": facts["why"]}
        ours[f"{budget}: Ours"] = {name: {"note": note, **value} for name, value in row.items()}
    return ours


def recipe() -> pd.DataFrame:
    """The settings of the training that the paper takes over from ZenNAS, one a line."""
    return pd.Series(vars(RECIPES[RECIPE])).map(str).rename_axis("setting").reset_index(name="value")


def points(table: pd.DataFrame) -> pd.DataFrame:
    """What `plots.plot_accuracy_by_flops` draws: name, whose ("quoted", "paper", "here"), flops and accuracy (%).

    Rows of the paper without both numbers are left out; ours have no accuracy where nothing was trained.
    """
    rows = [
        {"name": row.key, "whose": "quoted" if row.quoted else "paper", "flops": 1e6 * flops, "accuracy": accuracy}
        for row in TABLE_3
        if (flops := row["FLOPs (M)"].value) and (accuracy := row["Acc. (%)"].value)
    ]
    own = table.assign(name=table["budget"], whose="here").reindex(columns=["name", "whose", "flops", "accuracy"])
    return pd.concat([pd.DataFrame(rows), own], ignore_index=True)
