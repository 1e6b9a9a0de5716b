"""Budget -> networks (Sec. 3.3, Eq. 12): generate macro designs, draw their cells, meet the budget, select by T-CET.

The generator writes designs for the request and for a little less of it (its conditions are bins, the budget a bound);
variety comes from the cells, drawn anew for every candidate (Eq. 8-9). With the networks that the evolution kept
(`kept`, D50) the most promising designs are taken and get cells that did well; without them decoding is greedy and all
cells are fresh. Candidates off the budget are mended by `fitting`, and the n of highest T-CET are returned, best first.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from graphnas_lib import proxies, store
from graphnas_lib.design.designs import Design, Designs
from graphnas_lib.design.fitting import BudgetUnreachable, Fit, Target, fit, unreachable
from graphnas_lib.design.kept import KeptNetworks, NearNetworks
from graphnas_lib.evolution import HLIndividual, max_strides
from graphnas_lib.macro import CHANNELS, Architecture, HLArchitecture, HLTriple
from graphnas_lib.network import Costs, count
from graphnas_lib.sequence import CONDITIONS, SequenceGenerator
from graphnas_lib.synonyms import CellSampler, realise

__all__ = ["BudgetUnreachable", "Design", "Designs", "Trained", "design"]

SHARES = (1.0, 0.97, 0.93, 0.88)  # of the request (ours); each gets one greedy macro design
SAMPLED = 16  # further designs a share, sampled, where kept networks say which to take
PROMISING = 4  # of these so many are taken
BATCH = 16  # noise images for T-CET where none are given; the paper's batch is 64 (deviation D18)
LARGE = 128  # from this side on the stem has stride 2 (deviation D08)
BELOW = 0.025  # networks that may not exceed a bound are asked for at so much less, and accepted that far from it
NEARLY = 0.2  # relative error from which another cell may meet the budget
LAST_DRAWS = 5  # of every macro design then
REDRAWS = 4  # draws of cells per candidate wanted, before fewer are accepted


def design(
    params: float | None = None,
    flops: float | None = None,
    *,
    input_shape: tuple[int, ...] = (3, 32, 32),
    classes: int = 10,
    n: int = 10,
    seed: int = 0,
    scale: str | None = None,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    tolerance: float = 0.05,
    candidates: int | None = None,
    dense: bool = False,
    device: str = "auto",
    progress: bool = False,
    fresh: bool = False,
    trained: Trained | None = None,
) -> Designs:
    """Networks for a budget, best first (Eq. 12 and "Final model selection").

    Args:
        params: wanted parameters, or None for any.
        flops: wanted FLOPs in the paper's unit (2 x MACs) at `input_shape`, or None for any.
        input_shape: (C, H, W), or (C, L) for one spatial dimension.
        classes: outputs.
        n: networks to return.
        seed: of cells, weights under T-CET, and noise images; equal arguments give equal designs.
        scale: whose trained artifacts to use; default the one that ships.
        images: a batch (B, *input_shape) that T-CET is taken on; None takes 16 of standard normal noise.
        labels: its targets (B,); given together with `images`.
        tolerance: largest relative error of the costs; at or under the request is preferred.
        candidates: networks to score, at least n (default n); the paper scores 10 to 100.
        dense: one prediction a position, all strides 1.
        device: where T-CET is computed.
        progress: show a bar.
        fresh: decode greedily and draw every cell from the flow, as Eq. 9 and 12 are printed; else the networks that
            the evolution kept say which macro designs to take, and give their cells (deviation D50).
        trained: the trained parts, instead of those of `scale`; saves the loading where many requests are made.

    Returns:
        Designs: n distinct networks, or fewer where so few could be drawn.

    Raises:
        ValueError: no budget, or an argument out of range.
        BudgetUnreachable: no design meets the budget; names the nearest one.
        ProxyError: T-CET failed on every candidate.
    """
    target = Target(params, flops, tolerance)
    wanted = n if candidates is None else candidates
    if n < 1 or wanted < n:
        raise ValueError(f"n must be at least 1 and candidates at least n; got {n} and {wanted}.")
    if not isinstance(classes, int) or classes < 1:
        raise ValueError(f"classes must be a positive number; got {classes!r}.")
    place = store.pick_device(device)
    batch = _Batch.of(images, labels, input_shape, classes, dense, seed)
    trained = trained or Trained.load(scale, device=place)
    drawer = _Drawer(target, tuple(input_shape), classes, dense, seed, trained, fresh)
    fits = drawer.candidates(_macros(trained.generator, drawer), wanted)
    if len(fits) < n:
        warnings.warn(f"{n} distinct designs were asked for; {len(fits)} could be drawn for this budget.", stacklevel=2)
    return _selected(fits, drawer, batch, n, place, progress)


@dataclass(frozen=True)
class Trained:
    """What `design` asks.

    Attributes:
        generator: writes macro designs.
        sampler: draws their cells from the flow.
        kept: the best networks of the generator's history; None to go without.
    """

    generator: SequenceGenerator
    sampler: CellSampler
    kept: KeptNetworks | None = None

    @classmethod
    def load(cls, scale: str | None = None, *, device: str | torch.device = "cpu") -> Trained:
        """The artifacts of a scale; default the one that ships."""
        scale = scale or store.default_scale()
        generator = SequenceGenerator.load(scale).to(device)
        return cls(generator, CellSampler.load(scale, device=device), KeptNetworks.load(scale))

    def near(self, *, params: float | None = None, flops: float | None = None) -> NearNetworks | None:
        """The kept networks near a request; `flops` at the input shape of the generator's conditions."""
        return self.kept and self.kept.near(self.sampler, params=params, flops=flops)


