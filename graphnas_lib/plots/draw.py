"""Drawings of cells, and the one plotting style (architectures: `diagrams`; plots of data: `report`).

A cell is drawn in layers by longest path from the input. An edge that skips layers gets a lane of its own in every
layer it passes (Sugiyama's dummy nodes), so that no line runs through a box. Everything here reads plain attributes
(`edges`, `operations`), takes data and returns a closed `Figure`.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from functools import wraps

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path

# Okabe and Ito's colours, readable with every common colour blindness; yellow and black last
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C6D1F", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY, LIGHT, DARK = "#9A9A9A", "#E3E3E3", "#333333"
_RC = {
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "figure.facecolor": "white",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "xtick.color": DARK,
    "ytick.color": DARK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.7,
    "hatch.linewidth": 0.6,
    "pdf.fonttype": 42,
    "figure.constrained_layout.use": True,
}
_TINTS = {  # by operation type: light fills under dark text
    "skip": "#F2F2F2",
    "avg_pool": "#E3E3E3",
    "conv": "#B9D7EA",
    "sep_conv": "#C5E5DA",
    "dil_conv": "#DCEBC3",
    "mbconv": "#F6DDB0",
    "bconv": "#EBCFE0",
}


def style() -> contextlib.AbstractContextManager:
    """The one plotting style, as a context."""
    return plt.rc_context(_RC)


def figure(plot: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorator of every `plot_*`: one style, and a closed figure, which a notebook shows once (as its last value)."""

    @wraps(plot)
    def styled(*args, **kwargs) -> Figure:
        with style():
            fig = plot(*args, **kwargs)
        plt.close(fig)
        return fig

    return styled


