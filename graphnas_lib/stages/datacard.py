"""Data card of the corpus: how its cells were sampled, what their ZC vectors are, how both are distributed."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from graphnas_lib.clusters import ZC_NAMES
from graphnas_lib.plots import PALETTE, ZC_AXES, figure, markdown
from graphnas_lib.proxies import labelled_only
from graphnas_lib.space import UNUSED, CellCodes

PICTURE = "labels_distributions.svg"
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def card(table: pd.DataFrame, codes: CellCodes, law: Mapping[str, float], facts: Mapping) -> str:
    """The card as Markdown; `PICTURE` is expected beside it.

    Args:
        table: `corpus.label`'s result, failed cells included.
        codes: the whole corpus, the labelled cells first.
        law: shares of raw draws: "valid" and "strict"; "mean_live" nodes of a valid one.
        facts: "scale", "seed" (of the sampling and of the weights), "data", "batch", "resolution", "classes",
            "held_out".
    """
    good = labelled_only(table)
    quantiles = good[list(ZC_NAMES)].quantile(QUANTILES).rename(index=lambda q: f"{q:.0%}")
    ranks = good[list(ZC_NAMES)].corr("spearman").round(3)
    sizes = pd.DataFrame({"corpus": node_shares(codes), "labelled": node_shares(codes[: len(table)])})
    sections = [
        f"# Data card: cells and ZC vectors, scale `{facts['scale']}`",
        f"{len(codes):,} distinct cells, the first {len(table):,} of them with zero-cost vectors. Written by "
        f"`python -m graphnas_lib run labels --scale {facts['scale']}` from the artifacts `cells` and `labels`; their "
        "manifests hold SHA-256 sums, versions and seconds.",
        "## How cells were sampled",
        "A draw takes an edge probability p from U(0.3, 0.7), each of the 28 edges of an 8-node graph with "
        "probability p, and six operations uniformly from 28. Nodes on no path from input to output are pruned, the "
        "rest is put into canonical order, and a cell that was there already is dropped. The paper does not print "
        f"its law; this one is ours. Seed {facts['seed']}; a longer draw begins with the same cells, so "
        "`space.sample_cells(400_000, seed=0)` is the corpus of the paper's size. The last "
        f"{facts['held_out']:,} cells are held out from all training.",
        f"Of raw draws {1 - law['valid']:.1%} are invalid (no path from input to output, or nothing but that edge) and "
        f"{law['strict']:.1%} need no pruning; a valid one has {law['mean_live']:.2f} live operation nodes on average. "
        "Cells by number of live nodes, in percent:",
        markdown((100 * sizes).round(2).reset_index(names="live nodes")),
        "## What a label is",
        f"NASWOT, SNIP-SSNR, parameters and FLOPs (2 × MACs) of the network αₓ that stacks the cell (App. A), on "
        f"{facts['data']}, the first {facts['batch']} training images at {facts['resolution']} × "
        f"{facts['resolution']}, {facts['classes']} classes, weights of seed {facts['seed']}, float32. Columns of "
        "`labels.parquet`: `key` (of the canonical cell), `edges` (28 bits), `op_1` to `op_6` (index into "
        "`space.OPERATIONS`, −1 for an unused node), the four raw values, and `error`: empty, or why the cell has "
        f"none. {len(table) - len(good):,} of {len(table):,} cells could not be scored.",
        f"![Distributions of the four components and of live nodes]({PICTURE})",
        markdown(quantiles.reset_index(names="quantile")),
        "Rank correlations (Spearman) of the components:",
        markdown(ranks.reset_index(names="component")),
        "## What it is not",
        "A sample of good cells: it is uniform over operations, and no search chose any of it. Proxies are of random "
        "weights of one seed and vary with it. NASWOT and SNIP-SSNR depend on the batch and on the resolution, so "
        "that vectors of two scales cannot be mixed.",
    ]
    return "\n\n".join(part.strip() for part in sections) + "\n"


def node_shares(codes: CellCodes) -> pd.Series:
    """Share of cells with 1, 2, ... live operation nodes."""
    live = pd.Series((codes.operations != UNUSED).sum(dim=1).numpy())
    return live.value_counts(normalize=True).sort_index()


@figure
def plot_distributions(table: pd.DataFrame, codes: CellCodes) -> Figure:
    """Histograms of the four raw components, and cells by number of live nodes, of a labelled table."""
    good = labelled_only(table)
    fig, axes = plt.subplots(1, 5, figsize=(12.6, 2.5), layout="constrained")
    for ax, name, colour in zip(axes, ZC_NAMES, PALETTE, strict=False):
        label, log = ZC_AXES[name]
        values = good[name].to_numpy(float)
        values = values[values > 0] if log else values
        edges = np.histogram_bin_edges(np.log10(values) if log else values, 40)
        ax.hist(values, bins=10**edges if log else edges, color=colour)
        ax.set(xlabel=label, xscale="log" if log else "linear")
    shares = node_shares(codes[: len(table)])
    axes[4].bar(shares.index, shares.to_numpy() * len(table), color=PALETTE[4])
    axes[4].set(xlabel="live operation nodes", xticks=list(shares.index))
    axes[0].set_ylabel("cells")
    return fig
