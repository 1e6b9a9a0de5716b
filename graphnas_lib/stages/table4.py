"""Stage "table4": a design for each NAS-Bench-360 task whose files are there, trained on it (Tab. 4)."""

from __future__ import annotations

import math
from functools import partial

import pandas as pd
import torch

from graphnas_lib import datasets, store
from graphnas_lib.datasets import TASKS
from graphnas_lib.design import BudgetUnreachable, Design, Trained, design
from graphnas_lib.paper import TABLE_4
from graphnas_lib.stages.stage import Stage
from graphnas_lib.training import cut_batch, train_task

COLUMNS = {  # task -> the paper's column
    **{"spherical": "Spherical", "darcy": "Darcy Flow", "psicov": "PSICOV", "cosmic": "Cosmic"},
    **{"ninapro": "NinaPro", "ecg": "ECG", "satellite": "Satellite", "deepsea": "DeepSEA"},
}
MISSING = "its files are not there"
DIVERGED = "training diverged"


def make(stage: Stage) -> tuple[dict, dict]:
    """Ask for the Wide-ResNet's parameters (Sec. 4.3; scaled down at smoke), best of ten by T-CET, then train."""
    scale = stage.scale
    available = datasets.available()
    trained = Trained.load(scale.name, device=stage.device) if available else None
    jobs = {name: partial(measure, stage, trained, name) for name in available}
    done = {row["task"]: row for row in stage.trainings(jobs, "tasks", {n: TASKS[n] for n in available}, workers=1)}
    table = [done.get(name) or {"task": name, "value": math.nan, "note": MISSING} for name in TASKS]
    facts = {"available": list(available), "limit": scale.table4_samples, "epochs": scale.table4_epochs}
    return {"table4_rows.csv": pd.DataFrame(table)}, facts


def measure(stage: Stage, trained: Trained, name: str, *, checkpoint: store.Checkpoint) -> dict:
    """One row: the design chosen on real samples of the task, and its metric after training."""
    scale, options = stage.scale, {"seed": stage.seed, "device": stage.device}
    task = datasets.load_task(name, limit=scale.table4_samples, seed=stage.seed)
    inputs, targets, _ = task.train.fetch(torch.arange(min(16, len(task.train))))
    given = {} if task.facts.kind != "points" else {"images": inputs, "labels": targets}
    try:
        chosen: Design = design(
            params=task.facts.wrn_params * scale.table4_params_share, input_shape=task.input_shape, dense=task.dense,
            classes=task.facts.classes, n=10, trained=trained, **options, **given,
        )[0]  # fmt: skip
    except BudgetUnreachable as error:
        return {"task": name, "value": None, "note": str(error)}
    size = {"epochs": scale.table4_epochs, "batch_size": cut_batch(task.facts.batch_size, len(task.train))}
    result = train_task(chosen.build(seed=stage.seed), task, checkpoint=checkpoint, **size, **options)
    return {
        "task": name,
        **{key: getattr(result, key) for key in ("value", "metric", "chance", "at_chance", "validation")},
        **{key: getattr(chosen, key) for key in ("params", "flops")},
        **{key: getattr(result, key) for key in ("n_train", "n_test", "epochs")},
        **{"seconds": round(result.seconds, 2), "source": result.source},
        "note": DIVERGED if result.diverged else "no better than a constant answer" * result.at_chance,
        "design": chosen.to_json(),
    }


def load(scale: str) -> tuple[pd.DataFrame, dict]:
    """One row a task, and the stage's facts."""
    return store.load("table4", "table4_rows.csv", scale), store.load_manifest("table4", scale)["config"]


def tried(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the tasks whose files are there, those without a value included."""
    return table[table["note"] != MISSING]


def summary(table: pd.DataFrame, facts: dict) -> dict[str, dict[str, dict]]:
    """Our row of Table 4."""
    row = {}
    for line in table.to_dict("records"):
        notes = [line["note"]] if pd.notna(line["note"]) and line["note"] else []
        if line["note"] == DIVERGED:  # it was run: the outcome is the number that is not there
            line["value"] = "diverged"
        if pd.notna(line.get("n_train")):
            notes.append(f"{line['n_train']:.0f} training samples, {facts['epochs']} epochs")
        row[COLUMNS[line["task"]]] = {"value": line["value"], "n": 1, "note": "; ".join(notes)}
    return {"Ours": row}


def relative(table: pd.DataFrame) -> pd.DataFrame:
    """Errors as shares of the Wide-ResNet's in Table 4: a line a task, a column a method, of which "here" is ours."""
    rows = {row.name.split(" ")[0]: row for row in TABLE_4}
    base = {task: rows["WRN"][column].value for task, column in COLUMNS.items()}
    shares = {
        name.replace("Ours", "paper's own"): {t: row[c].value / base[t] for t, c in COLUMNS.items()}
        for name, row in rows.items()
    }
    here = pd.to_numeric(table.set_index("task")["value"], errors="coerce")
    shares["here"] = {task: here.get(task, math.nan) / base[task] for task in COLUMNS}
    return pd.DataFrame(shares).drop(columns="WRN").rename_axis("task")


def tasks() -> pd.DataFrame:
    """The eight tasks of Table 4, and which have their files here."""
    here = datasets.available()
    table = pd.DataFrame([{"metric": t.metric, "kind": t.kind, "outputs": t.classes} for t in TASKS.values()])
    table.insert(0, "task", list(TASKS))
    return table.assign(here=table["task"].isin(here))
