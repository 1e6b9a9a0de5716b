"""Pictures and printed tables: drawings of cells and networks, the paper's figures, tables beside the paper's numbers.

A plot takes data and returns a figure; `save_figure` and `save_table` write it with its receipt.
"""

from graphnas_lib.plots.diagrams import plot_architecture, plot_pipeline
from graphnas_lib.plots.draw import plot_cells
from graphnas_lib.plots.families import (
    ZC_AXES,
    families_over_depth,
    farthest_families,
    latent_page,
    plot_clusters,
    plot_latents,
    plot_over_depth,
    plot_pairs,
    plot_paths,
)
from graphnas_lib.plots.figures import (
    plot_band,
    plot_bars,
    plot_criterion,
    plot_intervals,
    plot_log,
    plot_scatter,
    plot_search,
    plot_strip,
)
from graphnas_lib.plots.formatters import register
from graphnas_lib.plots.results import plot_accuracy_by_flops, plot_against, plot_hours, plot_spread, plot_status
from graphnas_lib.plots.style import PALETTE, figure, picture, running_ipython, svg
from graphnas_lib.plots.tables import (
    Shown,
    compare,
    markdown,
    mean_difference,
    mean_interval,
    render,
    save_figure,
    save_table,
    show,
)

register()  # a notebook that imports this room shows cells and architectures as pictures