def below(quantity: str, bound: float) -> dict[str, float]:
    """Arguments of `design` for networks just below a bound on "params" or "flops", and never above it."""
    return {quantity: (1 - BELOW) * bound, "tolerance": BELOW}


# ---- macro designs


def _macros(generator: SequenceGenerator, drawer: _Drawer) -> list[HLArchitecture]:
    """Greedy designs for shares of the request, distinct; of these and sampled ones the most promising, where known."""
    asked = torch.tensor([drawer.asked.get(name) or math.nan for name in CONDITIONS], dtype=torch.float64)
    conditions = torch.tensor(SHARES, dtype=torch.float64)[:, None] * asked
    found = generator.generate_many(conditions, max_strides=drawer.max_strides)
    if drawer.near is None:
        macros = _distinct(found)
    else:
        found += generator.generate_many(conditions, n=SAMPLED, seed=drawer.seed, max_strides=drawer.max_strides)
        macros = sorted(_distinct(found), key=lambda hl: -drawer.near.promise(hl))[:PROMISING]
    return [replace(hl, stem_stride=drawer.stem_stride) for hl in macros]


def _distinct(found: list[list[HLArchitecture | None]]) -> list[HLArchitecture]:
    return list(dict.fromkeys(hl for row in found for hl in row if hl is not None))


