"""Plots of data, drawn with seaborn: `plot_*` takes data and returns a closed Figure, and never shows or writes one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from graphnas_lib.plots.style import DARK, GREY, MARKERS, OTHERS, PALETTE, WIDEST, figure, subplots

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

IN_A_ROW = 5  # panels


def array(values) -> np.ndarray:
    """Tensor, DataFrame column or list as a numpy array."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def looks(names: Sequence, markers: Sequence[str] = ()) -> dict:
    """seaborn's arguments for groups in this order: a colour each and, where markers are given, one of them.

    Where colours begin again, markers move on by one, so that no two groups look the same.
    """
    turned = [markers[(i + i // len(PALETTE)) % len(markers)] for i in range(len(names))] if markers else []
    styled = {"style_order": names, "markers": turned}
    colours = [colour for _, colour in zip(names, cycle(PALETTE), strict=False)]
    return {"hue_order": names, "palette": colours, **(styled if markers else {})}


@figure
def plot_criterion(curve: pd.DataFrame, marked: Mapping[str, int]) -> Figure:
    """Information criteria against the number of families, some numbers marked (Sec. 3.1).

    `curve` has the columns k, bic, aic (lower is better); `marked` is what is said of a number -> the number.
    """
    import seaborn as sns

    table = curve.rename(columns=str.upper).melt("K", ["BIC", "AIC"], "criterion", "value")
    fig, ax = subplots(figsize=(6.2, 3.5))
    look = looks(["BIC", "AIC"], MARKERS)
    sns.lineplot(table, x="K", y="value", hue="criterion", style="criterion", ax=ax, **look)
    for (text, k), line in zip(marked.items(), cycle((":", "--", "-.")), strict=False):
        ax.axvline(k, color=DARK, linewidth=1, linestyle=line, label=f"{text}: K = {k}")
    ax.set(xlabel="number of families K", ylabel="criterion (lower is better)")
    ax.locator_params(axis="x", integer=True)
    ax.legend()
    return fig


@figure
def plot_log(rows: Sequence[Mapping], keys: Sequence[str], *, x: str = "step", by: str | None = None) -> Figure:
    """Training curves, a panel a quantity; logarithmic where all values are positive and span a factor of 30.

    Several runs in one table are drawn as their mean over the band of all of them; many steps under a running mean.

    `rows` are those of a `TrainLog`, it itself, or a DataFrame; `keys` and `x` are names of the rows' entries, and `by`
    of the one that tells what is drawn apart, in colours of its own.
    """
    import pandas as pd
    import seaborn as sns
    from matplotlib.ticker import LogLocator

    table = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(getattr(rows, "rows", rows)))
    missing = [key for key in (x, *keys) if key not in table]
    if missing:
        raise ValueError(f"Logged quantities are {list(table.columns)}; got {missing}.")
    columns = len(keys) if len(keys) <= 5 else 4
    lines = -(-len(keys) // columns)
    size = (min(max(2.75 * columns + 0.4, 5.0), WIDEST), 2.3 * lines)
    fig, axes = subplots(lines, columns, figsize=size, squeeze=False)
    groups = {None: table} if by is None else dict(list(table.groupby(by, sort=False)))
    for key, ax in zip(keys, axes.flat, strict=False):
        for colour, (name, part) in zip(PALETTE, groups.items(), strict=False):
            seen = part[[x, key]].dropna().astype(float)
            many = len(seen) >= 40
            faint = {"alpha": 0.3, "linewidth": 1.0} if many else {"label": name}
            sns.lineplot(seen, x=x, y=key, color=colour, errorbar=("pi", 100), ax=ax, legend=False, **faint)
            if many:
                mean = seen.groupby(x)[key].mean()
                mean = mean.rolling(max(len(mean) // 25, 3), center=True, min_periods=1).mean()
                sns.lineplot(mean, color=colour, ax=ax, label=name, legend=False)
        finite = table[key][np.isfinite(table[key].astype(float))]
        log = len(finite) > 0 and 0 < 30 * finite.min() < finite.max()
        ax.set(title=key.replace("_", " "), xlabel=x, ylabel="", yscale="log" if log else "linear")
        ax.locator_params(axis="x", nbins=3, integer=True)
        if log:  # a label at 1, 2 and 5 of each decade, or at 1 alone where there are many
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if finite.max() < 200 * finite.min() else (1,)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.minorticks_off()
    for ax in axes.flat[len(keys) :]:
        ax.set_visible(False)
    if by is not None:
        axes.flat[0].legend(title=by)
    return fig


@figure
def plot_search(curves: Mapping[str, Sequence], ylabel: str = "best T-CET so far") -> Figure:
    """Best score found against the number of evaluations, one line a method.

    `curves` is name -> best-so-far after each evaluation; or name -> several such runs, (runs, evaluations), drawn as
    their median over the band of all runs.
    """
    import pandas as pd
    import seaborn as sns

    aside = len(curves) > 3  # a legend of many names would lie on the lines
    fig, ax = subplots(figsize=(WIDEST if aside else 6.6, 3.8))
    medians = {}
    for (name, values), colour in zip(curves.items(), cycle(PALETTE), strict=False):
        runs = np.atleast_2d(np.asarray(values, dtype=float))
        median = pd.Series(np.median(runs, 0), np.arange(1, runs.shape[1] + 1), name="score")
        ax.fill_between(median.index, runs.min(0), runs.max(0), step="post", color=colour, alpha=0.15, linewidth=0)
        ax.scatter(median.index[-1:], median[-1:], s=18, color=colour, zorder=3)
        medians[f"{name} ({len(median):,})"] = median
    table = pd.concat(medians, names=["method", "evaluations"]).reset_index()
    lines = {"estimator": None, "drawstyle": "steps-post", **looks(list(medians))}
    sns.lineplot(table, x="evaluations", y="score", hue="method", style="method", ax=ax, **lines)
    lengths = [len(median) for median in medians.values()]
    ax.set(xlabel="ZC evaluations", ylabel=ylabel, xscale="log" if max(lengths) > 12 * min(lengths) else "linear")
    place = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)} if aside else {"loc": "best"}
    ax.legend(title="method (evaluations)", alignment="left", **place)
    return fig


@figure
def plot_scatter(
    table: pd.DataFrame, x: str, y: str, labels: tuple[str, str], *, by: str = "", hue: str = "", log: str = "",
    identity: bool = False, band: tuple[float, float] | None = None, lines: Mapping[str, float] | None = None,
) -> Figure:  # fmt: skip
    """Points, a panel a group, under its name, rank correlation and n; at most `IN_A_ROW` panels side by side.

    Args:
        table: columns `x`, `y`, and where they are named `by` (the panel) and `hue` (colour and marker).
        labels: of the two axes, with units.
        log: which axes are logarithmic: "", "x", "y" or "xy".
        identity: draw y = x (predicted against true).
        band: where y, an error in percent, is in order; its axis is linear up to 10, logarithmic beyond.
        lines: panel -> x or, with `hue`, y of a line across it.
    """
    import seaborn as sns

    table = table.assign(**{name: array(table[name]).astype(float) for name in (x, y)})
    table = table[np.isfinite(table[[x, y]]).all(axis=1)]
    groups = {str(name): part for name, part in table.groupby(by, sort=False)} if by else {"": table}
    kinds = looks(list(table[hue].unique()), MARKERS) if hue else {"color": PALETTE[0]}
    look = {**kinds, "s": 34 if len(table) < 200 else 9, "alpha": 0.75, "linewidth": 0, "hue": hue or None}
    rows, height = -(-len(groups) // IN_A_ROW), 3.7 if len(groups) > 1 else 4.3
    size = (min(WIDEST, 4.6 * len(groups)), height * rows + 1.2 * bool(hue))
    fig, axes = subplots(rows, min(len(groups), IN_A_ROW), figsize=size, squeeze=False, sharey=not hue)
    for ax in axes.flat[len(groups) :]:
        ax.set_visible(False)
    for ax, (name, part) in zip(axes.flat, groups.items(), strict=False):
        sns.scatterplot(part, x=x, y=y, style=hue or None, ax=ax, rasterized=len(part) > 2000, legend=bool(hue), **look)
        if identity and len(part):
            span = [part[[x, y]].min(axis=None), part[[x, y]].max(axis=None)]
            ax.plot(span, span, color=GREY, linewidth=1, linestyle="--", zorder=0)
        if band:
            ax.axhspan(*band, color=OTHERS, alpha=0.4, linewidth=0, zorder=0)
        if name in (lines or {}):
            (ax.axhline if hue else ax.axvline)(lines[name], color=DARK, linewidth=1, linestyle="--")
        rank = part[x].corr(part[y], method="spearman") if len(part) > 2 else float("nan")
        told = f"n = {len(part):,}" if band else f"Spearman {rank:.2f}, n = {len(part):,}"
        ax.set_title(f"{name}\n{told}".strip(), fontsize=9)
        scales = {axis: "log" if axis in log else "linear" for axis in "xy"}
        ax.set(xlabel=labels[0], ylabel=labels[1], xscale=scales["x"], yscale=scales["y"])
        if band:
            ax.set_yscale("symlog", linthresh=10)
            ticks = (-50, band[0], -10, 0, 10, band[1], 50, 100, 200, 400, 800)
            ax.set_yticks([at for at in ticks if table[y].min() <= at <= table[y].max()])
            ax.yaxis.set_major_formatter("{x:+.0f}")
        if hue:
            handles, texts = ax.get_legend_handles_labels()
            ax.get_legend().remove()
    if hue:
        fig.legend(handles, texts, loc="outside lower center", ncols=2, fontsize=8, markerscale=1.3)
    return fig


@figure
def plot_bars(values: pd.Series, xlabel: str) -> Figure:
    """One bar an index entry, its number on top; the series' name is the vertical axis. NaN leaves a gap, marked."""
    import seaborn as sns

    names, numbers = [str(name) for name in values.index], values.astype(float).to_numpy()
    fig, ax = subplots(figsize=(min(WIDEST, 2.5 + 0.75 * len(values)), 3.4))
    sns.barplot(x=names, y=np.nan_to_num(numbers), color=PALETTE[0], saturation=1, width=0.7, errorbar=None, ax=ax)
    texts = [f"{n:,.0f}" if abs(n) >= 100 else f"{n:.3g}" if np.isfinite(n) else "no value" for n in numbers]
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

    names, values = list(names), array(values).astype(float)
    groups = [""] * len(names) if groups is None else list(groups)
    order, kinds = list(dict.fromkeys(names)), list(dict.fromkeys(groups))
    fig, ax = subplots(figsize=(min(WIDEST, 2.5 + 1.1 * len(order)), 3.8))
    look = {"x": names, "y": values, "hue": groups, "order": order, "ax": ax, **looks(kinds)}
    sns.swarmplot(**look, dodge=True, size=4.5, alpha=0.8, legend=len(kinds) > 1, warn_thresh=1)
    dodge = 0.8 - 0.8 / len(kinds) or False  # as far as the points of the groups stand apart
    sns.pointplot(**look, dodge=dodge, errorbar=None, linestyle="none", marker="_", markersize=18, legend=False)
    _name_places(ax, order, longest=12)
    ax.set(ylabel=ylabel, xlim=(-0.6, len(order) - 0.4))
    if len(kinds) > 1:
        ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return fig


@figure
def plot_intervals(
    names, values, low, high, xlabel: str, *, groups, marks: Mapping[str, Sequence] | None = None, zero: str = "",
    log: bool = False,
) -> Figure:  # fmt: skip
    """A line a name: each group's value with its interval, and published values as ticks; text is left out.

    Args:
        names: (n,), one line for each distinct one, in order.
        values, low, high: (n,), with the ends of their intervals; one beside its value, as a bootstrap of few rows may
            give, is drawn from the value on.
        xlabel: of the values, with unit.
        groups: (n,), colour and marker.
        marks: label -> (n,) other values of the same names, drawn once a name.
        zero: what a value of 0 means; it is said of a dashed line there.
        log: the axis is logarithmic.
    """
    import pandas as pd
    from matplotlib.ticker import LogLocator

    numbers = {"value": values, "low": low, "high": high, **(marks or {})}
    table = pd.DataFrame({key: pd.to_numeric(pd.Series(list(v)), errors="coerce") for key, v in numbers.items()})
    order, kinds = list(dict.fromkeys(names)), list(dict.fromkeys(groups))
    table["y"], table["kind"] = [order.index(name) for name in names], [kinds.index(group) for group in groups]
    fig, ax = subplots(figsize=(6.4, 1.2 + max(0.3, 0.11 * len(kinds)) * len(order)))
    apart = min(0.26, 0.8 / len(kinds))
    for i, kind in enumerate(kinds):
        part = table[table["kind"] == i].dropna(subset="value")
        ends = [(part["value"] - part["low"]).clip(lower=0), (part["high"] - part["value"]).clip(lower=0)]
        y = part["y"] + apart * (i - (len(kinds) - 1) / 2)
        look = {"color": PALETTE[i % len(PALETTE)], "fmt": MARKERS[i % len(MARKERS)], "markersize": 5}
        if len(part):
            ax.errorbar(part["value"], y, xerr=ends, elinewidth=1.2, label=kind, **look)
    for label, marker, size in zip(marks or {}, cycle("|+"), cycle((11, 8)), strict=False):
        part = table.drop_duplicates("y")
        look = {"color": DARK, "fmt": marker, "markersize": size, "markeredgewidth": 1.4}
        ax.errorbar(part[label], part["y"], label=label, zorder=3, **look)
    if zero:
        ax.axvline(0.0, color=DARK, linewidth=1, linestyle="--", zorder=1.5, label=zero)
    ax.set_yticks(range(len(order)), order)
    ax.set(xlabel=xlabel, ylim=(len(order) - 0.4, -0.6))
    if log:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return fig


@figure
def plot_band(table: pd.DataFrame | list[dict], x: str, y: str, by: str, ylabel: str, *, log: bool = False) -> Figure:
    """Mean of a quantity over a budget with its 95% interval over the rows of each point, one line a method.

    Args:
        table: columns `x`, `y` and `by`, the method.
        log: the budget's axis is logarithmic, with a tick at each of a few budgets.
    """
    import pandas as pd
    import seaborn as sns

    table = pd.DataFrame(table)
    fig, ax = subplots(figsize=(WIDEST, 3.8))
    look = looks(list(dict.fromkeys(table[by])), MARKERS)
    sns.lineplot(table, x=x, y=y, hue=by, style=by, dashes=False, seed=0, ax=ax, **look)
    ax.set(xlabel=x, ylabel=ylabel, xscale="log" if log else "linear")
    if log and table[x].nunique() <= 8:
        ax.set_xticks(sorted(table[x].unique()))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
    ax.legend(title=by, alignment="left", loc="center left", bbox_to_anchor=(1.01, 0.5))
    return fig
