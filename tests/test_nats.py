"""NATS-Bench's space against its published facts; tau and its interval against scipy; what cannot be scored."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import kendalltau
from torch.nn import functional as F

from graphnas_lib import paper, stages
from graphnas_lib import plots as report
from graphnas_lib.benchmarks import nats, tables, validation
from graphnas_lib.datasets import MissingDataError
from graphnas_lib.paper import NATS_TAU
from graphnas_lib.proxies import measures as proxies
from graphnas_lib.proxies import module_costs
from graphnas_lib.runner import Project
from graphnas_lib.runner.manifest import Notebook, freshness
from graphnas_lib.space import NATS_REFERENCE, Cell, InvalidCellError, nats_operations
from graphnas_lib.store import artifacts

ALL_3X3 = nats.string(("nor_conv_3x3",) * 6)
SKIP_ONLY = "|none~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|"
DEAD_END = "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|none~0|none~1|none~2|"


# ---- the space


def test_costs_are_those_that_the_benchmark_publishes():
    costs = module_costs(nats.NatsNetwork(ALL_3X3), (3, 32, 32))
    assert costs.params == 1_531_546  # published: 1.531546 MB of parameters, 220.12 M multiply-accumulates
    assert costs.macs == 220_119_680
    assert sum(p.numel() for p in nats.NatsNetwork(NATS_REFERENCE).parameters()) == 1_073_466  # published: 1.073466


def test_strings_round_trip_and_others_are_refused():
    assert nats.string(nats_operations(NATS_REFERENCE)) == NATS_REFERENCE
    for broken in ("", ALL_3X3.replace("3x3", "5x5", 1), ALL_3X3.replace("~2|", "~1|"), ALL_3X3 + "|none~0|"):
        with pytest.raises(InvalidCellError, match="A NATS-Bench string must look like"):
            nats_operations(broken)


def test_sample_is_of_the_whole_space_and_a_larger_one_goes_on():
    assert len(set(nats.sample(15_625, seed=3))) == 15_625
    assert nats.sample(40, seed=3)[:7] == nats.sample(7, seed=3) != nats.sample(7, seed=4)
    with pytest.raises(ValueError, match=r"1\.\.15625.*got 0"):
        nats.sample(0, seed=0)


def test_disconnected_is_what_has_no_path():
    assert not nats.is_connected(DEAD_END) and nats.is_connected(SKIP_ONLY) and nats.is_connected(ALL_3X3)
    assert not nats.is_connected("|none~0|+|none~0|nor_conv_3x3~1|+|none~0|skip_connect~1|nor_conv_3x3~2|")
    every = nats.sample(15_625, seed=0)
    assert sum(not nats.is_connected(text) for text in every) == 341
    for text in every[:300]:  # a second implementation: our own cell's status
        assert nats.is_connected(text) == (Cell.from_nats(text).status != "no_path"), text


# ---- the network


def test_cell_by_hand():
    text = "|avg_pool_3x3~0|+|skip_connect~0|nor_conv_1x1~1|+|none~0|nor_conv_3x3~1|skip_connect~2|"
    cell = nats.NatsCell(nats_operations(text), 2).eval()
    x = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    ones = F.avg_pool2d(torch.ones(1, 1, 4, 4), 3, 1, 1)  # padding takes no part in an average
    node1 = F.avg_pool2d(x, 3, 1, 1) / ones
    shrink = (1 + 1e-5) ** -0.5  # a fresh batch norm in eval mode
    node2 = x + shrink * F.conv2d(node1.relu(), cell.edges["1_2"][1].weight)
    node3 = shrink * F.conv2d(node1.relu(), cell.edges["1_3"][1].weight, padding=1) + node2
    assert torch.allclose(cell(x), node3, atol=1e-5)
    assert torch.equal(nats.NatsCell(nats_operations(DEAD_END), 2)(x), torch.zeros_like(x))


def test_reduction_by_hand():
    block = nats.Reduction(2, 4).eval()
    x = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    shrink = (1 + 1e-5) ** -0.5
    first, second = block.body[0][1].weight, block.body[1][1].weight
    body = shrink * F.conv2d(x.relu(), first, stride=2, padding=1)
    body = shrink * F.conv2d(body.relu(), second, padding=1)
    assert torch.allclose(block(x), body + F.conv2d(F.avg_pool2d(x, 2), block.shortcut[1].weight), atol=1e-5)


def test_network_is_stem_blocks_head_and_classifier():
    model = nats.skeleton(SKIP_ONLY, "nats", classes=7, seed=1).eval()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    maps = model.stem(x)
    for block in model.blocks:
        maps = block(maps)
    assert sum(isinstance(block, nats.NatsCell) for block in model.blocks) == 15
    maps = model.head(maps)
    assert model.features(x).shape == (2, 64, 2, 2) and torch.equal(model.features(x), maps)
    assert torch.allclose(model(x), model.classifier(maps.mean((2, 3))), atol=1e-6)


def test_skeletons_are_reproducible_and_leave_the_global_generator():
    before = torch.random.get_rng_state()
    for name in nats.SKELETONS:
        one, same, other = (nats.skeleton(NATS_REFERENCE, name, seed=seed) for seed in (0, 0, 1))
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters()))
        assert not torch.equal(one.classifier.weight, other.classifier.weight)
    assert torch.equal(before, torch.random.get_rng_state())
    with pytest.raises(ValueError, match=r"skeleton must be one of .*got 'resnet'"):
        nats.skeleton(NATS_REFERENCE, "resnet")


# ---- accuracies


def write_accuracies(monkeypatch, folder, architectures, values):
    """A table of a few cells in place of the published one."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / tables.PUBLIC["nats"].file
    pd.DataFrame({"arch_str": architectures, "nats_tss_test_acc_cifar10": values}).to_csv(file, index=False)
    few = {"rows": len(values), "md5": hashlib.md5(file.read_bytes()).hexdigest()}
    monkeypatch.setitem(tables.PUBLIC, "nats", replace(tables.PUBLIC["nats"], **few))
    return file


