"""Plots of data, drawn with seaborn: `plot_*` takes data and returns a closed Figure, and never shows or writes one.

Families keep one colour in all panels of Figure 2: pass the same `highlight` to `plot_clusters` and `plot_latents`
(`farthest_families` chooses it by a rule before anyone looks).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from graphnas_lib.plots.style import DARK, GREY, LIGHT, MARKERS, PALETTE, cluster_style, figure, subplots

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
WIDEST = 10.8  # inches of a figure in a notebook


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
    seen = counts >= 0.01 * len(labels)
    names, counts = (names[seen], counts[seen]) if seen.any() else (names, counts)
    centres = np.array([zc[labels == k].mean(0) for k in names])
    chosen = [int(counts.argmax())]
    while len(chosen) < min(n, len(names)):
        distance = np.abs(centres[:, None] - centres[chosen][None]).sum(-1).min(1)
        chosen.append(int(distance.argmax()))
    return sorted(int(names[i]) for i in chosen)


def _array(values) -> np.ndarray:
    """Tensor, DataFrame column or list as a numpy array."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _colours(names: Sequence) -> dict:
    """seaborn's hue and style arguments for groups in this order: a colour and a marker each."""
    return {
        "hue_order": names,
        "palette": [PALETTE[i % len(PALETTE)] for i in range(len(names))],
        "style_order": names,
        "markers": [MARKERS[i % len(MARKERS)] for i in range(len(names))],
    }


def _draw_families(axes: Sequence[Axes], panels: Sequence[np.ndarray], labels, highlight, size: float) -> None:
    """Scatter of the same cells in every panel, (n, 2), families in colour over the others in grey; one legend below.

    Highlighted families take distinct colours by rank; without `highlight` each takes its own.
    """
    import pandas as pd
    import seaborn as sns

    labels = _array(labels).astype(int)
    shown = sorted(set(labels) if highlight is None else highlight)
    names = {k: f"family {k} (n = {(labels == k).sum():,})" for k in shown}
    looks = {names[k]: cluster_style(k if highlight is None else 9 * i) for i, k in enumerate(shown)}
    looks = {"other families": ("#C9C9C9", "o"), **looks}
    group = pd.Series(labels).map(names).fillna("other families")
    order = [name for name in looks if (group == name).any()]
    rows = group.map(order.index).argsort(kind="stable")  # grey first, so that it lies below
    look = {
        "hue_order": order,
        "style_order": order,
        "size_order": order,
        "palette": {name: colour for name, (colour, _) in looks.items()},
        "markers": {name: marker for name, (_, marker) in looks.items()},
        "sizes": {name: size * (0.45 if name == "other families" else 1.6) for name in looks},
    }
    for ax, points in zip(axes, panels, strict=True):
        table = pd.DataFrame({"x": points[:, 0], "y": points[:, 1], "family": group}).iloc[rows]
        sns.scatterplot(table, x="x", y="y", hue="family", style="family", size="family", ax=ax, **look,
                        linewidth=0, alpha=0.8, rasterized=True, legend=ax is axes[0])  # fmt: skip
    handles, texts = axes[0].get_legend_handles_labels()
    axes[0].get_legend().remove()
    if 1 < len(order) <= 12:
        legend = {"loc": "outside lower center", "ncols": min(len(order), 5), "markerscale": 1.6}
        axes[0].figure.legend(handles, texts, **legend)


@figure
def plot_clusters(zc, labels, names: Sequence[str], highlight: int | Sequence[int] = 4) -> Figure:
    """Families of cells in ZC space (Fig. 2a): four of them in colour, pairwise views of the proxies.

    Args:
        zc: raw ZC vectors, (n, 4).
        labels: family of each cell, (n,).
        names: the columns of `zc`, as `clusters.ZC_NAMES`.
        highlight: the families to colour, or how many (chosen by `farthest_families` on ranks of z).
    """
    zc, names = _array(zc).astype(float), list(names)
    if isinstance(highlight, int):
        highlight = farthest_families(zc.argsort(0).argsort(0) / len(zc), labels, highlight)
    views = [("params", "naswot"), ("params", "snip_ssnr"), ("snip_ssnr", "naswot")]
    if set(names) != set(ZC_AXES):
        views = [(names[0], names[1]), (names[1], names[2]), (names[0], names[2])]
    fig, axes = subplots(1, 3, figsize=(WIDEST, 3.9))
    panels = [zc[:, [names.index(a), names.index(b)]] for a, b in views]
    _draw_families(axes, panels, labels, highlight, size=9)
    for ax, points, view in zip(axes, panels, views, strict=True):
        for axis, name, values in zip("xy", view, points.T, strict=True):
            label, log = ZC_AXES.get(name, (name, False))
            ax.set(**{f"{axis}label": label, f"{axis}scale": "log" if log and (values > 0).all() else "linear"})
    return fig


