"""Stage "selection": every rule's networks are trained once, and a diverged one counts at chance."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from graphnas_lib import design, stages
from graphnas_lib.paper import SCALES, STAGES
from graphnas_lib.stages import selection
from graphnas_lib.training import Recipe, sgd

LITE = Path(__file__).resolve().parents[1] / "data" / "lite"
TINY = {
    "params": 3e5,
    "flops": 2e6,
    "pool": 6,
    "chosen": 1,
    "random": 1,
    "images": 64,
    "test_images": 32,
    "epochs": 2,
    "pilot": 1,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(rows, groups, pool, facts, files of unfinished work that are left) of a tiny run on digits."""
    home = tmp_path_factory.mktemp("selection")
    (home / "data" / "lite").mkdir(parents=True)
    for stage in STAGES["selection"].needs:
        for path in LITE.glob(f"{stage}*"):
            if path.is_file():
                shutil.copy(path, home / "data" / "lite")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRAPHNAS_HOME", str(home))
        patch.setenv("GRAPHNAS_DATA", str(home))
        patch.setattr(design, "REFERENCES", {"plain CNN": design.REFERENCES["plain CNN"]})
        tiny = dataclasses.replace(SCALES["lite"], selection=TINY, tcet_resolution=8)
        patch.setitem(SCALES, "lite", tiny)
        facts = stages.run("selection", "lite", progress=False, device="cpu")
        kept = [path.name for path in (home / "data" / "lite" / "checkpoints").glob("selection*")]
        files = [pd.read_csv(home / "data" / "lite" / f"selection_{name}.csv") for name in ("rows", "groups", "pool")]
    return *files, facts, kept


def test_every_distinct_network_is_trained_once_and_the_first_also_for_half_as_long(made):
    rows, groups, pool, facts, kept = made
    assert set(rows[rows["epochs"] == 2]["name"]) == set(groups["name"])
    pairs = groups[["name", "network"]].drop_duplicates()
    assert pairs["name"].is_unique and pairs["network"].is_unique
    assert rows[rows["epochs"] == 1]["name"].tolist() == ["plain CNN, 1"] and not rows.duplicated("id").any()
    assert len(pool) == 6 and (rows["flops"] <= 1.05 * 2e6).all() and (rows["params"] <= 3e5).all()
    once = (*selection.RULES, *selection.OFFERED.values(), selection.POOL, selection.SPACE, selection.REPEATED)
    assert groups.groupby("group").size().to_dict() == dict.fromkeys(once, 1) | {"plain CNN": 2}
    halves = rows[selection.HALVES].mean(axis=1)
    assert np.allclose(halves, rows["accuracy"])
    assert facts["config"]["workers"] == 2
    assert len(kept) == 1 and kept[0].startswith("selection_scores-")  # trainings outlive the run that asked for them


def test_each_rule_takes_the_best_of_the_pool_by_its_own_score(made):
    _, groups, pool, *_ = made
    chosen, pool = groups.set_index("group")["network"], pool.set_index("id")
    assert chosen["tcet"] == pool["tcet"].idxmax() and chosen["flops"] == pool["flops"].idxmax()
    assert chosen["tcet_per_layer"] == (pool["tcet"] / pool["layers"]).idxmax()


