"""Diagrams of whole networks and of the method: the macro strip, Figures 1 and 3.

Everything here reads plain attributes (`triples`), takes data and returns a closed `Figure`.
"""

from __future__ import annotations

import tomllib
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from graphnas_lib import store
from graphnas_lib.plots.draw import CellGrid, draw_box
from graphnas_lib.plots.style import DARK, GREY, LIGHT, PALETTE, STYLE, WIDEST, cluster_style, figure, subplots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HATCHES = ("", "////", "....", "xxxx")  # bars have no markers: eight colours four times
_STRIP_HEIGHT = 2.7  # inches
_ARROWS = {  # when an arrow of `plot_pipeline` is walked -> its look
    "training": {"color": PALETTE[0], "linestyle": "-"},
    "sampling": {"color": PALETTE[4], "linestyle": (0, (3, 1.5))},
    "both": {"color": "#555555", "linestyle": "-"},
}
_BOX, _STEP = (2.5, 0.98), (3.55, 1.62)  # size of a box; distance of columns and of rows


@figure
def plot_architecture(
    architecture, title: str = "", *, resolution: int | None = 32, cells: bool | int = False
) -> Figure:
    """A macro strip: one bar a cell, its height and label the channels, with a mark where the resolution halves.

    Args:
        architecture: an `Architecture` (a letter for each distinct cell) or an `HLArchitecture` (its family).
        title: printed above.
        resolution: side of the input in pixels, for the sides printed under the stages; None prints none.
        cells: draw the distinct cells of an `Architecture` small under the strip; a number draws the first so many.
    """
    import matplotlib.pyplot as plt

    triples = architecture.triples
    concrete = hasattr(triples[0], "cell")
    distinct = list(dict.fromkeys(t.cell for t in triples)) if concrete else []
    letters = [chr(ord("A") + i) for i in range(len(distinct))]
    kinds = [distinct.index(t.cell) if concrete else t.cluster for t in triples]
    names = [letters[kind] if concrete else str(kind) for kind in kinds]
    width = 1.2 + 0.5 * (len(triples) + 3)
    if cells and concrete:
        grid = CellGrid(distinct if cells is True else distinct[:cells], max(width, WIDEST), small=True)
        heights = [_STRIP_HEIGHT, sum(grid.heights)]
        fig = plt.figure(figsize=(max(width, grid.width), sum(heights)))
        top, bottom = fig.subfigures(2, 1, height_ratios=heights)
        ax = top.subplots()
        grid.draw(bottom, [f"cell {letter}" for letter in letters])
    else:
        fig, ax = subplots(figsize=(width, _STRIP_HEIGHT))
    _draw_strip(ax, architecture, kinds, names)
    _mark_stages(ax, architecture, resolution)
    key = "letter: distinct cell" if concrete else "number: family"
    text = f"height and number above: channels   ·   {key}   ·   /2: stride 2"
    ax.text(0, -0.02, text, transform=ax.transAxes, fontsize=7.5, color="#666666", va="top")
    if title:
        fig.suptitle(title)
    return fig


