"""Stage "table1": random, neighbourhood and CCNF sampling around the NATS reference, cells trained (Tab. 1)."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import pandas as pd
from torch import Tensor

from graphnas_lib import datasets, proxies, store, synonyms
from graphnas_lib.clusters import ZC_NAMES
from graphnas_lib.datasets import Dataset
from graphnas_lib.macro import stack_cell
from graphnas_lib.network import build
from graphnas_lib.paper import TABLE_1
from graphnas_lib.plots import mean_difference
from graphnas_lib.space import REFERENCE_CELL, Cell
from graphnas_lib.stages.stage import Stage, measured
from graphnas_lib.synonyms import CellSampler, Generated
from graphnas_lib.training import RECIPES, train

RECIPE = "nats12"
REFERENCE = "NATS-Bench ref."
FLOW = ("CCNF", "CCNF, checked")  # as drawn, which is the paper's and decides; and ours (deviation D49)
STRATEGIES = ("Random", "Neighbourhood", *FLOW)
CHANCE = 10.0  # accuracy (%) of guessing one of ten classes
QUANTITIES = {  # the paper's column -> ours, and its unit
    **{"NASWOT": ("naswot", 1), "SNIP": ("snip_ssnr", 1e4)},
    **{"Params. (M)": ("params", 1e6), "FLOPs (M)": ("flops", 1e6), "C-10 Mean": ("accuracy", 1)},
}


def make(stage: Stage) -> tuple[dict, dict]:
    """The first twenty decodes of a strategy give its success rate; the first valid cells are trained."""
    scale = stage.scale
    sampler = CellSampler.load(scale.name, device=stage.device)
    scoring = datasets.load("auto", resolution=scale.label_resolution)
    images, targets = scoring.batch(scale.label_batch, device=stage.device)
    vector = partial(proxies.zc_vector, images=images, labels=targets, classes=scoring.classes)
    data = datasets.load(
        "auto", resolution=scale.train_resolution, n_train=scale.train_images, n_test=scale.test_images
    )
    condition = sampler.families.transform(vector(REFERENCE_CELL, seed=stage.seed))
    strategies, facts = sampled(sampler, condition, stage)
    job = partial(measure, stage, data, vector)
    jobs = {
        f"{REFERENCE} {i}": partial(job, REFERENCE, REFERENCE_CELL, stage.seed + i)
        for i in range(scale.reference_seeds)
    }
    for name, generated in strategies.items():
        for i, cell in enumerate(generated.valid[: scale.table1_cells]):
            jobs[f"{name} {i}"] = partial(job, name, cell, stage.seed)
    cells = {name: [cell.key() for cell in found.valid] for name, found in strategies.items()}
    table = pd.DataFrame(stage.trainings(jobs, "trainings", RECIPES[RECIPE], cells))
    first = {name: [cell for cell in found.cells[: scale.table1_decodes] if cell] for name, found in strategies.items()}
    facts |= {
        "success": {name: [len(cells), scale.table1_decodes] for name, cells in first.items()},
        "distinct": {name: len({cell.key() for cell in cells}) for name, cells in first.items()},
        **{"recipe": RECIPE, "epochs": scale.train_epochs, "width": scale.train_width, "repeats": scale.train_repeats},
        **{"data": data.source, "resolution": scale.train_resolution},
        **{"n_train": data.size("train"), "n_test": data.size("test")},
    }
    return {"table1_rows.csv": table}, facts


def sampled(sampler: CellSampler, condition: Tensor, stage: Stage) -> tuple[dict[str, Generated], dict]:
    """What the samplers gave, and facts; the neighbourhood is the smallest that gives as many distinct cells as flow.

    Twice the decodes: what fails among the first is made up for by the next.
    """
    decodes = stage.scale.table1_decodes
    n = 2 * decodes
    flow = synonyms.ccnf_cells(sampler, condition, n, seed=stage.seed)
    near, sigma = synonyms.matched_neighbourhood(sampler, REFERENCE_CELL, flow.valid[:decodes], n, seed=stage.seed)
    random = synonyms.random_cells(sampler, n, seed=stage.seed)
    checked = synonyms.ccnf_cells(sampler, condition, decodes, seed=stage.seed, checked=True)
    found = dict(zip(STRATEGIES, (random, near, flow, checked), strict=True))
    return found, {"sigma": sigma, "decodes_checked": checked.n_attempts}


def measure(
    stage: Stage,
    data: Dataset,
    vector: Callable[..., Tensor],
    strategy: str,
    x: Cell,
    seed: int,
    *,
    checkpoint: store.Checkpoint,
) -> dict:
    """One row: the cell's ZC vector on alpha_x, and its accuracy after training the reduced alpha_x."""
    scale = stage.scale
    architecture = stack_cell(x, width=scale.train_width, repeats=scale.train_repeats)
    model = build(architecture, input_shape=data.input_shape, classes=data.classes, seed=seed)
    options = {"epochs": scale.train_epochs, "batch_size": min(256, data.size("train") // 8)}
    result = train(model, data, RECIPE, seed=seed, device=stage.device, checkpoint=checkpoint, **options)
    return {
        "strategy": strategy,
        **dict(zip(ZC_NAMES, vector(x, seed=seed).tolist(), strict=True)),
        "accuracy": result.accuracy,
        "diverged": result.diverged,
        "seconds": round(result.seconds, 2),
        "seed": seed,
        "key": x.key(),
        "cell": json.dumps(x.to_dict()),
    }


def load(scale: str) -> tuple[pd.DataFrame, dict]:
    """Rows of trained cells, and the stage's facts (success, sigma, recipe); a run that diverged counts at `CHANCE`."""
    table = store.load("table1", "table1_rows.csv", scale)
    return table.fillna({"accuracy": CHANCE}), store.load_manifest("table1", scale)["config"]


def summary(table: pd.DataFrame, facts: dict) -> dict[str, dict[str, dict]]:
    """Our Table 1 in the form that `plots.compare` takes."""
    ours = {}
    for strategy, group in table.groupby("strategy", sort=False):
        row = {column: measured(group[name] / unit) for column, (name, unit) in QUANTITIES.items()}
        if strategy in facts["success"]:
            good, tried = facts["success"][strategy]
            row["Gen. success"] = {"value": f"{good}/{tried}", "n": tried}
            row["C-10 Min"] = {"value": group["accuracy"].min(), "n": len(group)}
            row["C-10 Max"] = {"value": group["accuracy"].max(), "n": len(group)}
        ours[strategy] = row
    return ours


def published() -> pd.DataFrame:
    """The paper's accuracies (%): name of the strategy, low, mean and high; of the reference its one number."""
    rows = []
    for row in TABLE_1:
        mean = row["C-10 Mean"].value
        ends = {"low": row["C-10 Min"].value or mean, "high": row["C-10 Max"].value or mean}
        rows.append({"name": row.key, "mean": mean, **ends})
    return pd.DataFrame(rows)


def difference(table: pd.DataFrame, a: str, b: str) -> dict[str, float]:
    """Mean accuracy of strategy `a` minus `b`, with Welch's 95% interval, in points."""
    return mean_difference(*(table.loc[table["strategy"] == name, "accuracy"].to_numpy() for name in (a, b)))
