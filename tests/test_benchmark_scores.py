"""Scores of the networks that public tables trained: every kind, parts that resume, spectra where they are defined."""

import numpy as np
import pandas as pd
import pytest
import torch

from graphnas_lib import proxies
from graphnas_lib.benchmarks import nats, scores, tables
from graphnas_lib.space import NATS_REFERENCE

NETWORKS = [("alpha_x", NATS_REFERENCE), ("nats", NATS_REFERENCE), ("nb_macro", "10201020"), ("tnb_macro", "313100")]
OPTIONS = {"seed": 0, "workers": 1, "progress": False}


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(20, 3, 8, 8, generator=generator), torch.arange(20) % 10


def test_every_kind_is_scored_once_and_a_killed_run_goes_on(batch, tmp_path):
    out = tmp_path / "scores.jsonl"
    first = scores.score_networks(NETWORKS, *batch, out=out, **OPTIONS)
    assert list(first.columns) == list(scores.COLUMNS) and first["kind"].tolist() == list(scores.KINDS)
    assert (first["error"] == "").all(), first["error"].tolist()
    whole = first.set_index("kind")[[*scores.PROXIES, *scores.SPECTRA]].notna()
    assert whole.drop(index="alpha_x").all().all()
    assert whole.loc["alpha_x"][whole.loc["alpha_x"]].index.tolist() == [
        "naswot",
        "snip_ssnr",
        "params",
        "flops",
        "layers",
    ]
    lines = out.read_text().splitlines()
    assert len(lines) == 1 + 4 + 3
    out.write_text("\n".join(lines[:4]) + "\n" + lines[4][:30])  # killed while it wrote the fourth part
    again = scores.score_networks(NETWORKS, *batch, out=out, **OPTIONS)
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), first.drop(columns="seconds"))
    assert (again["seconds"] > 0).all()
    assert len(out.read_text().splitlines()) == len(lines)


def test_scores_are_those_of_the_proxies(batch):
    images, labels = batch
    found = scores.scored("proxies", "nats", NATS_REFERENCE, images, labels, seed=3, classes=10)
    model = nats.skeleton(NATS_REFERENCE, "nats", seed=3).to(memory_format=torch.channels_last)
    part = images[: scores.BATCH], labels[: scores.BATCH]
    assert found["tcet"] == pytest.approx(proxies.tcet(model, *part), rel=1e-6)
    assert found["layers"] == sum("conv" in type(m).__name__.lower() for m in model.modules()) + 1  # and the classifier
    spectra = scores.scored("spectra", "nats", NATS_REFERENCE, images, labels, seed=3, classes=10)
    assert spectra["vkdnw_entropy"] == pytest.approx(proxies.vkdnw_entropy(model, (16, 3, 8, 8), seed=3))
    on_paper = scores.scored("proxies", "alpha_x", NATS_REFERENCE, images, labels, seed=3, classes=10)
    fewer = scores.scored("proxies", "alpha_x", NATS_REFERENCE, *part, seed=3, classes=10)
    assert on_paper["naswot"] > fewer["naswot"] and on_paper["params"] == fewer["params"]  # all 20 images, not 16


def test_a_network_that_cannot_be_scored_keeps_the_reason(batch):
    images, labels = batch
    row = scores.scored("proxies", "nats", NATS_REFERENCE, images * torch.inf, labels, seed=0, classes=10)
    assert row["error"] and np.isnan([row[name] for name in scores.PROXIES]).all()


def test_parts_of_the_work_keep_pace_so_that_a_killed_run_leaves_fair_samples(monkeypatch):
    monkeypatch.setattr(scores, "NETWORKS", dict.fromkeys(scores.KINDS, 40))
    networks = [(kind, f"{i:03}") for kind in scores.KINDS for i in range(40)]
    parts = scores._parts(networks)
    assert len(parts) == len(set(parts)) == 160 + 120  # no spectra on alpha_x
    fewer = scores._parts([(kind, arch) for kind, arch in networks if int(arch) < 20])
    assert set(fewer) < set(parts)  # what is wanted of a network does not depend on how many are
    half = parts[: len(parts) // 2]
    done = [sum(p == "proxies" and k == kind for p, k, _ in half) for kind in scores.KINDS]
    assert max(done) - min(done) <= 1 < sum(p == "spectra" for p, *_ in half)


@pytest.mark.skipif(
    not {"nats", "nb_macro", "tnb_macro"} <= set(tables.available()), reason="benchmark tables are not at hand"
)
def test_each_distinct_network_is_there_once():
    networks = scores.every_network()
    counts = pd.Series([kind for kind, _ in networks]).value_counts().to_dict()
    assert counts == scores.NETWORKS
    assert len(set(networks)) == len(networks)
    shares = {"alpha_x": 0.001, "nats": 0.002, "nb_macro": 1, "tnb_macro": 0}
    some = scores.every_network(share=shares)
    assert pd.Series([kind for kind, _ in some]).value_counts().to_dict() == {
        "alpha_x": 7,
        "nats": 14,
        "nb_macro": 3969,
    }
    assert set(some) < set(networks) and some[:7] == networks[:7]
    assert networks != scores.every_network(seed=1) and set(networks) == set(scores.every_network(seed=1))
