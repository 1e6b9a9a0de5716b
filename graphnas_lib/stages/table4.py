"""Stage "table4": designs for each NAS-Bench-360 task whose files are there, trained on it (Tab. 4).

Every network has one budget: that of the scale, or the Wide-ResNet's parameters (Sec. 4.3). Beside the design of the
paper's rule stand one of few cells (`select="shallow"`), a Wide-ResNet as wide as the budget lets it, trained in the
same way, and ridge regression.
"""

from __future__ import annotations

import math
from functools import partial

import pandas as pd
import torch

from graphnas_lib import benchmarks, datasets, store
from graphnas_lib.datasets import TASKS, Task
from graphnas_lib.design import BudgetUnreachable, Design, Trained, design, reference
from graphnas_lib.paper import TABLE_4
from graphnas_lib.stages import evidence
from graphnas_lib.stages.stage import Stage
from graphnas_lib.training import RECIPES, cut_batch, ridge_regression, train_task

COLUMNS = {  # task -> the paper's column
    **{"spherical": "Spherical", "darcy": "Darcy Flow", "psicov": "PSICOV", "cosmic": "Cosmic"},
    **{"ninapro": "NinaPro", "ecg": "ECG", "satellite": "Satellite", "deepsea": "DeepSEA"},
}
OURS, SHALLOW, WIDE, RIDGE = "Ours", "Ours, shallow", "Wide-ResNet", "ridge regression"
NATS = "NATS cell of highest T-CET, public table"
CANDIDATES = 10  # Sec. 4.3: the best of ten
MISSING = "its files are not there"
DIVERGED = "training diverged"


def make(stage: Stage) -> tuple[dict, dict]:
    """Draw the designs, then train them and their rivals; a killed run goes on inside the training that it was in."""
    scale, available = stage.scale, datasets.available()
    trained = Trained.load(scale.name, device=stage.device) if available else None
    asked = {f"{name}, {method}": (name, method) for name in available for method in (OURS, SHALLOW)}
    drawn = {key: partial(draw, stage, trained, *pair) for key, pair in asked.items()}
    designs = {row["id"]: row for row in stage.collect(drawn, "designs", workers=1)}
    jobs = {
        f"{name}, {method}": partial(measure, stage, name, method, designs.get(f"{name}, {method}", {}))
        for name in available
        for method in (OURS, SHALLOW, WIDE, RIDGE)
    }
    decides = ({name: TASKS[name] for name in available}, RECIPES[scale.table4_recipe], designs)
    rows = stage.trainings(jobs, "tasks", *decides)
    absent = {"method": OURS, "value": math.nan, "note": MISSING}
    rows += [{"task": name, **absent} for name in TASKS if name not in available]
    rows += from_table()
    facts = {"available": list(available), "limit": scale.table4_samples, "epochs": scale.table4_epochs}
    return {"table4_rows.csv": pd.DataFrame(rows)}, facts | {"recipe": scale.table4_recipe}


def from_table() -> list[dict]:
    """Errors on two tasks of the NATS-Bench cell of the highest T-CET, by HW-NAS-Bench-360; none without its table."""
    try:
        cells = benchmarks.networks("nats", evidence.load_scores())
    except (datasets.MissingDataError, store.MissingArtifactError):
        return []
    best = cells.loc[cells["tcet"].idxmax()]  # accuracies in points
    errors = {"ninapro": 100 - best.get("ninapro", math.nan), "darcy": 1 - best.get("darcy", math.nan) / 100}
    return [{"task": task, "method": NATS, "value": error, "note": ""} for task, error in errors.items()]


def load_task(stage: Stage, name: str) -> Task:
    """A task, cut to the scale."""
    return datasets.load_task(name, limit=stage.scale.table4_samples, seed=stage.seed)


def budget(stage: Stage, task: Task) -> dict[str, float]:
    """The bound of every network on a task."""
    return dict([stage.scale.table4_budget or ("params", task.facts.wrn_params)])


def draw(stage: Stage, trained: Trained, name: str, method: str) -> dict:
    """The design of one rule, best of ten, chosen on real samples of the task; or why there is none."""
    task = load_task(stage, name)
    inputs, targets, _ = task.train.fetch(torch.arange(min(16, len(task.train))))
    given = {} if task.facts.kind != "points" else {"images": inputs, "labels": targets}
    given |= {"input_shape": task.input_shape, "dense": task.dense, "classes": task.facts.classes, "trained": trained}
    given |= {"select": "shallow" if method == SHALLOW else "tcet", "seed": stage.seed, "device": stage.device}
    given |= {"n": CANDIDATES, "candidates": min(CANDIDATES, stage.scale.best_of)}
    try:
        return {"design": design(**budget(stage, task), **given)[0].to_json()}
    except BudgetUnreachable as error:
        return {"note": str(error)}