def test_accuracies_are_read_from_the_data_roots(tmp_path, monkeypatch):
    cells = [ALL_3X3, SKIP_ONLY, DEAD_END], [93.5, 60.0, np.nan]
    file = write_accuracies(monkeypatch, tmp_path / "elsewhere", *cells)
    monkeypatch.setenv("GRAPHNAS_DATA", str(tmp_path / "elsewhere"))
    assert tables.accuracies().to_dict() == {ALL_3X3: 93.5, SKIP_ONLY: 60.0}
    assert "nats" in artifacts.data_at_hand()
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(artifacts.CorruptArtifactError, match="must have the MD5 .*Copy it again"):
        tables.accuracies()


def test_a_missing_file_is_told_in_one_sentence(tmp_path, monkeypatch):
    for name in ("GRAPHNAS_DATA", "GRAPHNAS_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    with pytest.raises(MissingDataError) as error:
        tables.accuracies()
    expected = "The benchmark table 'nats' must be at hand as tables/nb201_accuracy.csv.xz in $GRAPHNAS_DATA or data/;"
    assert str(error.value).startswith(expected)


def test_the_benchmark_itself(shared, monkeypatch):
    monkeypatch.setenv("GRAPHNAS_DATA", str(shared / "data"))
    found = tables.accuracies()
    assert len(found) == 15_625 and round(found.max(), 2) == 94.37 == round(found[NATS_REFERENCE], 2)
    disconnected = [text for text in found.index if not nats.is_connected(text)]
    assert (found[disconnected] == 10).all() and (found.drop(disconnected) > 40).all()


# ---- scores


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 3, 8, 8, generator=generator), torch.randint(10, (8,), generator=generator)