def _plain_macros(n_families: int, max_strides: int, stem_stride: int) -> list[HLArchitecture]:
    """One family throughout, doubled in width at each stride: where the generator's designs cannot be fitted."""
    macros = []
    for depth, family in ((1, 0), (1, 0), (1, 0), (3, n_families // 2), (10, n_families - 1), (1, n_families - 1)):
        strided = {round((i + 1) * depth / (max_strides + 1)) for i in range(max_strides)} & set(range(1, depth))
        triples, width = [], 32
        for i in range(depth):
            width = min(width * (2 if i in strided else 1), CHANNELS[-1])
            triples.append(HLTriple(family, width, 2 if i in strided else 1))
        macros.append(HLArchitecture(tuple(triples), None, stem_stride))
    return macros


@dataclass
class _Drawer:
    """Draws cells for macro designs and fits them to the target."""

    target: Target
    input_shape: tuple[int, ...]
    classes: int
    dense: bool
    seed: int
    trained: Trained
    fresh: bool = False
    nearest: Costs | None = None
    draws: int = 0
    asked: dict[str, float | None] = field(init=False)  # the target, FLOPs as the generator's conditions count them
    near: NearNetworks | None = field(init=False)
    costs: Callable[[Architecture], Costs] = field(init=False)

    def __post_init__(self):
        side = min(self.input_shape[1:], default=1)
        self.stem_stride = 2 if side >= LARGE and not self.dense else 1
        self.max_strides = 0 if self.dense else max_strides(-(-side // self.stem_stride))
        self.costs = partial(count, input_shape=self.input_shape, classes=self.classes, dense=self.dense)
        reference, flops = self.trained.generator.config.input_shape, self.target.flops
        area = math.prod(reference[1:]) / math.prod(self.input_shape[1:]) * self.stem_stride ** (len(reference) - 1)
        self.asked = {"params": self.target.params, "flops": flops and flops * area}
        self.near = None if self.fresh else self.trained.near(**self.asked)

    def candidates(self, macros: list[HLArchitecture], wanted: int) -> list[Fit]:
        """`wanted` distinct fitted designs, cells drawn anew for each, the macro designs in turn.

        A macro design is replaced by its fitted form, so that its next draw starts near the budget; one that cannot
        be fitted goes, and plain ones stand in where none is left. Where kept cells give too few, fresh ones follow.
        """
        plain = _plain_macros(self.trained.sampler.families.n_clusters, self.max_strides, self.stem_stride)
        start = self._fitted(macros, failures=2) or self._fitted(plain, failures=len(plain))
        if not start and self.target.error(self.nearest) <= NEARLY:  # small networks: with some cells, not with others
            start = self._fitted(LAST_DRAWS * macros, failures=LAST_DRAWS * len(macros), closest=False)
        if not start:
            raise unreachable(self.target, self.nearest)
        found = {fitted.individual.architecture.key(): fitted for fitted in start[:wanted]}
        for i in range(REDRAWS * wanted):
            if len(found) == wanted:
                break
            if i == REDRAWS * wanted // 2:
                self.near = None
            if (fitted := self.draw(start[i % len(start)].individual.hl)) is not None:
                found.setdefault(fitted.individual.architecture.key(), fitted)
        return list(found.values())

    def _fitted(self, macros: list[HLArchitecture], *, failures: int, closest: bool = True) -> list[Fit]:
        """A fitted draw of each macro design that has one; after so many failures none is expected any more."""
        found: list[Fit] = []
        for hl in macros:
            if (fitted := self.draw(hl, closest=closest)) is not None:
                found.append(fitted)
            elif (failures := failures - 1) == 0:
                break
        return found

    def draw(self, hl: HLArchitecture, *, closest: bool = False) -> Fit | None:
        """Cells for `hl` (Eq. 8), then the fit; None where the budget is missed. `closest`: see `NearNetworks`."""
        seed = 1_000_003 * self.seed + self.draws
        self.draws += 1
        if self.near is None:
            architecture = realise(hl, self.trained.sampler, seed=seed)
        else:
            architecture = self.near.realise(hl, seed=seed, closest=closest)
        fitted = fit(HLIndividual(hl, architecture), self.target, costs=self.costs, max_strides=self.max_strides)
        if self.nearest is None or fitted.error < self.target.error(self.nearest):
            self.nearest = fitted.costs
        return fitted if self.target.met(fitted.costs) else None


# ---- selection


@dataclass(frozen=True)
class _Batch:
    """Images and labels for T-CET, and what they are."""

    images: Tensor
    labels: Tensor
    words: str

    @classmethod
    def of(cls, images, labels, input_shape, classes: int, dense: bool, seed: int) -> _Batch:
        if (images is None) != (labels is None):
            raise ValueError("images and labels must be given together, or neither; got one of them.")
        shape = tuple(input_shape)
        if images is not None:
            if tuple(images.shape[1:]) != shape or len(images) != len(labels):
                came = f"{tuple(images.shape)} and {len(labels)} labels"
                raise ValueError(f"images must be (B, {', '.join(map(str, shape))}) with a label each; got {came}.")
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
                came = f"{int(labels.min())} to {int(labels.max())}"
                raise ValueError(f"labels must be classes 0 to {classes - 1}; got {came}. Give the number of classes.")
            return cls(images, labels, f"{len(images)} given images")
        source = torch.Generator().manual_seed(seed)
        noise = torch.randn(BATCH, *shape, generator=source)
        size = (BATCH, *shape[1:]) if dense else (BATCH,)
        made = torch.randint(classes, size, generator=source)
        return cls(noise, made, f"{BATCH} images of standard normal noise with random labels (none were given)")


def _selected(fits: list[Fit], drawer: _Drawer, batch: _Batch, n: int, device, progress: bool) -> Designs:
    """Score every candidate by T-CET and keep the n best; a candidate whose score fails is counted, not ranked."""
    from tqdm.auto import tqdm

    images, labels = batch.images.to(device), batch.labels.to(device)
    designs, unscored, last = Designs(), 0, None
    for fitted in tqdm(fits, desc="T-CET", disable=not progress):
        made = _design(fitted, drawer, batch, math.nan)
        try:
            model = made.build(seed=drawer.seed).to(device, memory_format=torch.channels_last)
            tcet = proxies.tcet(model, images, labels)
        except proxies.ProxyError as error:
            unscored, last = unscored + 1, error
            continue
        designs.append(replace(made, tcet=tcet))
    if not designs and last is not None:
        raise last
    designs.sort(key=lambda made: -made.tcet)
    del designs[n:]
    designs.unscored = unscored
    return designs


def _design(fitted: Fit, drawer: _Drawer, batch: _Batch, tcet: float) -> Design:
    return Design(
        architecture=fitted.individual.architecture,
        hl=fitted.individual.hl,
        params=fitted.costs.params,
        flops=fitted.costs.flops,
        macs=fitted.costs.macs,
        tcet=tcet,
        batch=batch.words,
        input_shape=drawer.input_shape,
        classes=drawer.classes,
        dense=drawer.dense,
    )
