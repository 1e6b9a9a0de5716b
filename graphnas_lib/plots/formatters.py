"""Pictures of cells and architectures where a notebook shows one as the value of a cell."""

from __future__ import annotations

import sys

from graphnas_lib.macro import Architecture
from graphnas_lib.plots.diagrams import plot_architecture
from graphnas_lib.plots.draw import plot_cells
from graphnas_lib.plots.style import svg
from graphnas_lib.space import Cell


def cell_svg(cell: Cell) -> str:
    """The drawing of a cell."""
    return svg(plot_cells([cell]))


def architecture_svg(architecture: Architecture) -> str:
    """The macro strip of an architecture over its distinct cells."""
    return svg(plot_architecture(architecture, resolution=None, cells=True))


def register() -> None:
    """Tell a running IPython how to show both; nothing where none runs, which then need not be imported."""
    ipython = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    if shell:
        formatter = shell.display_formatter.formatters["image/svg+xml"]
        formatter.for_type(Cell, cell_svg)
        formatter.for_type(Architecture, architecture_svg)
