"""Meeting a budget exactly: widths, then head, then strides and depth of a design, until its costs fit (Sec. 3.3).

The generator's conditions are bins and its cells are drawn afterwards, so that a design misses its budget by some
percent. A deterministic local search over `network.count`, which is analytic and fast, mends that with the smallest
kind of change that suffices: all widths by one factor; then single widths; then the head; then strides and depth.
Costs at or a little under the request are the goal, as the paper's budgets are upper bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations, permutations, product

from graphnas_lib.evolution import HLIndividual, round_channels
from graphnas_lib.macro import CHANNELS, MAX_CELLS, Architecture, Triple
from graphnas_lib.network import Costs

MAX_ROUNDS = 40  # moves of one kind in a row
SHAPES_TRIED = 4  # placements of strides, and depths, that are tried in full
HOPELESS = 0.3  # relative error after two of them at which the others are not tried
PLACES = 6  # where strides are placed: so many cells, evenly spread
FACTORS = (0.8, 0.9, 0.96, 1.04, 1.1, 1.25)
MAX_HEAD = 2048


class BudgetUnreachable(ValueError):  # noqa: N818 - the name is part of the interface
    """No design meets the request; `nearest` holds the costs of the closest one found."""

    def __init__(self, message: str, nearest: Costs):
        super().__init__(message)
        self.nearest = nearest


@dataclass(frozen=True)
class Target:
    """What is asked: parameters and FLOPs (None = free), and the tolerance on their relative errors."""

    params: float | None = None
    flops: float | None = None
    tolerance: float = 0.05

    def __post_init__(self):
        if self.params is None and self.flops is None:
            raise ValueError("A design must have a budget: give params, flops, or both; got neither.")
        for name in ("params", "flops"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number; got {value!r}.")
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance must lie between 0 and 1; got {self.tolerance!r}.")

    def ratios(self, costs: Costs) -> list[float]:
        """Cost over request for each quantity asked."""
        pairs = ((costs.params, self.params), (costs.flops, self.flops))
        return [cost / asked for cost, asked in pairs if asked is not None]

    def error(self, costs: Costs) -> float:
        """Largest relative error."""
        return max(abs(ratio - 1) for ratio in self.ratios(costs))

    def met(self, costs: Costs, *, under: bool = False) -> bool:
        """Within the tolerance; with `under` also not above the request."""
        high = 1.0 if under else 1 + self.tolerance
        return all(1 - self.tolerance <= ratio <= high for ratio in self.ratios(costs))

    def distance(self, costs: Costs) -> float:
        """What the search minimises: squared log ratios to the middle of the range just under the request."""
        return sum(math.log(ratio / (1 - self.tolerance / 2)) ** 2 for ratio in self.ratios(costs))


@dataclass(frozen=True)
class Fit:
    """A design, its costs, and their largest relative error."""

    individual: HLIndividual
    costs: Costs
    error: float


def fit(
    individual: HLIndividual, target: Target, *, costs: Callable[[Architecture], Costs], max_strides: int = 3
) -> Fit:
    """The design nearest to the target that the local search reaches from `individual`.

    Args:
        individual: design and cells to start from; its cells and families are kept where depth is.
        target: the request.
        costs: `network.count` at the input shape and classes in question.
        max_strides: how many cells may have stride 2.

    Returns:
        Fit: within the tolerance where `target.met(fit.costs)`; the search itself never fails.
    """
    search = _Descent(target, costs)
    start = search.scaled(_limited(individual, max_strides))
    best = search.run(start, (_width_moves,), max_strides)
    if not search.met(best):
        shapes = sorted((search.scaled(shape) for shape in _shapes(individual, max_strides)), key=search.distance)
        for tried, shape in enumerate([start, *shapes[:SHAPES_TRIED]], start=1):
            found = search.run(shape, (_width_moves, _head_moves, _shape_moves), max_strides)
            best = min(best, found, key=search.distance)
            if search.met(best) or (tried > 1 and target.error(search.costs(best.architecture)) > HOPELESS):
                break
    found = search.costs(best.architecture)
    return Fit(best, found, target.error(found))


class _Descent:
    """Best-improvement descent on `Target.distance`."""

    def __init__(self, target: Target, costs: Callable[[Architecture], Costs]):
        self.target, self.costs = target, costs

    def distance(self, individual: HLIndividual) -> float:
        return self.target.distance(self.costs(individual.architecture))

    def met(self, individual: HLIndividual) -> bool:
        return self.target.met(self.costs(individual.architecture), under=True)

    def scaled(self, individual: HLIndividual) -> HLIndividual:
        """All widths times one factor, by bisection: costs grow with it."""
        low, high = math.log(1 / 128), math.log(128)
        best = individual
        for _ in range(10):
            middle = (low + high) / 2
            moved = _scale(individual, math.exp(middle))
            best = min(best, moved, key=self.distance)
            ratios = self.target.ratios(self.costs(moved.architecture))
            if sum(math.log(ratio) for ratio in ratios) < 0:
                low = middle
            else:
                high = middle
        return best

    def run(self, individual: HLIndividual, kinds: tuple, max_strides: int) -> HLIndividual:
        """Take best moves, kind after kind, until the target is met or none improves by much."""
        best = self.distance(individual)
        for moves in kinds:
            for _ in range(MAX_ROUNDS):
                if self.met(individual):
                    return individual
                moved = min(moves(individual, max_strides), key=self.distance, default=individual)
                if (distance := self.distance(moved)) > 0.98 * best:
                    break
                individual, best = moved, distance
        return individual


def _scale(individual: HLIndividual, factor: float) -> HLIndividual:
    pairs = [(k, replace(t, channels=round_channels(t.channels * factor))) for k, t in individual.pairs()]
    return HLIndividual.from_pairs(pairs, individual)


def _limited(individual: HLIndividual, max_strides: int) -> HLIndividual:
    """At most `max_strides` strides of 2, the first ones."""
    used, pairs = 0, []
    for family, triple in individual.pairs():
        used += triple.stride == 2
        pairs.append((family, replace(triple, stride=1) if used > max_strides else triple))
    return HLIndividual.from_pairs(pairs, individual)


def _shapes(individual: HLIndividual, max_strides: int) -> Iterator[HLIndividual]:
    """The design with its strides elsewhere, as deep as it is, half and twice as deep."""
    pairs = [(family, replace(triple, stride=1)) for family, triple in individual.pairs()]
    deeper = [pair for pair in pairs for _ in range(2)][:MAX_CELLS]
    for body in {len(variant): variant for variant in (deeper, pairs[::2], pairs)}.values():
        places = sorted({i * len(body) // PLACES for i in range(PLACES)})
        for n in range(min(max_strides, len(places)) + 1):
            for strided in combinations(places, n):
                shaped = [(k, replace(t, stride=2) if i in strided else t) for i, (k, t) in enumerate(body)]
                yield HLIndividual.from_pairs(shaped, individual)


# ---- moves, smallest kind first


def _with(individual: HLIndividual, i: int, triple: Triple) -> HLIndividual:
    pairs = individual.pairs()
    pairs[i] = (pairs[i][0], triple)
    return HLIndividual.from_pairs(pairs, individual)


def _width_moves(individual: HLIndividual, max_strides: int) -> Iterator[HLIndividual]:
    """All widths by a factor; one width by 8, 16 or 30%."""
    for factor in FACTORS:
        yield _scale(individual, factor)
    for i, triple in enumerate(individual.architecture.triples):
        c = triple.channels
        for width in {c - 16, c - 8, c + 8, c + 16, round_channels(c * 0.7), round_channels(c * 1.4)} - {c}:
            if CHANNELS[0] <= width <= CHANNELS[-1]:
                yield _with(individual, i, replace(triple, channels=width))


def _head_moves(individual: HLIndividual, max_strides: int) -> Iterator[HLIndividual]:
    """Width moves, trades of width between two cells, and a head that appears, goes, or changes its width."""
    yield from _width_moves(individual, max_strides)
    yield from _trades(individual)
    head = individual.architecture.head_channels
    widths = {None, 8, 32, 128, 512}
    if head is not None:
        widths |= {head - 32, head - 8, head + 8, head + 32, 8 * round(head / 10), 8 * round(head / 6.4)}
    for width in sorted(widths - {head}, key=lambda w: w or 0):
        if width is None or 8 <= width <= MAX_HEAD:
            yield _headed(individual, width)


def _trades(individual: HLIndividual) -> Iterator[HLIndividual]:
    """One cell wider, another narrower, by a quarter or one step: this changes parameters and FLOPs differently."""
    triples = individual.architecture.triples
    wider = [{t.channels + 8, round_channels(t.channels * 1.25)} for t in triples]
    narrower = [{t.channels - 8, round_channels(t.channels * 0.8)} for t in triples]
    for i, j in permutations(range(len(triples)), 2):
        for up, down in product(wider[i], narrower[j]):
            if triples[i].channels < up <= CHANNELS[-1] and CHANNELS[0] <= down < triples[j].channels:
                moved = _with(individual, i, replace(triples[i], channels=up))
                yield _with(moved, j, replace(triples[j], channels=down))


def _headed(individual: HLIndividual, width: int | None) -> HLIndividual:
    return HLIndividual(
        replace(individual.hl, head_channels=width), replace(individual.architecture, head_channels=width)
    )


def _shape_moves(individual: HLIndividual, max_strides: int) -> Iterator[HLIndividual]:
    """Head moves, and strides set, cleared or moved, cells removed or repeated; each also with widths rescaled."""
    yield from _head_moves(individual, max_strides)
    for changed in _reshaped(individual, max_strides):
        for factor in (0.6, 1.0, 1.6):
            yield _scale(changed, factor) if factor != 1 else changed


def _reshaped(individual: HLIndividual, max_strides: int) -> Iterator[HLIndividual]:
    pairs = individual.pairs()
    strided = [i for i, (_, triple) in enumerate(pairs) if triple.stride == 2]
    for i, (_, triple) in enumerate(pairs):
        if triple.stride == 2 or len(strided) < max_strides:
            yield _with(individual, i, replace(triple, stride=3 - triple.stride))
        if triple.stride == 1:
            for j in strided:
                moved = _with(individual, j, replace(pairs[j][1], stride=1))
                yield _with(moved, i, replace(triple, stride=2))
        if len(pairs) > 1 and triple.stride == 1:
            yield HLIndividual.from_pairs(pairs[:i] + pairs[i + 1 :], individual)
        if len(pairs) < MAX_CELLS:
            copy = (pairs[i][0], replace(triple, stride=1))
            yield HLIndividual.from_pairs([*pairs[: i + 1], copy, *pairs[i + 1 :]], individual)


def unreachable(target: Target, nearest: Costs) -> BudgetUnreachable:
    """The refusal that names the nearest point found."""
    asked = [f"{name} = {value:,.0f}" for name, value in (("params", target.params), ("flops", target.flops)) if value]
    return BudgetUnreachable(
        f"A budget must be one that some design meets within {target.tolerance:.0%}; got {' and '.join(asked)}. The "
        f"nearest reachable point found is params = {nearest.params:,}, flops = {nearest.flops:,} "
        f"({target.error(nearest):.0%} off). Ask for that, or raise `tolerance`.",
        nearest,
    )
