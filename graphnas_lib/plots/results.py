"""Results in pictures, beside the paper's: accuracies by method, Tables 3 and 4, costs, and claims by status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from graphnas_lib.plots.style import DARK, GREY, MARKERS, OTHERS, PALETTE, STYLE, WIDEST, figure, subplots

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from graphnas_lib.paper import Row


@figure
def plot_spread(
    table: pd.DataFrame, name: str, value: str, xlabel: str, *, by: str = "", violins: bool = False,
    lines: Mapping[str, float | Mapping[str, float]] | None = None, published: pd.DataFrame | None = None,
) -> Figure:  # fmt: skip
    """Every value as a point on the line of its name, the mean of them as a bar; crosses are trainings that diverged.

    Args:
        table: columns `name`, `value`; `by`, a panel a group with an axis of its own; "diverged", where it is known.
        violins: draw the density of each name's values behind them.
        lines: what is said of a value -> the value, or panel -> value; drawn across all names.
        published: columns name, low, mean, high: a last panel with other values of the same names.
    """
    import seaborn as sns

    order = list(dict.fromkeys(table[name]))
    lost = table["diverged"].fillna(False).astype(bool) if "diverged" in table else table[value].isna()
    groups = {str(key): part for key, part in table.groupby(by, sort=False)} if by else {"": table}
    count = len(groups) + (published is not None)
    size = (WIDEST if count > 1 else 7.5, 1.3 + 0.45 * len(order))
    fig, axes = subplots(1, count, figsize=size, squeeze=False, sharey=True)
    for ax, (panel, part) in zip(axes.flat, groups.items(), strict=False):
        place = {"data": part, "x": value, "y": name, "order": order, "ax": ax}
        if violins:
            sns.violinplot(**place, inner=None, cut=0, density_norm="width", color="#D9E6F2", linewidth=0.6)
        sns.swarmplot(**place | {"data": part[~lost[part.index]]}, color=PALETTE[0], size=4, warn_thresh=1)
        failed = part[lost[part.index]].dropna(subset=value)
        ax.plot(failed[value], failed[name].map(order.index), "x", color=DARK, markersize=7, label="diverged")
        mean = part.groupby(name)[value].mean()
        ax.plot(mean, [order.index(key) for key in mean.index], "|", color=DARK, markersize=20, markeredgewidth=2)
        for (text, at), dash in zip((lines or {}).items(), cycle(("--", ":")), strict=False):
            x = at[panel] if isinstance(at, Mapping) else at
            ax.axvline(x, color=DARK, linewidth=1, linestyle=dash, label=f"{text}: {x:.3g}")
        ax.set(title=panel, xlabel=xlabel, ylabel="")
        if ax.get_legend_handles_labels()[0]:
            handles, texts = ax.get_legend_handles_labels()
            shown = [(h, t) for h, t in zip(handles, texts, strict=True) if t != "diverged" or len(failed)]
            ax.legend(
                *zip(*shown, strict=True), loc="lower center", bbox_to_anchor=(0.5, 1.0 + 0.03 * bool(panel)), ncols=3
            )
    if published is not None:
        there = published[published["name"].isin(order)]
        ends = [there["mean"] - there["low"], there["high"] - there["mean"]]
        at = there["name"].map(order.index)
        axes.flat[-1].errorbar(
            there["mean"], at, xerr=ends, fmt="|", color=DARK, markersize=20, elinewidth=1.2, capsize=3
        )
        axes.flat[-1].set(xlabel=f"paper: {xlabel}, mean, lowest to highest")
    return fig


@figure
def plot_accuracy_by_flops(rows: Sequence[Row], ours: pd.DataFrame) -> Figure:
    """Table 3 as a picture: accuracy against FLOPs, the paper's networks over all that it quotes.

    `ours` has a line a design: "flops" and, where it was trained, "accuracy"; others stand as ticks at the bottom.
    """
    from matplotlib.transforms import Bbox

    fig, ax = subplots(figsize=(8.2, 4.6))
    known = [row for row in rows if row["Acc. (%)"].value and row["FLOPs (M)"].value]
    places = {row: (row["FLOPs (M)"].value, row["Acc. (%)"].value) for row in known}
    for quoted, colour, marker in ((True, GREY, "o"), (False, PALETTE[1], "s")):
        part = [row for row in known if row.quoted == quoted]
        ends = [row["Acc. (%)"].spread or 0.0 for row in part]
        label = "quoted by the paper" if quoted else "the paper's own"
        x, y = zip(*(places[row] for row in part), strict=True)
        ax.errorbar(x, y, yerr=ends, fmt=marker, color=colour, label=label, markersize=6)
    trained = ours["accuracy"].notna() if "accuracy" in ours else np.zeros(len(ours), bool)
    if any(trained):
        ax.plot(ours["flops"][trained] / 1e6, ours["accuracy"][trained], "D", color=PALETTE[0], label="here")
    if not all(trained):
        at = ax.get_xaxis_transform()
        look = {"markerfacecolor": "none", "markeredgecolor": PALETTE[0], "clip_on": False}
        label = "designed here, not trained: no accuracy"
        ax.plot(ours["flops"][~trained] / 1e6, np.full((~trained).sum(), 0.03), "^", transform=at, label=label, **look)
    ax.set(xlabel="millions of FLOPs, as each source counts them", ylabel="ImageNet-1k top-1 (%)", xscale="log")
    ax.legend(loc="upper left")
    fig.draw_without_rendering()  # now it is known where things lie
    taken = [Bbox.from_extents(*at, *at).padded(5) for at in ax.transData.transform(list(places.values()))]
    for row, at in places.items():  # a name stands beside its point, on the first side that is free, or below
        sides = ((6, -3, "left"), (-8, -3, "right"), (0, 6, "center"), (0, -13, "center"))
        for x, y, ha in sides if row.quoted else sides[1:]:
            short = row.name.split(" (")[0] if row.quoted else row.key
            name = ax.annotate(short, at, (x, y), textcoords="offset points", fontsize=7.5, color=DARK, ha=ha)
            if y == -13 or not any(map(name.get_window_extent().overlaps, taken)):
                break
            name.remove()
        taken.append(name.get_window_extent())
    return fig


@figure
def plot_against(table: pd.DataFrame, xlabel: str) -> Figure:
    """One line an index entry, a mark a column, on a logarithmic axis with a line at 1; an empty cell has no mark."""
    fig, ax = subplots(figsize=(7.8, 1.4 + 0.36 * len(table)))
    places = np.arange(len(table))
    for column, marker, colour in zip(table, cycle(MARKERS), cycle(PALETTE), strict=False):
        hollow = {"markerfacecolor": "none"} if column.endswith("here") else {}
        ax.plot(table[column], places, marker, color=colour, label=column, markersize=7, linestyle="none", **hollow)
    ax.axvline(1.0, color=DARK, linewidth=1, linestyle="--")
    ax.set(xscale="log", xlabel=xlabel, yticks=places, yticklabels=table.index, ylim=(len(table) - 0.5, -0.5))
    low, high = np.nanmin(table.to_numpy(float)), np.nanmax(table.to_numpy(float))
    ax.set_xticks([at for at in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10) if low / 2 < at < 2 * high])
    ax.xaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return fig


@figure
def plot_hours(hours: pd.Series, published: Mapping[str, float]) -> Figure:
    """A bar a stage in the order given, its hours at the end; ticks are the paper's hours of what ends with a stage."""
    fig, ax = subplots(figsize=(7.8, 1.2 + 0.3 * len(hours)))
    bars = ax.barh(hours.index, hours, color=PALETTE[0], height=0.7)
    ax.bar_label(bars, [f"{h:.1f}" if h >= 0.05 else "<0.1" for h in hours], padding=4, fontsize=8)
    there = {stage: h for stage, h in published.items() if stage in hours.index}
    at = [hours.index.get_loc(stage) for stage in there]
    look = {"color": PALETTE[1], "markersize": 15, "markeredgewidth": 3, "linestyle": "none"}
    ax.plot(list(there.values()), at, "|", label="paper, one V100", **look)
    ax.set(xlabel="hours", ylim=(len(hours) - 0.4, -0.6))
    ax.margins(x=0.12)
    if there:
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1))
    return fig


