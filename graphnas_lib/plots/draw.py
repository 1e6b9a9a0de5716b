"""Drawings of cells: a box an operation, tinted by its type, on a layered layout.

Everything here reads plain attributes (`edges`, `operations`) and works for invalid cells too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from graphnas_lib.plots.layout import BOX_HEIGHT, BOX_WIDTH, layered_layout
from graphnas_lib.plots.style import GREY, STYLE, WIDEST, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

INCHES_PER_UNIT = 0.74  # of the layout, where there is room
FONT_PER_INCH = 11.5  # points of the names in boxes, for an inch a unit
READABLE = 7.0  # points: as many cells stand in a row as leave names this large
SMALL_BOX, SMALL_LAYER, SMALL_FONT = (0.74, 0.62), 0.68, 17.5  # of small drawings; share of a layer's distance kept
_EDGE = "#4A4A4A"


class CellDrawing:
    """A cell laid out: where its boxes and lines go, and how large that is in the units of the layout.

    A small one runs from top to bottom, and its names are shortened: "mb6" is an mbconv6, "b0.5" a bconv0.5.
    """

    def __init__(self, cell, *, small: bool = False):
        names = enumerate(["input", *cell.operations, "output"])
        self.names = {node: name for node, name in names if name is not None}
        self.edges = [(int(a), int(b)) for a, b in cell.edges]
        self.place, self.lanes = layered_layout(list(self.names), self.edges)
        self.small, self.box = small, SMALL_BOX if small else (BOX_WIDTH, BOX_HEIGHT)
        points = self.turned([*self.place.values(), *(point for route in self.lanes.values() for point in route)])
        self.middle = (points.max(0) + points.min(0)) / 2
        self.size = np.ptp(points, axis=0) + self.box + (0.2, 0.28)

    def turned(self, points: Sequence[tuple]) -> np.ndarray:
        """Points of the layout, (n, 2), where they are drawn."""
        points = np.asarray(points, dtype=float)
        return points[:, ::-1] * (1, -SMALL_LAYER) if self.small else points

    def draw(self, ax: Axes, size: tuple[float, float], font: float) -> None:
        """Draw into axes, in the middle of a field of `size` units."""
        (x, y), (width, height) = self.middle, size
        ax.set(xlim=(x - width / 2, x + width / 2), ylim=(y - height / 2, y + height / 2), aspect="equal")
        ax.axis("off")
        for points in self.routes().values():
            _draw_line(ax, points, self.turned)
        for node, name in self.names.items():
            kind, _, kernel = name.rpartition("_")
            tint = next((fill for prefix, fill in STYLE["operations"].items() if name.startswith(prefix)), "white")
            terminal = node in (0, 7)
            ((x, y),) = self.turned([self.place[node]])
            draw_box(ax, (x, y), self.box, _EDGE if terminal else tint, _EDGE)
            if self.small:
                kind, name = re.sub("_conv|_pool|conv(?=.)", "", kind), name.removesuffix("put")
            text, colour = f"{kind}\n{kernel}×{kernel}" if kind else name, "white" if terminal else "#1A1A1A"
            ax.text(x, y - 0.015, text, ha="center", va="center", fontsize=font, color=colour, linespacing=1.05)

    def routes(self) -> dict:
        """Edge -> points of its line, from box to box, with two on each lane: where it passes beside boxes it is flat.

        Ends are spread over the sides of the boxes, in the order of where the lines go, so that lines do not merge.
        """
        halves = (-BOX_WIDTH / 2, BOX_WIDTH / 2)
        points = {e: [(x + dx, y) for x, y in self.lanes[e] for dx in halves] for e in self.edges}
        ends: dict = {}
        for node, (x, y) in self.place.items():
            for side, dx in enumerate(reversed(halves)):  # sources on the right of the box, targets on the left
                meets = {e: (points[e] or [self.place[e[1 - side]]])[-side][1] for e in self.edges if e[side] == node}
                spread = min(0.13, 0.4 / max(len(meets) - 1, 1))
                for i, edge in enumerate(sorted(meets, key=meets.get)):
                    ends[edge, side] = (x + dx, y + spread * (i - (len(meets) - 1) / 2))
        return {edge: [ends[edge, 0], *line, ends[edge, 1]] for edge, line in points.items()}


def _draw_line(ax: Axes, points: Sequence[tuple], turned: Callable) -> None:
    """A smooth arrow through the points, bent in every other stretch: in the gaps between the layers."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    vertices, codes = [points[0]], [Path.MOVETO]
    for i, ((x0, y0), (x1, y1)) in enumerate(pairwise(points)):
        middle, beside_box = (x0 + x1) / 2, i % 2 == 1
        vertices += [(x1, y1)] if beside_box else [(middle, y0), (middle, y1), (x1, y1)]
        codes += [Path.LINETO] if beside_box else [Path.CURVE4] * 3
    look = {"arrowstyle": "-|>", "mutation_scale": 8, "linewidth": 1.1, "zorder": 1}
    look["color"] = "#7A8CA3" if len(points) > 2 else _EDGE
    ax.add_patch(FancyArrowPatch(path=Path(turned(vertices), codes), **look))