@figure
def plot_latents(embeddings: Mapping[str, object], labels, *, highlight: Sequence[int] | None = None) -> Figure:
    """Latent spaces of the same cells in two dimensions, side by side (Fig. 2b-c).

    Args:
        embeddings: title -> (n, 2), from `gvae.embed`.
        labels: family of each cell, (n,).
        highlight: families to colour, the others grey; None colours every family.
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

    Args:
        curve: columns k, bic, aic (lower is better).
        marked: what is said of a number -> the number.
    """
    import seaborn as sns

    table = curve.rename(columns=str.upper).melt("K", ["BIC", "AIC"], "criterion", "value")
    fig, ax = subplots(figsize=(6.2, 3.5))
    sns.lineplot(table, x="K", y="value", hue="criterion", style="criterion", ax=ax, **_colours(["BIC", "AIC"]))
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

    Args:
        rows: `TrainLog.rows`, the `TrainLog` itself, or a DataFrame of them.
        keys: quantities to show, names of the rows' entries.
        x: entry on the horizontal axis.
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
        many = len(seen) >= 40
        faint = {"alpha": 0.3, "linewidth": 1.0} if many else {}
        sns.lineplot(seen, x=x, y=key, color=PALETTE[0], errorbar=("pi", 100), ax=ax, **faint)
        if many:
            smooth = seen.groupby(x)[key].mean()
            smooth = smooth.rolling(max(len(smooth) // 25, 3), center=True, min_periods=1).mean()
            sns.lineplot(smooth, color=PALETTE[0], ax=ax)
        finite = seen[key][np.isfinite(seen[key])]
        log = len(finite) > 0 and 0 < 30 * finite.min() < finite.max()
        ax.set(title=key.replace("_", " "), xlabel=x, ylabel="", yscale="log" if log else "linear")
        ax.locator_params(axis="x", nbins=3, integer=True)
    for ax in axes.flat[len(keys) :]:
        ax.set_visible(False)
    return fig


@figure
def plot_search(curves: Mapping[str, Sequence], ylabel: str = "best T-CET so far") -> Figure:
    """Best score found against the number of evaluations, one line a method.

    Args:
        curves: name -> best-so-far after each evaluation; or name -> several such runs, (runs, evaluations), drawn as
            their median over the band of all runs.
        ylabel: what the score is.
    """
    import pandas as pd
    import seaborn as sns

    aside = len(curves) > 4  # a legend of many long names would lie on the lines
    fig, ax = subplots(figsize=(WIDEST if aside else 6.6, 3.8))
    medians = {}
    for (name, values), colour in zip(curves.items(), cycle(PALETTE), strict=False):
        runs = np.atleast_2d(np.asarray(values, dtype=float))
        steps = np.arange(1, runs.shape[1] + 1)
        ax.fill_between(steps, runs.min(0), runs.max(0), step="post", color=colour, alpha=0.15, linewidth=0)
        ax.scatter(steps[-1:], np.median(runs, 0)[-1:], s=18, color=colour, zorder=3)
        medians[f"{name} ({len(steps):,})"] = pd.Series(np.median(runs, 0), steps)
    table = pd.concat(medians, names=["method", "evaluations"]).rename("score").reset_index()
    look = {key: value for key, value in _colours(list(medians)).items() if key != "markers"}
    sns.lineplot(table, x="evaluations", y="score", hue="method", style="method", ax=ax, **look,
                 estimator=None, drawstyle="steps-post")  # fmt: skip
    lengths = [len(median) for median in medians.values()]
    if max(lengths) > 12 * min(lengths):
        ax.set_xscale("log")
    ax.set(xlabel="ZC evaluations", ylabel=ylabel)
    place = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)} if aside else {"loc": "best"}
    ax.legend(title="method (evaluations)", alignment="left", **place)
    return fig


