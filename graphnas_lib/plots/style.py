"""The one plotting style, over seaborn's, and the colours and markers of families.

Nothing here or in the modules beside it imports matplotlib or seaborn before a first figure is drawn.
"""

from __future__ import annotations

import contextlib
import io
import tomllib
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, readable with every common colour blindness; yellow and black last
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C6D1F", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY, LIGHT, DARK = "#9A9A9A", "#E3E3E3", "#333333"
WIDEST = 10.8  # inches of a figure in a notebook
STYLE = tomllib.loads(Path(__file__).with_name("style.toml").read_text(encoding="utf-8"))  # settings, fills of boxes


def style() -> contextlib.AbstractContextManager:
    """The one plotting style, as a context."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    return plt.rc_context({**sns.axes_style("ticks"), **sns.plotting_context("paper"), **STYLE["rc"]})


def subplots(*args, **kwargs) -> tuple:
    """`matplotlib.pyplot.subplots`."""
    import matplotlib.pyplot as plt

    return plt.subplots(*args, **kwargs)


def figure(plot: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorator of every `plot_*`: one style, and a closed figure, which a notebook shows once (as its last value)."""

    @wraps(plot)
    def styled(*args, **kwargs) -> Figure:
        import matplotlib.pyplot as plt

        with style():
            fig = plot(*args, **kwargs)
        plt.close(fig)
        return fig

    return styled


def svg(fig: Figure) -> str:
    """A figure as text, the same for the same data."""
    out = io.StringIO()
    with style():
        fig.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def cluster_style(cluster: int) -> tuple[str, str]:
    """(colour, marker) of a cluster: 64 different pairs, the same in every figure."""
    return PALETTE[cluster % len(PALETTE)], MARKERS[cluster // len(PALETTE) % len(MARKERS)]
