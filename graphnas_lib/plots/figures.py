"""Plots of data, drawn with seaborn: `plot_*` takes data and returns a closed Figure, and never shows or writes one.

Families keep one colour in all panels of Figure 2: pass the same `highlight` to `plot_clusters` and `plot_latents`
(`farthest_families` chooses it by a rule before anyone looks).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from graphnas_lib.plots.style import DARK, GREY, MARKERS, PALETTE, WIDEST, cluster_style, figure, subplots

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


def farthest_families(zc, labels, n: int = 4) -> list[int]:
    """n families, or all where there are fewer, far apart in standardised z (n_cells, 4), of cells with these labels.

    The largest comes first, then each time the farthest centre (L1) from those chosen. Families with fewer than 1% of
    the cells are left out, so that a highlighted one can be seen.
    """
    zc, labels = _array(zc), _array(labels).astype(int)
    names, counts = np.unique(labels, return_counts=True)
    seen = (counts >= 0.01 * len(labels)) | (counts.max() < 0.01 * len(labels))
    names, counts = names[seen], counts[seen]
    centres = np.array([zc[labels == k].mean(0) for k in names])
    chosen = [int(counts.argmax())]
    while len(chosen) < min(n, len(names)):
        distance = np.abs(centres[:, None] - centres[chosen][None]).sum(-1).min(1)
        chosen.append(int(distance.argmax()))
    return sorted(int(names[i]) for i in chosen)


def _array(values) -> np.ndarray:
    """Tensor, DataFrame column or list as a numpy array."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _looks(names: Sequence, markers: Sequence[str] = ()) -> dict:
    """seaborn's arguments for groups in this order: a colour each and, where markers are given, one of them."""
    styled = {"style_order": names, "markers": [m for _, m in zip(names, cycle(markers), strict=False)]}
    colours = [colour for _, colour in zip(names, cycle(PALETTE), strict=False)]
    return {"hue_order": names, "palette": colours, **(styled if markers else {})}


def _draw_families(axes: Sequence[Axes], panels: Sequence[np.ndarray], labels, highlight, size: float) -> None:
    """Scatter of the same cells in every panel, (n, 2): families in colour over the others in grey; one legend below.

    Highlighted families take distinct looks by rank; without `highlight` each has its own.
    """
    import seaborn as sns

    labels = _array(labels).astype(int)
    coloured = sorted(set(labels) if highlight is None else highlight)
    names = {k: f"family {k} (n = {(labels == k).sum():,})" for k in coloured}
    look = _looks(list(names.values()), MARKERS)
    if highlight is None:
        look["palette"], look["markers"] = zip(*map(cluster_style, names), strict=True)
    shown = np.isin(labels, list(names))
    group = [names[k] for k in labels[shown]]
    for ax, points in zip(axes, panels, strict=True):
        if not shown.all():
            grey = {"color": "#C9C9C9", "label": "other families"}
            ax.scatter(*points[~shown].T, s=0.45 * size, linewidths=0, rasterized=True, **grey)
        sns.scatterplot(x=points[shown, 0], y=points[shown, 1], hue=group, style=group, s=1.6 * size, alpha=0.8,
                        linewidth=0, rasterized=True, ax=ax, **look)  # fmt: skip
        handles, texts = ax.get_legend_handles_labels()
        ax.get_legend().remove()
    if 1 < len(handles) <= 12:
        ax.figure.legend(handles, texts, loc="outside lower center", ncols=min(len(handles), 5), markerscale=1.6)


