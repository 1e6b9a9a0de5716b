"""Table 2 from its trained rows: which network is chosen, what the verdicts say, and when nothing can be said."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import ttest_1samp, ttest_ind

from graphnas_lib import datasets, paper
from graphnas_lib.macro import Architecture, Triple
from graphnas_lib.plots import compare, mean_difference, mean_interval
from graphnas_lib.space import REFERENCE_CELL, sample_cells
from graphnas_lib.stages import table2
from graphnas_lib.stages.methods import mixture
from graphnas_lib.stages.table2 import FLAT, HL, QUESTIONS, SG, SIZE, ZEN
from graphnas_lib.training import RECIPES, evaluate


def rows(accuracies: dict[str, list[float]], dataset: str = "cifar10", **columns) -> pd.DataFrame:
    """Trained networks of each method; validation accuracy falls with the rank unless given."""
    lines = [
        {
            **{"method": method, "dataset": dataset, "rank": rank, "accuracy": value, "validation": 50.0 - rank},
            **{"score": 1.0, "params": 1000 + rank, "macs": 10, "flops": 20, "evaluations": 7, "seed": 0},
            **{"search_seconds": 3600.0, "training_seconds": 5.0, "network": "-", **columns},
        }
        for method, values in accuracies.items()
        for rank, value in enumerate(values)
    ]
    return pd.DataFrame(lines)


FACTS = {
    "datasets": {"cifar10": {"source": "images", "n_train": 100, "n_test": 50}},
    "epochs": 2,
    "pretraining_seconds": {HL: 7200.0, SG: 9000.0},
}


def test_difference_of_means_and_its_interval():
    a, b = np.array([3.0, 4.0, 5.0, 4.0]), np.array([1.0, 1.0, 2.0])
    gap = mean_difference(a, b)
    expected = ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert gap["difference"] == pytest.approx(4.0 - 4 / 3)
    assert (gap["low"], gap["high"]) == pytest.approx((expected.low, expected.high))
    assert set(mean_difference([2.0, 2.0], [1.0, 1.0]).values()) == {1.0}
    single = mean_difference([2.0], [1.0, 3.0])
    assert single["difference"] == 0.0 and np.isnan([single["low"], single["high"]]).all()


def test_interval_of_a_mean():
    values = np.array([3.0, 4.0, 5.0, 4.0])
    expected = ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert tuple(mean_interval(values).values()) == pytest.approx((expected.low, expected.high))
    assert np.isnan(list(mean_interval(values[:1]).values())).all()


def test_network_is_chosen_on_validation_and_never_on_test():
    table = rows({FLAT: [40.0, 90.0, 70.0]})
    table["validation"] = [30.0, 20.0, 35.0]
    (line,) = table2.methods(table, FACTS).to_dict("records")
    assert line["chosen"] == 70.0 and line["params"] == 1002
    assert line["mean"] == pytest.approx(200 / 3) and line["n"] == 3 and line["training_seconds"] == 15.0
    assert line["pretraining_seconds"] == 0.0
    assert line["low"] < line["mean"] < line["high"] and line["low"] + line["high"] == pytest.approx(2 * line["mean"])


def test_test_images_are_normalised_as_training_images_were(monkeypatch):
    data = datasets.load("digits", resolution=8).subset(256, 64)
    text = Architecture((Triple(REFERENCE_CELL, 8, 1),)).to_json()
    scale = SimpleNamespace(table2_recipe="zennas_cifar", table2_epochs=1)
    stage, seen = SimpleNamespace(seed=0, device=torch.device("cpu"), scale=scale), []
    monkeypatch.setattr(table2, "evaluate", lambda *given, **norm: seen.append(norm) or evaluate(*given, **norm))
    table2.measure(stage, {}, text, data, checkpoint=None)
    recipe = RECIPES["zennas_cifar"]
    assert seen[0]["std"] == recipe.std != data.std and seen[0]["mean"] == (recipe.mean or data.mean)


def test_diverged_networks_are_left_out_and_counted_so():
    table = rows({HL: [60.0, None]})
    (line,) = table2.methods(table, FACTS).to_dict("records")
    assert line["n"] == 1 and line["chosen"] == 60.0 and line["pretraining_seconds"] == 7200.0
    (lost,) = table2.methods(rows({HL: [None, None]}), FACTS).to_dict("records")
    assert table2.summary(rows({HL: [None, None]}), FACTS)[HL].keys() == {"Evals."}
    assert lost["n"] == 0 and pd.isna(lost["chosen"])


def test_mixtures_take_cells_of_the_same_place():
    cells = sample_cells(12, seed=0)
    networks = tuple(Architecture(tuple(Triple(c, 8, 1) for c in cells[i : i + 4])) for i in (0, 4, 8))
    mix, generator, seen = partial(mixture, networks), torch.Generator().manual_seed(0), set()
    child = networks[0]
    for _ in range(60):
        child = mix(child, True, generator)
        assert all(t in {n.triples[i] for n in networks} for i, t in enumerate(child.triples))
        seen.add(child.key())
    assert len(seen) > 20


def said(table: pd.DataFrame, question: str) -> list[str]:
    found = table2.verdicts(table)
    return found.loc[found["question"] == question, "verdict"].tolist()


def test_verdicts_follow_the_interval():
    clear = rows(
        {
            ZEN: [70.0, 71.0, 70.5],
            FLAT: [60.0, 61.0, 60.5],
            HL: [80.0, 80.2, 80.1],
            SG: [80.1, 80.2, 80.0],
            SIZE: [50, 51, 50],
        }
    )
    assert said(clear, "space-is-not-enough") == ["confirmed"] and said(clear, "hl-evo") == ["confirmed"]
    assert said(clear, "sequence-generator") == ["confirmed"]  # within a point
    assert said(clear, "parameters") == ["contradicted"]  # far below
    swapped = rows({ZEN: [60.0, 61.0, 60.5], FLAT: [70.0, 71.0, 70.5]})
    assert said(swapped, "space-is-not-enough") == ["contradicted"]
    wide = rows({ZEN: [60.0, 80.0], FLAT: [65.0, 71.0]})
    assert said(wide, "space-is-not-enough") == ["open"]
    assert said(rows({ZEN: [90.0], FLAT: [10.0]}), "space-is-not-enough") == ["open"]  # one network has no spread
    assert said(rows({ZEN: [90.0, 91.0]}), "space-is-not-enough") == ["open"]  # nothing to compare with


def test_low_accuracies_decide_little():
    guessing = {SIZE: [15.0, 15.1], HL: [12.0, 12.1]}
    assert said(rows(guessing), "parameters") == ["not decided"]
    begun = {SIZE: [24.0, 24.1], HL: [12.0, 12.1]}
    assert said(rows(begun), "parameters") == ["confirmed"]
    assert said(rows(begun, "cifar100"), "parameters") == ["not decided"]  # a hundred classes are learnt later


def test_verdicts_state_their_margin():
    low = {SIZE: [25.5, 25.6], HL: [26.0, 26.1], SG: [8.0, 8.1]}  # within a point of HL
    found = table2.verdicts(rows(low)).set_index("question")
    assert found.loc["parameters", ["margin", "verdict"]].tolist() == [1.0, "confirmed"]
    assert found.loc["superior", "margin"] == 0.0
    lower = table2.verdicts(rows({SG: [4.0, 4.1], HL: [5.0, 5.1]})).set_index("question")
    assert lower.loc["sequence-generator", "margin"] == pytest.approx(0.505)  # a tenth of what HL has


def test_every_data_set_gets_its_own_verdict():
    both = pd.concat(
        [rows({ZEN: [70.0, 70.1], FLAT: [60.0, 60.1]}), rows({ZEN: [35.0, 35.1], FLAT: [37.0, 37.1]}, "cifar100")]
    )
    assert said(both, "space-is-not-enough") == ["confirmed", "contradicted"]
    assert len(table2.verdicts(both)) == 2 * len(QUESTIONS)


def test_summary_stands_beside_the_papers_table():
    table = rows({FLAT: [60.0, 62.0], SG: [70.0, 71.0]})
    found = compare(paper.TABLE_2, table2.summary(table, FACTS), scale="lite")
    line = found[(found["row"] == FLAT) & (found["quantity"] == "C-10 Acc. (%)")].iloc[0]
    assert (line["ours"], line["spread"], line["n"]) == ("60.00", "1.414", "2") and "chosen network" in line["note"]
    hours = found[(found["row"] == SG) & (found["quantity"] == "Pretrain")].iloc[0]
    assert float(hours["ours"]) == 2.5
