"""Families of cells in pictures: ZC vectors, latent spaces, and which families networks use at each depth (Fig. 2).

Families keep one colour in all panels of Figure 2: pass the same `highlight` to `plot_clusters` and `plot_latents`
(`farthest_families` chooses it by a rule before anyone looks).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graphnas_lib.plots.draw import CellGrid
from graphnas_lib.plots.figures import array, looks
from graphnas_lib.plots.style import DARK, GREY, MARKERS, OTHERS, PALETTE, WIDEST, cluster_style, figure, subplots

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ZC_AXES = {  # column of clusters.ZC_NAMES -> (axis label, logarithmic)
    "naswot": ("NASWOT", False),
    "snip_ssnr": ("SNIP-SSNR", True),
    "params": ("parameters", True),
    "flops": ("FLOPs (2 × MACs)", True),
}


def farthest_families(zc, labels, n: int = 5, *, first: Sequence[int] = ()) -> list[int]:
    """n families, or all where there are fewer, far apart in standardised z (n_cells, 4), of cells with these labels.

    `first`, or else the largest, come first, then each time the farthest centre (L1) from those chosen. Families with
    fewer than 1% of the cells are left out, so that a highlighted one can be seen.
    """
    zc, labels = array(zc), array(labels).astype(int)
    names, counts = np.unique(labels, return_counts=True)
    seen = (counts >= 0.01 * len(labels)) | (counts.max() < 0.01 * len(labels))
    names, counts = names[seen], counts[seen]
    centres = np.array([zc[labels == k].mean(0) for k in names])
    chosen = [i for i, name in enumerate(names) if name in first] or [int(counts.argmax())]
    while len(chosen) < min(n, len(names)):
        distance = np.abs(centres[:, None] - centres[chosen][None]).sum(-1).min(1)
        chosen.append(int(distance.argmax()))
    return sorted(int(names[i]) for i in chosen)


def _draw_families(axes: Sequence[Axes], panels: Sequence[np.ndarray], labels, highlight, size: float) -> None:
    """Scatter of the same cells in every panel, (n, 2): families in colour over the others in grey; one legend below.

    Highlighted families take distinct looks by rank; without `highlight` each has its own.
    """
    import seaborn as sns

    labels = array(labels).astype(int)
    coloured = sorted(set(labels) if highlight is None else highlight)
    names = {k: f"family {k} (n = {(labels == k).sum():,})" for k in coloured}
    look = looks(list(names.values()), MARKERS)
    if highlight is None:
        look["palette"], look["markers"] = zip(*map(cluster_style, names), strict=True)
    shown = np.isin(labels, list(names))
    group = [names[k] for k in labels[shown]]
    for ax, points in zip(axes, panels, strict=True):
        if not shown.all():
            grey = {"color": OTHERS, "label": "other families"}
            ax.scatter(*points[~shown].T, s=0.45 * size, linewidths=0, rasterized=True, **grey)
        sns.scatterplot(x=points[shown, 0], y=points[shown, 1], hue=group, style=group, s=1.6 * size, alpha=0.8,
                        linewidth=0, rasterized=True, ax=ax, **look)  # fmt: skip
        handles, texts = ax.get_legend_handles_labels()
        ax.get_legend().remove()
    if 1 < len(handles) <= 12:
        ax.figure.legend(
            handles, texts, loc="outside lower center", ncols=len(handles) if len(handles) < 6 else 3, markerscale=1.6
        )


@figure
def plot_clusters(
    zc,
    labels,
    names: Sequence[str],
    highlight: int | Sequence[int] = 5,
    *,
    ellipses: Mapping[int, object] | None = None,
    medoids: Mapping[int, object] | None = None,
) -> Figure:
    """Families of cells in ZC space (Fig. 2a): NASWOT against parameters, some families in colour.

    Args:
        zc, labels: raw ZC vectors, (n, 4), and family of each cell, (n,).
        names: the columns of `zc`, as `clusters.ZC_NAMES`.
        highlight: the families to colour, or how many (chosen by `farthest_families` on ranks of z).
        ellipses: family -> raw ZC vectors along its contour of one standard deviation, (m, 4).
        medoids: family -> a cell that stands for it, drawn below under the family's mark.
    """
    import matplotlib.pyplot as plt

    zc, names = array(zc).astype(float), list(names)
    if isinstance(highlight, int):
        highlight = farthest_families(zc.argsort(0).argsort(0) / len(zc), labels, highlight)
    view = [names.index("params"), names.index("naswot")]
    drawn = sorted(set(highlight) & set(medoids or {}))
    grid = CellGrid([medoids[k] for k in drawn], WIDEST, small=True) if drawn else None
    heights = [5.2, sum(grid.heights) if grid else 0.0]
    fig = plt.figure(figsize=(WIDEST, sum(heights)))
    top, *below = fig.subfigures(2, 1, height_ratios=heights) if grid else [fig]
    ax = top.subplots()
    _draw_families([ax], [zc[:, view]], labels, highlight, size=14)
    for sheet in below:
        grid.draw(sheet, [f"medoid of family {k}" for k in drawn])
        marks = looks(sorted(highlight), MARKERS)
        marks = dict(zip(sorted(highlight), zip(marks["palette"], marks["markers"], strict=True), strict=True))
        for k, place in zip(drawn, sheet.axes, strict=True):
            colour, marker = marks[k]
            place.plot(0.08, 1.05, marker, color=colour, markersize=9, transform=place.transAxes, clip_on=False)
    for family, contour in (ellipses or {}).items():
        look = {"color": DARK, "linewidth": 1.6} if family in highlight else {"color": "#707070", "linewidth": 0.7}
        ax.plot(*array(contour)[:, view].T, **look, zorder=3)
    ax.set(xlabel=ZC_AXES["params"][0], ylabel=ZC_AXES["naswot"][0], xscale="log")
    return fig


@figure
def plot_pairs(zc: pd.DataFrame) -> Figure:
    """Every pair of ZC components, and the histogram of each; `zc` has columns of `ZC_AXES`, log10 where these say so.

    The number in a panel is the pair's rank correlation.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns

    logs = {name: np.log10(zc[name].where(zc[name] > 0)) if ZC_AXES[name][1] else zc[name] for name in zc}
    table = zc.assign(**logs).rename(columns={n: f"log10 {ZC_AXES[n][0]}" * ZC_AXES[n][1] or ZC_AXES[n][0] for n in zc})
    dots = {"s": 5, "linewidth": 0, "alpha": 0.5, "color": PALETTE[0], "rasterized": True}
    bars = {"color": PALETTE[0], "edgecolor": "none", "bins": 40, "alpha": 1}
    with plt.rc_context({"figure.constrained_layout.use": False}):  # seaborn's grid has a layout of its own
        grid = sns.pairplot(table, corner=True, diag_kind="hist", height=1.95, plot_kws=dots, diag_kws=bars)
    grid.figure.subplots_adjust(top=0.94)
    for i, j in zip(*np.tril_indices(len(table.columns), -1), strict=True):
        rank = table.iloc[:, [i, j]].corr("spearman").iloc[0, 1]
        grid.axes[i, j].text(0.04, 0.9, f"{rank:.3f}", transform=grid.axes[i, j].transAxes, fontsize=8.5)
    return grid.figure