def _draw_strip(ax: Axes, architecture, kinds: list[int], names: list[str]) -> None:
    """Bars of stem, cells and head; a cell's colour and hatching tell which of `kinds` it is."""
    from seaborn.utils import relative_luminance

    triples = architecture.triples
    looks = [(cluster_style(kind)[0], _HATCHES[kind // len(PALETTE) % len(_HATCHES)]) for kind in kinds]
    bars = [("stem", triples[0].channels, LIGHT, "")]  # as wide as the first cell (`macro.Architecture`)
    bars += [(name, triple.channels, *look) for name, triple, look in zip(names, triples, looks, strict=True)]
    bars += [("head", architecture.head_channels, LIGHT, "")] if architecture.head_channels else []
    labels, channels, colours, hatches = zip(*bars, strict=True)
    widest = max(t.channels for t in triples)
    heights = [max(0.14, min(c / widest, 1.0) ** 0.5) for c in channels]
    drawn = ax.bar(range(len(bars)), heights, color=colours, hatch=hatches, edgecolor="white", linewidth=0)
    ax.bar_label(drawn, channels, padding=1, fontsize=7.5, color=DARK)
    for i, (label, colour) in enumerate(zip(labels, colours, strict=True)):
        ink = DARK if relative_luminance(colour) > 0.28 else "white"
        box = {"boxstyle": "round,pad=0.4", "facecolor": colour, "edgecolor": "none"}
        ax.text(i, 0.07, label, ha="center", va="center", fontsize=7.5, color=ink, bbox=box)
    ax.text(len(bars) - 0.35, 0.12, "pool,\nlinear", va="center", fontsize=7.5, color=DARK)
    ax.set(xlim=(-0.6, len(bars) + 0.6), ylim=(-0.26, 1.38))
    ax.axis("off")


def _mark_stages(ax: Axes, architecture, resolution: int | None) -> None:
    """A line where the resolution halves, and the resolution under each run of cells that share it."""
    side, sides = -(-(resolution or 0) // architecture.stem_stride), []
    for i, triple in enumerate(architecture.triples, start=1):
        if triple.stride == 2:
            side = -(-side // 2)
            ax.plot([i - 0.5] * 2, [-0.03, 1.2], color=DARK, linewidth=0.9, linestyle=(0, (3, 2)), zorder=0)
            ax.text(i - 0.5, 1.23, "/2", ha="center", va="bottom", fontsize=7.5, color=DARK)
        sides.append((i, side))
    for side, run in groupby(sides if resolution is not None else (), key=lambda pair: pair[1]):
        places = [i for i, _ in run]
        ax.plot([places[0] - 0.38, places[-1] + 0.38], [-0.07, -0.07], color=GREY, linewidth=1.0)
        middle = (places[0] + places[-1]) / 2
        ax.text(middle, -0.1, f"{side}²", ha="center", va="top", fontsize=8, color="#555555")


@figure
def plot_pipeline(which: str = "overview") -> Figure:
    """The method as a diagram: "overview" is Figure 1, "cells" is Figure 3 (G-VAE and CCNF, training and sampling)."""
    diagrams = tomllib.loads(Path(__file__).with_name("diagrams.toml").read_text(encoding="utf-8"))
    boxes = diagrams[store.one_of("which", which, diagrams)]["boxes"]
    fig, ax = subplots(figsize=(10.8, 3.5))
    for source, target, label, *when in diagrams[which]["arrows"]:
        _draw_arrow(ax, boxes[source]["at"], boxes[target]["at"], label, **_ARROWS[(*when, "both")[0]])
    for box in boxes.values():
        x, y = (place * step for place, step in zip(box["at"], _STEP, strict=True))
        draw_box(ax, (x, y), _BOX, STYLE["boxes"][box["kind"]], "#8A8A8A")
        ax.text(x, y + 0.27, box["title"], ha="center", va="center", fontsize=8.3, weight="bold", color="#1A1A1A")
        ax.text(x, y - 0.16, box["text"], ha="center", va="center", fontsize=7.2, color=DARK, linespacing=1.2)
    ends = [(max(box["at"][i] for box in boxes.values()) * _STEP[i], _BOX[i] / 2 + 0.1) for i in (0, 1)]
    ax.set(xlim=(-ends[0][1], sum(ends[0])), ylim=(-ends[1][1], sum(ends[1])), aspect="equal")
    ax.axis("off")
    if any(len(arrow) > 3 for arrow in diagrams[which]["arrows"]):
        for when, look in _ARROWS.items():
            ax.plot([], [], linewidth=1.5, label=when, **look)
        ax.legend(loc="lower right", bbox_to_anchor=(0.98, 0.02), title="arrows of", alignment="left")
    return fig


def _draw_arrow(ax: Axes, source: tuple[int, int], target: tuple[int, int], label: str, **look) -> None:
    """Arrow between the facing sides of two boxes of the grid, label beside it."""
    (c0, r0), (c1, r1) = source, target
    (x0, y0), (x1, y1) = ((c * _STEP[0], r * _STEP[1]) for c, r in (source, target))
    sideways, up = (c1 > c0) - (c1 < c0), (r1 > r0) - (r1 < r0)
    if sideways:
        drop = 0.27 * up  # diagonal arrows leave and arrive off the middle
        start, end = (x0 + sideways * _BOX[0] / 2, y0 + drop), (x1 - sideways * _BOX[0] / 2, y1 - drop)
        place = ((start[0] + end[0]) / 2, (y0 + y1) / 2 + (0 if up else 0.07))
    else:
        start, end = (x0, y0 + up * _BOX[1] / 2), (x1, y1 - up * _BOX[1] / 2)
        place = (x0 + 0.1, (y0 + y1) / 2)
    shape = {"arrowstyle": "-|>", "mutation_scale": 10, "linewidth": 1.5, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", end, start, arrowprops=shape | look)
    align = {"ha": "center" if sideways else "left", "va": "center" if up else "bottom"}
    halo = {"facecolor": "white", "edgecolor": "none", "pad": 0.8} if sideways and up else None
    ax.text(*place, label, fontsize=7.2, color="#444444", bbox=halo, **align)
