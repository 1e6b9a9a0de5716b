"""Stage "table1": random, neighbourhood and CCNF sampling around the NATS reference, cells trained (Tab. 1)."""

from __future__ import annotations

import json
from functools import partial

import pandas as pd
from torch import Tensor

from graphnas_lib import proxies, store, synonyms
from graphnas_lib.clusters import ZC_NAMES
from graphnas_lib.datasets import Dataset
from graphnas_lib.macro import stack_cell
from graphnas_lib.network import build
from graphnas_lib.plots import mean_difference
from graphnas_lib.space import REFERENCE_CELL, Cell
from graphnas_lib.stages import rows
from graphnas_lib.stages.road import Stage
from graphnas_lib.synonyms import CellSampler, Generated
from graphnas_lib.training import train

DECODES = 20  # paper: Tab. 1, cells a strategy
REFERENCE_SEEDS = 3
REFERENCE = "NATS-Bench ref."
FLOW = ("CCNF", "CCNF, checked")  # as drawn, which is the paper's and decides; and ours (deviation D49)
STRATEGIES = ("Random", "Neighbourhood", *FLOW)


def make(stage: Stage) -> dict:
    """The first twenty decodes of a strategy give its success rate; the first valid cells are trained."""
    scale = stage.scale
    sampler = CellSampler.load(scale.name, device=stage.device)
    scoring = stage.dataset(resolution=scale.label_resolution)
    batch = scoring.batch(scale.label_batch, device=stage.device)
    data = stage.dataset(resolution=scale.train_resolution, n_train=scale.train_images, n_test=scale.test_images)
    z = proxies.zc_vector(REFERENCE_CELL, *batch, seed=stage.seed, classes=scoring.classes)
    condition = sampler.families.transform(z)
    strategies = _strategies(sampler, condition, stage)
    jobs = {}
    options = {"stage": stage, "batch": batch, "data": data, "classes": scoring.classes}
    for seed in range(REFERENCE_SEEDS):
        jobs[f"{REFERENCE} {seed}"] = _job(REFERENCE, REFERENCE_CELL, stage.seed + seed, **options)
    for name, generated in strategies.items():
        for i, cell in enumerate(generated.valid[: scale.table1_cells]):
            jobs[f"{name} {i}"] = _job(name, cell, stage.seed, **options)
    table = pd.DataFrame(rows.collect(jobs, stage.checkpoint(), device=stage.device, progress=stage.progress))
    first = {name: [cell for cell in found.cells[:DECODES] if cell] for name, found in strategies.items()}
    success = {name: [len(cells), DECODES] for name, cells in first.items()}
    distinct = {name: len({cell.key() for cell in cells}) for name, cells in first.items()}
    stage.config.update(success=success, distinct=distinct, recipe="nats12", epochs=scale.train_epochs)
    stage.config.update(width=scale.train_width, repeats=scale.train_repeats, resolution=scale.train_resolution)
    stage.config.update(n_train=data.size("train"), n_test=data.size("test"))
    return {"table1_rows.csv": table}


def _strategies(sampler: CellSampler, condition: Tensor, stage: Stage) -> dict[str, Generated]:
    """The samplers; the neighbourhood is the smallest that gives as many distinct cells as the flow.

    Twice the decodes: what fails among the first is made up for by the next.
    """
    n = 2 * DECODES
    flow = synonyms.ccnf_cells(sampler, condition, n, seed=stage.seed)
    near, sigma = synonyms.matched_neighbourhood(sampler, REFERENCE_CELL, flow.valid[:DECODES], n, seed=stage.seed)
    random = synonyms.random_cells(sampler, n, seed=stage.seed)
    checked = synonyms.ccnf_cells(sampler, condition, DECODES, seed=stage.seed, checked=True)
    stage.config.update(sigma=sigma, decodes_checked=checked.n_attempts)
    return dict(zip(STRATEGIES, (random, near, flow, checked), strict=True))


def _job(name: str, cell: Cell, seed: int, *, stage: Stage, batch, data: Dataset, classes: int):
    return partial(
        measure,
        name,
        cell.to_dict(),
        seed,
        batch=batch,
        data=data,
        classes=classes,
        width=stage.scale.train_width,
        repeats=stage.scale.train_repeats,
        epochs=stage.scale.train_epochs,
        device=stage.device.type,
    )


def measure(strategy, cell, seed, *, batch, data, classes, width, repeats, epochs, device) -> dict:
    """One row: the cell's ZC vector on alpha_x, and its accuracy after training the reduced alpha_x."""
    x = Cell.from_dict(cell)
    z = proxies.zc_vector(x, *batch, seed=seed, classes=classes)
    architecture = stack_cell(x, width=width, repeats=repeats)
    model = build(architecture, input_shape=data.input_shape, classes=data.classes, seed=seed)
    result = train(
        model, data, "nats12", seed=seed, device=device, epochs=epochs, batch_size=min(256, data.size("train") // 8)
    )
    zc = dict(zip(ZC_NAMES, z.tolist(), strict=True))
    return {
        "strategy": strategy,
        **zc,
        "accuracy": result.accuracy,
        "diverged": result.diverged,
        "seconds": round(result.seconds, 2),
        "seed": seed,
        "key": x.key(),
        "cell": json.dumps(cell),
    }


def load(scale: str) -> tuple[pd.DataFrame, dict]:
    """Rows of trained cells, and the stage's facts (success, sigma, recipe)."""
    return store.load("table1", "table1_rows.csv", scale), store.load_manifest("table1", scale)["config"]


def summary(table: pd.DataFrame, facts: dict) -> dict[str, dict[str, dict]]:
    """Our Table 1 in the form that `results.compare` takes."""
    ours = {}
    for strategy, group in table.groupby("strategy", sort=False):
        row = {}
        for column, name, unit in (
            ("NASWOT", "naswot", 1),
            ("SNIP", "snip_ssnr", 1e4),
            ("Params. (M)", "params", 1e6),
            ("FLOPs (M)", "flops", 1e6),
            ("C-10 Mean", "accuracy", 1),
        ):
            values = group[name] / unit
            row[column] = {"value": values.mean(), "spread": values.std() if len(values) > 1 else None, "n": len(group)}
        if strategy in facts["success"]:
            good, tried = facts["success"][strategy]
            row["Gen. success"] = {"value": f"{good}/{tried}", "n": tried}
            row["C-10 Min"] = {"value": group["accuracy"].min(), "n": len(group)}
            row["C-10 Max"] = {"value": group["accuracy"].max(), "n": len(group)}
        ours[strategy] = row
    return ours


def difference(table: pd.DataFrame, a: str, b: str) -> dict[str, float]:
    """Mean accuracy of strategy `a` minus `b`, with Welch's 95% interval, in points."""
    return mean_difference(*(table.loc[table["strategy"] == name, "accuracy"].to_numpy() for name in (a, b)))