def test_a_row_holds_what_the_proxies_say(batch):
    row = validation.row(NATS_REFERENCE, "nats", *batch, seed=2, classes=10)
    model = nats.skeleton(NATS_REFERENCE, "nats", seed=2).to(memory_format=torch.channels_last)
    images, labels = batch[0][:4], batch[1][:4]
    assert row["error"] == "" and row["params"] == 1_073_466
    assert row["naswot_relu"] == proxies.naswot(model, images, variant="relu", mode="train")
    assert row["naswot"] == pytest.approx(proxies.naswot(model, images))
    variants = proxies.score(model, images, labels, ["tcet_none", "tcet_train"])
    assert {name: row[name] for name in variants} == pytest.approx(variants)
    assert row["tcet_train"] != pytest.approx(row["tcet_none"])
    assert row["snip_ssnr"] == pytest.approx(proxies.snip_ssnr(model, images, labels))
    assert row["zico"] == pytest.approx(proxies.zico(model, [(images, labels), (batch[0][4:], batch[1][4:])]))
    assert row["zen"] == pytest.approx(proxies.zen(model, images.shape, seed=2))


def test_disconnected_never_reaches_a_proxy_and_failures_keep_their_reason(batch):
    row = validation.row(DEAD_END, "nats", *batch, seed=0, classes=10)
    assert row["error"] == validation.DISCONNECTED and np.isnan([row[name] for name in validation.SCORES]).all()
    broken = validation.row(SKIP_ONLY, "nats", torch.full_like(batch[0], torch.inf), batch[1], seed=0, classes=10)
    assert "NaN or infinity" in broken["error"] and np.isnan(broken["snip"])


def test_scores_go_on_from_what_they_find(batch, tmp_path):
    architectures = [SKIP_ONLY, DEAD_END, "|none~0|+|none~0|none~1|+|nor_conv_1x1~0|none~1|none~2|"]
    out = tmp_path / "scores.jsonl"
    options = {"seed": 0, "out": out, "workers": 1, "progress": False}
    first = validation.score_all(architectures, *batch, **options)
    assert first["arch"].tolist() == [text for text in architectures for _ in nats.SKELETONS]
    assert first["skeleton"].tolist() == list(nats.SKELETONS) * 3
    assert first["error"].tolist() == ["", "", *[validation.DISCONNECTED] * 2, "", ""]
    header, *lines = out.read_text().splitlines(keepends=True)
    altered = [json.dumps([name, row | {"snip": -7.0}]) + "\n" for name, row in map(json.loads, lines[:2])]
    out.write_text("".join([header, *altered, *lines[2:]]))
    again = validation.score_all(architectures, *batch, **options)
    assert (again["snip"] == -7.0).sum() == 2  # found there, not computed
    out.write_text("".join([header, *lines[2:]]))
    pd.testing.assert_frame_equal(validation.score_all(architectures, *batch, **options), first)
    with pytest.raises(ValueError, match="scores.jsonl differs: seed: 0 -> 1"):  # of another seed nothing is taken
        validation.score_all(architectures[:2], *batch, **(options | {"seed": 1}))
    other = validation.score_all(architectures[:2], *batch, **(options | {"seed": 1, "out": tmp_path / "other.jsonl"}))
    assert other["snip"].iloc[0] != first["snip"].iloc[0]
    with pytest.raises(ValueError, match="two batches of one size.*got 7"):
        validation.score_all(architectures, batch[0][:7], batch[1][:7], **options)


# ---- statistics


def test_tau_by_hand():
    assert validation.kendall_tau([1, 2, 3, 4], [1, 3, 2, 4], resamples=0)[0] == pytest.approx(4 / 6)
    assert validation.kendall_tau([1, 2, 3], [30, 20, 10], resamples=9) == pytest.approx((-1, -1, -1), abs=1e-12)
    assert np.isnan(validation.kendall_tau([1, 1, 1], [1, 2, 3], resamples=3)).all()
    low, high = validation.kendall_tau([-np.inf, -np.inf, 0, 5], [1, 2, 3, 4], resamples=0)[:2]
    assert low == pytest.approx(5 / np.sqrt(5 * 6)) and np.isnan(high)
    for x, y in (([1, 2], [1, 2, 3]), ([1], [1]), ([1, np.nan], [1, 2])):
        with pytest.raises(ValueError, match="Kendall's tau needs two series"):
            validation.kendall_tau(x, y)