@figure
def plot_clusters(zc, labels, names: Sequence[str], highlight: int | Sequence[int] = 4) -> Figure:
    """Families of cells in ZC space (Fig. 2a): four of them in colour, pairwise views of the proxies.

    Args:
        zc, labels: raw ZC vectors, (n, 4), and family of each cell, (n,).
        names: the columns of `zc`, as `clusters.ZC_NAMES`.
        highlight: the families to colour, or how many (chosen by `farthest_families` on ranks of z).
    """
    zc, names = _array(zc).astype(float), list(names)
    if isinstance(highlight, int):
        highlight = farthest_families(zc.argsort(0).argsort(0) / len(zc), labels, highlight)
    views = [("params", "naswot"), ("params", "snip_ssnr"), ("snip_ssnr", "naswot")]
    panels = [zc[:, [names.index(x), names.index(y)]] for x, y in views]
    fig, axes = subplots(1, 3, figsize=(WIDEST, 3.9))
    _draw_families(axes, panels, labels, highlight, size=9)
    for ax, points, view in zip(axes, panels, views, strict=True):
        for axis, name, values in zip("xy", view, points.T, strict=True):
            label, log = ZC_AXES[name]
            ax.set(**{f"{axis}label": label, f"{axis}scale": "log" if log and values.min() > 0 else "linear"})
    return fig


@figure
def plot_latents(embeddings: Mapping[str, object], labels, *, highlight: Sequence[int] | None = None) -> Figure:
    """Latent spaces of the same cells in two dimensions, side by side (Fig. 2b-c).

    `embeddings` is title -> (n, 2), from `gvae.embed`; `labels` (n,) are the cells' families, of which `highlight` (by
    default every one) are in colour, the others grey.
    """
    fig, axes = subplots(1, len(embeddings), figsize=(4.6 * len(embeddings), 4.7), squeeze=False)
    panels = [_array(points) for points in embeddings.values()]
    _draw_families(axes[0], panels, labels, highlight, size=9 if len(panels[0]) > 2000 else 20)
    for ax, title in zip(axes[0], embeddings, strict=True):
        ax.set(title=title, xlabel="t-SNE 1", ylabel="t-SNE 2", xticks=[], yticks=[])
    return fig


@figure
def plot_criterion(curve: pd.DataFrame, marked: Mapping[str, int]) -> Figure:
    """Information criteria against the number of families, some numbers marked (Sec. 3.1).

    `curve` has the columns k, bic, aic (lower is better); `marked` is what is said of a number -> the number.
    """
    import seaborn as sns

    table = curve.rename(columns=str.upper).melt("K", ["BIC", "AIC"], "criterion", "value")
    fig, ax = subplots(figsize=(6.2, 3.5))
    look = _looks(["BIC", "AIC"], MARKERS)
    sns.lineplot(table, x="K", y="value", hue="criterion", style="criterion", ax=ax, **look)
    for (text, k), line in zip(marked.items(), cycle((":", "--", "-.")), strict=False):
        ax.axvline(k, color=DARK, linewidth=1, linestyle=line, label=f"{text}: K = {k}")
    ax.set(xlabel="number of families K", ylabel="criterion (lower is better)")
    ax.locator_params(axis="x", integer=True)
    ax.legend()
    return fig


