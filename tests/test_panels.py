"""Panels: their drawings follow their controls, bad values say why, and a picture stands in where nothing runs."""

import base64
import io
import json
import re

import pytest
import torch
from PIL import Image

from graphnas_lib import panels, proxies, sequence, stages
from graphnas_lib.ccnf import CCNF
from graphnas_lib.clusters import Families
from graphnas_lib.gvae import GVAE
from graphnas_lib.macro import MAX_CELLS, HLArchitecture, HLTriple
from graphnas_lib.runner.readme import without_widgets
from graphnas_lib.sequence import SequenceConfig, SequenceGenerator

VIEW = "application/vnd.jupyter.widget-view+json"


def moved(panel: panels.Panel, **values) -> tuple[bytes, str]:
    """Picture and text after its controls were set."""
    for name, value in values.items():
        panel.controls[name].value = value
    return panel.picture.value, panel.told.value


@pytest.fixture(scope="module")
def generator() -> SequenceGenerator:
    return SequenceGenerator.load("lite")


def test_the_picture_stands_in_for_the_panel(generator):
    panel = panels.next_token(generator, params=3e5)
    data, about = panel._repr_mimebundle_()
    assert VIEW in data and Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).size[0] > 200
    assert about["image/png"]["caption"] == data["text/plain"] and len(about["image/png"]["alt"]) > 10
    assert set(without_widgets(data)) == {"text/plain", "image/png"}


def test_tokens_follow_the_budget_and_the_place(generator):
    panel = panels.next_token(generator, params=3e5)
    first = moved(panel, token=0)
    assert "family" in first[1] and "channels" in moved(panel, token=1)[1] and "stride" in moved(panel, token=2)[1]
    assert moved(panel, token=0) == first  # the same values, the same drawing
    shares = generator.next_token(3, params=3e5)
    assert sum(shares.values()) == pytest.approx(1) and "end" in shares and "stride 1" not in shares
    likeliest = max(generator.next_token(1, params=3e5).items(), key=lambda pair: pair[1])[0]
    greedy = generator.generate(params=3e5).triples[0]
    assert likeliest == f"{greedy.channels} channels"  # what greedy decoding then writes


def test_beyond_the_end_of_a_design_the_last_picture_stays():
    designs = [HLArchitecture((HLTriple(0, 8 * (1 + i), 1),) * 2) for i in range(4)]
    config = SequenceConfig.small(n_families=1, hidden=16, layers=1, heads=2, batch_size=8, lr=1e-2, warmup=5)
    sizes = torch.logspace(4, 6, 4, dtype=torch.float64)[:, None].expand(4, 4)
    generator, _ = sequence.train(designs, sizes, config=config, steps=120, seed=0)
    assert len(generator.generate(params=1e5).triples) < MAX_CELLS
    panel = panels.next_token(generator, params=1e5)
    last = moved(panel, token=0)[0]
    assert "tokens" in moved(panel, token=60)[1] and panel.picture.value == last


def test_a_panel_that_cannot_be_drawn_at_first_says_so():
    with pytest.raises(ValueError, match="params"):
        panels.designs(50, low=10, scale="lite")


def test_designs_follow_the_budget():
    panel = panels.designs(2e5, scale="lite", images=torch.randn(4, 3, 32, 32), labels=torch.arange(4))
    before = panel.picture.value
    after, said = moved(panel, params=3e5)
    assert after != before and "Asked for 300,000 parameters" in said


def test_cells_are_checked_while_they_are_edited():
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    panel = panels.cell_editor(Families.load("lite"), images, labels, classes=10)
    assert panel.told.value.startswith("Family")
    before = panel.picture.value
    after, said = moved(panel, edges=((0, 1),))
    assert after != before and said.startswith("Not a cell")
    assert moved(panel, edges=((0, 1), (1, 7)), node_1="conv_3")[1].startswith("Family")


def test_cells_follow_the_four_sliders():
    panel = panels.condition(CCNF.load("lite"), GVAE.load("lite"), Families.load("lite"), n=3)
    found = []
    for value in (-1.5, 1.5):
        _, said = moved(panel, params=value)
        found.append(float(said.split("params ")[1].split("found ")[1].split(";")[0].replace(",", "")))
    assert found[0] < found[1]  # more parameters asked for, more found


def test_a_history_is_played():
    history = stages.evolution.load("lite")
    panel = panels.replay(history)
    budget = history["budget"].iloc[0]
    run = history[history["budget"] == budget]
    assert f"T-CET {run['score'].max():,.0f}" in moved(panel, budget=budget)[1].replace("&lt;", "<")
    assert f"T-CET {run['score'].iloc[0]:,.0f}" in moved(panel, evaluations=1)[1]
    play = panel.children[0].children[0]
    play.value = 26
    assert panel.controls["evaluations"].value == 26


def test_the_map_of_latent_space_is_one_page_with_its_cells(tmp_path, monkeypatch):
    monkeypatch.setattr(stages.gvae.store, "figures_dir", lambda scale: tmp_path)
    monkeypatch.setattr(stages.gvae.store, "root", lambda: tmp_path)
    page = (tmp_path / stages.gvae.latent_map("lite")).read_text(encoding="utf-8")
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', page, re.DOTALL)[1])
    maps, n = data["maps"], len(data["cells"])
    assert set(maps) == {"naive", "regularised"} and all(len(points) == n for points in maps.values())
    assert len(data["families"]) == n and len(data["colours"]) == 5 and "http" not in page.replace("http-equiv", "")
    codes = stages.labels.codes_of(stages.labels.load("lite"), stages.cells.load("lite"))
    assert data["cells"][0]["operations"] == list(codes[-n:].cells()[0].operations)
    zc = Families.load("lite").assign(proxies.zc_matrix(stages.labels.load("lite")))[-n:]
    assert data["families"] == zc.tolist()  # cells and points are in one order