def trained(accuracy: dict[str, list[float]], **columns) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(rows, groups): networks of groups with the same accuracy on all images, after four epochs and after two."""
    pairs = [(name, f"{name}, {i}") for name, values in accuracy.items() for i in range(len(values))]
    groups = pd.DataFrame(pairs, columns=["group", "name"])
    values = [value for values in accuracy.values() for value in values]
    same = dict.fromkeys(["accuracy", *selection.HALVES], values)
    costs = dict.fromkeys(["params", "flops", "layers", "seconds"], 1) | columns
    rows = groups.assign(epochs=4, **same, **costs).drop(columns="group")
    return pd.concat([rows, rows.assign(epochs=2)], ignore_index=True), groups


def test_a_training_that_diverged_counts_at_chance_and_its_seconds_not():
    rows, groups = trained({"rule": [50.0, None]}, seconds=[8.0, 2.0])
    found = selection.by_group(rows, groups).iloc[0]
    assert found["mean"] == 30 and found["n"] == 2 and found["low"] < 30 < found["high"] and found["seconds"] == 8


def test_what_is_offered_becomes_the_default_where_every_condition_holds():
    accuracy = dict.fromkeys(design.REFERENCES, [60, 61, 62]) | {
        "ResNet-8": [70, 72, 74],
        selection.SPACE: [40, 41, 42],
    }
    accuracy |= {"design, T-CET": [34, 35, 36], "design, shallow": [70, 71, 72], selection.POOL: [50, 51, 53]}
    rows, groups = trained(accuracy)

    def decided(changed: pd.DataFrame) -> str | None:
        return selection.default(selection.verdicts(changed, groups))

    def moved(start: str, by: float, *columns: str) -> pd.DataFrame:
        at = by * rows["name"].str.startswith(start)
        return rows.assign(**{column: rows[column] + at for column in columns or ("accuracy", *selection.HALVES)})

    table = selection.verdicts(rows, groups)
    assert decided(rows) == "shallow" and len(table) == 10 and table["holds"].sum() == 8
    row = table.query("select == 'shallow' and control == 'ResNet-8' and condition == 'accuracy'").iloc[0]
    assert (row["value"], row["control_value"], row["difference"], row["floor"], row["n"]) == (71, 72, -1, -3, 3)
    assert row["low"] < -1 < row["high"]
    assert decided(moved("design, shallow", -3)) is None  # too far below what a hand writes
    assert decided(moved("design, shallow", -3, "accuracy", "deciding")) == "shallow"  # the other half is reported
    assert decided(moved("design, T-CET", 40)) == "tcet"
    assert decided(moved("design, T-CET", 40, "accuracy", "reported")) == "shallow"  # the other half decides
    assert decided(moved("ResNet-8", -20)) is None  # trainings that have only begun
    assert decided(moved("space", 29)) is None  # no better than anything in the space
    assert decided(moved("design, shallow", 1.5, "seconds")) is None
    assert decided(rows[rows["epochs"] == 4]) is None  # nothing tells that the protocol ranks


def test_the_protocol_ranks_where_half_as_long_trainings_agree():
    names = [*"abcd", "ResNet-8, 1"]
    accuracy = [11, 12, 13, 14, 72, 11, 12, 13, 14, 50]
    rows = pd.DataFrame({"name": names * 2, "epochs": [4] * 5 + [2] * 5, "accuracy": accuracy})
    assert selection.ranking(rows) == {"rho": 1.0, "n": 5, "best": 72.0}
    diverged = rows.assign(accuracy=[None, *accuracy[1:]])
    assert selection.ranking(diverged) == {"rho": 1.0, "n": 5, "best": 72.0}  # at chance, and still one of five
    assert selection.ranking(rows.assign(accuracy=[11, 12, 13, 14, 15, 15, 14, 13, 12, 11]))["rho"] == -1.0


def test_a_clipped_step_is_no_longer_than_asked():
    recipe = Recipe(
        name="one", epochs=1, batch_size=2, lr=1.0, momentum=0.0, nesterov=False, weight_decay=0.0, clip=0.1
    )

    def moved(recipe):
        model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(model.weight)
        sgd.fit(
            model,
            recipe,
            2,
            lambda index, seed: (torch.ones(len(index), 1), lambda outputs: 5 * outputs.sum()),
            seed=0,
            device=torch.device("cpu"),
        )
        return model.weight.item()

    assert moved(recipe) == pytest.approx(-0.1, rel=1e-4)
    assert moved(dataclasses.replace(recipe, clip=None)) == pytest.approx(-10)
