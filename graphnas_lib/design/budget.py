"""Budget -> networks (Sec. 3.3, Eq. 12): generate macro designs, draw their cells, meet the budget, select by T-CET.

The generator writes designs for the request and for a little less of it (its conditions are bins, the budget a bound);
variety comes from the cells, drawn anew for every candidate (Eq. 8-9). With the networks that the evolution kept
(`kept`, D50) the most promising designs are taken and get cells that did well; without them decoding is greedy and all
cells are fresh. Candidates off the budget are mended by `fitting`, and T-CET picks among those that promise most.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from graphnas_lib import proxies, store
from graphnas_lib.design.designs import Design, Designs
from graphnas_lib.design.fitting import BudgetUnreachable, Fitted, Target, fit_to_budget
from graphnas_lib.design.kept import KeptNetworks, NearNetworks
from graphnas_lib.design.selection import RULES, SHALLOW_CANDIDATES, shallow_networks, widening
from graphnas_lib.evolution import max_strides
from graphnas_lib.macro import Architecture, HLArchitecture, whole
from graphnas_lib.network import build, checked_task, count, moved
from graphnas_lib.sequence import CONDITIONS, SequenceGenerator
from graphnas_lib.synonyms import CellSampler, realise

REQUEST_SHARES = (1.0, 0.97, 0.93, 0.88)  # ours; each gets one greedy macro design
KNOWN_SIZES, SAMPLES_PER_SIZE = 4, 16  # sampled at the sizes of kept networks, which say which designs to take
MAX_PROMISING_MACROS = 4  # of these so many are taken,
CANDIDATES_PER_MACRO = 4  # more where more than so many networks are scored for each,
MANY_SAMPLES_PER_SIZE = 64  # and then of so many samples
NOISE_BATCH_SIZE = 8  # images for T-CET where none are given: on 16 the same one of ten is best to 1%; the paper has 64
MAX_SCORED = 2  # of the designs, those that promise most: the better has 0.985 to 1.0 of the best of ten
WORTH_PROCESSES = 1e11  # FLOPs of one forward of more networks, from where two processes win over two threads
MIN_SIDE_OF_STRIDED_STEM = 128  # from this side on the stem has stride 2 (deviation D08)
BOUND_MARGIN = 0.025  # networks that may not exceed a bound are asked for at so much less, and accepted that far off
MAX_MISSED_MACROS = 2  # macro designs that miss the budget before plain ones are tried
MAX_ERROR_TO_RETRY = 0.2  # relative error up to which other cells may meet the budget
RETRIES_PER_MACRO = 5  # draws of every macro design then
MAX_DRAWS_PER_CANDIDATE = 4  # before fewer candidates than wanted are accepted
DRAWS_PER_SEED = 1_000_003  # distance of the cells' seeds between two requests


def design(
    params: float | str | None = None,
    flops: float | str | None = None,
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
    select: str = "tcet",
    trained: Trained | None = None,
) -> Designs:
    """Networks for a budget, best first (Eq. 12 and "Final model selection").

    Args:
        params, flops: what is wanted, None for any, a number or text such as "1M" (`quantity`); FLOPs in the paper's
            unit (2 x MACs) at `input_shape`.
        input_shape: (C, H, W), or (C, L) for one spatial dimension.
        classes: outputs.
        n: distinct networks to return; fewer come where so few can be drawn.
        seed: of cells, weights under T-CET, and noise images; equal arguments give equal designs.
        scale: whose trained artifacts to use; default the one that ships.
        images, labels: a batch (B, *input_shape) that T-CET is taken on, and its targets (B,), tensors or arrays; None
            takes 8 images of standard normal noise.
        tolerance: largest relative error of the costs; at or under the request is preferred.
        candidates: networks to score, those that promise most (D50); default 2 (1 of one), 4 n where `select` is
            "shallow"; the paper scores 10 to 100. Where n is more the others follow, with `tcet` None.
        dense: one prediction a position, all strides 1.
        fresh: decode greedily and draw every cell from the flow, as Eq. 9 and 12 are printed; else the networks that
            the evolution kept say which macro designs to take, and give their cells (deviation D50).
        select: "tcet", the paper's rule, takes the highest T-CET among designs of the generator: deep and narrow
            networks, which need long trainings. "shallow" takes the highest T-CET a layer among networks of 3 to 6
            cells of random families, which no generator writes: networks that train soon.
        trained: the trained parts, instead of those of `scale`; saves the loading where many requests are made.

    Raises:
        ValueError: no budget, or an argument out of range.
        BudgetUnreachable: no design meets the budget; names the nearest one.
        ProxyError: T-CET failed on every candidate.
    """
    target = Target(params, flops, tolerance)
    if select not in RULES:
        raise ValueError(f"select must be one of {', '.join(RULES)}; got {select!r}.")
    shallow, number = select == "shallow", whole(n) or 0
    default = SHALLOW_CANDIDATES * number if shallow else min(number, MAX_SCORED)
    scored = default if candidates is None else whole(candidates) or 0
    for name, came, meant in (("n", n, number), ("candidates", candidates, scored)):
        if meant < 1:
            raise ValueError(f"{name} must be a whole number from 1; got {came!r}.")
    drawn = max(number, scored)
    place = store.pick_device(device)
    request = Request(target, input_shape, classes, dense, seed)
    batch = request.batch(images, labels)
    trained = trained or Trained.load(scale, device=place)
    if shallow:
        found = shallow_networks(drawn, trained.sampler, request)
    else:
        near = None if fresh else trained.near(**request.conditions(trained.generator.config.input_shape))
        macros = macro_designs(trained.generator, request, near, scored)
        found = Drawer(request, trained.sampler, near).candidates(macros, drawn)
    if len(found) < number:
        message = f"{number} distinct designs were asked for; {len(found)} could be drawn for this budget."
        warnings.warn(message, stacklevel=2)
    return selected(found, request, batch, number, scored, place, progress, select=select)


@dataclass(frozen=True)
class Trained:
    """What `design` asks."""

    generator: SequenceGenerator  # writes macro designs
    sampler: CellSampler  # draws their cells from the flow
    kept: KeptNetworks | None = None  # the best networks of the generator's history; None to go without

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
    return {quantity: (1 - BOUND_MARGIN) * bound, "tolerance": BOUND_MARGIN}


@dataclass(frozen=True)
class Request:
    """What is asked of a design, and what follows from it for macro designs and costs."""

    target: Target
    input_shape: tuple[int, ...]
    classes: int
    dense: bool
    seed: int

    def __post_init__(self):
        shape, classes = checked_task(self.input_shape, self.classes)
        if (seed := whole(self.seed)) is None:
            raise TypeError(f"seed must be a whole number; got {self.seed!r}.")
        vars(self).update(input_shape=shape, classes=classes, seed=seed)

    @property
    def stem_stride(self) -> int:
        """2 for large inputs (deviation D08)."""
        return 2 if min(self.input_shape[1:], default=1) >= MIN_SIDE_OF_STRIDED_STEM and not self.dense else 1

    @property
    def max_strides(self) -> int:
        """How many cells may have stride 2."""
        side = min(self.input_shape[1:], default=1)
        return 0 if self.dense else max_strides(-(-side // self.stem_stride))

    @property
    def task(self) -> dict:
        """Input shape and outputs as arguments of `network.build` and `network.count`."""
        return {"input_shape": self.input_shape, "classes": self.classes, "dense": self.dense}

    def conditions(self, reference: tuple[int, ...]) -> dict[str, float | None]:
        """The target with its FLOPs as the generator's conditions count them, at the input shape `reference`."""
        seen = [-(-side // self.stem_stride) for side in self.input_shape[1:]]  # by the first cell
        area = math.prod(reference[1:]) / math.prod(seen)
        return {"params": self.target.params, "flops": self.target.flops and self.target.flops * area}

    def batch(self, images: Tensor | None, labels: Tensor | None) -> tuple[Tensor, Tensor, str]:
        """Images and labels for T-CET, checked, or noise where none are given; and what they are in words."""
        if (images is None) != (labels is None):
            raise ValueError("images and labels must be given together, or neither; got one of them.")
        shape, n = self.input_shape, NOISE_BATCH_SIZE
        if images is None:
            source = torch.Generator().manual_seed(self.seed)
            images = torch.randn(n, *shape, generator=source)
            labels = torch.randint(self.classes, (n, *shape[1:]) if self.dense else (n,), generator=source)
            return images, labels, f"{n} images of standard normal noise with random labels (none were given)"
        images, labels = proxies.as_batch(None, images, labels)
        if tuple(images.shape[1:]) != shape:
            came = f"{tuple(images.shape)} and {len(labels)} labels"
            raise ValueError(f"images must be (B, {', '.join(map(str, shape))}) with a label each; got {came}.")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            came, last = f"{int(labels.min())} to {int(labels.max())}", self.classes - 1
            raise ValueError(f"labels must be classes 0 to {last}; got {came}. Give the number of classes.")
        return images, labels, f"{len(images)} given images"


def macro_designs(
    generator: SequenceGenerator, request: Request, near: NearNetworks | None = None, scored: int = 1
) -> list[HLArchitecture]:
    """Greedy designs for shares of the request, distinct.

    Where kept networks are near, designs sampled at the sizes of these follow, and of all the most promising are taken,
    more for more networks that are `scored`: at the request's own size the history may hold nothing but what was good
    for something else.
    """
    asked = request.conditions(generator.config.input_shape)
    row = torch.tensor([asked.get(name) or math.nan for name in CONDITIONS], dtype=torch.float64)
    conditions = torch.tensor(REQUEST_SHARES, dtype=torch.float64)[:, None] * row
    options = {"max_strides": request.max_strides}
    rows = generator.generate_many(conditions, **options)
    if near is not None:
        known = torch.full((min(KNOWN_SIZES, len(near.sizes)), len(CONDITIONS)), math.nan, dtype=torch.float64)
        known[:, :2] = near.sizes[:KNOWN_SIZES]
        taken = max(MAX_PROMISING_MACROS, scored // CANDIDATES_PER_MACRO)
        samples = SAMPLES_PER_SIZE if taken == MAX_PROMISING_MACROS else MANY_SAMPLES_PER_SIZE
        rows += generator.generate_many(known, n=samples, seed=request.seed, **options)
    macros = list(dict.fromkeys(hl for row in rows for hl in row if hl is not None))
    if near is not None:
        macros = sorted(macros, key=lambda hl: -near.promise(hl))[:taken]
    return [replace(hl, stem_stride=request.stem_stride) for hl in macros]


def plain_macros(n_families: int, max_strides: int, stem_stride: int) -> list[HLArchitecture]:
    """One family throughout: where the generator's designs cannot be fitted. Each time the same has other cells."""
    last = n_families - 1
    asked = (*3 * ([0],), 3 * [n_families // 2], 10 * [last], [last])
    return [widening(families, max_strides, stem_stride) for families in asked]


@dataclass(frozen=True)
class Drawer:
    """Draws the cells of macro designs (Eq. 8) and fits the networks to the request; where `near` is None all cells
    are fresh."""

    request: Request
    sampler: CellSampler
    near: NearNetworks | None

    def draw(self, hl: HLArchitecture, number: int, *, closest: bool = False) -> Fitted:
        """The `number`-th draw of a request, fitted; it may miss the budget. `closest`: see `NearNetworks.realise`."""
        request, seed = self.request, (DRAWS_PER_SEED * self.request.seed + number) % 2**63
        if self.near is None:
            drawn = realise(hl, self.sampler, seed=seed)
        else:
            drawn = self.near.realise(hl, seed=seed, closest=closest)
        costs = partial(count, **request.task)
        return fit_to_budget(drawn, request.target, costs=costs, max_strides=request.max_strides)

    def attempt(
        self, macros: list[HLArchitecture], first: int, *, max_misses: int | None = None, closest: bool = True
    ) -> list[Fitted]:
        """A draw of each macro design, numbered from `first`, misses included; ends with the `max_misses`-th miss."""
        drawn, misses = [], 0
        for number, hl in enumerate(macros, start=first):
            drawn.append(self.draw(hl, number, closest=closest))
            misses += not self.request.target.met(drawn[-1].costs)
            if misses == max_misses:
                break
        return drawn

    def starts(self, macros: list[HLArchitecture]) -> tuple[list[Fitted], int]:
        """Fitted draws of the macro designs, or of plain ones where none can be fitted; and how many draws it took.

        Raises:
            BudgetUnreachable: no draw meets the budget; names the nearest one.
        """
        request = self.request
        drawn = self.attempt(macros, 0, max_misses=MAX_MISSED_MACROS)
        if not self.met(drawn):
            plain = plain_macros(self.sampler.families.n_clusters, request.max_strides, request.stem_stride)
            drawn += self.attempt(plain, len(drawn))
        if not self.met(drawn) and min(fitted.error for fitted in drawn) <= MAX_ERROR_TO_RETRY:  # other cells may do
            drawn += self.attempt(macros * RETRIES_PER_MACRO, len(drawn), closest=False)
        if not self.met(drawn):
            raise BudgetUnreachable(request.target, min(drawn, key=lambda fitted: fitted.error).costs)
        return self.met(drawn), len(drawn)

    def met(self, drawn: list[Fitted]) -> list[Fitted]:
        """Those within the budget."""
        return [fitted for fitted in drawn if self.request.target.met(fitted.costs)]

    def candidates(self, macros: list[HLArchitecture], wanted: int) -> list[Fitted]:
        """`wanted` distinct networks within the budget, or fewer; cells are drawn anew for each, macro designs in turn.

        A macro design is drawn again in its fitted form, which is near the budget. Where kept cells give too few,
        fresh ones follow.
        """
        starts, first = self.starts(macros)
        found = {fitted.architecture.key(): fitted for fitted in starts[:wanted]}
        for i in range(MAX_DRAWS_PER_CANDIDATE * wanted):
            if len(found) == wanted:
                break
            drawer = self if i < MAX_DRAWS_PER_CANDIDATE * wanted // 2 else replace(self, near=None)
            fitted = drawer.draw(starts[i % len(starts)].architecture.hl, first + i)
            if self.request.target.met(fitted.costs):
                found.setdefault(fitted.architecture.key(), fitted)
        return list(found.values())


def selected(
    fits: list[Fitted], request: Request, batch, n: int, scored: int, device, progress=False, select: str = "tcet"
) -> Designs:
    """The n best by T-CET, which those that promise most get until `scored` have one (failures count); then others."""
    rule, (images, labels, words) = RULES[select], batch
    images, labels = images.to(device), labels.to(device)
    told = {"tcet": None, "batch": words, **request.task}
    rest = [Design(architecture=one.architecture, **vars(one.costs), **told) for one in fits]
    rest.sort(key=rule.promise, reverse=True)
    known, failed = [], []
    while rest and (wanted := scored - len(known)) > 0:
        some, rest = rest[:wanted], rest[wanted:]
        long = len(images) * sum(one.flops for one in some) > WORTH_PROCESSES and not images.is_cuda
        workers = min(store.on_cpu(), torch.get_num_threads()) if long and wanted > MAX_SCORED else 1
        jobs = {str(i): partial(_tcet, one.architecture, request, images, labels) for i, one in enumerate(some)}
        scores = store.collect(jobs, workers=workers, progress=progress, desc="T-CET", unit="network")
        failed += [score for score in scores if not isinstance(score, float)]
        known += [replace(one, tcet=score) for one, score in zip(some, scores, strict=True) if isinstance(score, float)]
    if failed and not known:
        raise failed[-1]
    designs = Designs((sorted(known, key=rule.rank, reverse=True) + rest)[:n])
    designs.unscored = len(failed)
    return designs


def _tcet(architecture: Architecture, request: Request, images: Tensor, labels: Tensor) -> float | proxies.ProxyError:
    model = moved(build(architecture, seed=request.seed, **request.task), images.device)
    try:
        return proxies.tcet(model, images, labels)
    except proxies.ProxyError as error:
        return error