def measure(stage: Stage, name: str, method: str, drawn: dict, *, checkpoint: store.Checkpoint) -> dict:
    """One row: a network trained on a task and its metric on the test split, or ridge regression's."""
    scale, task = stage.scale, load_task(stage, name)
    row = {"task": name, "method": method, **drawn, "metric": task.facts.metric}
    row |= {"n_train": len(task.train), "n_test": len(task.test), "source": task.source}
    if method == RIDGE:
        large = {"value": None, "note": "inputs too large for ridge regression"}
        return row | (large if task.train.lazy else {"value": ridge_regression(task), "chance": task.chance()})
    if method == WIDE:
        shape = {"input_shape": task.input_shape, "classes": task.facts.classes, "dense": task.dense}
        try:
            made = reference("WRN-16", **budget(stage, task), **shape)
        except BudgetUnreachable as error:
            return row | {"value": None, "note": str(error)}
        model, costs = made.model, made.costs
    elif "design" not in drawn:
        return row | {"value": None}
    else:
        costs = Design.from_json(drawn["design"])
        model = costs.build(seed=stage.seed)
    options = {"epochs": scale.table4_epochs, "batch_size": cut_batch(task.facts.batch_size, len(task.train))}
    options |= {"recipe": scale.table4_recipe, "seed": stage.seed, "device": stage.device}
    result = train_task(model, task, checkpoint=checkpoint, **options)
    kept = ("value", "chance", "at_chance", "validation", "best_epoch", "epochs")
    return row | {key: getattr(result, key) for key in kept} | {
        **{"params": costs.params, "flops": costs.flops, "seconds": round(result.seconds, 2)},
        "note": DIVERGED if result.diverged else "no better than a constant answer" * result.at_chance,
    }  # fmt: skip


def load(scale: str) -> tuple[pd.DataFrame, dict]:
    """One row a task and method, and the stage's facts."""
    return store.load("table4", "table4_rows.csv", scale), store.load_manifest("table4", scale)["config"]


def tried(table: pd.DataFrame, *methods: str) -> pd.DataFrame:
    """The rows of the tasks whose files are there, those without a value included; of some methods, or of all."""
    asked = table["method"].isin(methods) if methods else table["method"] != NATS
    return table[(table["note"] != MISSING) & asked]


def summary(table: pd.DataFrame, facts: dict) -> dict[str, dict[str, dict]]:
    """Our row of Table 4, and those of what was trained beside it."""
    rows: dict[str, dict[str, dict]] = {}
    for line in table[table["method"] != NATS].to_dict("records"):
        notes = [line["note"]] if pd.notna(line["note"]) and line["note"] else []
        if line["note"] == DIVERGED:  # it was run: the outcome is the number that is not there
            line["value"] = "diverged"
        if pd.notna(line.get("n_train")):
            length = "" if line["method"] == RIDGE else f", {facts['epochs']} epochs"
            notes.append(f"{line['n_train']:.0f} training samples{length}")
        name = line["method"] if line["method"] == OURS else f"{line['method']}, here"
        rows.setdefault(name, {})[COLUMNS[line["task"]]] = {"value": line["value"], "n": 1, "note": "; ".join(notes)}
    return rows


def relative(table: pd.DataFrame) -> pd.DataFrame:
    """Errors as shares of a Wide-ResNet's: a line a task, a column a method.

    The paper's, and those of a public table, are shares of the Wide-ResNet in Table 4, ours ("here") of the one that
    was trained beside them.
    """
    rows = {row.name.split(" ")[0]: row for row in TABLE_4}
    base = {task: rows["WRN"][column].value for task, column in COLUMNS.items()}
    shares = {
        name.replace("Ours", "paper's own"): {t: row[c].value / base[t] for t, c in COLUMNS.items()}
        for name, row in rows.items()
    }
    values = table.assign(value=pd.to_numeric(table["value"], errors="coerce"))
    found = values.pivot(index="task", columns="method", values="value")
    for method in (OURS, SHALLOW, RIDGE) if WIDE in found else ():
        shares[f"{method}, here"] = (found[method] / found[WIDE]).reindex(list(COLUMNS)).to_dict()
    if NATS in found:
        shares[NATS] = {task: error / base[task] for task, error in found[NATS].dropna().items()}
    return pd.DataFrame(shares).drop(columns="WRN").rename_axis("task")


def tasks() -> pd.DataFrame:
    """The eight tasks of Table 4, and which have their files here."""
    here = datasets.available()
    table = pd.DataFrame([{"metric": t.metric, "kind": t.kind, "outputs": t.classes} for t in TASKS.values()])
    table.insert(0, "task", list(TASKS))
    return table.assign(here=table["task"].isin(here))
