"""Figures of the notebooks: `plot_*` takes data and returns a Figure, and never shows or writes one.

Families keep one colour in all panels of Figure 2: pass the same `highlight` to `plot_clusters` and `plot_latent`
(`farthest_families` chooses it by a rule before anyone looks). Drawings of cells and networks, the files and the
comparison tables come from `draw`, `diagrams`, `results` and `embedding`, and are offered here under one name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from graphnas_lib.plots.draw import DARK, GREY, MARKERS, PALETTE, cluster_style, figure

ZC_AXES = {  # column of clusters.ZC_NAMES -> (axis label, logarithmic)
    "naswot": ("NASWOT", False),
    "snip_ssnr": ("SNIP-SSNR", True),
    "params": ("parameters", True),
    "flops": ("FLOPs (2 × MACs)", True),
}
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))


def farthest_families(zc, labels, n: int = 4) -> list[int]:
    """n families far apart in z: the largest first, then each time the farthest centre (L1) from those chosen.

    Families with fewer than 1% of the cells are left out, so that a highlighted one can be seen.

    Args:
        zc: standardised ZC vectors, (n_cells, 4).
        labels: family of each cell, (n_cells,).
        n: how many; fewer come back when there are fewer families.
    """
    zc, labels = _array(zc), _array(labels).astype(int)
    names, counts = np.unique(labels, return_counts=True)
    names = names[counts >= 0.01 * len(labels)] if (counts >= 0.01 * len(labels)).any() else names
    centres = np.array([zc[labels == k].mean(0) for k in names])
    chosen = [int(np.argmax([np.sum(labels == k) for k in names]))]
    while len(chosen) < min(n, len(names)):
        distance = np.abs(centres[:, None] - centres[chosen][None]).sum(-1).min(1)
        chosen.append(int(distance.argmax()))
    return sorted(int(names[i]) for i in chosen)


def _array(values) -> np.ndarray:
    """Tensor, DataFrame column or list as a numpy array."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _highlighted(labels: np.ndarray, highlight) -> dict[int, tuple[str, str]]:
    """family -> (colour, marker): distinct ones by rank for highlighted families, the families' own without any."""
    if highlight is None:
        return {int(k): cluster_style(int(k)) for k in np.unique(labels)}
    return {int(k): (PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]) for i, k in enumerate(sorted(highlight))}


def _draw_families(ax: Axes, x, y, labels, styles: dict, *, size: float = 9) -> None:
    """Scatter of cells, families in their colours over the others in grey."""
    others = ~np.isin(labels, list(styles))
    if others.any():
        grey = {"c": "#C9C9C9", "label": "other families"}
        ax.scatter(x[others], y[others], s=size * 0.45, linewidths=0, rasterized=True, **grey)
    for family, (colour, marker) in styles.items():
        here = labels == family
        label = f"family {family} (n = {here.sum():,})"
        ax.scatter(
            x[here], y[here], s=size, c=colour, marker=marker, linewidths=0, alpha=0.75, label=label, rasterized=True
        )


def _legend(fig: Figure, ax: Axes, count: int) -> None:
    """One legend under the panels; none when the families are too many to name."""
    if 1 < count <= 12:
        handles, labels = ax.get_legend_handles_labels()
        legend = fig.legend(handles, labels, loc="outside lower center", ncols=min(count, 5), markerscale=2.2)
        for handle in legend.legend_handles:
            handle.set_alpha(1.0)


@figure
def plot_clusters(zc, labels, names: Sequence[str], highlight: int | Sequence[int] = 4) -> Figure:
    """Families of cells in ZC space (Fig. 2a): four of them in colour, pairwise views of the proxies.

    Args:
        zc: raw ZC vectors, (n, 4).
        labels: family of each cell, (n,).
        names: the columns of `zc`, as `clusters.ZC_NAMES`.
        highlight: the families to colour, or how many (chosen by `farthest_families` on ranks of z).
    """
    zc, labels, names = _array(zc).astype(float), _array(labels).astype(int), list(names)
    if isinstance(highlight, int):
        highlight = farthest_families(zc.argsort(0).argsort(0) / len(zc), labels, highlight)
    styles = _highlighted(labels, highlight)
    views = (("params", "naswot"), ("params", "snip_ssnr"), ("snip_ssnr", "naswot"))
    views = (
        [(names.index(a), names.index(b)) for a, b in views] if set(ZC_AXES) == set(names) else [(0, 1), (1, 2), (0, 2)]
    )
    fig, axes = plt.subplots(1, 3, figsize=(10.8, 3.9))
    for ax, (i, j) in zip(axes, views, strict=True):
        _draw_families(ax, zc[:, i], zc[:, j], labels, styles)
        for axis, column in (("x", i), ("y", j)):
            label, log = ZC_AXES.get(names[column], (names[column], False))
            ax.set(**{f"{axis}label": label}, **({f"{axis}scale": "log"} if log and (zc[:, column] > 0).all() else {}))
    _legend(fig, axes[0], len(styles) + 1)
    return fig