@figure
def plot_latents(embeddings: Mapping[str, object], labels, *, highlight: Sequence[int] | None = None) -> Figure:
    """Latent spaces of the same cells in two dimensions, side by side (Fig. 2b-c).

    `embeddings` is title -> (n, 2), from `gvae.embed`; `labels` (n,) are the cells' families, of which `highlight` (by
    default every one) are in colour, the others grey.
    """
    fig, axes = subplots(1, len(embeddings), figsize=(4.6 * len(embeddings), 4.7), squeeze=False)
    panels = [array(points) for points in embeddings.values()]
    _draw_families(axes[0], panels, labels, highlight, size=9 if len(panels[0]) > 2000 else 20)
    for ax, title in zip(axes[0], embeddings, strict=True):
        ax.set(title=title, xlabel="t-SNE 1", ylabel="t-SNE 2", xticks=[], yticks=[])
    return fig


@figure
def plot_paths(
    paths: pd.DataFrame, titles: Mapping[str, str], families: Sequence[int], highlight: Sequence[int]
) -> Figure:
    """Paths of samples from noise (a cross) to their ends, of `stages.ccnf.trajectories`; other latents in grey.

    `titles` is plane -> what stands above it; `families` are those of the conditions, in the colours that they have
    among `highlight` in Figure 2.
    """
    names = [f"family {k}" for k in sorted(highlight)]
    look = looks(names, MARKERS)
    look = dict(zip(names, zip(look["palette"], look["markers"], strict=True), strict=True))
    fig, axes = subplots(1, len(titles), figsize=(WIDEST, 5.2), squeeze=False)
    for ax, (plane, title) in zip(axes[0], titles.items(), strict=True):
        part = paths[paths["plane"] == plane]
        ax.plot(*part.loc[part["condition"] < 0, ["x", "y"]].T.to_numpy(), ".", color=OTHERS, markersize=3, zorder=0)
        for (condition, _), path in part[part["condition"] >= 0].groupby(["condition", "sample"]):
            name = f"family {families[int(condition)]}"
            (colour, marker), xy = look[name], path.sort_values("time")[["x", "y"]].to_numpy()
            ax.plot(*xy.T, color=colour, linewidth=1.0, alpha=0.8)
            ax.plot(*xy[-1], marker, color=colour, markersize=5, label=name)
            ax.plot(*xy[0], "x", color=DARK, markersize=4, label="start")
            middle = len(xy) // 2
            ax.annotate("", xy[middle], xy[middle - 1], arrowprops={"arrowstyle": "-|>", "color": colour})
        kind = "direction in which the families' ends differ" if plane == "equation" else "widest direction of latents"
        ax.set(title=title, xlabel=f"first {kind}", ylabel=f"second {kind}")
    shown = dict(zip(*reversed(axes[0, 0].get_legend_handles_labels()), strict=True))
    fig.legend(shown.values(), shown, loc="outside lower center", ncols=len(shown))
    return fig


