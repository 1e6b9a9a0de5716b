"""Data card of the corpus: how its cells were sampled, what their ZC vectors are, how both are distributed."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from graphnas_lib.clusters import ZC_NAMES
from graphnas_lib.plots import PALETTE, ZC_AXES, figure, markdown
from graphnas_lib.proxies import labelled_only
from graphnas_lib.space import CellCodes
from graphnas_lib.stages import cells

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE = "labels_distributions.svg"
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def card(table: pd.DataFrame, codes: CellCodes, law: Mapping[str, float], facts: Mapping) -> str:
    """The card as Markdown; `PICTURE` is expected beside it.

    Args:
        table: `proxies.label`'s result, failed cells included.
        codes: the whole corpus, the labelled cells first.
        law: shares of raw draws: "valid" and "strict"; "mean_live" nodes of a valid one.
        facts: "scale", "seed" (of the sampling and of the weights), "data", "batch", "resolution", "classes",
            "held_out".
    """
    good = labelled_only(table)[[*ZC_NAMES]]
    parts = {"corpus": codes, "labelled": codes[: len(table)]}
    sizes = pd.DataFrame({name: cells.live_nodes(part) / len(part) for name, part in parts.items()})
    quantiles = good.quantile(QUANTILES).rename(index="{:.0%}".format)
    counts = {"cells": len(codes), "labelled": len(table), "failed": len(table) - len(good)}
    tables = {
        "sizes": markdown((100 * sizes).round(2).reset_index(names="live nodes")).strip(),
        "quantiles": markdown(quantiles.reset_index(names="quantile")).strip(),
        "ranks": markdown(good.corr("spearman").round(3).reset_index(names="component")).strip(),
    }
    page = tomllib.loads(Path(__file__).with_name("datacard.toml").read_text(encoding="utf-8"))["page"]
    return page.format(**{**law, **facts, **counts, **tables, "invalid": 1 - law["valid"], "picture": PICTURE})


@figure
def plot_distributions(table: pd.DataFrame, codes: CellCodes) -> Figure:
    """Histograms of the four raw components, and cells by number of live nodes, of a labelled table."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    good = labelled_only(table)
    fig, axes = plt.subplots(1, 5, figsize=(12.6, 2.5))
    for ax, name, colour in zip(axes, ZC_NAMES, PALETTE, strict=False):
        label, log = ZC_AXES[name]
        values = good[name][(good[name] > 0) | (not log)]
        sns.histplot(values, bins=40, log_scale=log, color=colour, alpha=1, edgecolor="none", ax=ax)
        ax.set(xlabel=label, ylabel="")
    sns.barplot(cells.live_nodes(codes[: len(table)]), color=PALETTE[4], saturation=1, ax=axes[4])
    axes[4].set(xlabel="live operation nodes", ylabel="")
    axes[0].set_ylabel("cells")
    return fig