@figure
def plot_log(rows: Sequence[Mapping], keys: Sequence[str], *, x: str = "step") -> Figure:
    """Training curves, a panel a quantity; logarithmic where all values are positive and span a factor of 30.

    Several runs in one table are drawn as their mean over the band of all of them; many steps under a running mean.

    `rows` are those of a `TrainLog`, it itself, or a DataFrame; `keys` and `x` are names of the rows' entries.
    """
    import pandas as pd
    import seaborn as sns

    table = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(getattr(rows, "rows", rows)))
    missing = [key for key in (x, *keys) if key not in table]
    if missing:
        raise ValueError(f"Logged quantities are {list(table.columns)}; got {missing}.")
    columns = len(keys) if len(keys) <= 5 else 4
    lines = -(-len(keys) // columns)
    size = (min(2.75 * columns + 0.4, WIDEST), 2.3 * lines)
    fig, axes = subplots(lines, columns, figsize=size, squeeze=False)
    for key, ax in zip(keys, axes.flat, strict=False):
        seen = table[[x, key]].dropna().astype(float)
        many, finite = len(seen) >= 40, seen[key][np.isfinite(seen[key])]
        faint = {"alpha": 0.3, "linewidth": 1.0} if many else {}
        sns.lineplot(seen, x=x, y=key, color=PALETTE[0], errorbar=("pi", 100), ax=ax, **faint)
        if many:
            mean = seen.groupby(x)[key].mean()
            mean = mean.rolling(max(len(mean) // 25, 3), center=True, min_periods=1).mean()
            sns.lineplot(mean, color=PALETTE[0], ax=ax)
        log = len(finite) > 0 and 0 < 30 * finite.min() < finite.max()
        ax.set(title=key.replace("_", " "), xlabel=x, ylabel="", yscale="log" if log else "linear")
        ax.locator_params(axis="x", nbins=3, integer=True)
    for ax in axes.flat[len(keys) :]:
        ax.set_visible(False)
    return fig


@figure
def plot_search(curves: Mapping[str, Sequence], ylabel: str = "best T-CET so far") -> Figure:
    """Best score found against the number of evaluations, one line a method.

    `curves` is name -> best-so-far after each evaluation; or name -> several such runs, (runs, evaluations), drawn as
    their median over the band of all runs.
    """
    import pandas as pd
    import seaborn as sns

    aside = len(curves) > 4  # a legend of many long names would lie on the lines
    fig, ax = subplots(figsize=(WIDEST if aside else 6.6, 3.8))
    medians = {}
    for (name, values), colour in zip(curves.items(), cycle(PALETTE), strict=False):
        runs = np.atleast_2d(np.asarray(values, dtype=float))
        median = pd.Series(np.median(runs, 0), np.arange(1, runs.shape[1] + 1), name="score")
        ax.fill_between(median.index, runs.min(0), runs.max(0), step="post", color=colour, alpha=0.15, linewidth=0)
        ax.scatter(median.index[-1:], median[-1:], s=18, color=colour, zorder=3)
        medians[f"{name} ({len(median):,})"] = median
    table = pd.concat(medians, names=["method", "evaluations"]).reset_index()
    lines = {"estimator": None, "drawstyle": "steps-post", **_looks(list(medians))}
    sns.lineplot(table, x="evaluations", y="score", hue="method", style="method", ax=ax, **lines)
    lengths = [len(median) for median in medians.values()]
    ax.set(xlabel="ZC evaluations", ylabel=ylabel, xscale="log" if max(lengths) > 12 * min(lengths) else "linear")
    place = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)} if aside else {"loc": "best"}
    ax.legend(title="method (evaluations)", alignment="left", **place)
    return fig


@figure
def plot_scatter(x, y, labels: tuple[str, str], identity: bool = False, *, groups=None, log: bool = False) -> Figure:
    """Points with rank correlation and n in the corner.

    Args:
        x, y: (n,).
        labels: of the two axes, with units.
        identity: draw y = x (predicted against true).
        groups: name of each point's group, (n,), one colour and marker each.
        log: both axes logarithmic.
    """
    import pandas as pd
    import seaborn as sns

    table = pd.DataFrame({"x": _array(x).ravel(), "y": _array(y).ravel()}, dtype=float)
    table["group"] = "" if groups is None else [str(group) for group in groups]
    table = table[np.isfinite(table[["x", "y"]]).all(axis=1)]
    look = _looks(list(table["group"].unique()), MARKERS) | {"s": 30 if len(table) < 200 else 12}
    fig, ax = subplots(figsize=(4.6, 4.3))
    sns.scatterplot(table, x="x", y="y", hue="group", style="group", alpha=0.75, linewidth=0, ax=ax, **look,
                    rasterized=len(table) > 2000, legend=groups is not None)  # fmt: skip
    if identity and len(table):
        span = [table[["x", "y"]].min(axis=None), table[["x", "y"]].max(axis=None)]
        ax.plot(span, span, color=GREY, linewidth=1, linestyle="--", zorder=0)
    rank = table["x"].corr(table["y"], method="spearman") if len(table) > 2 else float("nan")
    ax.set_title(f"Spearman {rank:.2f}, n = {len(table):,}", fontsize=9, color="#555555", loc="right")
    scale = "log" if log else "linear"
    ax.set(xlabel=labels[0], ylabel=labels[1], xscale=scale, yscale=scale)
    if groups is not None:
        ax.legend(markerscale=1.4)
    return fig


@figure
def plot_bars(values: pd.Series, xlabel: str) -> Figure:
    """One bar an index entry, its number on top; the series' name is the vertical axis. NaN leaves a gap, marked."""
    import seaborn as sns

    names, numbers = [str(name) for name in values.index], values.astype(float).to_numpy()
    fig, ax = subplots(figsize=(min(WIDEST, 2.5 + 0.75 * len(values)), 3.4))
    sns.barplot(x=names, y=np.nan_to_num(numbers), color=PALETTE[0], saturation=1, width=0.7, errorbar=None, ax=ax)
    texts = [f"{n:,.0f}" if abs(n) >= 100 else f"{n:.3g}" if np.isfinite(n) else "not run" for n in numbers]
    ax.bar_label(ax.containers[0], texts, padding=2, fontsize=8)
    _name_places(ax, names, longest=8)
    ax.set(xlabel=xlabel, ylabel=str(values.name or ""))
    ax.margins(y=0.14)
    return fig


def _name_places(ax: Axes, names: Sequence[str], longest: int) -> None:
    """Names under the places of a categorical axis, tilted where one is too long to stand beside the next."""
    tilt = {"rotation": 25, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > longest else {}
    ax.set_xticks(range(len(names)), names, **tilt)


@figure
def plot_strip(names, values, ylabel: str, *, groups=None) -> Figure:
    """Every value as a point above its name, beside its neighbours, the mean as a bar; `groups` sets the colour."""
    import seaborn as sns

    names, values = list(names), _array(values).astype(float)
    groups = [""] * len(names) if groups is None else list(groups)
    order, kinds = list(dict.fromkeys(names)), list(dict.fromkeys(groups))
    fig, ax = subplots(figsize=(min(WIDEST, 2.5 + 1.1 * len(order)), 3.8))
    look = {"x": names, "y": values, "hue": groups, "order": order, "ax": ax, **_looks(kinds)}
    sns.swarmplot(**look, dodge=True, size=4.5, alpha=0.8, legend=len(kinds) > 1, warn_thresh=1)
    dodge = 0.8 - 0.8 / len(kinds) or False  # as far as the points of the groups stand apart
    sns.pointplot(**look, dodge=dodge, errorbar=None, linestyle="none", marker="_", markersize=18, legend=False)
    _name_places(ax, order, longest=12)
    ax.set(ylabel=ylabel, xlim=(-0.6, len(order) - 0.4))
    return fig


@figure
def plot_families_over_depth(hl_architectures: Sequence) -> Figure:
    """Which families, widths and strides high-level architectures use at each depth.

    Left: share of each family at each position, among the architectures that reach it. Right: median channels with
    the middle half, and the share of stride 2.
    """
    import pandas as pd
    import seaborn as sns

    rows = [(i, t.cluster, t.channels, t.stride == 2) for a in hl_architectures for i, t in enumerate(a.triples, 1)]
    table = pd.DataFrame(rows, columns=["depth", "family", "channels", "halves"])
    share = pd.crosstab(table["family"], table["depth"], normalize="columns")
    fig, axes = subplots(2, 2, figsize=(WIDEST, 4.2), width_ratios=[1.25, 1])
    (family, channels), (below, halves) = axes
    below.remove()
    family.set_subplotspec(family.get_gridspec()[:, 0])
    bar = {"label": "share of architectures", "pad": 0.02}
    sns.heatmap(share, cmap="cividis", vmin=0, rasterized=True, cbar_kws=bar, ax=family)
    family.set(xlabel="position in the sequence", ylabel="family")
    family.tick_params(rotation=0)
    middle = {"estimator": "median", "errorbar": ("pi", 50), "marker": "o", "color": PALETTE[0]}
    sns.lineplot(table, x="depth", y="channels", ax=channels, **middle)
    sns.barplot(table, x="depth", y="halves", errorbar=None, native_scale=True, color=GREY, ax=halves)
    channels.set(xlabel="", ylabel="channels\n(median, middle half)")
    halves.set(xlabel="position in the sequence", ylabel="share of stride 2", ylim=(0, 1))
    for ax in (channels, halves):
        ax.set_xlim(0.4, share.columns.max() + 0.6)
        ax.locator_params(axis="x", integer=True)
    return fig


@figure
def plot_intervals(
    names, values, low, high, xlabel: str, *, groups, marks: Mapping[str, Sequence] | None = None
) -> Figure:
    """A line a name: each group's value with its interval, and published values as ticks; text is left out.

    Args:
        names: (n,), one line for each distinct one, in order.
        values, low, high: (n,), with the ends of their intervals; one beside its value, as a bootstrap of few rows may
            give, is drawn from the value on.
        xlabel: of the values, with unit.
        groups: (n,), colour and marker.
        marks: label -> (n,) other values of the same names, drawn once a name.
    """
    import pandas as pd

    numbers = {"value": values, "low": low, "high": high, **(marks or {})}
    table = pd.DataFrame({key: pd.to_numeric(pd.Series(list(v)), errors="coerce") for key, v in numbers.items()})
    order, kinds = list(dict.fromkeys(names)), list(dict.fromkeys(groups))
    table["y"], table["kind"] = [order.index(name) for name in names], [kinds.index(group) for group in groups]
    fig, ax = subplots(figsize=(6.4, 1.2 + 0.3 * len(order)))
    for i, kind in enumerate(kinds):
        part = table[table["kind"] == i].dropna(subset="value")
        ends = [(part["value"] - part["low"]).clip(lower=0), (part["high"] - part["value"]).clip(lower=0)]
        y = part["y"] + 0.26 * (i - (len(kinds) - 1) / 2)
        look = {"color": PALETTE[i % len(PALETTE)], "fmt": MARKERS[i % len(MARKERS)], "markersize": 5}
        if len(part):
            ax.errorbar(part["value"], y, xerr=ends, elinewidth=1.2, label=kind, **look)
    for label, marker, size in zip(marks or {}, cycle("|+"), cycle((11, 8)), strict=False):
        part = table.drop_duplicates("y")
        look = {"color": DARK, "fmt": marker, "markersize": size, "markeredgewidth": 1.4}
        ax.errorbar(part[label], part["y"], label=label, zorder=3, **look)
    ax.set_yticks(range(len(order)), order)
    ax.set(xlabel=xlabel, ylim=(len(order) - 0.4, -0.6))
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return fig


@figure
def plot_band(table: pd.DataFrame | list[dict], x: str, y: str, by: str, ylabel: str, *, log: bool = False) -> Figure:
    """Mean of a quantity over a budget with its 95% interval over the rows of each point, one line a method.

    Args:
        table: columns `x`, `y` and `by`, the method.
        log: the budget's axis is logarithmic.
    """
    import pandas as pd
    import seaborn as sns

    table = pd.DataFrame(table)
    fig, ax = subplots(figsize=(WIDEST, 3.8))
    look = _looks(list(dict.fromkeys(table[by])), MARKERS)
    sns.lineplot(table, x=x, y=y, hue=by, style=by, dashes=False, seed=0, ax=ax, **look)
    ax.set(xlabel=x, ylabel=ylabel, xscale="log" if log else "linear")
    ax.legend(title=by, alignment="left", loc="center left", bbox_to_anchor=(1.01, 0.5))
    return fig
