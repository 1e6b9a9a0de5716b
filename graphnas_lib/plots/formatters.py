"""Pictures of cells and architectures where a notebook shows one as the value of a cell."""

from __future__ import annotations

from graphnas_lib.macro import Architecture
from graphnas_lib.plots.diagrams import plot_architecture
from graphnas_lib.plots.draw import plot_cells
from graphnas_lib.plots.style import running_ipython, svg
from graphnas_lib.space import Cell


def register() -> None:
    """Tell a running IPython how to draw both, an architecture over its distinct cells; nothing where none runs."""
    if shell := running_ipython():
        formatter = shell.display_formatter.formatters["image/svg+xml"]
        formatter.for_type(Cell, lambda cell: svg(plot_cells([cell])))
        formatter.for_type(Architecture, lambda a: svg(plot_architecture(a, resolution=None, cells=True)))