@figure
def plot_latent(
    embedding, labels, title: str = "", *, highlight: Sequence[int] | None = None, ax: Axes | None = None
) -> Figure:
    """Latent space in two dimensions (Fig. 2b or 2c): the highlighted families in colour, the others grey.

    Args:
        embedding: (n, 2), from `embed`.
        labels: family of each cell, (n,).
        title: above the panel.
        highlight: families to colour; None colours every family.
        ax: axes to draw into, for panels side by side.
    """
    points, labels = _array(embedding), _array(labels).astype(int)
    styles = _highlighted(labels, highlight)
    alone = ax is None
    if alone:
        _, ax = plt.subplots(figsize=(5.2, 4.9))
    _draw_families(ax, points[:, 0], points[:, 1], labels, styles, size=9 if len(points) > 2000 else 20)
    ax.set(title=title, xlabel="t-SNE 1", ylabel="t-SNE 2", xticks=[], yticks=[])
    ax.grid(False)
    if alone:
        _legend(ax.figure, ax, len(styles) + 1)
    return ax.figure


@figure
def plot_latents(embeddings: Mapping[str, object], labels, *, highlight: Sequence[int] | None = None) -> Figure:
    """Several latent spaces of the same cells side by side (Fig. 2b-c): title -> (n, 2)."""
    fig, axes = plt.subplots(1, len(embeddings), figsize=(4.6 * len(embeddings), 4.7), squeeze=False)
    for ax, (title, points) in zip(axes[0], embeddings.items(), strict=True):
        plot_latent(points, labels, title, highlight=highlight, ax=ax)
    _legend(fig, axes[0, 0], len(_highlighted(_array(labels).astype(int), highlight)) + 1)
    return fig


