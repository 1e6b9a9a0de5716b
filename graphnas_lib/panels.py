"""Panels of the notebooks: a few controls over one drawing that follows them.

In JupyterLab a panel answers to its controls; where no kernel runs (GitHub, the site, papermill's copies) its first
drawing stands there as a picture. Each function returns a `Panel`; a notebook shows it as the value of a cell.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from html import escape
from math import log10
from types import SimpleNamespace

import ipywidgets
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from graphnas_lib import network, plots, proxies
from graphnas_lib.ccnf import CCNF
from graphnas_lib.clusters import ZC_NAMES, Families
from graphnas_lib.design import Trained, design
from graphnas_lib.gvae import GVAE
from graphnas_lib.macro import Architecture, stack_cell
from graphnas_lib.sequence import MAX_NEW, SequenceGenerator
from graphnas_lib.space import EDGES, OP_NODES, OPERATIONS, REFERENCE_CELL, Cell, InvalidCellError

UNUSED = "unused"  # what the menu of an operation node shows for none
MOST_STANDARD = 2.5  # standard deviations that a slider of z reaches to either side
LIKELIEST = 10  # tokens shown
STEP = 0.02  # of the logarithm of a budget: 5%


class Panel(ipywidgets.VBox):
    """Controls, a line of text, and the picture of a figure.

    Args:
        draw: takes the controls' values by name; returns a figure and what it says in a sentence. A `ValueError` of it
            is shown in the text's place, and the last picture stays; the first drawing's is raised.
        controls: name -> widget with a `value`.
        alt: what the picture shows, in words.
        beside: further widgets, which only drive the controls.
    """

    def __init__(
        self,
        draw: Callable[..., tuple[Figure, str]],
        controls: Mapping[str, ipywidgets.Widget],
        alt: str,
        beside: tuple[ipywidgets.Widget, ...] = (),
    ):
        self._draw, self.controls, self.alt, self.about = draw, dict(controls), alt, {}
        self.told, self.picture = ipywidgets.HTML(), ipywidgets.Image(format="png")
        for control in controls.values():
            control.observe(self.follow, "value")
        self._show()
        layout = ipywidgets.Layout(flex_flow="row wrap")
        super().__init__([ipywidgets.Box([*beside, *controls.values()], layout=layout), self.told, self.picture])

    def follow(self, _change: object = None) -> None:
        """Draw anew for what the controls say now; a control that changes calls it."""
        try:
            self._show()
        except ValueError as error:
            self.told.value = f"<b>{escape(str(error))}</b>"

    def _show(self) -> None:
        figure, said = self._draw(**{name: control.value for name, control in self.controls.items()})
        image, self.about = plots.picture(figure)
        self.about = {**self.about, "caption": said, "alt": self.alt}
        self.told.value, self.picture.value = escape(said), image
        self.picture.width, self.picture.height = (str(self.about[side]) for side in ("width", "height"))

    def _repr_mimebundle_(self, **kwargs) -> tuple[dict, dict]:
        """The live panel, and beside it its picture for whoever cannot run it."""
        data = {**super()._repr_mimebundle_(**kwargs), "text/plain": self.about["caption"]}
        data["image/png"] = base64.b64encode(self.picture.value).decode()
        return data, {"image/png": self.about}


def _budget(name: str, low: float, high: float, value: float) -> ipywidgets.FloatLogSlider:
    ends = {"min": log10(low), "max": log10(high), "step": STEP, "readout_format": ".3s"}
    return ipywidgets.FloatLogSlider(value=value, description=name, continuous_update=False, **ends)


def designs(params: float, *, low: float = 1e5, high: float = 1e6, cells: int = 4, **options) -> Panel:
    """A slider of the parameters that a network may have; `options` go to `design` (Sec. 3.3)."""
    options["trained"] = options.get("trained") or Trained.load(options.get("scale"))
    side = options.get("input_shape", (3, 32, 32))[1]

    def draw(params: float) -> tuple[Figure, str]:
        found = design(params=params, n=1, **options)[0]
        size = f"{found.params:,} parameters, {found.flops:,} FLOPs, {len(found.architecture.triples)} cells"
        figure = plots.plot_architecture(found.architecture, resolution=side, cells=cells)
        return figure, f"Asked for {params:,.0f} parameters: {size}, T-CET {found.tcet:,.0f}."

    alt = "A row of bars, one for each cell of the network, with its channels above; "
    alt += "under it some of its cells as graphs."
    return Panel(draw, {"params": _budget("parameters", low, high, params)}, alt)


def cell_editor(
    families: Families, images: Tensor, labels: Tensor, *, classes: int, seed: int = 0, cell: Cell = REFERENCE_CELL
) -> Panel:
    """Operations and edges of a cell to choose: whether it is valid, what alpha_x costs, and its family (Eq. 1-3)."""
    nodes = {
        f"node_{i}": ipywidgets.Dropdown(
            options=[UNUSED, *OPERATIONS], value=cell.operations[i - 1] or UNUSED, description=f"node {i}"
        )
        for i in range(1, OP_NODES + 1)
    }
    edges = ipywidgets.SelectMultiple(
        options=[(f"{a} to {b}", (a, b)) for a, b in EDGES],
        value=[(int(a), int(b)) for a, b in cell.edges],
        description="edges",
        rows=8,
    )

    def draw(edges: tuple, **chosen: str) -> tuple[Figure, str]:
        operations = [None if name == UNUSED else name for name in chosen.values()]
        figure = plots.plot_cells([SimpleNamespace(edges=edges, operations=operations)])
        try:
            made = Cell.from_edges(edges, operations)
            z = proxies.zc_vector(made, images, labels, seed=seed, classes=classes)
        except (InvalidCellError, proxies.ProxyError) as error:
            return figure, f"Not a cell that can be scored: {error}"
        counted = network.count(stack_cell(made), input_shape=tuple(images.shape[1:]), classes=classes)
        vector = ", ".join(f"{name} {value:,.0f}" for name, value in zip(ZC_NAMES, z.tolist(), strict=True))
        family = int(families.assign(z[None]))
        return figure, f"Family {family}; alpha_x has {counted.params:,} parameters; z = ({vector})."

    alt = "The chosen cell as a graph: boxes of operations between input and output, joined by arrows."
    return Panel(draw, {**nodes, "edges": edges}, alt)


def condition(flow: CCNF, gvae: GVAE, families: Families, *, n: int = 6, seed: int = 0) -> Panel:
    """Four sliders of a standardised z: cells that the flow draws for it (Eq. 7), from noise that stays the same."""
    ends = {"min": -MOST_STANDARD, "max": MOST_STANDARD, "step": 0.1, "continuous_update": False}
    sliders = {name: ipywidgets.FloatSlider(value=0.0, description=name, **ends) for name in ZC_NAMES}

    def draw(**asked: float) -> tuple[Figure, str]:
        wanted = torch.tensor([list(asked.values())], dtype=torch.float32)
        latents = flow.sample(wanted.expand(n, -1), seed=seed)
        found = families.inverse(gvae.predict_zc(latents)).median(dim=0).values
        pairs = zip(ZC_NAMES, families.inverse(wanted)[0].tolist(), found.tolist(), strict=True)
        told = "; ".join(f"{name} {ask:,.0f}, found {is_:,.0f}" for name, ask, is_ in pairs)
        return plots.plot_cells(gvae.decode(latents), small=True), f"Asked for, and the median that q finds: {told}."

    return Panel(draw, sliders, f"{n} cells as graphs: boxes of operations between input and output, joined by arrows.")


def replay(history: pd.DataFrame, *, resolution: int = 32, step: int = 25) -> Panel:
    """A history of evolution, played: the best network after so many evaluations, budget by budget (Alg. 1)."""
    runs = {budget: run.reset_index(drop=True) for budget, run in history.groupby("budget", sort=False)}
    longest = max(map(len, runs.values()))
    ends = {"min": 1, "max": longest, "step": step}
    play = ipywidgets.Play(value=1, interval=600, **ends)
    place = ipywidgets.IntSlider(value=longest, description="evaluations", continuous_update=False, **ends)
    play.observe(lambda change: place.set_trait("value", change["new"]), "value")
    budget = ipywidgets.Dropdown(options=list(runs), description="budget")

    def draw(budget: str, evaluations: int) -> tuple[Figure, str]:
        seen = runs[budget].iloc[:evaluations]
        best = seen.loc[seen["score"].idxmax()]
        figure = plots.plot_architecture(Architecture.from_json(best["individual"]), resolution=resolution)
        size = f"{best['params']:,} parameters, {best['flops']:,} FLOPs"
        when = f"found in {best['phase']}, at evaluation {best.name + 1:,} of {len(seen):,}"
        return figure, f"Best under {budget}: T-CET {best['score']:,.0f} with {size}; {when}."

    alt = "A row of bars, one for each cell of the best network so far, with its channels above."
    return Panel(draw, {"budget": budget, "evaluations": place}, alt, (play,))


def next_token(generator: SequenceGenerator, params: float) -> Panel:
    """What the generator may write next for a budget, and how probable each token is (Eq. 10)."""
    low, high = generator.vocabulary.range("params")
    ends = {"min": 0, "max": MAX_NEW - 1, "continuous_update": False}
    place = ipywidgets.IntSlider(value=0, description="token", **ends)

    def draw(params: float, token: int) -> tuple[Figure, str]:
        top = pd.Series(generator.next_token(token, params=params), name="probability").nlargest(LIKELIEST)
        figure = plots.plot_bars(top, xlabel=f"token {token} of the design")
        return figure, f"For {params:,.0f} parameters the likeliest is {top.index[0]}, {top.iloc[0]:.0%}."

    alt = "A bar for each of the likeliest next tokens, as high as its probability."
    return Panel(draw, {"params": _budget("parameters", low, high, params), "token": place}, alt)