def latent_page(embeddings: Mapping[str, object], labels, cells: Sequence, highlight: Sequence[int]) -> str:
    """`plot_latents` as one HTML page that needs nothing else: the cell under the pointer is drawn below the maps."""
    points = {title: np.round(array(xy), 2).tolist() for title, xy in embeddings.items()}
    drawn = [{"edges": np.asarray(c.edges).tolist(), "operations": list(c.operations)} for c in cells]
    colours = {int(k): PALETTE[i] for i, k in enumerate(sorted(highlight))}
    data = {"maps": points, "families": array(labels).astype(int).tolist(), "cells": drawn, "colours": colours}
    page = (Path(__file__).parent / "atlas.html").read_text(encoding="utf-8")
    return page.replace("/*DATA*/", json.dumps(data, separators=(",", ":")))


def families_over_depth(hl_architectures: Sequence, n_families: int) -> pd.DataFrame:
    """What high-level architectures use at each position, among those that reach it: what `plot_over_depth` draws.

    Columns: position, n (that reach it), family_0 to family_<n_families - 1> (shares), channels (median), channels_low
    and channels_high (the middle half), stride_2 (share).
    """
    import pandas as pd

    rows = [(i, t.cluster, t.channels, t.stride == 2) for a in hl_architectures for i, t in enumerate(a.triples, 1)]
    table = pd.DataFrame(rows, columns=["position", "family", "channels", "halves"])
    shares = pd.crosstab(table["position"], table["family"], normalize="index").reindex(columns=range(n_families))
    groups = table.groupby("position")
    widths = groups["channels"].quantile([0.25, 0.5, 0.75]).unstack()
    widths.columns = ["channels_low", "channels", "channels_high"]
    found = pd.DataFrame({"n": groups.size()}).join(shares.fillna(0.0).add_prefix("family_")).join(widths)
    return found.assign(stride_2=groups["halves"].mean()).reset_index()


@figure
def plot_over_depth(table: pd.DataFrame) -> Figure:
    """Families, widths and strides over depth, of `families_over_depth`; every family has a row, used or not.

    Left: how many architectures reach a position, above the share of each family among them. Right: median channels
    with the middle half, and the share of stride 2.
    """
    import seaborn as sns
    from matplotlib.colors import PowerNorm

    share, place = table.filter(regex=r"^family_\d+$").T, table["position"]
    fig = subplots(figsize=(WIDEST, 5.2))[0]
    fig.clear()
    grid = fig.add_gridspec(4, 2, width_ratios=[1.5, 1], height_ratios=[1.2, 1.4, 1.6, 1.6])
    reach, family = fig.add_subplot(grid[0, 0]), fig.add_subplot(grid[1:, 0])
    channels, halves = fig.add_subplot(grid[:2, 1]), fig.add_subplot(grid[2:, 1])
    reach.bar(place - 0.5, table["n"], width=0.9, color=GREY)
    reach.set(ylabel="n", xlim=(0, len(table)), xticks=[], ylim=(0, None))
    bar = {"label": "share of those that reach it", "pad": 0.02, "location": "bottom", "shrink": 0.6, "aspect": 40}
    norm = PowerNorm(0.5, 0, max(0.5, float(share.to_numpy().max())))
    look = {"cmap": "Blues", "norm": norm, "rasterized": True, "xticklabels": place, "yticklabels": 4}
    sns.heatmap(share.set_axis(range(len(share))), cbar_kws=bar, ax=family, **look)
    family.set(xlabel="position in the sequence", ylabel=f"family, of {len(share)} (0: smallest cells)")
    family.tick_params(rotation=0)
    middle_half = table["channels_low"], table["channels_high"]
    channels.fill_between(place, *middle_half, color=PALETTE[3], alpha=0.35, linewidth=0)
    channels.plot(place, table["channels"], marker="o", color=PALETTE[0])
    channels.set(ylabel="channels")
    halves.bar(place, table["stride_2"], color=GREY)
    halves.set(xlabel="position in the sequence", ylabel="share of stride 2", ylim=(0, 1))
    for ax in (channels, halves):
        ax.set_xlim(0.4, place.max() + 0.6)
        ax.locator_params(axis="x", integer=True)
    return fig
