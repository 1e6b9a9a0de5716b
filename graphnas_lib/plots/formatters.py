"""Pictures of cells and architectures where a notebook shows one as the value of a cell."""

from __future__ import annotations

from IPython import get_ipython

from graphnas_lib.macro import Architecture
from graphnas_lib.plots.diagrams import plot_architecture
from graphnas_lib.plots.draw import plot_cell, svg
from graphnas_lib.space import Cell


def cell_svg(cell: Cell) -> str:
    """The drawing of a cell."""
    return svg(plot_cell(cell))


def architecture_svg(architecture: Architecture) -> str:
    """The macro strip of an architecture over its distinct cells."""
    return svg(plot_architecture(architecture, resolution=None, cells=True))


def register() -> None:
    """Tell a running IPython how to show both; nothing where none runs."""
    shell = get_ipython()
    if shell is not None:
        formatter = shell.display_formatter.formatters["image/svg+xml"]
        formatter.for_type(Cell, cell_svg)
        formatter.for_type(Architecture, architecture_svg)