@figure
def plot_criterion(curve: pd.DataFrame, marked: Mapping[str, int]) -> Figure:
    """Information criteria against the number of families, some numbers marked (Sec. 3.1).

    Args:
        curve: columns k, bic, aic (lower is better).
        marked: what is said of a number -> the number.
    """
    fig, ax = plt.subplots(figsize=(6.2, 3.5))
    for i, name in enumerate(("bic", "aic")):
        ax.plot(
            curve["k"],
            curve[name],
            color=PALETTE[i],
            marker=MARKERS[i],
            markersize=4,
            linestyle=_LINES[i],
            label=name.upper(),
        )
    for (text, k), line in zip(marked.items(), cycle((":", "--", "-.")), strict=False):
        ax.axvline(k, color=DARK, linewidth=1, linestyle=line, label=f"{text}: K = {k}")
    ax.set(xlabel="number of families K", ylabel="criterion (lower is better)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend()
    return fig


@figure
def plot_log(rows: Sequence[Mapping], keys: Sequence[str], *, x: str = "step") -> Figure:
    """Training curves, a panel a quantity; logarithmic where all values are positive and span a factor of 30.

    Args:
        rows: `TrainLog.rows`, the `TrainLog` itself, or a DataFrame of them.
        keys: quantities to show, names of the rows' entries.
        x: entry on the horizontal axis.
    """
    table = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(getattr(rows, "rows", rows)))
    missing = [key for key in (x, *keys) if key not in table]
    if missing:
        raise ValueError(f"Logged quantities are {list(table.columns)}; got {missing}.")
    columns = len(keys) if len(keys) <= 5 else 4
    lines = -(-len(keys) // columns)
    fig, axes = plt.subplots(lines, columns, figsize=(min(2.75 * columns + 0.4, 10.8), 2.3 * lines), squeeze=False)
    for ax, key in zip(axes.flat, keys, strict=False):
        _draw_curve(ax, table[[x, key]].dropna(), x, key)
    for ax in axes.flat[len(keys) :]:
        ax.set_visible(False)
    return fig


def _draw_curve(ax: Axes, table: pd.DataFrame, x: str, key: str) -> None:
    """Logged values faintly, their running mean over them once there are enough."""
    values = table[key].astype(float)
    many = len(values) >= 40
    ax.plot(table[x], values, color=PALETTE[0], alpha=0.3 if many else 1, linewidth=1.0 if many else 1.6)
    if many:
        smooth = values.rolling(max(len(values) // 25, 3), center=True, min_periods=1).mean()
        ax.plot(table[x], smooth, color=PALETTE[0])
    positive = values[np.isfinite(values)]
    if len(positive) and positive.min() > 0 and positive.max() > 30 * positive.min():
        ax.set_yscale("log")
    ax.set(title=key.replace("_", " "), xlabel=x)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))


@figure
def plot_search(curves: Mapping[str, Sequence], ylabel: str = "best T-CET so far") -> Figure:
    """Best score found against the number of evaluations, one line a method.

    Args:
        curves: name -> best-so-far after each evaluation; or name -> several such runs, (runs, evaluations), drawn as
            their median over the band of all runs.
        ylabel: what the score is.
    """
    fig, ax = plt.subplots(figsize=(6.6, 3.8))
    longest = []
    for i, (name, values) in enumerate(curves.items()):
        runs = np.atleast_2d(np.asarray(values, dtype=float))
        x = np.arange(1, runs.shape[1] + 1)
        colour, line = PALETTE[i % len(PALETTE)], _LINES[i % len(_LINES)]
        if len(runs) > 1:
            ax.fill_between(x, runs.min(0), runs.max(0), color=colour, alpha=0.15, linewidth=0, step="post")
        middle = np.median(runs, 0)
        ax.step(x, middle, where="post", color=colour, linestyle=line, label=f"{name} ({len(x):,})")
        ax.plot(x[-1], middle[-1], marker="o", markersize=4, color=colour)
        longest.append(len(x))
    if longest and max(longest) > 12 * min(longest):
        ax.set_xscale("log")
    ax.set(xlabel="ZC evaluations", ylabel=ylabel)
    beside = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)} if len(curves) > 6 else {"loc": "best"}
    ax.legend(title="method (evaluations)", title_fontsize=8.5, alignment="left", **beside)
    return fig


@figure
def plot_hist(values: Mapping[str, Sequence] | Sequence, xlabel: str, *, bins: int = 30, log: bool = False) -> Figure:
    """Distributions on common bins, outlined so that they can be told apart where they overlap.

    Args:
        values: numbers, or name -> numbers.
        xlabel: what they are, with unit.
        bins: number of bins.
        log: logarithmic axis and bins.
    """
    groups = dict(values) if isinstance(values, Mapping) else {"": values}
    groups = {name: _array(numbers).astype(float).ravel() for name, numbers in groups.items()}
    everything = np.concatenate(list(groups.values()))
    everything = everything[np.isfinite(everything) & ((everything > 0) | (not log))]
    if not len(everything):
        raise ValueError(f"A histogram needs at least one finite{' positive' * log} number; got none for {xlabel!r}.")
    edges = np.histogram_bin_edges(np.log10(everything) if log else everything, bins)
    fig, ax = plt.subplots(figsize=(6.2, 3.3))
    for i, (name, numbers) in enumerate(groups.items()):
        shown = {"bins": 10**edges if log else edges, "density": len(groups) > 1, "color": PALETTE[i % len(PALETTE)]}
        ax.hist(numbers, histtype="stepfilled", alpha=0.16, **shown)
        ax.hist(
            numbers,
            histtype="step",
            linewidth=1.6,
            linestyle=_LINES[i % 4],
            label=f"{name} (n = {len(numbers):,})",
            **shown,
        )
    ax.set(xlabel=xlabel, ylabel="density" if len(groups) > 1 else "count", xscale="log" if log else "linear")
    if len(groups) > 1:
        ax.legend()
    return fig


