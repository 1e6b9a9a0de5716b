"""Small tables that notebooks show: every number in them against a count by hand."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from graphnas_lib import stages
from graphnas_lib.ccnf import CCNF, CCNFConfig
from graphnas_lib.clusters import ZC_NAMES, Families
from graphnas_lib.evolution import budget
from graphnas_lib.gvae import GVAE, GVAEConfig
from graphnas_lib.macro import Architecture, Triple
from graphnas_lib.network import ExportError, count
from graphnas_lib.paper import SCALES, STAGES
from graphnas_lib.space import sample_cells
from graphnas_lib.stages import (
    between,
    comparison,
    designed,
    evidence,
    evolution,
    generated,
    gvae,
    longest,
    reach,
    shown,
    table1,
    table2,
    table3,
    table4,
    variants,
)

BUDGET = "params <= 1M"


@pytest.fixture
def compared() -> pd.DataFrame:
    """Two seeds of three methods; HL-Evo is best with the first seed alone, and one of its scores failed."""
    rows = []
    for method, seed, scores in [
        ("HL-Evo", 1, {1: 3.0, 2: 5.0, 4: 9.0}),
        ("HL-Evo", 2, {1: 3.0, 2: 4.0, 3: 2.0}),
        ("Random", 1, {1: 1.0, 2: 8.0, 3: 7.0}),
        ("Random", 2, {1: 6.0, 2: 5.0, 3: 1.0}),
        ("Evo (flat)", 1, {1: 2.0, 2: 2.0, 3: 4.0}),
        ("Evo (flat)", 2, {1: 2.0, 2: 3.0, 3: 1.0}),
    ]:
        rows += [{"method": method, "seed": seed, "evaluations": n, "score": s} for n, s in scores.items()]
    return pd.DataFrame(rows)


def test_curves_count_failed_scores_as_evaluations(compared):
    curves = comparison.curves(compared)
    assert curves["HL-Evo"] == [[3.0, 5.0, 5.0, 9.0], [3.0, 4.0, 4.0]]
    assert curves["Random"] == [[1.0, 8.0, 8.0], [6.0, 6.0, 6.0]]
    assert set(curves) == {"HL-Evo", "Random", "Evo (flat)"}


def test_seed_table_says_what_hl_evo_is_above(compared):
    table = comparison.by_seed(compared).set_index("seed")
    assert table["HL-Evo"].tolist() == [9.0, 4.0] and table["Random"].tolist() == [8.0, 6.0]
    assert table["HL-Evo above Random"].tolist() == [True, False]
    assert table["HL-Evo above Evo (flat)"].tolist() == [True, True]


def test_win_table_counts_seeds(compared):
    own = {"method": "HL-Evo, repeats", "evaluations": 1}
    other = pd.DataFrame([{**own, "seed": 1, "score": 8.5}, {**own, "seed": 2, "score": 7.0}])
    table = comparison.wins(compared, other).set_index("method")
    assert table.index.tolist() == ["HL-Evo, repeats", "Random", "HL-Evo", "Evo (flat)"]
    assert table.loc["Random", ["median", "min", "max", "seeds"]].tolist() == [7.0, 6.0, 8.0, 2]
    assert table["HL-Evo above it"].tolist() == [1, 1, 0, 2]
    assert table["HL-Evo, repeats above it"].tolist() == [0, 2, 1, 2]


def test_reach_has_the_whole_form_beside_each_that_lacks_a_part(compared):
    whole = {"method": reach.WHOLE, "budget": BUDGET, "evaluations": 1}
    part, cheap = {**whole, "method": f"{reach.WHOLE}, unscreened"}, {"budget": "flops <= 1M"}
    scores = [(whole, 1, 6.0), (whole, 2, 8.0), (part, 1, 7.0), (part, 2, 2.0)]
    rows = [{**row, **cheap, "seed": seed, "score": score} for row, seed, score in scores]
    reached = pd.DataFrame([*rows, {**whole, "seed": 1, "score": 10.0}, {**whole, "seed": 2, "score": 12.0}])
    table = reach.parts(reached).set_index(["budget", "method"])
    assert table.index.tolist() == [("flops <= 1M", name) for name in (reach.WHOLE, part["method"])] + [
        (BUDGET, reach.WHOLE)
    ]
    lacking = table.loc[("flops <= 1M", part["method"])]
    assert lacking["HL-Evo, far above it"] == 1 and lacking["HL-Evo, far / it"] == pytest.approx(7.0 / 4.5)
    assert table.loc[(BUDGET, reach.WHOLE), "median"] == 11.0
    curves = comparison.curves(reach.beside(compared.assign(budget=BUDGET), reached))
    assert curves[reach.WHOLE] == [[10.0], [12.0]] and len(curves) == 4


def test_long_searches_are_read_off_after_so_many_evaluations():
    runs = {"HL-Evo": [5.0, None, 7.0] * 400, reach.WHOLE: [None, 9.0] * 200}
    rows = [
        {"method": name, "seed": 1, "evaluations": i + 1, "score": score}
        for name, scores in runs.items()
        for i, score in enumerate(scores)
    ]
    table = longest.after(pd.DataFrame(rows)).set_index("method")
    assert table.loc["HL-Evo", ["evaluations", "after 300", "after 1,000", "all"]].tolist() == [1_200, 7.0, 7.0, 7.0]
    assert table.loc["HL-Evo", "HL-Evo, far / it"] == pytest.approx(9 / 7)
    assert pd.isna(table.loc[reach.WHOLE, "after 1,000"]) and table.loc[reach.WHOLE, "after 300"] == 9.0


def test_networks_are_fitted_to_a_size_by_widths_and_where_that_is_not_enough_by_depth():
    network = Architecture(tuple(Triple(cell, 64, 1) for cell in sample_cells(4, seed=0)))
    least = count(replace(network, triples=tuple(replace(triple, channels=8) for triple in network.triples))).params
    for bound in (2e6, 2 * least, 0.7 * least):
        feasible = budget(count, params=bound)
        (made,) = between.fitted([network, network], feasible, 0)
        assert feasible(made)
        assert [one.cell for one in made.triples] == [one.cell for one in network.triples][: len(made.triples)]
        assert (len(made.triples) == 4 and count(made).params > 0.8 * bound) == (bound > least)


def test_length_table_has_the_best_start_and_the_best_after_a_third_and_after_all():
    def run(scores, **columns):
        phases = ["initial"] * 2 + ["exploration"] * 7
        return pd.DataFrame({"evaluations": range(1, 10), "score": scores, "phase": phases}).assign(
            budget=BUDGET, **columns
        )

    history = run([1.0, 2.0, 6.0, 4.0, 5.0, 6.0, 7.0, 8.0, 3.0], method="HL-Evo")
    flat = run([1.0, 3.0, 2.0, 9.0, 4.0, 4.0, 4.0, 4.0, 4.0], method="Evo (flat)")
    beyond = flat.tail(1).assign(evaluations=10, score=99.0)
    elsewhere = flat.assign(budget="params <= 7M")
    (row,) = comparison.lengths(history, pd.concat([flat, beyond, elsewhere])).to_dict("records")
    assert (row["budget"], row["evaluations"]) == (BUDGET, 9)
    assert (row["HL-Evo, start"], row["HL-Evo, a third"], row["HL-Evo, all"]) == (2.0, 6.0, 8.0)
    assert (row["Evo (flat), start"], row["Evo (flat), a third"], row["Evo (flat), all"]) == (3.0, 3.0, 9.0)
    assert row["HL-Evo / Evo (flat)"] == pytest.approx(8 / 9)


def test_best_table_gives_shares_of_the_searches():
    scores = {"SG": (10, 97.0), "HL-Evo": (3_001, 100.0)}
    best = pd.DataFrame(
        [
            {"budget": budget, "method": method, "evaluations": n, "score": factor * score}
            for budget, factor in ((BUDGET, 1.0), ("flops <= 100M", 2.0))
            for method, (n, score) in scores.items()
        ]
    )
    flat = [
        (budget, n, factor * score)
        for budget, factor in ((BUDGET, 1.0), ("flops <= 100M", 2.0))
        for n, score in ((1, 9), (10, 10), (11, 50))
    ]
    table = designed.best_table(best, pd.DataFrame(flat, columns=["budget", "evaluations", "score"]))
    assert table["budget"].tolist() == [BUDGET, "flops <= 100M"]
    assert table["SG / HL-Evo"].tolist() == [0.97, 0.97] and table["SG / Evo (flat)"].tolist() == [1.94, 1.94]
    assert table["HL-Evo, 3,001 evaluations"].tolist() == [100.0, 200.0]
    assert table["Evo (flat), 11 evaluations"].tolist() == [50.0, 100.0]
    assert table["Evo (flat), as many, 10 evaluations"].tolist() == [10.0, 20.0]
    assert table["SG / Evo (flat), as many"].tolist() == [9.7, 9.7]


def test_search_curves_come_back_from_their_steps():
    runs = {"ZenNet: Evo(Zen)": [2.0, 2.0, 4.0, 8.0, 8.0, 8.0], "GraphNet: SG+CCNF": [500.0, 500.0]}
    curves = pd.concat([table2.improvements(best).assign(method=name) for name, best in runs.items()])
    assert len(curves) == 6 and table2.search_curves(curves, [*runs, "none"]) == runs


def test_request_table_measures_what_was_realised():
    requests = pd.DataFrame(
        {
            "quantity": ["params"] * 3 + ["flops"],
            "requested": [100.0, 200.0, 300.0, 50.0],
            "realised": [110.0, 150.0, 600.0, 50.0],
            "legal_masked": True,
            "legal_unmasked": [True, True, False, True],
            "design": ["a", "b", "a", "c"],
        }
    )
    row = designed.request_table(requests).set_index("quantity").loc["params"]
    assert row["requests"] == 3 and row["Spearman"] == 1.0 and row["distinct designs"] == 2
    assert row["median error"] == pytest.approx(0.25) and row["legal without mask"] == pytest.approx(2 / 3)


def test_real_errors_compare_flow_and_neighbourhood():
    rows = []
    for draws, off, keys in (("flow", 0.2, "abab"), ("flow, checked", 0.1, "abab"), ("neighbourhood", 0.5, "aaaa")):
        for i, key in enumerate(keys):
            z = {f"z_{name}": 1.0 + (off if i % 2 else -off) for name in ZC_NAMES}
            asked = {f"asked_{name}": 1.0 for name in ZC_NAMES}
            rows.append({"draws": draws, "condition": i // 2, "key": key, "sigma": 0.1, **z, **asked})
    table = generated.real_errors(pd.DataFrame(rows))
    assert table.loc["flow", "mean"] == pytest.approx(0.2) and table.loc["neighbourhood", "mean"] == pytest.approx(0.5)
    assert table.loc["flow / neighbourhood", "mean"] == pytest.approx(0.4)
    assert table.loc["flow, checked / neighbourhood", "mean"] == pytest.approx(0.2)
    assert "flow, checked / neighbourhood, checked" not in table.index
    assert table.loc["flow", "distinct"] == 1.0 and table.loc["neighbourhood", "distinct"] == 0.5


def test_reference_spread_compares_deviations_and_medians():
    values = {"flow": (9.0, 10.0, 11.0), "neighbourhood": (6.0, 10.0, 14.0)}
    rows = [
        {"draws": draws, "key": str(x), "sigma": 0.1, **dict.fromkeys(ZC_NAMES, x)} for draws in values
        for x in values[draws]
    ]  # fmt: skip
    table = generated.reference_spread(pd.DataFrame(rows), dict.fromkeys(ZC_NAMES, 8.0))
    assert table.loc["flow", "std naswot"] == pytest.approx(1.0)
    assert table.loc["flow / neighbourhood", "std snip_ssnr"] == pytest.approx(0.25)
    assert table.loc["flow", "median params / reference"] == pytest.approx(1.25)


class Unwritable:
    def save(self, path):
        if path.suffix == ".onnx":
            raise ExportError("ONNX needs 'onnx'")
        return path


def test_exported_files_are_listed_with_the_reason_where_one_is_missing(tmp_path):
    table = shown.exported(Unwritable(), tmp_path / "best.json", ["json", "onnx"])
    assert table["file"].tolist() == ["best.json", "-"]
    assert table["why not"].tolist() == ["", "not run (ONNX needs 'onnx')"]


def test_cycle_errors_are_means_of_what_q_misses():
    said = {"z": 1.0, "q": 1.5, "again": 0.75}
    row = {f"{part}_{name}": value + i for part, value in said.items() for i, name in enumerate(ZC_NAMES)}
    cycle = pd.DataFrame([{"draws": "scaled", **row}, {"draws": "scaled", **row, "q_flops": row["z_flops"] - 2.5}])
    table, points = gvae.cycle_errors(cycle)
    assert len(points) == 8 and set(points) == {"component", "draws", *said}
    assert points.query("component == 'params'")["z"].tolist() == [3.0, 3.0]
    assert table.loc[("scaled", "q of the latent"), "naswot"] == 0.5
    assert table.loc[("scaled", "q of the latent"), "flops"] == 1.5
    assert table.loc[("scaled", "q of the cell encoded again"), "mean"] == 0.25


def test_counts_of_five_stages_stand_in_one_table(monkeypatch):
    counts = {
        "evolution": {"a": {"recorded": 1}},
        "comparison": {"b": {"recorded": 2}},
        "variants": {"c": {"recorded": 3}},
        "reach": {"d": {"recorded": 4}},
        "longest": {"e": {"recorded": 5}},
    }
    monkeypatch.setattr(variants.store, "load_manifest", lambda stage, scale: {"config": {"counts": counts[stage]}})
    assert variants.counts("lite").to_dict("list") == {"search": [*"abcde"], "recorded": [1, 2, 3, 4, 5]}


def test_written_names_the_files_that_are_there(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAPHNAS_HOME", str(tmp_path))
    folder = shown.store.results_dir("smoke")
    folder.mkdir(parents=True)
    (folder / "one.csv").write_text("x")
    (folder / "one.md").write_text("")
    assert shown.written("smoke", figures=["two"], tables=["one"]) == "figure two: \ntable one: csv"


def test_costs_of_an_operation_are_those_of_its_layers():
    table = shown.operation_costs(channels=4, side=8).set_index("operation")
    conv = table.loc["conv_3"]
    assert (conv["params"], conv["macs"]) == (4 * 4 * 9 + 2 * 4, 64 * 4 * 4 * 9)
    assert table.loc["skip"].tolist() == ["-", 0, 0, 0]


def test_a_refusal_is_one_line_and_an_answer_none():
    def refuse(n):
        if n < 1:
            raise ValueError(f"n must be positive; got {n}.")

    assert shown.refusal(refuse, n=0) == "ValueError: n must be positive; got 0."
    with pytest.raises(AssertionError, match="expected to be refused"):
        shown.refusal(refuse, n=1)


def test_errors_of_requests_are_relative_and_counted():
    requests = pd.DataFrame(
        {
            "quantity": ["params"] * 3 + ["flops"],
            "requested": [100.0, 200.0, 300.0, 50.0],
            "realised": [110.0, 150.0, 600.0, 50.0],
        }
    )
    table = designed.errors(requests)
    assert table["error"].tolist() == pytest.approx([10.0, -25.0, 100.0, 0.0])
    assert table["panel"].unique().tolist() == [
        "params: half within 25%, 2 of 3 within 25%", "flops: half within 0%, 1 of 1 within 25%",
    ]  # fmt: skip


def test_sizes_are_shares_of_the_budget_they_were_searched_under():
    history = pd.DataFrame({"budget": ["params <= 0.3M", "flops <= 100M"], "params": [3e5, 1.0], "flops": [1.0, 5e7]})
    assert evolution.within(history.assign(score=1.0))["size"].tolist() == pytest.approx([1.0, 0.5])


def test_errors_of_tasks_are_shares_of_the_wide_resnets():
    values = {table4.OURS: [0.86, None, 2.0], table4.SHALLOW: [0.3, 5.0, None], table4.WIDE: [0.4, 10.0, float("nan")]}
    values[table4.RIDGE] = [0.8, "diverged", 1.0]
    rows = pd.concat(
        pd.DataFrame({"task": ["ecg", "satellite", "darcy"], "method": method, "value": value})
        for method, value in values.items()
    )
    table = table4.relative(rows)
    ours = [f"{name}, here" for name in (table4.OURS, table4.SHALLOW, table4.RIDGE)]
    assert list(table.columns) == ["Expert", "DASH", "paper's own", *ours] and len(table) == 8
    assert table.loc["ecg", ours].tolist() == pytest.approx([0.86 / 0.4, 0.3 / 0.4, 2.0])  # of the one trained here
    assert table.loc["satellite", ours[1]] == 0.5 and table[ours].notna().sum().tolist() == [1, 2, 1]
    assert table.loc["darcy", "paper's own"] == pytest.approx(0.014 / 0.073)


def test_a_diverged_task_was_run_and_says_so():
    rows = pd.DataFrame(
        {"task": ["ecg", "satellite"], "value": [0.8, None], "note": ["", table4.DIVERGED], "n_train": 5}
    ).assign(method=table4.OURS)
    beside = rows.head(1).assign(method=table4.RIDGE, value=0.9)
    found = table4.summary(pd.concat([rows, beside]).assign(n_train=5), {"epochs": 2})
    row, plain = found["Ours"], found["ridge regression, here"]
    assert plain == {"ECG": {"value": 0.9, "n": 1, "note": "5 training samples"}}
    assert row["ECG"]["note"] == "5 training samples, 2 epochs"
    assert row["Satellite"]["value"] == "diverged" and row["ECG"]["value"] == 0.8


def test_diverged_cells_count_at_chance():
    table, facts = table1.load("lite")
    assert table["accuracy"].notna().all() and (table.loc[table["diverged"], "accuracy"] == table1.CHANCE).all()
    row = table1.summary(table, facts)["Random"]
    assert row["C-10 Mean"]["n"] == (table["strategy"] == "Random").sum()
    assert (
        table.loc[table["diverged"], "strategy"].isin(["Random"]).sum() * (row["C-10 Min"]["value"] - table1.CHANCE)
        == 0
    )


def test_published_accuracies_are_those_of_table_1():
    table = table1.published().set_index("name")
    assert table.loc["Random"].tolist() == [75.0, 10.0, 93.86] and set(table.loc["NATS-Bench ref."]) == {94.24}


def test_settings_are_those_that_the_scale_uses():
    ours = stages.hyperparameters("lite")
    assert {name: cell["value"] for name, cell in ours["TRAIN: Learning rate"].items()} == {
        "G-VAE": SCALES["lite"].gvae_lr, "CCNF": 1e-3, "Seq. Gen.": SCALES["lite"].sequence_lr,
    }  # fmt: skip
    assert [cell["value"] for cell in ours["TRAIN: Weight decay"].values()] == [5e-4, 0.01, 0.05]
    assert stages.published_hours() == {"labels": 5.0, "gvae": 0.5, "ccnf": 0.5, "evolution": 14.0, "sequence": 11.0}


def test_stages_cost_hours_in_the_order_in_which_they_are_made():
    table = stages.stage_costs("lite")
    assert table["stage"].tolist() == [name for name in STAGES if name in set(table["stage"])]
    assert (table["hours"] * 3600).tolist() == pytest.approx(table["seconds"].tolist())


def test_ellipses_are_one_deviation_wide_in_standardised_z():
    families = Families.load("lite")
    contour = families.transform(stages.families.contours(families)[5])
    off = (contour - families.means[5]).abs().amax(0)
    deviation = torch.tensor(families.covariances)[5].sqrt()
    assert off.tolist() == pytest.approx([float(deviation[0]), 0.0, float(deviation[2]), 0.0], abs=2e-3)


def test_families_of_one_size_differ_most_in_naswot():
    families = Families.load("lite")
    low, high = stages.families.of_one_size(families)
    gap = (families.means[low] - families.means[high]).abs()
    assert gap[2] < 0.1
    sizes, naswot = families.means[:, 2], families.means[:, 0]
    alike = (sizes[:, None] - sizes).abs() < 0.1
    assert gap[0] == (naswot[:, None] - naswot).abs()[alike].max()
    assert {low, high} < set(stages.families.distant("lite")) and len(stages.families.distant("lite")) == 5
    raw = families.inverse(families.means)
    assert f"{low} and {high}" in stages.families.found(families)
    assert f"NASWOT {raw[low, 0]:.0f} and {raw[high, 0]:.0f}" in stages.families.found(families)
    few = replace(families, weights=families.weights[::8], centres=families.centres[::8])  # of four sizes
    assert stages.families.of_one_size(few) == () and stages.families.found(few).startswith("4 families")
    assert stages.families.found(few).endswith("in size")


def test_trajectories_carry_one_noise_to_every_condition():
    flow = CCNF(CCNFConfig(latent_dim=6, hidden=8, layers=2))
    with torch.no_grad():
        for parameter in flow.field.parameters():
            parameter.mul_(4.0)
    flow.whitening.mean.fill_(3.0)
    zc, latents = 2 * torch.eye(4)[:3], torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    table = stages.ccnf.trajectories(flow, zc, latents, n=5)
    assert table.groupby("plane").size().to_dict() == {"equation": 25 * 15, "latents": 25 * 15 + 50}
    assert (table["condition"] == -1).sum() == 50
    places = table[table["plane"] == "equation"].set_index(["sample", "condition"])
    start, end = (places[places["time"] == time][["x", "y"]] for time in (0, 1))
    assert start.groupby("sample").std().to_numpy().max() < 1e-6  # one noise for all
    assert end.groupby("sample").std().to_numpy().min() > 0.01
    assert end["x"].std() > end["y"].std()
    again = stages.ccnf.trajectories(flow, zc, latents, n=5)
    pd.testing.assert_frame_equal(again, table)


def test_walks_begin_and_end_where_cells_are_encoded():
    model = GVAE(GVAEConfig(hidden=16, latent_dim=8, decoder_hidden=16)).eval()
    cells = sample_cells(3, seed=0)
    first, second = stages.gvae.walks(model, cells, points=5)
    home = model.decode(model.encode(cells))
    assert [first[0], first[-1], second[0], second[-1]] == [home[0], home[1], home[1], home[2]]
    middle = model.decode(model.encode(cells[:2]).mean(dim=0, keepdim=True))
    assert len(first) == len(second) == 5 and [first[2]] == middle


def test_points_of_table_3_say_whose_they_are():
    rows = pd.DataFrame({"budget": ["450M"], "flops": [18e6]})
    table = table3.points(rows)
    assert table["whose"].value_counts().to_dict() == {"quoted": 10, "paper": 3, "here": 1}
    assert table.iloc[-1]["flops"] == 18e6 and pd.isna(table.iloc[-1]["accuracy"])
    assert dict(table3.recipe().to_numpy())["epochs"] == "480"


def test_conditions_stand_beside_what_q_finds():
    wanted, found = torch.zeros(2, 4), torch.arange(8.0).reshape(2, 4)
    table = generated.asked(wanted, found)
    assert table.query("component == 'params'")["found"].tolist() == [2.0, 6.0] and (table["asked"] == 0).all()


def test_verdicts_of_a_protocol_are_counted():
    table = pd.DataFrame({"protocol": ["P1", "P1", "P1", "P2"], "verdict": ["open", "reproduced", "open", "open"]})
    assert evidence.counted(table, "P1") == "P1: 2 open, 1 reproduced"