def draw_box(ax: Axes, centre: tuple, size: tuple, fill: str, edge: str) -> None:
    """A rounded box around `centre`."""
    from matplotlib.patches import FancyBboxPatch

    corner = (centre[0] - size[0] / 2, centre[1] - size[1] / 2)
    shape = "round,pad=0,rounding_size=0.12"
    ax.add_patch(FancyBboxPatch(corner, *size, boxstyle=shape, facecolor=fill, edgecolor=edge, linewidth=0.8, zorder=2))


@figure
def plot_cells(cells: Sequence, titles: Sequence[str] = (), *, small: bool = False) -> Figure:
    """Several cells in a grid at one scale, each under its title; None (no valid decode) leaves its place empty.

    `small` is of `CellDrawing`.
    """
    import matplotlib.pyplot as plt

    grid = CellGrid(cells, WIDEST, small=small)
    fig = plt.figure(figsize=(grid.width, sum(grid.heights)))
    grid.draw(fig, titles)
    return fig


class CellGrid:
    """Cells in rows, all boxes of one size: how many inches they take, and their drawing into a figure."""

    def __init__(self, cells: Sequence, width: float, *, small: bool = False):
        self.drawings = [None if cell is None else CellDrawing(cell, small=small) for cell in cells]
        sizes = [(2.0, 0.9) if drawing is None else drawing.size for drawing in self.drawings]
        self.span = max(x for x, _ in sizes)
        self.font, most = (SMALL_FONT, 7) if small else (FONT_PER_INCH, 3)
        fits = (n for n in range(most, 1, -1) if self.font * (width / n - 0.15) >= READABLE * self.span)
        rows = -(-len(cells) // next(fits, 1))
        self.columns = -(-len(cells) // rows)  # no row is much emptier than the others
        room = (width / self.columns - 0.15) / self.span
        self.unit = min(room, (0.6 if small else 1.0) * INCHES_PER_UNIT)
        self.width = self.columns * (self.span * self.unit + 0.15)
        rows = (sizes[i : i + self.columns] for i in range(0, len(sizes), self.columns))
        self.spans = [max(y for _, y in row) for row in rows]
        self.heights = [span * self.unit + 0.42 for span in self.spans]

    def draw(self, fig: Figure | SubFigure, titles: Sequence[str]) -> None:
        """Fill the figure; it should be `width` by the sum of `heights`."""
        grid = fig.add_gridspec(len(self.heights), self.columns, height_ratios=self.heights)
        for i, drawing in enumerate(self.drawings):
            ax = fig.add_subplot(grid[i], title=titles[i] if i < len(titles) else "")
            ax.axis("off")
            if drawing is None:
                ax.text(0.5, 0.5, "no valid cell", ha="center", va="center", color=GREY, transform=ax.transAxes)
            else:
                drawing.draw(ax, (self.span, self.spans[i // self.columns]), min(8.5, self.font * self.unit))
