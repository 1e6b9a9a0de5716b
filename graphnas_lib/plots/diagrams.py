"""Diagrams of whole networks, of the method and of intervals: the macro strip, families over depth, Figures 1 and 3.

Everything here reads plain attributes (`triples`), takes data and returns a closed `Figure`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.ticker import MaxNLocator

from graphnas_lib.plots.draw import DARK, GREY, LIGHT, MARKERS, PALETTE, cluster_style, draw_grid, figure

_HATCHES = ("", "////", "....", "xxxx")  # bars have no markers: eight colours four times


@figure
def plot_architecture(architecture, title: str = "", *, resolution: int | None = 32, cells: bool = False) -> Figure:
    """A macro strip: one bar a cell, its height and label the channels, with a mark where the resolution halves.

    Args:
        architecture: an `Architecture` (a letter for each distinct cell) or an `HLArchitecture` (its family).
        title: printed above.
        resolution: side of the input in pixels, for the sides printed under the stages; None prints none.
        cells: draw the distinct cells of an `Architecture` under the strip.
    """
    triples = architecture.triples
    concrete = hasattr(triples[0], "cell")
    distinct = list(dict.fromkeys(t.cell for t in triples)) if concrete else []
    shown = distinct if cells else []
    width = max(1.2 + 0.5 * (len(triples) + 3), 10.8 if shown else 0)
    fig = plt.figure(figsize=(width, 2.7))
    grid = fig.add_gridspec(2 if shown else 1, 1)
    _draw_strip(fig.add_subplot(grid[0]), architecture, distinct, resolution)
    if shown:
        height = draw_grid(fig, grid[1], shown, [f"cell {_letter(i)}" for i in range(len(shown))], width)
        grid.set_height_ratios([2.7, height])
        fig.set_size_inches(width, 2.7 + height)
    if title:
        fig.suptitle(title)
    return fig


def _letter(i: int) -> str:
    return chr(ord("A") + i)


def _draw_strip(ax: Axes, architecture, distinct: list, resolution: int | None) -> None:
    triples = architecture.triples
    top = max(t.channels for t in triples)
    side, stages = -(-(resolution or 0) // architecture.stem_stride), []
    _draw_bar(ax, 0, triples[0].channels, top, LIGHT, "stem")  # as wide as the first cell (`macro.Architecture`)
    for i, triple in enumerate(triples, start=1):
        if triple.stride == 2:
            side = -(-side // 2)
            ax.plot([i - 0.5] * 2, [-0.03, 1.2], color=DARK, linewidth=0.9, linestyle=(0, (3, 2)), zorder=0)
            ax.text(i - 0.5, 1.23, "/2", ha="center", va="bottom", fontsize=7.5, color=DARK)
        stages.append(side)
        index = distinct.index(triple.cell) if distinct else triple.cluster
        label = _letter(index) if distinct else str(index)
        _draw_bar(ax, i, triple.channels, top, cluster_style(index)[0], label, _HATCHES[index // len(PALETTE) % 4])
    last = len(triples) + 1
    if architecture.head_channels:
        _draw_bar(ax, last, architecture.head_channels, max(top, architecture.head_channels), LIGHT, "head")
        last += 1
    ax.text(last - 0.35, 0.12, "pool,\nlinear", va="center", fontsize=7.5, color=DARK)
    if resolution is not None:
        _mark_stages(ax, stages)
    ax.set(xlim=(-0.6, last + 0.6), ylim=(-0.26, 1.38))
    ax.axis("off")
    key = "letter: distinct cell" if distinct else "number: family"
    ax.text(0.0, -0.02, f"height and number above: channels   ·   {key}   ·   /2: stride 2", transform=ax.transAxes,
            fontsize=7.5, color="#666666", va="top")  # fmt: skip


def _draw_bar(ax: Axes, x: float, channels: int, top: int, colour: str, label: str, hatch: str = "") -> None:
    height = max(0.14, (channels / max(top, channels)) ** 0.5)
    ax.add_patch(Rectangle((x - 0.4, 0), 0.8, height, facecolor=colour, edgecolor="white", linewidth=0, hatch=hatch))
    dark = colour in (LIGHT, "#E69F00", "#56B4E9", "#CC79A7")
    box = {"boxstyle": "round,pad=0.15", "facecolor": colour, "edgecolor": "none"}
    ax.text(x, 0.07, label, ha="center", va="center", fontsize=7.5, color=DARK if dark else "white", bbox=box)
    ax.text(x, height + 0.02, str(channels), ha="center", va="bottom", fontsize=7.5, color=DARK)


def _mark_stages(ax: Axes, sides: list[int]) -> None:
    """Resolution under each run of cells that share it."""
    start = 0
    for i in range(1, len(sides) + 1):
        if i == len(sides) or sides[i] != sides[start]:
            ax.plot([start + 0.62, i + 0.38], [-0.07, -0.07], color=GREY, linewidth=1.0)
            ax.text((start + i + 1) / 2, -0.1, f"{sides[start]}²", ha="center", va="top", fontsize=8, color="#555555")
            start = i


@figure
def plot_families_over_depth(hl_architectures: Sequence) -> Figure:
    """Which families, widths and strides high-level architectures use at each depth.

    Left: share of each family at each position, among the architectures that reach it. Right: median channels with
    the middle half, and the share of stride 2.
    """
    rows = [
        {"depth": depth, "family": triple.cluster, "channels": triple.channels, "stride": triple.stride}
        for architecture in hl_architectures
        for depth, triple in enumerate(architecture.triples, start=1)
    ]
    table = pd.DataFrame(rows)
    share = pd.crosstab(table["family"], table["depth"], normalize="columns")
    fig, (left, right) = plt.subplots(1, 2, figsize=(10.8, 3.8), width_ratios=[1.25, 1])
    image = left.imshow(share.to_numpy(), aspect="auto", cmap="cividis", vmin=0, interpolation="nearest")
    fig.colorbar(image, ax=left, label="share of architectures", pad=0.02)
    left.set(xlabel="position in the sequence", ylabel="family")
    every = max(1, -(-len(share) // 16))
    left.set_yticks(range(0, len(share), every), share.index[::every])
    left.set_xticks(
        range(0, share.shape[1], max(1, share.shape[1] // 10)), share.columns[:: max(1, share.shape[1] // 10)]
    )
    left.grid(False)
    widths = table.groupby("depth")["channels"].quantile([0.25, 0.5, 0.75]).unstack()
    right.fill_between(widths.index, widths[0.25], widths[0.75], color=PALETTE[0], alpha=0.2, linewidth=0)
    right.plot(widths.index, widths[0.5], color=PALETTE[0], marker="o", markersize=3.5)
    right.set(xlabel="position in the sequence", xlim=(0.4, widths.index.max() + 0.6))
    right.set_ylabel("channels (median, middle half)", color=PALETTE[0])
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    halves = right.twinx()
    down = table.groupby("depth")["stride"].apply(lambda strides: (strides == 2).mean())
    halves.bar(down.index, down, color=LIGHT, width=0.7, zorder=0)
    halves.set(ylim=(0, 1), ylabel="share of stride 2")
    halves.spines["right"].set_visible(True)
    halves.grid(False)
    right.set_zorder(halves.get_zorder() + 1)
    right.patch.set_visible(False)
    return fig


# ---- Figures 1 and 3

_TINT = {"data": "#E8EDF2", "model": "#FBEBCB", "search": "#D9EFE6", "result": "#F4E0EC"}
_BOX = (2.5, 0.98)  # width and height, data units
_STEP = (3.55, 1.62)  # distance of columns and of rows

# name: (column, row, kind, title, text)
_OVERVIEW = {
    "space": (0, 0, "data", "1 · Cells $\\Omega$", "graphs of 6 operations,\nabout $10^{17}$"),
    "zc": (0, 1, "data", "ZC vectors $z(x)$", "NASWOT, SNIP-SSNR,\nparameters, FLOPs"),
    "gvae": (1, 0, "model", "2 · G-VAE $f$, $f^{-1}$, $q$", "reconstruction, KL,\ntriplets, predictor"),
    "gmm": (1, 1, "model", "2 · Mixture (GMM)", "$K$ families of cells,\ncentres $\\mu_k$ (Eq. 3)"),
    "ccnf": (2, 0, "model", "3 · CCNF $g$", "noise to latent cell,\ngiven $z(r)$ (Eq. 6–7)"),
    "evolution": (2, 1, "search", "4 · HL-Evo", "families, widths, strides;\nmaximise T-CET (App. C)"),
    "budget": (3, 2, "data", "Budget $y$", "parameters, FLOPs"),
    "generator": (3, 1, "model", "5 · Generator (SG)", "GPT-Neo on the history\n(Eq. 10–12)"),
    "realise": (3, 0, "search", "6 · Realise $\\alpha(\\hat{\\alpha})$", "a cell for each family\n(Eq. 8–9)"),
    "network": (4, 0, "result", "Networks", "select by T-CET,\ntrain"),
}
_OVERVIEW_ARROWS = (
    ("space", "zc", "score a part"),
    ("space", "gvae", "train"),
    ("zc", "gmm", "fit"),
    ("zc", "gvae", "regularise"),
    ("gvae", "ccnf", "latents"),
    ("gmm", "evolution", "families"),
    ("ccnf", "evolution", "cells"),
    ("evolution", "generator", "history $H$"),
    ("budget", "generator", "condition"),
    ("generator", "realise", "$\\hat{\\alpha}$"),
    ("ccnf", "realise", "cells"),
    ("realise", "network", ""),
)
_CELLS = {
    "cell": (0, 2, "data", "Cell $x = (A, F)$", "8×8 and 8×13"),
    "encoder": (1, 2, "model", "Encoder $f$", "4 graph convolutions"),
    "latent": (2, 2, "data", "Latent $f(x)$", "256 numbers"),
    "decoder": (3, 2, "model", "Decoder $f^{-1}$", "edges and operations"),
    "rebuilt": (4, 2, "result", "Cell $\\tilde{x}$", "valid, canonical"),
    "predictor": (1, 1, "model", "Predictor $q$", "ZC vector from latent"),
    "condition": (1, 0, "data", "Condition", "$z(r)$, or centre $\\mu_k$"),
    "noise": (2, 0, "data", "Noise $\\epsilon$", "$u_0$, standard normal"),
    "flow": (2, 1, "model", "CCNF $g(u_t, t, z)$", "$t: 0 \\to T$ samples,\nback: likelihood"),
    "sample": (3, 1, "data", "Latent $u_T$", "a synonym of $r$"),
}
_CELLS_ARROWS = (
    ("cell", "encoder", ""),
    ("encoder", "latent", ""),
    ("latent", "decoder", ""),
    ("decoder", "rebuilt", ""),
    ("latent", "predictor", "MSE"),
    ("latent", "flow", "train (Eq. 6)"),
    ("noise", "flow", ""),
    ("flow", "sample", "sample"),
    ("sample", "decoder", "decode"),
    ("predictor", "condition", "$q(f(r))$"),
    ("condition", "flow", "given"),
)


@figure
def plot_pipeline(which: str = "overview") -> Figure:
    """The method as a diagram: "overview" is Figure 1, "cells" is Figure 3 (G-VAE and CCNF, training and sampling)."""
    diagrams = {"overview": (_OVERVIEW, _OVERVIEW_ARROWS), "cells": (_CELLS, _CELLS_ARROWS)}
    if which not in diagrams:
        raise ValueError(f"which must be one of {tuple(diagrams)}; got {which!r}.")
    boxes, arrows = diagrams[which]
    fig, ax = plt.subplots(figsize=(10.8, 3.5))
    for source, target, label in arrows:
        _draw_arrow(ax, boxes[source][:2], boxes[target][:2], label)
    for column, row, kind, title, text in boxes.values():
        _draw_stage(ax, column * _STEP[0], row * _STEP[1], _TINT[kind], title, text)
    rows = [box[1] for box in boxes.values()]
    columns = [box[0] for box in boxes.values()]
    ax.set(
        xlim=(-_BOX[0] / 2 - 0.1, max(columns) * _STEP[0] + _BOX[0] / 2 + 0.1),
        ylim=(min(rows) * _STEP[1] - 0.62, max(rows) * _STEP[1] + 0.62),
        aspect="equal",
    )
    ax.axis("off")
    return fig


def _draw_stage(ax: Axes, x: float, y: float, tint: str, title: str, text: str) -> None:
    w, h = _BOX
    shape = "round,pad=0,rounding_size=0.12"
    ax.add_patch(
        FancyBboxPatch((x - w / 2, y - h / 2), w, h, boxstyle=shape, facecolor=tint, edgecolor="#8A8A8A", linewidth=0.8)
    )
    ax.text(x, y + 0.27, title, ha="center", va="center", fontsize=8.3, fontweight="bold", color="#1A1A1A")
    ax.text(x, y - 0.16, text, ha="center", va="center", fontsize=7.2, color=DARK, linespacing=1.2)


def _draw_arrow(ax: Axes, source: tuple[int, int], target: tuple[int, int], label: str) -> None:
    """Arrow between the facing sides of two boxes of the grid, label beside it."""
    (c0, r0), (c1, r1) = source, target
    (x0, y0), (x1, y1) = ((c * _STEP[0], r * _STEP[1]) for c, r in (source, target))
    if c0 == c1:
        side = 1 if r1 > r0 else -1
        start, end, place = (x0, y0 + side * _BOX[1] / 2), (x1, y1 - side * _BOX[1] / 2), (x0 + 0.1, (y0 + y1) / 2)
    else:
        side = 1 if c1 > c0 else -1
        drop = 0.27 * ((r1 > r0) - (r1 < r0))  # diagonal arrows leave and arrive off the middle
        start, end = (x0 + side * _BOX[0] / 2, y0 + drop), (x1 - side * _BOX[0] / 2, y1 - drop)
        place = ((start[0] + end[0]) / 2, (y0 + y1) / 2 + (0.07 if r0 == r1 else 0))
    style = {
        "arrowstyle": "-|>",
        "mutation_scale": 10,
        "linewidth": 1.3,
        "color": "#555555",
        "shrinkA": 0,
        "shrinkB": 0,
    }
    ax.add_patch(FancyArrowPatch(start, end, **style))
    align = {"ha": "left", "va": "center"} if c0 == c1 else {"ha": "center", "va": "bottom" if r0 == r1 else "center"}
    halo = {"facecolor": "white", "edgecolor": "none", "pad": 0.8} if r0 != r1 and c0 != c1 else None
    ax.text(*place, label, fontsize=7.2, color="#444444", bbox=halo, **align)


# ---- intervals


@figure
def plot_intervals(
    names, values, low, high, xlabel: str, *, groups, marks: Mapping[str, Sequence] | None = None
) -> Figure:
    """A line a name: each group's value with its interval, and published values as ticks; text is left out.

    Args:
        names: (n,), one line for each distinct one, in order.
        values: (n,).
        low: (n,), lower ends of the intervals.
        high: (n,), upper ends.
        xlabel: of the values, with unit.
        groups: (n,), colour and marker.
        marks: label -> (n,) other values of the same names, drawn once a name.
    """
    numbers = {"value": values, "low": low, "high": high, **(marks or {})}
    table = pd.DataFrame({key: pd.to_numeric(pd.Series(list(v)), errors="coerce") for key, v in numbers.items()})
    table["name"], table["group"] = list(names), list(groups)
    order, kinds = list(dict.fromkeys(table["name"])), list(dict.fromkeys(table["group"]))
    fig, ax = plt.subplots(figsize=(6.4, 1.2 + 0.3 * len(order)))
    for i, kind in enumerate(kinds):
        part = table[(table["group"] == kind) & table["value"].notna()]
        if not len(part):
            continue
        y = part["name"].map(order.index) + 0.26 * (i - (len(kinds) - 1) / 2)
        colour = PALETTE[i % len(PALETTE)]
        ax.hlines(y, part["low"], part["high"], color=colour, linewidth=1.2)
        ax.scatter(part["value"], y, s=24, color=colour, marker=MARKERS[i % len(MARKERS)], label=kind)
    for i, label in enumerate(marks or {}):
        part = table.drop_duplicates("name")
        part = part[part[label].notna()]
        look = {"color": DARK, "marker": "|+"[i % 2], "s": 130 - 70 * (i % 2)}
        ax.scatter(part[label], part["name"].map(order.index), linewidths=1.4, label=label, zorder=3, **look)
    ax.set_yticks(range(len(order)), order)
    ax.set(xlabel=xlabel, ylim=(len(order) - 0.4, -0.6))
    ax.grid(axis="x", color=LIGHT, linewidth=0.6)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return fig
