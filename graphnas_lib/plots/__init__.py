"""Pictures and printed tables: drawings of cells and networks, the paper's figures, tables beside the paper's numbers.

A plot takes data and returns a figure; `save_figure` and `save_table` write it with its receipt.
"""

from graphnas_lib.plots.diagrams import plot_architecture, plot_pipeline
from graphnas_lib.plots.draw import plot_cells
from graphnas_lib.plots.figures import (
    ZC_AXES,
    farthest_families,
    plot_band,
    plot_bars,
    plot_clusters,
    plot_criterion,
    plot_families_over_depth,
    plot_intervals,
    plot_latents,
    plot_log,
    plot_scatter,
    plot_search,
    plot_strip,
)
from graphnas_lib.plots.formatters import register
from graphnas_lib.plots.style import PALETTE, figure, svg
from graphnas_lib.plots.tables import compare, markdown, mean_difference, mean_interval, render, save_figure, save_table

register()  # a notebook that imports this room shows cells and architectures as pictures
