"""The one plotting style, figures that say in words what they show, and the colours and markers of families.

Nothing here or in the modules beside it imports matplotlib or seaborn before a first figure is drawn.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tomllib
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# apart from each other and from `OTHERS` in the eyes of a deuteranope too (a test simulates them); black is the last
PALETTE = ("#0072B2", "#E69F00", "#435900", "#56B4E9", "#804663", "#F2BC85", "#0000F2", "#000000")
OTHERS = "#C9C9C9"  # points that are there for comparison
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY, LIGHT, DARK = "#9A9A9A", "#E3E3E3", "#333333"
WIDEST = 10.8  # inches of a figure in a notebook
SCREEN_DPI, PICTURE_DPI = 100, 200  # pixels an inch that a notebook takes on the screen; that its picture has
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
    """Decorator of every `plot_*`: one style, and a closed figure, which a notebook shows once (as its last value).

    A running IPython shows it as `picture` gives it, words included.
    """

    @wraps(plot)
    def styled(*args, **kwargs) -> Figure:
        import matplotlib.pyplot as plt

        with style():
            fig = plot(*args, **kwargs)
        plt.close(fig)
        if shell := running_ipython():
            shell.display_formatter.formatters["image/png"].for_type(type(fig), picture)
        return fig

    return styled


def running_ipython() -> Any:
    """The IPython that runs this code, which is not imported for the question; None where none does."""
    return sys.modules.get("IPython") and sys.modules["IPython"].get_ipython()


def picture(fig: Figure) -> tuple[bytes, dict]:
    """A figure as PNG of 256 colours, a third as large, and what a notebook keeps beside it.

    That is its width and height on the screen (pixels), "alt" and "caption".
    """
    from PIL import Image

    drawn, out = io.BytesIO(), io.BytesIO()
    with style():
        fig.savefig(drawn, format="png", dpi=PICTURE_DPI, bbox_inches="tight")
    image = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    image.save(out, format="png", optimize=True)
    sizes = {name: n * SCREEN_DPI // PICTURE_DPI for name, n in zip(("width", "height"), image.size, strict=True)}
    return out.getvalue(), {**sizes, **(vars(fig).get("words") or {"caption": "", "alt": seen(fig)})}


def seen(fig: Figure) -> str:
    """What a figure shows, read off it: its title, and the title and axes of every panel."""
    panels = []
    for ax in fig.axes:
        titles = [title for place in ("left", "center", "right") if (title := ax.get_title(loc=place))]
        axes = f"{ax.get_ylabel()} against {ax.get_xlabel()}" if ax.get_xlabel() and ax.get_ylabel() else ""
        panels.append(": ".join([*titles, axes or ax.get_xlabel() or ax.get_ylabel()]).strip(": "))
    whole = [fig.get_suptitle(), *dict.fromkeys(panels)]
    return " ".join(". ".join(part for part in whole if part).replace("\n", " ").split()) or "A drawing."


def svg(fig: Figure) -> str:
    """A figure as text, the same for the same data."""
    out = io.StringIO()
    with style():
        fig.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def cluster_style(cluster: int) -> tuple[str, str]:
    """(colour, marker) of a cluster: 64 different pairs, the same in every figure."""
    return PALETTE[cluster % len(PALETTE)], MARKERS[cluster // len(PALETTE) % len(MARKERS)]
