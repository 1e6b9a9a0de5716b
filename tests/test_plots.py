"""Figures hold what they were given, files are complete and repeatable, comparisons never hide a gap."""

import io
import itertools
import json
import subprocess
import sys

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")

from matplotlib.collections import PolyCollection

from graphnas_lib import gvae, paper, plots
from graphnas_lib.macro import Architecture, HLArchitecture, HLTriple, Triple, stack_cell
from graphnas_lib.plots import formatters, layout
from graphnas_lib.plots.draw import CellDrawing
from graphnas_lib.plots.figures import looks
from graphnas_lib.plots.style import MARKERS, OTHERS, cluster_style, picture, seen
from graphnas_lib.space import Cell, sample_cells
from graphnas_lib.store import artifacts

OPS = ("mbconv6_5", "bconv0.25_3", "avg_pool_3", "dil_conv_5", "conv_1", "skip")
FULL = Cell.from_edges(list(itertools.combinations(range(8), 2)), OPS)
ZC = ("naswot", "snip_ssnr", "params", "flops")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAPHNAS_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def families():
    """Standardised and raw z of 5 well separated families of 60 cells, their labels."""
    generator = np.random.default_rng(0)
    centres = np.array([[0, 0, 0, 0], [3, 0, 0, 0], [0, 4, 0, 0], [0, 0, 5, 5], [1, 1, 1, 1]], float)
    labels = np.repeat(np.arange(5), 60)
    z = centres[labels] + 0.2 * generator.normal(size=(300, 4))
    return z, np.stack([750 + 50 * z[:, 0], 10 ** (5 + z[:, 1]), 10 ** (5 + z[:, 2]), 10 ** (7 + z[:, 3])], 1), labels


def _bars():
    return plots.plot_bars(pd.Series([1.0, 2.0], index=["a", "b"], name="cells"), "x")


def _surface(collection):
    """Area of the first outline of a filled band, in data units; 0 for points."""
    x, y = collection.get_paths()[0].vertices.T if isinstance(collection, PolyCollection) else np.zeros((2, 1))
    return abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2


def _overflowing(fig):
    """Texts that stick out of the rounded box they are centred in."""
    fig.draw_without_rendering()
    out = []
    for ax in fig.axes:
        boxes = [p.get_window_extent() for p in ax.patches if isinstance(p, matplotlib.patches.FancyBboxPatch)]
        for text in ax.texts:
            extent = text.get_window_extent()
            x, y = (extent.x0 + extent.x1) / 2, (extent.y0 + extent.y1) / 2
            home = [box for box in boxes if box.x0 < x < box.x1 and box.y0 < y < box.y1]
            out += [text.get_text() for box in home if extent.width > box.width or extent.height > box.height]
    return out


# ---- drawings


def test_layout_of_the_full_cell_keeps_lines_off_boxes():
    edges = list(itertools.combinations(range(8), 2))
    place, lanes = layout.layered_layout(list(range(8)), edges)
    assert [place[node][0] for node in range(8)] == sorted(place[node][0] for node in range(8))
    assert all(len(lanes[a, b]) == b - a - 1 for a, b in edges)
    for route in lanes.values():
        for x, y in route:
            there = [other for other in place.values() if abs(other[0] - x) < 1e-9]
            assert all(abs(y - other[1]) > 0.5 for other in there)
    at_same_x = {}
    for x, y in (point for route in lanes.values() for point in route):
        at_same_x.setdefault(x, []).append(y)
    assert all(np.diff(sorted(ys)).min() > 0.29 for ys in at_same_x.values() if len(ys) > 1)


@pytest.mark.parametrize("cell", [FULL, *sample_cells(30, seed=5)], ids=lambda cell: cell.key()[:6])
def test_no_line_runs_through_a_box(cell):
    drawing = CellDrawing(cell)
    for (a, b), points in drawing.routes().items():
        assert points[0][0] > drawing.place[a][0] and points[-1][0] < drawing.place[b][0]
        for x, y in points[1:-1]:
            beside = [box for box in drawing.place.values() if abs(box[0] - x) <= layout.BOX_WIDTH / 2 + 1e-9]
            assert all(abs(y - box[1]) > layout.BOX_HEIGHT / 2 for box in beside)


def test_layout_layers_are_longest_paths():
    place, lanes = layout.layered_layout([0, 1, 2, 3, 7], [(0, 1), (1, 2), (0, 3), (2, 7), (3, 7), (0, 7)])
    depth = {node: round(x / layout.LAYER) for node, (x, _) in place.items()}
    assert depth == {0: 0, 1: 1, 2: 2, 3: 1, 7: 3}
    assert {edge: len(route) for edge, route in lanes.items() if route} == {(3, 7): 1, (0, 7): 2}


def test_layout_finds_the_drawing_without_crossings():
    edges = [(0, 1), (0, 2), (0, 3), (1, 6), (2, 5), (3, 4), (4, 7), (5, 7), (6, 7)]
    place, _ = layout.layered_layout(list(range(8)), edges)
    first, second = sorted((1, 2, 3), key=lambda n: place[n][1]), sorted((4, 5, 6), key=lambda n: place[n][1])
    assert [dict(edges[3:6])[n] for n in first] == second


def test_spacing_is_the_nearest_that_keeps_order_and_gaps():
    assert layout.spaced([0.0, 0.0], [1.0, 1.0], [1.0]) == pytest.approx([-0.5, 0.5])
    assert layout.spaced([0.0, 5.0], [1.0, 1.0], [1.0]) == pytest.approx([0.0, 5.0])
    assert layout.spaced([0.0, 0.0], [3.0, 1.0], [1.0]) == pytest.approx([-0.25, 0.75])