@figure
def plot_status(table: pd.DataFrame, order: Sequence[str]) -> Figure:
    """Claims by status: one bar for all, and a grid of notebook and status; `table` has columns notebook and status.

    `order` is that of the statuses; a status may go on after its first words (" (why)").
    """
    import pandas as pd
    import seaborn as sns

    kind = table["status"].str.split(" (", regex=False).str[0]
    counts = kind.value_counts().reindex(order, fill_value=0)
    grid = pd.crosstab(table["notebook"], kind).reindex(columns=order, fill_value=0)
    fig, (bar, cells) = subplots(2, 1, figsize=(8.6, 1.9 + 0.3 * len(grid)), height_ratios=[1, 0.45 * len(grid)])
    left = 0
    for status, n in counts.items():
        bar.barh(0, n, left=left, color=STYLE["badges"][status], edgecolor=DARK, height=0.9)
        if n:
            bar.text(left + n / 2, 0, f"{status}\n{n}", ha="center", va="center", fontsize=8.5, color="#1A1A1A")
        left += n
    bar.set(xlim=(0, left or 1), ylim=(-0.5, 0.5))
    bar.axis("off")
    named = grid.astype(str).where(grid > 0, "")
    sns.heatmap(grid, annot=named, fmt="", cmap="Blues", vmin=0, vmax=2 * max(1, grid.to_numpy().max()), cbar=False,
                linewidths=0.6, linecolor=OTHERS, ax=cells)  # fmt: skip
    cells.set(xlabel="", ylabel="notebook")
    cells.tick_params(rotation=0, length=0)
    return fig