@figure
def plot_scatter(x, y, labels: tuple[str, str], identity: bool = False, *, groups=None, log: bool = False) -> Figure:
    """Points with rank correlation and n in the corner.

    Args:
        x: (n,).
        y: (n,).
        labels: of the two axes, with units.
        identity: draw y = x and give both axes one range (predicted against true).
        groups: name of each point's group, (n,), one colour and marker each.
        log: both axes logarithmic.
    """
    x, y = _array(x).astype(float).ravel(), _array(y).astype(float).ravel()
    keep = np.isfinite(x) & np.isfinite(y)
    names = np.array([""] * len(x)) if groups is None else np.asarray([str(group) for group in groups])
    fig, ax = plt.subplots(figsize=(4.6, 4.3))
    for i, name in enumerate(dict.fromkeys(names[keep])):
        here = keep & (names == name)
        size = 26 if keep.sum() < 200 else 8
        ax.scatter(x[here], y[here], s=size, color=PALETTE[i % len(PALETTE)], marker=MARKERS[i % len(MARKERS)],
                   alpha=0.75, linewidths=0, label=name, rasterized=keep.sum() > 2000)  # fmt: skip
    if log:
        ax.set(xscale="log", yscale="log")
    if identity and keep.any():
        low, high = min(x[keep].min(), y[keep].min()), max(x[keep].max(), y[keep].max())
        ax.plot([low, high], [low, high], color=GREY, linewidth=1, linestyle="--", zorder=0)
    rank = pd.Series(x[keep]).rank().corr(pd.Series(y[keep]).rank()) if keep.sum() > 2 else float("nan")
    ax.set_title(f"Spearman {rank:.2f}, n = {keep.sum():,}", fontsize=9, color="#555555", loc="right")
    ax.set(xlabel=labels[0], ylabel=labels[1])
    if groups is not None:
        ax.legend(markerscale=1.6)
    return fig


@figure
def plot_bars(values: pd.Series, xlabel: str) -> Figure:
    """One bar an index entry, its number on top; the series' name is the vertical axis. NaN leaves a gap, marked."""
    numbers = values.astype(float)
    fig, ax = plt.subplots(figsize=(min(10.8, 2.5 + 0.75 * len(values)), 3.4))
    positions = np.arange(len(values))
    bars = ax.bar(positions, numbers.fillna(0.0), color=PALETTE[0], width=0.7)
    texts = [f"{n:,.0f}" if abs(n) >= 100 else f"{n:.3g}" if np.isfinite(n) else "not run" for n in numbers]
    ax.bar_label(bars, texts, padding=2, fontsize=8)
    tilt = {"rotation": 25, "ha": "right"} if max(len(str(name)) for name in values.index) > 8 else {}
    ax.set_xticks(positions, [str(name) for name in values.index], **tilt)
    ax.set(xlabel=xlabel, ylabel=str(values.name or ""))
    ax.margins(y=0.14)
    return fig


@figure
def plot_strip(names, values, ylabel: str, *, groups=None) -> Figure:
    """Every value as a point above its name, the mean as a bar; `groups` sets colour and marker."""
    table = pd.DataFrame({"name": list(names), "value": _array(values).astype(float)})
    table["group"] = "" if groups is None else list(groups)
    order = list(dict.fromkeys(table["name"]))
    fig, ax = plt.subplots(figsize=(min(10.8, 2.5 + 1.1 * len(order)), 3.8))
    kinds = list(dict.fromkeys(table["group"]))
    for i, kind in enumerate(kinds):
        part = table[table["group"] == kind]
        x = part["name"].map(order.index) + 0.16 * (i - (len(kinds) - 1) / 2)
        look = {"c": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)]}
        ax.scatter(x, part["value"], s=30, alpha=0.8, label=str(kind), linewidths=0, **look)
        for place, mean in part.groupby(x)["value"].mean().items():
            ax.hlines(mean, place - 0.07, place + 0.07, color=PALETTE[i % len(PALETTE)])
    tilt = {"rotation": 25, "ha": "right"} if max(map(len, order)) > 12 else {}
    ax.set_xticks(range(len(order)), order, **tilt)
    ax.set(ylabel=ylabel, xlim=(-0.6, len(order) - 0.4))
    if len(kinds) > 1:
        ax.legend()
    return fig