@figure
def plot_scatter(x, y, labels: tuple[str, str], identity: bool = False, *, groups=None, log: bool = False) -> Figure:
    """Points with rank correlation and n in the corner.

    Args:
        x: (n,).
        y: (n,).
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
    few, names = len(table) < 200, list(table["group"].unique())
    fig, ax = subplots(figsize=(4.6, 4.3))
    sns.scatterplot(table, x="x", y="y", hue="group", style="group", s=30 if few else 12, alpha=0.75, linewidth=0,
                    rasterized=len(table) > 2000, ax=ax, **_colours(names), legend=groups is not None)  # fmt: skip
    if log:
        ax.set(xscale="log", yscale="log")
    if identity and len(table):
        span = [table[["x", "y"]].min(axis=None), table[["x", "y"]].max(axis=None)]
        ax.plot(span, span, color=GREY, linewidth=1, linestyle="--", zorder=0)
    rank = table["x"].corr(table["y"], method="spearman") if len(table) > 2 else float("nan")
    ax.set_title(f"Spearman {rank:.2f}, n = {len(table):,}", fontsize=9, color="#555555", loc="right")
    ax.set(xlabel=labels[0], ylabel=labels[1])
    if groups is not None:
        ax.legend(title=None, markerscale=1.4)
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
    import pandas as pd
    import seaborn as sns

    table = pd.DataFrame({"name": list(names), "value": _array(values).astype(float)})
    table["group"] = "" if groups is None else list(groups)
    order, kinds = list(table["name"].unique()), list(table["group"].unique())
    look = {"x": "name", "y": "value", "hue": "group", "order": order, "hue_order": kinds}
    look["palette"] = [PALETTE[i % len(PALETTE)] for i in range(len(kinds))]
    fig, ax = subplots(figsize=(min(WIDEST, 2.5 + 1.1 * len(order)), 3.8))
    sns.swarmplot(table, **look, dodge=True, size=4.5, alpha=0.8, ax=ax, legend=len(kinds) > 1, warn_thresh=1)
    dodge = 0.8 - 0.8 / len(kinds) if len(kinds) > 1 else False
    sns.pointplot(table, **look, dodge=dodge, errorbar=None, linestyle="none", marker="_", markersize=18, ax=ax,
                  legend=False)  # fmt: skip
    _name_places(ax, order, longest=12)
    ax.set(xlabel="", ylabel=ylabel, xlim=(-0.6, len(order) - 0.4))
    if len(kinds) > 1:
        ax.legend()
    return fig


@figure
def plot_families_over_depth(hl_architectures: Sequence) -> Figure:
    """Which families, widths and strides high-level architectures use at each depth.

    Left: share of each family at each position, among the architectures that reach it. Right: median channels with
    the middle half, and the share of stride 2.
    """
    import pandas as pd
    import seaborn as sns

    rows = [
        {"depth": depth, "family": triple.cluster, "channels": triple.channels, "halves": triple.stride == 2}
        for architecture in hl_architectures
        for depth, triple in enumerate(architecture.triples, start=1)
    ]
    table = pd.DataFrame(rows)
    share = pd.crosstab(table["family"], table["depth"], normalize="columns")
    fig, _ = subplots(figsize=(WIDEST, 4.2))
    fig.clear()
    panels = fig.subplot_mosaic([["family", "channels"], ["family", "halves"]], width_ratios=[1.25, 1])
    heat = {"cmap": "cividis", "vmin": 0, "cbar_kws": {"label": "share of architectures", "pad": 0.02}}
    sns.heatmap(share, ax=panels["family"], rasterized=True, **heat)
    panels["family"].set(xlabel="position in the sequence", ylabel="family")
    panels["family"].tick_params(rotation=0)
    middle_half = {"estimator": "median", "errorbar": ("pi", 50), "color": PALETTE[0], "marker": "o"}
    sns.lineplot(table, x="depth", y="channels", ax=panels["channels"], **middle_half)
    panels["channels"].set(xlabel="", ylabel="channels\n(median, middle half)")
    sns.barplot(table, x="depth", y="halves", errorbar=None, native_scale=True, color=GREY, ax=panels["halves"])
    panels["halves"].set(xlabel="position in the sequence", ylabel="share of stride 2", ylim=(0, 1))
    for name in ("channels", "halves"):
        panels[name].set_xlim(0.4, table["depth"].max() + 0.6)
        panels[name].locator_params(axis="x", integer=True)
    return fig


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
    import pandas as pd

    numbers = {"value": values, "low": low, "high": high, **(marks or {})}
    table = pd.DataFrame({key: pd.to_numeric(pd.Series(list(v)), errors="coerce") for key, v in numbers.items()})
    table["name"], table["group"] = list(names), list(groups)
    order, kinds = list(table["name"].unique()), list(table["group"].unique())
    table["y"] = table["name"].map(order.index) + 0.26 * (table["group"].map(kinds.index) - (len(kinds) - 1) / 2)
    fig, ax = subplots(figsize=(6.4, 1.2 + 0.3 * len(order)))
    for i, kind in enumerate(kinds):
        part = table[(table["group"] == kind) & table["value"].notna()]
        ends = [part["value"] - part["low"], part["high"] - part["value"]]
        look = {"color": PALETTE[i % len(PALETTE)], "fmt": MARKERS[i % len(MARKERS)], "markersize": 5}
        if len(part):
            ax.errorbar(part["value"], part["y"], xerr=ends, elinewidth=1.2, label=kind, **look)
    for i, label in enumerate(marks or {}):
        part = table.drop_duplicates("name").dropna(subset=label)
        look = {"color": DARK, "fmt": "|+"[i % 2], "markersize": (11, 8)[i % 2], "markeredgewidth": 1.4}
        ax.errorbar(part[label], part["name"].map(order.index), label=label, zorder=3, **look)
    ax.set_yticks(range(len(order)), order)
    ax.set(xlabel=xlabel, ylim=(len(order) - 0.4, -0.6))
    ax.grid(axis="x", color=LIGHT, linewidth=0.6)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return fig