def svg(fig: Figure) -> str:
    """A figure as text, the same for the same data."""
    out = io.StringIO()
    with style(), plt.rc_context({"svg.hashsalt": "graphnas_lib", "svg.fonttype": "none"}):
        fig.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def cluster_style(cluster: int) -> tuple[str, str]:
    """(colour, marker) of a cluster: 64 different pairs, the same in every figure."""
    return PALETTE[cluster % len(PALETTE)], MARKERS[cluster // len(PALETTE) % len(MARKERS)]


# ---- layered layout

_BOX_W, _BOX_H, _LAYER = 1.04, 0.56, 1.62  # data units; a layer is a box and the gap to the next


def layered_layout(nodes: Sequence[int], edges: Sequence[tuple[int, int]]) -> tuple[dict, dict]:
    """Positions of a small DAG drawn left to right.

    Args:
        nodes: node numbers in topological order; the last one is drawn in the last layer.
        edges: (source, target) pairs, source before target.

    Returns:
        node -> (x, y), and edge -> list of the lanes (x, y) in the layers that it passes between its ends.
    """
    level = _levels(nodes, edges)
    layers: list[list] = [[] for _ in range(max(level.values()) + 1)]
    for node in nodes:
        layers[level[node]].append(node)
    chains = {}
    for a, b in edges:
        lanes = [(a, b, depth) for depth in range(level[a] + 1, level[b])]
        for lane in lanes:
            layers[lane[2]].append(lane)
        chains[a, b] = [a, *lanes, b]
    links = [pair for chain in chains.values() for pair in zip(chain[:-1], chain[1:], strict=True)]
    layers = _order(layers, links)
    y = _heights(layers, links)
    place = {item: (depth * _LAYER, y[item]) for depth, layer in enumerate(layers) for item in layer}
    return {node: place[node] for node in nodes}, {
        edge: [place[i] for i in chain[1:-1]] for edge, chain in chains.items()
    }


def _levels(nodes, edges) -> dict[int, int]:
    """Longest path from a source; the last node after all others."""
    level = dict.fromkeys(nodes, 0)
    for node in nodes:
        level[node] = max((level[a] + 1 for a, b in edges if b == node), default=0 if node == nodes[0] else 1)
    level[nodes[-1]] = max([level[nodes[-1]], *(level[n] + 1 for n in nodes[:-1])])
    return level


def _order(layers: list[list], links: list[tuple]) -> list[list]:
    """Order within the layers with few crossings: barycentre sweeps, the best of them kept."""
    neighbours: dict = {}
    for a, b in links:
        neighbours.setdefault(a, []).append(b)
        neighbours.setdefault(b, []).append(a)
    best, fewest = layers, _crossings(layers, links)
    for sweep in range(24):
        layers = [list(layer) for layer in layers]
        steps = range(1, len(layers)) if sweep % 2 == 0 else range(len(layers) - 2, -1, -1)
        for depth in steps:
            fixed = {item: i for i, item in enumerate(layers[depth - 1 if sweep % 2 == 0 else depth + 1])}
            here = {item: i for i, item in enumerate(layers[depth])}
            bary = {
                item: np.mean([fixed[n] for n in neighbours.get(item, []) if n in fixed] or [i])
                for item, i in here.items()
            }
            layers[depth].sort(key=lambda item: (bary[item], here[item] if sweep % 4 < 2 else -here[item]))  # noqa: B023
        count = _crossings(layers, links)
        if count < fewest:
            best, fewest = layers, count
    return best


def _crossings(layers: list[list], links: list[tuple]) -> int:
    rank = {item: i for layer in layers for i, item in enumerate(layer)}
    depth = {item: d for d, layer in enumerate(layers) for item in layer}
    count = 0
    for i, (a, b) in enumerate(links):
        for c, d in links[i + 1 :]:
            count += depth[a] == depth[c] and (rank[a] - rank[c]) * (rank[b] - rank[d]) < 0
    return count


def _heights(layers: list[list], links: list[tuple]) -> dict:
    """y of every item: pulled to its neighbours, lanes kept straight, a least distance within a layer."""
    y = {item: (i - (len(layer) - 1) / 2) * 0.7 for layer in layers for i, item in enumerate(layer)}
    lane = lambda item: isinstance(item, tuple)  # noqa: E731
    for sweep in range(40):
        for layer in layers if sweep % 2 else layers[::-1]:
            wish, weight = [], []
            for item in layer:
                ends = [
                    (y[b if a == item else a], 4.0 if lane(a) and lane(b) else 1.0) for a, b in links if item in (a, b)
                ]
                wish.append(np.average([e[0] for e in ends], weights=[e[1] for e in ends]) if ends else 0.0)
                weight.append(1.0 + 2.0 * (not lane(item)))
            gaps = [0.3 if lane(a) and lane(b) else 0.92 if not lane(a) and not lane(b) else 0.58
                    for a, b in zip(layer[:-1], layer[1:], strict=True)]  # fmt: skip
            y.update(zip(layer, _spaced(wish, weight, gaps), strict=True))
    return y


def _spaced(wish: list[float], weight: list[float], gaps: list[float]) -> list[float]:
    """Nearest positions (weighted least squares) that keep the order and the gaps: pool adjacent violators."""
    offset = np.concatenate([[0.0], np.cumsum(gaps)]) if gaps else np.zeros(len(wish))
    blocks: list[list[float]] = []  # (mean, weight, size)
    for target, w in zip(np.asarray(wish) - offset, weight, strict=True):
        blocks.append([float(target), w, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            m2, w2, n2 = blocks.pop()
            m1, w1, n1 = blocks.pop()
            blocks.append([(m1 * w1 + m2 * w2) / (w1 + w2), w1 + w2, n1 + n2])
    return list(np.repeat([b[0] for b in blocks], [int(b[2]) for b in blocks]) + offset)


# ---- cells


def draw_cell(ax: Axes, cell, *, font: float = 8.5) -> None:
    """Draw a cell into axes; x and y in the units of `layered_layout`."""
    nodes = [0, *(n for n, name in enumerate(cell.operations, start=1) if name is not None), 7]
    edges = [(int(a), int(b)) for a, b in cell.edges]
    place, lanes = layered_layout(nodes, edges)
    for (a, b), (start, end) in _ports(place, lanes, edges).items():
        _draw_edge(ax, start, lanes[a, b], end)
    for node in nodes:
        name = {0: "input", 7: "output"}.get(node) or cell.operations[node - 1]
        _draw_box(ax, place[node], name, node in (0, 7), font)
    xs, ys = zip(*[*place.values(), *(point for route in lanes.values() for point in route)], strict=True)
    ax.set(xlim=(min(xs) - 0.62, max(xs) + 0.62), ylim=(min(ys) - 0.42, max(ys) + 0.42), aspect="equal")
    ax.axis("off")


def _ports(place: dict, lanes: dict, edges: list) -> dict:
    """Edge -> (start, end) points, spread over the sides of the boxes so that lines do not merge."""
    ports: dict = {edge: [None, None] for edge in edges}
    for node, (x, y) in place.items():
        out = sorted((e for e in edges if e[0] == node), key=lambda e: (lanes[e] or [place[e[1]]])[0][1])
        into = sorted((e for e in edges if e[1] == node), key=lambda e: (lanes[e] or [place[e[0]]])[-1][1])
        for side, group, dx in ((0, out, _BOX_W / 2), (1, into, -_BOX_W / 2)):
            for i, edge in enumerate(group):
                spread = min(0.13, 0.4 / max(len(group) - 1, 1)) * (i - (len(group) - 1) / 2)
                ports[edge][side] = (x + dx, y + spread)
    return ports


def _draw_edge(ax: Axes, start, lane_points, end) -> None:
    """A smooth line from box to box: flat beside the boxes it passes, bent in the gaps only."""
    points = [start, *((x + dx, y) for x, y in lane_points for dx in (-_BOX_W / 2, _BOX_W / 2)), end]
    vertices, codes = [points[0]], [Path.MOVETO]
    for i, ((x0, y0), (x1, y1)) in enumerate(zip(points[:-1], points[1:], strict=True)):
        if i % 2:  # along a lane
            vertices.append((x1, y1))
            codes.append(Path.LINETO)
        else:
            middle = (x0 + x1) / 2
            vertices += [(middle, y0), (middle, y1), (x1, y1)]
            codes += [Path.CURVE4] * 3
    colour = "#7A8CA3" if lane_points else "#4A4A4A"
    arrow = FancyArrowPatch(
        path=Path(vertices, codes), arrowstyle="-|>", mutation_scale=8, linewidth=1.1, color=colour, zorder=1
    )
    ax.add_patch(arrow)


def _draw_box(ax: Axes, centre, name: str, terminal: bool, font: float) -> None:
    kind, _, kernel = name.rpartition("_") if "_" in name else (name, "", "")
    tint = next((fill for prefix, fill in _TINTS.items() if (kind or name).startswith(prefix)), "#FFFFFF")
    x, y = centre
    ax.add_patch(
        FancyBboxPatch(
            (x - _BOX_W / 2, y - _BOX_H / 2),
            _BOX_W,
            _BOX_H,
            boxstyle="round,pad=0,rounding_size=0.12",
            facecolor="#4A4A4A" if terminal else tint,
            edgecolor="#4A4A4A",
            linewidth=0.8,
            zorder=2,
        )
    )
    text = f"{kind}\n{kernel}×{kernel}" if kernel else name
    colour = "white" if terminal else "#1A1A1A"
    ax.text(x, y - 0.015, text, ha="center", va="center", fontsize=font, color=colour, zorder=3, linespacing=1.05)


@figure
def plot_cell(cell, title: str = "", *, ax: Axes | None = None) -> Figure:
    """One cell as a graph with its operations named; works for invalid cells too."""
    if ax is None:
        fig, ax = plt.subplots(figsize=(8, 3))
        draw_cell(ax, cell)
        fig.set_size_inches(*_inches(ax))
    else:
        draw_cell(ax, cell, font=7.0)
    if title:
        ax.set_title(title)
    return ax.figure


@figure
def plot_cells(cells: Sequence, titles: Sequence[str] = (), *, width: float = 10.8) -> Figure:
    """Several cells in a grid at one scale, each under its title; None (no valid decode) leaves its place empty.

    Args:
        cells: cells or None.
        titles: one a cell, or none at all.
        width: of the figure, inches.
    """
    fig = plt.figure(figsize=(width, 3))
    draw_grid(fig, fig.add_gridspec(1, 1)[0], cells, titles, width)
    return fig


def draw_grid(fig: Figure, place, cells: Sequence, titles: Sequence[str], width: float) -> float:
    """Cells under each other in a grid cell of `fig`, all boxes of one size; returns and sets the height in inches."""
    layers = max((_depth(cell) for cell in cells if cell is not None), default=2)
    columns = min(3 if layers <= 6 else 2, len(cells))
    rows = -(-len(cells) // columns)
    grid = place.subgridspec(rows, columns)
    axes = [fig.add_subplot(grid[i // columns, i % columns]) for i in range(len(cells))]
    for i, (ax, cell) in enumerate(zip(axes, cells, strict=True)):
        ax.axis("off")
        if cell is not None:
            draw_cell(ax, cell)
        else:
            ax.text(0.5, 0.5, "no valid cell", ha="center", va="center", color=GREY, transform=ax.transAxes)
        if i < len(titles):
            ax.set_title(titles[i], fontsize=9)
    heights = _equalise(axes, [cell is not None for cell in cells], columns, width)
    grid.set_height_ratios(heights)
    fig.set_size_inches(width, sum(heights))
    return sum(heights)


def _equalise(axes: list[Axes], drawn: list[bool], columns: int, width: float) -> list[float]:
    """Give all drawings one scale, centred in their column; returns the rows' heights in inches."""
    pairs = list(zip(axes, drawn, strict=True))
    span_x = max((np.ptp(ax.get_xlim()) for ax, there in pairs if there), default=2.0)
    unit = min((width / columns - 0.15) / span_x, 0.74)
    heights = []
    for start in range(0, len(axes), columns):
        row = [ax for ax, there in pairs[start : start + columns] if there]
        span_y = max([np.ptp(ax.get_ylim()) for ax in row] + [0.9])
        heights.append(span_y * unit + 0.42)
        for ax in row:
            x, y = np.mean(ax.get_xlim()), np.mean(ax.get_ylim())
            ax.set(xlim=(x - span_x / 2, x + span_x / 2), ylim=(y - span_y / 2, y + span_y / 2))
            for text in ax.texts:
                text.set_fontsize(min(8.5, 11.5 * unit))
    return heights


def _depth(cell) -> int:
    """Number of layers of a cell's drawing."""
    nodes = [0, *(n for n, name in enumerate(cell.operations, start=1) if name is not None), 7]
    return max(_levels(nodes, cell.edges).values()) + 1


def _inches(ax: Axes, unit: float = 0.74) -> tuple[float, float]:
    (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
    return (x1 - x0) * unit + 0.2, (y1 - y0) * unit + 0.5