def test_tau_and_interval_agree_with_scipy():
    rng = np.random.default_rng(0)
    x = np.round(rng.normal(size=60), 1)  # with ties
    y = np.round(x + rng.normal(size=60), 1)
    tau, low, high = validation.kendall_tau(x, y, resamples=300, seed=5)
    assert tau == pytest.approx(kendalltau(x, y).statistic, abs=1e-12)
    draws = np.random.default_rng(5).integers(60, size=(300, 60))
    taus = [kendalltau(x[draw], y[draw]).statistic for draw in draws]
    assert (low, high) == pytest.approx(tuple(np.quantile(taus, [0.025, 0.975])), abs=1e-12)
    assert low < tau < high


def fake_scores(n=40):
    rows = []
    for i, text in enumerate(nats.sample(n, seed=0)):
        error = validation.DISCONNECTED if i == 0 else "overflows" if i == 1 else ""
        values = dict.fromkeys(validation.SCORES, float(i) if not error else float("nan"))
        rows += [{"arch": text, "skeleton": name, **values, "error": error} for name in nats.SKELETONS]
    return pd.DataFrame(rows)


def test_disconnected_ranks_lowest_and_failures_are_counted_but_not_ranked(monkeypatch):
    monkeypatch.setattr(validation, "RESAMPLES", 50)
    scores = fake_scores()
    accuracies = pd.Series(np.arange(40.0), index=nats.sample(40, seed=0))
    accuracies.iloc[1] = -5.0  # the failed one would spoil a perfect order
    table = validation.tau_table(scores, accuracies)
    assert tuple(table.columns) == validation.TAU_COLUMNS and len(table) == 28
    assert (table["tau"] == 1).all() and table["low"].to_numpy() == pytest.approx(1, abs=1e-12)
    assert table[["n", "disconnected", "failed"]].drop_duplicates().values.tolist() == [[39, 1, 1]]
    accuracies.iloc[0] = 100.0  # now the disconnected one is out of order
    spoiled = validation.tau_table(scores, accuracies)["tau"]
    assert np.allclose(spoiled, 1 - 2 * 38 / (39 * 38 / 2))


@pytest.mark.parametrize(
    ("tau", "low", "high", "printed", "answer"),
    [
        (0.60, 0.59, 0.61, [0.65], "yes"),
        (0.60, 0.59, 0.61, [0.66], "no"),
        (0.60, 0.50, 0.67, [0.66], "yes"),
        (0.60, 0.59, 0.61, [0.58, 0.54], "no"),
        (0.60, 0.59, 0.61, [], "-"),
        (np.nan, np.nan, np.nan, [0.6], "-"),
    ],
)
def test_within(tau, low, high, printed, answer):
    assert validation.within(tau, low, high, printed) == answer


def test_published_values_name_proxies_that_are_scored():
    assert set(NATS_TAU) == {"T-CET paper", "ZiCo paper"}
    assert all(set(taus) <= set(validation.SCORES) for taus in NATS_TAU.values())
    assert paper.NATS_TAU["T-CET paper"]["tcet_none"] == 0.69 and "tcet" not in paper.NATS_TAU["T-CET paper"]


# ---- Zen-score against the published one


@pytest.fixture
def published_zen(shared, monkeypatch) -> pd.Series:
    """NASLib's Zen-scores on CIFAR-10 by architecture string; -1e8 marks those that it could not take."""
    monkeypatch.setenv("GRAPHNAS_DATA", str(shared / "data"))
    scores = tables.read("nats").set_index("arch_str")["naslib_zen_cifar10"]
    return scores[scores > -1e7]