def test_plot_cell_names_every_operation_and_draws_every_edge():
    fig = plots.plot_cells([FULL], ["full"])
    texts = [text.get_text() for text in fig.axes[0].texts]
    assert texts == [
        "input",
        "mbconv6\n5×5",
        "bconv0.25\n3×3",
        "avg_pool\n3×3",
        "dil_conv\n5×5",
        "conv\n1×1",
        "skip",
        "output",
    ]
    arrows = [patch for patch in fig.axes[0].patches if isinstance(patch, matplotlib.patches.FancyArrowPatch)]
    assert len(arrows) == 28


def test_small_drawings_run_down_with_short_names():
    fig = plots.plot_cells([FULL, sample_cells(1, seed=0)[0]], small=True)
    texts = {text.get_text(): text.get_position() for text in fig.axes[0].texts}
    assert list(texts) == ["in", "mb6\n5×5", "b0.25\n3×3", "avg\n3×3", "dil\n5×5", "conv\n1×1", "skip", "out"]
    heights = [y for _, y in texts.values()]
    assert heights == sorted(heights, reverse=True) and heights[0] > heights[-1]
    places = [
        ax.get_subplotspec() for ax in plots.plot_cells([Cell.from_edges([(0, 7)], [None] * 6)] * 8, small=True).axes
    ]
    assert [(place.rowspan.start, place.colspan.start) for place in places] == [(i // 4, i % 4) for i in range(8)]
    wide, small = (CellDrawing(FULL, small=small).size for small in (False, True))
    assert small[1] > small[0] and wide[0] > wide[1]


def test_texts_stay_in_their_boxes():
    figs = [plots.plot_cells([FULL]), plots.plot_cells([FULL, *sample_cells(3, seed=0)])]
    figs += [plots.plot_pipeline(), plots.plot_pipeline("cells"), plots.plot_cells([FULL] * 3, small=True)]
    assert [_overflowing(fig) for fig in figs] == [[], [], [], [], []]


def test_plot_cell_accepts_what_a_decoder_may_make():
    plots.plot_cells([Cell.from_edges([], [None] * 6)])
    plots.plot_cells([Cell.from_edges([(0, 7)], [None] * 6)])
    plots.plot_cells([Cell.from_edges([(1, 2), (0, 7)], ["conv_1", "conv_3", None, None, None, None])])
    fig = plots.plot_cells([FULL, None], ["a", "b"])
    assert [ax.get_title() for ax in fig.axes] == ["a", "b"]
    assert fig.axes[1].texts[0].get_text() == "no valid cell"


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """A running IPython without a terminal, a profile or a history."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    yield InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    InteractiveShell.clear_instance()


def test_cells_and_architectures_show_their_picture(shell):
    formatters.register()
    cell, other = sample_cells(2, seed=0)
    architecture = Architecture((Triple(cell, 16, 1), Triple(other, 24, 2)))
    invalid = Cell.from_edges([], [None] * 6)
    shown = [shell.display_formatter.format(item)[0] for item in (cell, architecture, invalid, cell, "a word")]
    one, two, _, again = (data["image/svg+xml"] for data in shown[:4])
    for name in (cell.operations[node - 1] for node in cell.live):
        assert f">{name.rpartition('_')[0] or name}<" in one
    assert "24" in two and two.startswith("<?xml") and again == one
    assert "image/svg+xml" not in shown[4] and shown[0]["text/plain"] == repr(cell)


def test_nothing_is_registered_where_no_ipython_runs():
    assert formatters.register() is None


def test_import_draws_nothing_yet():
    """Designing a network needs no figure, so that importing the plots may not cost what drawing one does."""
    heavy = ("matplotlib", "seaborn", "IPython", "networkx", "pandas", "scipy.stats")
    code = f"import sys, graphnas_lib.plots; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_plot_architecture_shows_channels_strides_and_sides():
    a, b = sample_cells(2, seed=1)
    architecture = Architecture((Triple(a, 16, 1), Triple(b, 40, 2), Triple(a, 64, 2)), head_channels=128)
    texts = [text.get_text() for text in plots.plot_architecture(architecture, cells=True).axes[0].texts]
    assert [t for t in texts if t in {"16", "40", "64", "128"}] == ["16", "16", "40", "64", "128"]
    assert texts.count("/2") == 2 and [t for t in texts if "²" in t] == ["32²", "16²", "8²"]
    assert [t for t in texts if t in {"A", "B"}] == ["A", "B", "A"]
    assert [len(plots.plot_architecture(architecture, cells=n).axes) for n in (False, 1, True)] == [1, 2, 3]
    stacked = [text.get_text() for text in plots.plot_architecture(stack_cell(a)).axes[0].texts]
    assert stacked.count("A") == 17 and [t for t in stacked if "²" in t] == ["32²", "16²", "8²"]


def test_plot_architecture_of_families_and_odd_sides():
    hl = HLArchitecture((HLTriple(5, 32, 2), HLTriple(31, 1024, 2)), stem_stride=2)
    texts = [text.get_text() for text in plots.plot_architecture(hl, resolution=46).axes[0].texts]
    assert "31" in texts and [t for t in texts if "²" in t] == ["12²", "6²"]
    assert [t for t in texts if t in {"16", "32", "1024"}] == ["32", "32", "1024"]  # the stem is as wide as the first
    unknown = [text.get_text() for text in plots.plot_architecture(hl, resolution=None).axes[0].texts]
    assert not any("²" in text for text in unknown)


def test_figure_3_tells_training_from_sampling():
    fig = plots.plot_pipeline("cells")
    legend = fig.axes[0].get_legend()
    looks = {
        t.get_text(): (h.get_color(), h.is_dashed())
        for t, h in zip(legend.get_texts(), legend.get_lines(), strict=True)
    }
    assert list(looks) == ["training", "sampling", "both"] and len(set(looks.values())) == 3
    arrows = [text.arrow_patch for text in fig.axes[0].texts if getattr(text, "arrow_patch", None)]
    drawn = [matplotlib.colors.to_hex(arrow.get_edgecolor()).upper() for arrow in arrows]
    assert [drawn.count(looks[when][0].upper()) for when in looks] == [6, 3, 2]
    assert plots.plot_pipeline().axes[0].get_legend() is None


def test_plot_pipeline_names_its_choices():
    with pytest.raises(ValueError, match=r"which must be one of \('overview', 'cells'\); got 'figure 9'"):
        plots.plot_pipeline("figure 9")


# ---- plots of data


def test_farthest_families_is_a_rule_on_centres(families):
    z, _, labels = families
    assert plots.farthest_families(z, labels, 3) == [0, 2, 3]  # ties of size go to the first; then 3, then 2
    assert plots.farthest_families(z, labels, 9) == [0, 1, 2, 3, 4]
    assert plots.farthest_families(z, labels, 3, first=(1, 4)) == [1, 3, 4]


def test_clusters_and_latents_share_colours(families):
    z, raw, labels = families
    chosen = plots.farthest_families(z, labels, 3)
    styles = [{}, {}]
    figs = (
        plots.plot_clusters(raw, labels, ZC, chosen),
        plots.plot_latents({"b": z[:, :2], "c": z[:, 2:]}, labels, highlight=chosen),
    )
    for found, fig in zip(styles, figs, strict=True):
        dots = [dots for ax in fig.axes for dots in ax.collections]
        drawn = {tuple(colour) for each in dots for colour in each.get_facecolor()[:, :3]}
        for dot in fig.legends[0].legend_handles:
            colour = dot.get_facecolor()[0] if hasattr(dot, "get_offsets") else dot.get_markerfacecolor()
            found[dot.get_label().split(" (")[0]] = matplotlib.colors.to_rgb(colour)
        assert drawn == set(found.values())
    assert list(styles[0]) == ["other families", *(f"family {k}" for k in chosen)]
    assert styles[0] == styles[1] and len(set(styles[0].values())) == 4
    assert sum(len(dots.get_offsets()) for dots in figs[0].axes[0].collections) == 300


def test_cluster_styles_are_distinct_for_64_families():
    assert len({cluster_style(k) for k in range(64)}) == 64


def test_criterion_marks_numbers():
    curve = pd.DataFrame({"k": [1, 2, 4], "bic": [3.0, 2.0, 2.5], "aic": [3.0, 2.0, 1.9]})
    ax = plots.plot_criterion(curve, {"plateau": 2, "used": 4}).axes[0]
    shown = [text.get_text() for text in ax.get_legend().get_texts()]
    assert shown == ["BIC", "AIC", "plateau: K = 2", "used: K = 4"]
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines if len(line.get_xdata())]
    assert lines[:2] == [([1, 2, 4], [3.0, 2.0, 2.5]), ([1, 2, 4], [3.0, 2.0, 1.9])]
    assert [x for x, _ in lines[2:]] == [[2, 2], [4, 4]]


def test_plot_log_takes_a_trainlog_and_refuses_unknown_keys():
    log = artifacts.TrainLog([{"step": i, "loss": 100.0 / (i + 1), "kl": float(i)} for i in range(80)], 80, 1.0)
    fig = plots.plot_log(log, ["loss", "kl"])
    assert [ax.get_yscale() for ax in fig.axes] == ["log", "linear"]
    assert [text.get_text() for text in fig.axes[0].get_yticklabels() if float(text.get_text()) in (1, 2, 5)] == list(
        "125"
    )
    assert len(plots.plot_log(pd.DataFrame(log.rows), ["kl"]).axes[0].lines[0].get_xdata()) == 80
    with pytest.raises(ValueError, match=r"Logged quantities are \['step', 'loss', 'kl'\]; got \['lss'\]"):
        plots.plot_log(log, ["lss"])


def test_plot_search_draws_one_line_a_method_and_bands_over_runs():
    runs = np.arange(40.0) + np.array([[0.0], [1.0], [5.0]])
    fig = plots.plot_search({"Evo": range(400), "HL-Evo": runs, "SG": range(10)})
    lines = [line for line in fig.axes[0].lines if len(line.get_xdata()) > 1]
    assert [len(line.get_xdata()) for line in lines] == [400, 40, 10]
    bands = [area for area in fig.axes[0].collections if _surface(area) > 1e-9]
    assert fig.axes[0].get_xscale() == "log" and len(bands) == 1
    legend = [text.get_text() for text in fig.axes[0].get_legend().get_texts()]
    assert legend == ["Evo (400)", "HL-Evo (40)", "SG (10)"]


def test_plot_search_draws_the_median_in_steps():
    runs = [[1.0, 1.0, 3.0, 3.0], [1.0, 2.0, 2.0, 5.0]]
    (line,) = (line for line in plots.plot_search({"a": runs}).axes[0].lines if len(line.get_xdata()))
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 2, 3, 4], [1.0, 1.5, 2.5, 4.0])
    assert line.get_drawstyle() == "steps-post"


def test_intervals_of_many_groups_stay_in_their_row():
    names, kinds = ["a"] * 4 + ["b"] * 4, list("wxyz") * 2
    fig = plots.plot_intervals(names, range(1, 9), range(8), range(2, 10), "points", groups=kinds, zero="no gain")
    (ax,) = fig.axes
    points = [line for line in ax.lines if line.get_label() != "no gain" and len(line.get_ydata()) == 2]
    rows = np.array([line.get_ydata() for line in points if line.get_marker() in MARKERS])
    assert rows.shape == (4, 2) and np.ptp(rows[:, 0]) < 1 and rows[:, 0].max() + 0.3 < rows[:, 1].min()
    (line,) = (line for line in ax.lines if line.get_label() == "no gain")
    assert line.get_xdata() == [0.0, 0.0] and "no gain" in [text.get_text() for text in ax.get_legend().get_texts()]
    log = plots.plot_intervals(names, range(1, 9), range(1, 9), range(2, 10), "x", groups=kinds, log=True).axes[0]
    assert log.get_xscale() == "log" and {1.0, 2.0, 5.0} <= set(log.get_xticks())


def test_band_has_a_tick_at_each_of_few_budgets():
    rows = [{"n": n, "y": n, "rule": rule} for n in (8, 40, 100) for rule in "ab"]
    ax = plots.plot_band(rows, "n", "y", "rule", "accuracy", log=True).axes[0]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["8", "40", "100"]


def test_scatter_states_n_and_rank_of_every_panel():
    up, down = [1.0, 2.0, 3.0, np.nan], [3.0, 2.0, 1.0, 0.0]
    table = pd.DataFrame({"x": up * 2, "y": up + down, "of": ["a"] * 4 + ["b"] * 4})
    fig = plots.plot_scatter(table, "x", "y", ("x", "y"), by="of", lines={"b": 2.5})
    assert [ax.get_title() for ax in fig.axes] == ["a\nSpearman 1.00, n = 3", "b\nSpearman -1.00, n = 3"]
    assert [[line.get_xdata()[0] for line in ax.lines] for ax in fig.axes] == [[], [2.5]]
    pooled = plots.plot_scatter(table, "x", "y", ("x", "y"))
    assert [ax.get_title() for ax in pooled.axes] == ["Spearman 0.00, n = 6"]


def test_scatter_gives_every_group_a_look_of_its_own():
    names = [f"m{i}" for i in range(20)]
    look = looks(names, MARKERS)
    colours = [look["palette"][i] for i in range(20)]
    assert len(set(zip(colours, look["markers"], strict=True))) == 20
    table = pd.DataFrame({"x": range(1, 21), "y": range(20), "method": names, "data": "d"})
    fig = plots.plot_scatter(table, "x", "y", ("x", "y"), by="data", hue="method", log="x")
    assert [text.get_text() for text in fig.legends[0].get_texts()] == names and fig.axes[0].get_xscale() == "log"


def test_scatter_of_errors_has_a_band_and_no_rank():
    table = pd.DataFrame({"asked": [1.0, 2.0, 3.0], "off": [-30.0, 0.0, 300.0]})
    ax = plots.plot_scatter(table, "asked", "off", ("a", "b"), band=(-25, 25)).axes[0]
    assert ax.get_title() == "n = 3" and ax.get_yscale() == "symlog"
    assert ax.get_yticks().tolist() == [-25, -10, 0, 10, 25, 50, 100, 200]


def test_families_over_depth_are_shares_of_those_that_reach():
    hl = [HLArchitecture((HLTriple(0, 8, 1), HLTriple(1, 16, 2))), HLArchitecture((HLTriple(1, 8, 1),))]
    table = plots.families_over_depth(hl, 3)
    assert table["n"].tolist() == [2, 1] and table["stride_2"].tolist() == [0.0, 1.0]
    assert table[["family_0", "family_1", "family_2"]].to_numpy().tolist() == [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]
    reach, family, channels, halves = plots.plot_over_depth(table).axes[:4]
    shares = family.collections[0].get_array()
    assert shares.shape == (3, 2) and shares[2].tolist() == [0.0, 0.0]  # a family that nobody uses has a row
    assert [bar.get_height() for bar in reach.patches] == [2, 1]
    assert channels.lines[0].get_xydata().tolist() == [[1, 8], [2, 16]]
    assert [(bar.get_center()[0], bar.get_height()) for bar in halves.patches] == [(1, 0), (2, 1)]


def test_pairs_show_every_component_and_rank():
    zc = pd.DataFrame({"naswot": [1.0, 2.0, 3.0], "params": [1e3, 1e5, 1e4], "flops": [1e3, 1e4, 1e5]})
    fig = plots.plot_pairs(zc)
    assert sorted(text.get_text() for ax in fig.axes for text in ax.texts) == ["0.500", "0.500", "1.000"]
    dots = [dots for ax in fig.axes for dots in ax.collections]
    assert len(dots) == 3 and dots[0].get_offsets().tolist() == [[1, 3], [2, 5], [3, 4]]


def test_clusters_draw_the_ellipse_of_every_family(families):
    _, raw, labels = families
    fig = plots.plot_clusters(raw, labels, ZC, 2, ellipses={k: raw[labels == k] for k in range(5)})
    lines = [line for line in fig.axes[0].lines if len(line.get_xdata())]  # seaborn's legend leaves empty ones
    assert len(lines) == 5 and lines[3].get_xydata().tolist() == raw[labels == 3][:, [2, 0]].tolist()
    assert sum(line.get_linewidth() > 1 for line in lines) == 2


def test_clusters_draw_a_medoid_under_the_mark_of_each_coloured_family(families):
    _, raw, labels = families
    cells = dict(enumerate(sample_cells(5, seed=0)))
    fig = plots.plot_clusters(raw, labels, ZC, [1, 4], medoids=cells)
    assert [ax.get_title() for ax in fig.axes] == ["", "medoid of family 1", "medoid of family 4"]
    points, one, four = fig.axes
    legend = {dot.get_label().split(" (")[0]: dot for dot in fig.findobj(matplotlib.legend.Legend)[0].legend_handles}
    for ax, k in ((one, 1), (four, 4)):
        (mark,) = ax.lines
        colour = legend[f"family {k}"].get_markerfacecolor()
        assert matplotlib.colors.to_rgb(mark.get_color()) == matplotlib.colors.to_rgb(colour)
        assert mark.get_marker() == legend[f"family {k}"].get_marker()
        assert len(ax.texts) == 2 + sum(name is not None for name in cells[k].operations)
    assert len(plots.plot_clusters(raw, labels, ZC, [1, 4]).axes) == 1


def test_paths_go_from_a_cross_to_their_family(families):
    rows = [(plane, c, i, t, c * t, i) for plane in "pq" for c in (0, 1) for i in (0, 1) for t in (0.0, 0.5, 1.0)]
    rows.append(("q", -1, np.nan, np.nan, 7.0, 8.0))
    paths = pd.DataFrame(rows[::-1], columns=["plane", "condition", "sample", "time", "x", "y"])
    fig = plots.plot_paths(paths, {"p": "one", "q": "two"}, [3, 9], [3, 4, 9])
    assert [ax.get_title() for ax in fig.axes] == ["one", "two"]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["family 3", "start", "family 9"]
    left, right = fig.axes
    lines = [line.get_xydata().tolist() for line in left.lines if len(line.get_xdata()) == 3]
    assert [[1.0 * t, 1.0] for t in (0.0, 0.5, 1.0)] in lines and len(lines) == 4
    ends = {line.get_color(): line.get_xdata()[0] for line in left.lines if line.get_label() == "family 9"}
    assert ends == {plots.PALETTE[2]: 1.0}  # the colour of the third that is highlighted
    assert [7.0, 8.0] in [point for line in right.lines for point in line.get_xydata().tolist()]


# ---- results


def test_spread_shows_every_value_and_crosses_what_diverged():
    table = pd.DataFrame(
        {"who": ["r", "r", "c", "c"], "acc": [10.0, 30.0, 5.0, 7.0], "diverged": [True, False] + [False] * 2}
    )
    published = pd.DataFrame({"name": ["c", "other"], "low": [1.0, 0], "mean": [2.0, 0], "high": [4.0, 0]})
    fig = plots.plot_spread(table, "who", "acc", "accuracy (%)", lines={"chance": 10.0}, published=published)
    ours, theirs = fig.axes
    assert [text.get_text() for text in ours.get_yticklabels()] == ["r", "c"]
    assert sum(len(dots.get_offsets()) for dots in ours.collections) == 3
    crosses, means = (line for line in ours.lines if line.get_marker() in "x|")
    assert crosses.get_xydata().tolist() == [[10.0, 0.0]]
    assert sorted(means.get_xydata().tolist()) == [[6.0, 1], [20.0, 0]]  # a diverged run counts
    assert {t.get_text() for t in ours.get_legend().get_texts()} == {"diverged", "chance: 10"}
    assert theirs.lines[0].get_xydata().tolist() == [[2.0, 1.0]] and theirs.get_xlabel().startswith("paper: accuracy")


def test_spread_has_a_panel_with_its_own_line_for_every_data_set():
    table = pd.DataFrame({"who": ["a", "b"] * 2, "acc": [50.0, 60, 2, np.nan], "data": ["x", "x", "y", "y"]})
    fig = plots.plot_spread(table, "who", "acc", "%", by="data", lines={"chance": {"x": 10.0, "y": 1.0}})
    assert [ax.get_title() for ax in fig.axes] == ["x", "y"]
    assert [ax.get_legend().get_texts()[0].get_text() for ax in fig.axes] == ["chance: 10", "chance: 1"]


def test_table_3_as_a_picture_marks_what_was_not_trained():
    ours = pd.DataFrame({"flops": [18e6, 24e6], "accuracy": [np.nan, 50.0]})
    ax = plots.plot_accuracy_by_flops(paper.TABLE_3, ours).axes[0]
    marks = {line.get_label(): line.get_xdata().tolist() for line in ax.lines if line.get_marker() in ("D", "^")}
    assert marks == {"here": [24.0], "designed here, not trained: no accuracy": [18.0]}
    assert {"450M: Ours", "600M: Ours", "1000M: Ours", "TE-NAS"} <= {text.get_text() for text in ax.texts}
    none = plots.plot_accuracy_by_flops(paper.TABLE_3, ours[["flops"]]).axes[0]
    assert "here" not in [text.get_text() for text in none.get_legend().get_texts()]


@pytest.mark.parametrize("flops", [[18e6, 24e6], [300e6, 900e6], [5e6, 2e9]], ids=str)
def test_names_in_table_3_do_not_touch(flops):
    fig = plots.plot_accuracy_by_flops(paper.TABLE_3, pd.DataFrame({"flops": flops}))
    fig.draw_without_rendering()
    boxes = {text: text.get_window_extent() for text in fig.axes[0].texts}
    assert len(boxes) == 13
    touching = [
        (a.get_text(), b.get_text()) for a, b in itertools.combinations(boxes, 2) if boxes[a].overlaps(boxes[b])
    ]
    assert touching == []


def test_errors_against_a_reference_leave_gaps_where_there_is_none():
    table = pd.DataFrame({"a": [0.5, 2.0], "here": [np.nan, 1.5]}, index=["t1", "t2"])
    ax = plots.plot_against(table, "share").axes[0]
    assert ax.get_xscale() == "log" and [text.get_text() for text in ax.get_yticklabels()] == ["t1", "t2"]
    assert [line.get_markerfacecolor() == "none" for line in ax.lines[:2]] == [False, True]
    assert {0.5, 1.0, 2.0} <= {float(text.get_text()) for text in ax.get_xticklabels()}


def test_hours_stand_in_order_beside_the_papers():
    hours = pd.Series([2.0, 0.01], index=["labels", "families"])
    ax = plots.plot_hours(hours, {"labels": 5.0, "sequence": 11.0}).axes[0]
    assert [text.get_text() for text in ax.texts] == ["2.0", "<0.1"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["labels", "families"]
    assert ax.lines[0].get_xydata().tolist() == [[5.0, 0.0]]


def test_status_counts_claims_once_each_in_order():
    table = pd.DataFrame({"notebook": ["01", "01", "02"], "status": ["differs", "not run (why)", "differs"]})
    bar, grid = plots.plot_status(table, ("differs", "not decided", "not run")).axes
    assert [text.get_text() for text in bar.texts] == ["differs\n2", "not run\n1"]
    assert [text.get_text() for text in grid.texts] == ["1", "", "1", "1", "", ""]


# ---- words and colours


def test_figures_say_in_words_what_they_show(home):
    fig = plots.plot_criterion(pd.DataFrame({"k": [1, 2], "bic": [3.0, 2.0], "aic": [3.0, 2.0]}), {"used": 2})
    assert "criterion (lower is better) against number of families K" in seen(fig)
    _, first = picture(fig)
    assert first["alt"] == seen(fig) and first["caption"] == ""
    receipt = plots.save_figure(fig, "fig2_criterion", scale="lite", data=[{"k": 1}], title="K = 2 will do")[3]
    png, words = picture(fig)
    assert words["alt"].startswith("Two falling curves") and words["alt"].endswith("K = 2 will do.")
    assert words["caption"] == json.loads(receipt.read_text())["caption"] != ""
    assert json.loads(receipt.read_text())["alt"] == words["alt"] and fig.get_suptitle() == "K = 2 will do"
    height, width, _ = plt.imread(io.BytesIO(png)).shape
    assert (words["width"], words["height"]) == (width // 2, height // 2)


def test_a_running_notebook_gets_picture_and_words(shell):
    data, kept = shell.display_formatter.format(_bars())
    assert data["image/png"].startswith(b"\x89PNG") and "cells against x" in kept["image/png"]["alt"]


def test_no_text_of_a_figure_is_too_small_to_read(families):
    z, raw, labels = families
    hl = [HLArchitecture((HLTriple(0, 8, 1), HLTriple(1, 16, 2)))]
    figs = [plots.plot_clusters(raw, labels, ZC), plots.plot_over_depth(plots.families_over_depth(hl, 2)), _bars()]
    figs += [plots.plot_pipeline(), plots.plot_architecture(hl[0]), plots.plot_cells(sample_cells(6, seed=0))]
    figs.append(plots.plot_accuracy_by_flops(paper.TABLE_3, pd.DataFrame({"flops": [18e6]})))
    figs += [plots.plot_cells(sample_cells(14, seed=0), small=True), plots.plot_pipeline("cells")]
    texts = [text for fig in figs for text in fig.findobj(matplotlib.text.Text) if text.get_text()]
    assert [text.get_text() for text in texts if text.get_fontsize() < 7] == [] and len(texts) > 100


DEUTERANOPIA = np.array(  # Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = np.array([0.95047, 1.0, 1.08883])


def lab(colour: str, seen_as: np.ndarray) -> np.ndarray:
    """CIELAB of an sRGB colour as eyes with this matrix see it."""
    c = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    x = XYZ @ np.clip(seen_as @ linear, 0, 1) / WHITE
    f = np.where(x > 216 / 24389, np.cbrt(x), (24389 / 27 * x + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eyes", [np.eye(3), DEUTERANOPIA], ids=["usual", "deuteranope"])
def test_colours_stay_apart(eyes):
    def nearest(colours):
        points = [lab(colour, eyes) for colour in colours]
        return min(np.linalg.norm(a - b) for a, b in itertools.combinations(points, 2))

    assert nearest([*plots.PALETTE, OTHERS]) > 24
    if eyes is DEUTERANOPIA:
        assert nearest(["#009E73", "#CC79A7"]) < 18  # a green and a pink that are one colour to a deuteranope


def test_plots_leave_no_open_figure_and_no_changed_style():
    before = dict(plt.rcParams)
    _bars()
    assert plt.get_fignums() == [] and dict(plt.rcParams) == before


# ---- files


def test_figure_files_are_complete_and_repeatable(home):
    data = pd.DataFrame({"x": [1, 2], "y": [0.5, 0.25]})
    first = [p.read_bytes() for p in plots.save_figure(plots.plot_cells([FULL]), "fig", scale="lite", data=data)]
    paths = plots.save_figure(plots.plot_cells([FULL]), "fig", scale="lite", data=data)
    assert [p.read_bytes() for p in paths] == first
    assert [p.relative_to(home).as_posix() for p in paths] == [
        f"figures/lite/fig.{s}" for s in ("pdf", "png", "csv", "json")
    ]
    assert first[0].startswith(b"%PDF") and first[1].startswith(b"\x89PNG") and b"CreationDate" not in first[0]
    receipt = json.loads(paths[3].read_text())
    assert receipt["files"]["fig.png"]["sha256"] == artifacts.sha256(paths[1]) and receipt["rows"] == 2
    assert sorted(p.name for p in paths[0].parent.iterdir()) == ["fig.csv", "fig.json", "fig.pdf", "fig.png"]


def test_only_smoke_figures_say_that_they_are_smoke(home):
    notes = {}
    for scale in ("smoke", "lite"):
        fig = _bars()
        plots.save_figure(fig, "h", scale=scale, data={"x": [1.0, 2.0]})
        plots.save_figure(fig, "h", scale=scale, data={"x": [1.0, 2.0]})
        notes[scale] = [text.get_text() for text in fig.texts]
    assert notes == {"smoke": ["smoke scale: not comparable with the paper"], "lite": []}


def test_figure_names_stay_in_their_folder(home):
    with pytest.raises(ValueError, match="plain file name"):
        plots.save_figure(_bars(), "../x", scale="lite", data=[])
    with pytest.raises(ValueError, match="scale must be one of"):
        plots.save_figure(_bars(), "x", scale="huge", data=[])


def test_table_files(home):
    table = pd.DataFrame({"row": ["a|b", "c"], "ours": [93.081, float("nan")], "n": [20, 3]})
    csv, md = plots.save_table(table, "table1", scale="smoke", note="n: seeds")
    assert csv.relative_to(home).as_posix() == "data/smoke/results/table1.csv"
    assert (
        md.read_text() == "| row | ours | n |\n| --- | --: | --: |\n| a\\|b | 93.08 | 20 |\n| c |  | 3 |\n\nn: seeds\n"
    )


# ---- paper against ours


def test_compare_gives_every_printed_number_a_line_and_never_a_blank():
    table = plots.compare(paper.TABLE_1, {}, scale="lite", why={"": "no GPU here"})
    printed = [1 for row in paper.TABLE_1 for _, cell in row if cell.value is not None]
    assert len(table) == len(printed) == 29
    assert (table["ours"] == "not run (no GPU here)").all() and table["delta"].isna().all()
    assert not (table[["row", "quantity", "paper", "ours", "n", "scale"]] == "").any(axis=None)


def test_compare_sets_numbers_beside_each_other():
    ours = {"CCNF": {"C-10 Mean": {"value": 61.0, "spread": 1.25, "n": 20, "note": "6 epochs"}, "Gen. success": 0.95}}
    table = plots.compare(paper.TABLE_1, ours, scale="smoke").set_index(["row", "quantity"])
    line = table.loc[("CCNF", "C-10 Mean")]
    assert (line["paper"], line["ours"], line["n"], line["scale"], line["note"]) == (
        "93.08±0.85", "61.00", "20", "smoke", "6 epochs",
    )  # fmt: skip
    assert line["delta"] == pytest.approx(61.0 - 93.08) and line["spread"] == "1.250"
    assert table.loc[("CCNF", "Gen. success"), "delta"] == pytest.approx(-0.05)
    assert table.loc[("Random", "C-10 Mean"), "ours"] == "not run (no result at smoke)"


def test_compare_treats_nan_as_not_run_with_its_own_reason():
    ours = {"CCNF": {"SNIP": {"value": float("nan"), "note": "3 of 3 diverged"}, "NASWOT": {"value": None}}}
    table = plots.compare(paper.TABLE_1, ours, scale="lite").set_index(["row", "quantity"])["ours"]
    assert table[("CCNF", "SNIP")] == "not run (3 of 3 diverged)"
    assert table[("CCNF", "NASWOT")] == "not run (no result at lite)"


def test_compare_knows_quoted_rows_and_rows_of_our_own():
    own = {"450M: random search": {"Acc. (%)": {"value": 40.0, "n": 3}}}
    table = plots.compare(paper.TABLE_3, own, scale="lite", columns=["Acc. (%)"])
    assert len(table) == 17
    assert table.iloc[0]["ours"] == "quoted from other work"  # nobody here was to run it
    assert table.iloc[-1][["row", "paper", "ours", "n"]].tolist() == ["450M: random search", "-", "40.00", "3"]


def test_compare_takes_no_difference_from_a_misprint():
    rate = {"TRAIN: Learning rate": {"G-VAE": 1e-3}, "TRAIN: Weight decay": {"G-VAE": 1e-3}}
    table = plots.compare(paper.TABLE_6, rate, scale="lite").set_index(["row", "quantity"])["delta"]
    assert np.isnan(table[("TRAIN: Learning rate", "G-VAE")])
    assert table[("TRAIN: Weight decay", "G-VAE")] == pytest.approx(5e-4)


# ---- tables as notebooks show them


def test_comparison_is_shown_as_printed():
    ours = {
        "CCNF": {
            "C-10 Mean": {"value": 61.0, "spread": 1.25, "n": 20, "note": "6 epochs; 16 px"},
            "Gen. success": "19/20",
        },
        "own": {"C-10 Mean": {"value": 60.123, "spread": 2.0, "n": 3}},
    }
    lines = plots.show(plots.compare(paper.TABLE_1, ours, scale="lite", why="no GPU")).rows
    header = plots.show(plots.compare(paper.TABLE_1, ours, scale="lite")).header
    assert header == ["row", "of", *(name for name, _ in paper.TABLE_1[0]), "n"]
    printed, found = (dict(zip(header, lines[i], strict=True)) for i in (6, 7))
    assert printed["C-10 Mean"] == "93.08±0.85" and (found["row"], found["of"]) == ("", "ours")
    assert (found["C-10 Mean"], found["Gen. success"], found["NASWOT"]) == ("61.00±1.25", "19/20", "not run")
    assert found["n"] == "20"
    own = dict(zip(header, lines[8], strict=True))
    assert (own["row"], own["C-10 Mean"], own["NASWOT"]) == ("own", "60.12±2.00", "-") and len(lines) == 9


def test_comparison_tells_notes_once_and_quotes_without_a_line_of_ours():
    ours = {
        "450M: Ours": {
            "Params. (M)": {"value": 0.06, "note": "32 px; ours"},
            "FLOPs (M)": {"value": 17.6, "note": "32 px"},
        }
    }
    shown = plots.show(plots.compare(paper.TABLE_3, ours, scale="lite", columns=["Params. (M)", "FLOPs (M)"]))
    whose = [row[1] for row in shown.rows]
    assert whose.count("ours") == 3 and set(whose[:5]) == {"paper, quoted"}
    assert "32 px: 450M: Ours, Params. (M); 450M: Ours, FLOPs (M)" in shown.notes
    assert [row[2:4] for row in shown.rows if row[1] == "ours"][0] == ["0.1", "18"]


def test_tables_show_no_nan_no_bare_index_and_words_for_truths():
    table = pd.DataFrame({"won_it": [True, False], "x": [np.nan, 12345.6], "of": [None, "10^{390}"]})
    shown = plots.show(table)
    assert shown.header == ["won it", "x", "of"]
    assert shown.rows == [["yes", "-", "-"], ["no", "12,346", "10^390"]]
    counts = plots.show(pd.DataFrame({"n": [3.0, np.nan], "share": [1.0, 0.5]}))
    assert counts.rows == [["3", "1.000"], ["-", "0.5000"]] and counts.right == [True, True]
    indexed = plots.show(table.pivot(index="won_it", columns="of", values=["x"]))
    assert indexed.header[0] == "won it" and indexed.header[-1] == "x · 10^{390}"
    page = shown._repr_html_() + shown._repr_markdown_() + repr(shown)
    assert "nan" not in page.lower().replace("nan_", "") and "<details>" not in page


def test_a_status_is_a_badge_with_its_word_and_a_long_table_folds():
    table = pd.DataFrame({"status": ["differs", "not run (no <files>)", "other"] * 6})
    page = plots.show(table, "claims")._repr_html_()
    assert page.startswith("<details><summary>claims: 18 rows</summary><table>")
    assert page.count("<b>differs</b></span>") == 6 and page.count("<b>not run</b></span> (no &lt;files&gt;)") == 6
    assert '<td style="text-align:left">other</td>' in page and "<b>" not in plots.show(table)._repr_markdown_()
    lines = plots.show(table.head(2))._repr_markdown_().splitlines()
    assert lines == ["| status |", "| --- |", "| differs |", "| not run (no <files>) |"]


def test_compare_refuses_a_misspelt_quantity():
    with pytest.raises(ValueError, match=r"Quantities must be columns of the table.*got \['C-10 mean'\]"):
        plots.compare(paper.TABLE_1, {"CCNF": {"C-10 mean": 1.0}}, scale="lite")


# ---- embedding


def test_embedding_is_repeatable_and_separates(families):
    z, _, labels = families
    points = gvae.embed(z[::5], seed=3)
    assert points.shape == (60, 2) and np.array_equal(points, gvae.embed(z[::5], seed=3))
    near = ((points[:, None] - points[None]) ** 2).sum(-1).argsort(1)[:, 1]
    assert (labels[::5][near] == labels[::5]).mean() > 0.95
    with pytest.raises(ValueError, match="at least 8 points; got 5"):
        gvae.embed(z[:5])


def test_cluster_metrics_reward_structure_and_not_the_control(families):
    z, _, labels = families
    kept = gvae.cluster_metrics(np.concatenate([z, -z], 1), z, labels, seed=0).set_index("metric")
    lost = gvae.cluster_metrics(np.random.default_rng(1).normal(size=(300, 8)), z, labels, seed=0).set_index("metric")
    assert list(kept.index) == list(lost.index) and len(kept) == 5
    assert (kept["value"] > kept["shuffled"] + 0.3).all()
    assert (kept["value"] > lost["value"] + 0.3).all()
    assert (abs(lost["value"] - lost["shuffled"]) < 0.15).all()


def test_cluster_metrics_refuse_mismatched_rows(families):
    z, _, labels = families
    with pytest.raises(ValueError, match="one row a cell; got 300, 299 and 300"):
        gvae.cluster_metrics(z, z[:-1], labels)
    with pytest.raises(ValueError, match="need 40 cells; got 20"):
        gvae.cluster_metrics(z[:20], z[:20], labels[:20])


def test_bars_and_strips_show_every_value_and_say_what_is_missing():
    fig = plots.plot_bars(pd.Series([1234.0, 0.5, float("nan")], index=["a", "b", "c"], name="seconds"), "stage")
    assert [text.get_text() for text in fig.axes[0].texts] == ["1,234", "0.5", "no value"]
    assert (fig.axes[0].get_ylabel(), fig.axes[0].get_xlabel()) == ("seconds", "stage")
    fig = plots.plot_strip(["r", "r", "c"], [1.0, 3.0, 5.0], "accuracy (%)", groups=["x", "x", "y"])
    means = [y for line in fig.axes[0].lines for y in line.get_ydata() if np.isfinite(y)]
    assert means == [2.0, 5.0]
    assert sum(len(dots.get_offsets()) for dots in fig.axes[0].collections) == 3
