"""Stage "selection": every rule's networks are trained once, and a diverged one counts at chance."""

import dataclasses
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from graphnas_lib import design, stages
from graphnas_lib.paper import SCALES, STAGES
from graphnas_lib.stages import selection
from graphnas_lib.training import Recipe, sgd

LITE = Path(__file__).resolve().parents[1] / "data" / "lite"
TINY = {"flops": 2e6, "pool": 6, "chosen": 1, "random": 1, "images": 64, "test_images": 32, "epochs": 2, "pilot": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(rows, groups, pool, facts) of a tiny run on digits."""
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
        files = [pd.read_csv(home / "data" / "lite" / f"selection_{name}.csv") for name in ("rows", "groups", "pool")]
    return *files, facts


def test_every_distinct_network_is_trained_once_and_the_first_also_for_half_as_long(made):
    rows, groups, pool, _ = made
    assert set(rows[rows["epochs"] == 2]["name"]) == set(groups["name"])
    pairs = groups[["name", "network"]].drop_duplicates()
    assert pairs["name"].is_unique and pairs["network"].is_unique
    assert rows[rows["epochs"] == 1]["name"].tolist() == ["plain CNN, 1"] and not rows.duplicated("id").any()
    assert len(pool) == 6 and (rows["flops"] <= 1.03 * 2e6).all()
    assert groups.groupby("group").size().to_dict() == {
        **dict.fromkeys((*selection.RULES, selection.GENERATOR, selection.POOL, selection.SPACE), 1),
        "plain CNN": 2,
    }


def test_each_rule_takes_the_best_of_the_pool_by_its_own_score(made):
    _, groups, pool, _ = made
    chosen, pool = groups.set_index("group")["network"], pool.set_index("id")
    assert chosen["tcet"] == pool["tcet"].idxmax() and chosen["params"] == pool["params"].idxmax()
    assert chosen["tcet_per_layer"] == (pool["tcet"] / pool["layers"]).idxmax()


def test_a_training_that_diverged_counts_at_chance():
    rows = pd.DataFrame({"name": ["a", "b", "a"], "epochs": [2, 2, 1], "accuracy": [50.0, None, 99.0]})
    rows = rows.assign(params=1, layers=1, seconds=1)
    groups = pd.DataFrame({"group": ["rule", "rule"], "name": ["a", "b"]})
    found = selection.by_group(rows, groups).iloc[0]
    assert found["mean"] == 30 and found["n"] == 2 and found["low"] < 30 < found["high"]


def test_a_rule_becomes_the_default_where_it_beats_chance_choices_for_certain():
    accuracy = {"tcet": [50, 52, 51], "params": [70, 71, 72], "naswot": [60, 90, 55], selection.POOL: [50, 51, 53]}
    accuracy |= dict.fromkeys(design.REFERENCES, [60, 61, 62]) | {"ResNet-8": [70, 72, 74], selection.SPACE: [40] * 3}
    accuracy |= dict.fromkeys({*selection.RULES, selection.GENERATOR} - set(accuracy), [30, 31, 32])
    groups = pd.DataFrame([(group, f"{group}, {i}") for group in accuracy for i in range(3)], columns=["group", "name"])
    values = [value for values in accuracy.values() for value in values]
    rows = groups.assign(epochs=4, accuracy=values, params=1, layers=1, seconds=1).drop(columns="group")
    both = pd.concat([rows, rows.assign(epochs=2)])

    def decided(changed: pd.DataFrame) -> str | None:
        return selection.default(selection.by_group(changed, groups), changed, groups)

    def moved(column: str, start: str, by: float) -> pd.DataFrame:
        rows = both.reset_index(drop=True)
        return rows.assign(**{column: rows[column] + by * rows["name"].str.startswith(start)})

    assert decided(both) == "params"
    assert decided(moved("accuracy", "params", -10)) is None  # naswot's mean is higher, for what it is worth
    assert decided(moved("accuracy", "ResNet-8", 10)) is None  # too far below what a hand writes
    assert decided(moved("accuracy", "ResNet-8", -20)) is None  # trainings that have only begun
    assert decided(moved("accuracy", "space", 29)) is None  # no better than anything in the space
    assert decided(moved("seconds", "params", 2)) is None
    assert decided(rows) is None  # nothing tells that the protocol ranks


def test_the_protocol_ranks_where_half_as_long_trainings_agree():
    names = [*"abcd", "ResNet-8, 1"]
    rows = pd.DataFrame({"name": names * 2, "epochs": [4] * 5 + [2] * 5, "accuracy": [1, 2, 3, 4, 72, 1, 2, 3, 4, 50]})
    assert selection.ranking(rows) == {"rho": 1.0, "n": 5, "best": 72.0}
    assert selection.ranking(rows.assign(accuracy=[1, 2, 3, 4, 5, 5, 4, 3, 2, 1]))["rho"] == -1.0


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