def test_shipped_zen_scores_rank_as_the_published_ones(published_zen):
    scores = artifacts.load("validation", "validation_scores.parquet", "lite")
    ours = scores[(scores["skeleton"] == "nats") & (scores["error"] == "")].set_index("arch")["zen"]
    both = pd.concat([ours, published_zen.rename("published")], axis=1, join="inner")
    assert len(both) > 500 and both.corr("spearman").iloc[0, 1] >= 0.95  # seen: 0.999


@pytest.mark.slow
def test_zen_of_a_hundred_cells_ranks_as_the_published_one(published_zen):
    cells = [text for text in nats.sample(130, seed=1) if text in published_zen.index][:100]
    ours = [proxies.zen(nats.NatsNetwork(text), (16, 3, 32, 32), seed=0) for text in cells]
    assert len(ours) == 100
    assert pd.Series(ours).corr(published_zen.loc[cells].reset_index(drop=True), method="spearman") >= 0.95


# ---- the stage and its notebook section


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAPHNAS_HOME", str(tmp_path))
    monkeypatch.delenv("GRAPHNAS_DATA", raising=False)
    tiny = {"validation_networks": 2, "label_batch": 4, "label_resolution": 8}
    monkeypatch.setitem(paper.SCALES, "smoke", replace(paper.SCALES["smoke"], **tiny))
    return tmp_path


def test_stage_saves_scores_without_accuracies(home, monkeypatch):
    write_accuracies(monkeypatch, home / "data", nats.sample(2, seed=0), [10.0, 20.0])
    monkeypatch.setenv("GRAPHNAS_WORKERS", "1")  # no second process
    monkeypatch.setattr(validation, "RESAMPLES", 20)
    table = stages.validation_table("smoke", seed=0, device="cpu")
    scores = artifacts.load("validation", "validation_scores.parquet", "smoke")
    assert list(scores.columns) == ["arch", "skeleton", *validation.SCORES, "error"] and len(scores) == 4
    assert table["n"].unique().tolist() == [2] and table["tau"].between(-1, 1).all()
    manifest = stages.produce("validation", "smoke", device="cpu", progress=False)
    assert manifest["config"]["networks"] == 2 and "digits" in manifest["config"]["data"].lower()
    assert not list((home / "data/smoke/checkpoints").glob("validation-*"))
    assert len(report.plot_intervals(**stages.validation.intervals(table)).axes) == 1


@pytest.mark.parametrize(
    ("scale", "why"), [("smoke", "The benchmark table 'nats' must be at hand"), ("lite", "run validation --scale")]
)
def test_without_data_or_artifact_rows_read_not_run(home, scale, why):
    table = stages.validation_table(scale, seed=0, device="cpu")
    assert len(table) == 28 and tuple(table.columns) == validation.TAU_COLUMNS
    assert table["tau"].str.fullmatch(r"not run \(.*\)").all() and table["tau"].str.contains(why).all()
    assert table.loc[table["proxy"] == "zico", "ZiCo paper"].tolist() == [0.61, 0.61]
    report.plot_intervals(**stages.validation.intervals(table))
    with pytest.raises(FileNotFoundError):
        stages.produce("validation", scale, device="cpu", progress=False)


def test_an_optional_stage_may_stay_absent_but_its_arrival_is_noticed(tmp_path):
    project = Project(tmp_path)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_one.ipynb").write_text('{"cells": []}')
    notebook = Notebook(name="01_one", title="One", makes=("cells", "validation"), optional=("validation",))
    assert [path.name for path in project.outputs(notebook, "lite")] == ["cells.manifest.json"]
    before = {scale: freshness(project, notebook, {"scale": scale}) for scale in ("smoke", "lite")}
    for scale in before:
        artifacts.write(project.stage("validation", scale), {"files": {}})
    assert freshness(project, notebook, {"scale": "smoke"}) == before["smoke"]  # smoke's run made it itself
    assert freshness(project, notebook, {"scale": "lite"}) != before["lite"]
