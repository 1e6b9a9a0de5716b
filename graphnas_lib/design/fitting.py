"""Meeting a budget exactly: widths, then head, then strides and depth of a design, until its costs fit (Sec. 3.3).

The generator's conditions are bins and its cells are drawn afterwards, so that a design misses its budget by some
percent. A deterministic local search over `network.count`, which is analytic and fast, mends that with the smallest
kind of change that suffices: all widths by one factor; then single widths; then the head; then strides and depth.
Costs at or a little under the request are the goal, as the paper's budgets are upper bounds.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations, permutations, product

from graphnas_lib.evolution import round_channels, scale_widths
from graphnas_lib.macro import CHANNELS, MAX_CELLS, Architecture
from graphnas_lib.network import Costs

MAX_MOVES_PER_KIND = 40  # in a row
MIN_GAIN = 0.02  # share of the distance that a move must take off
BISECTIONS = 10  # of the factor on all widths
MAX_SHAPES = 4  # placements of strides, and depths, that are tried in full
MAX_ERROR_TO_GO_ON = 0.3  # relative error after two of them above which the others are not tried
STRIDE_PLACES = 6  # cells, evenly spread, among which strides are placed
WIDTH_FACTORS = (0.8, 0.9, 0.96, 1.04, 1.1, 1.25)
MAX_HEAD_CHANNELS = 2048


class BudgetUnreachable(ValueError):  # noqa: N818 - the name is part of the interface
    """No design meets the request; `nearest` holds the costs of the closest one found."""

    def __init__(self, target: Target, nearest: Costs):
        asked = [f"{name} = {getattr(target, name):,.0f}" for name in ("params", "flops") if getattr(target, name)]
        super().__init__(
            f"A budget must be one that some design meets within {target.tolerance:.0%}; got {' and '.join(asked)}. "
            f"The nearest reachable point found is params = {nearest.params:,}, flops = {nearest.flops:,} "
            f"({target.error(nearest):.0%} off). Ask for that, or raise `tolerance`."
        )
        self.target, self.nearest = target, nearest

    def __reduce__(self):
        return type(self), (self.target, self.nearest)  # from another process


UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}


def quantity(value: float | str, name: str = "a budget") -> float:
    """A number as it is, or "300M", "1.5G", "1e6" as one; ValueError for other text, TypeError for other things."""
    if isinstance(value, str):
        found = re.fullmatch(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?\d+)?\s*([KMGB]?)\s*", value, re.IGNORECASE)
        if not found:
            raise ValueError(f"{name} must be a number such as 300M, 1.5G or 1e6; got {value!r}.")
        return float(found[1] + (found[2] or "")) * UNITS[found[3].upper()]
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, or text such as '1M'; got {type(value).__name__} {value!r}.")
    return value


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
            if (given := getattr(self, name)) is not None:
                vars(self)[name] = value = quantity(given, name)
                if not (math.isfinite(value) and value > 0):
                    raise ValueError(f"{name} must be a positive number; got {given!r}.")
        if not (isinstance(self.tolerance, numbers.Real) and 0 < self.tolerance < 1):
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
class Fitted:
    """An architecture, its costs, and their largest relative error."""

    architecture: Architecture
    costs: Costs
    error: float


def fit_to_budget(
    architecture: Architecture, target: Target, *, costs: Callable[[Architecture], Costs], max_strides: int = 3
) -> Fitted:
    """The architecture nearest to the target that the local search reaches.

    The search itself never fails: the target may be missed.

    Args:
        architecture: where to start; cells and families are kept where depth is.
        costs: `network.count` at the input shape and classes in question.
        max_strides: how many cells may have stride 2.
    """
    search = _Descent(target, costs)
    strided = [i for i, triple in enumerate(architecture.triples) if triple.stride == 2][max_strides:]
    start = search.scaled(_with(architecture, {i: {"stride": 1} for i in strided}))
    best = search.run(start, (_width_moves,), max_strides)
    if not search.met(best):
        shapes = sorted((search.scaled(shape) for shape in _shapes(architecture, max_strides)), key=search.distance)
        for tried, shape in enumerate([start, *shapes[:MAX_SHAPES]], start=1):
            found = search.run(shape, (_width_moves, _head_moves, _shape_moves), max_strides)
            best = min(best, found, key=search.distance)
            if search.met(best) or (tried > 1 and target.error(costs(best)) > MAX_ERROR_TO_GO_ON):
                break
    found = costs(best)
    return Fitted(best, found, target.error(found))


@dataclass(frozen=True)
class _Descent:
    """Best-improvement descent on `Target.distance`."""

    target: Target
    costs: Callable[[Architecture], Costs]

    def distance(self, architecture: Architecture) -> float:
        return self.target.distance(self.costs(architecture))

    def met(self, architecture: Architecture) -> bool:
        return self.target.met(self.costs(architecture), under=True)

    def scaled(self, architecture: Architecture) -> Architecture:
        """All widths times one factor, by bisection: costs grow with it."""
        low, high = math.log(1 / 128), math.log(128)
        best, nearest = architecture, self.distance(architecture)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            moved = scale_widths(architecture, math.exp(middle))
            costs = self.costs(moved)
            if (distance := self.target.distance(costs)) < nearest:
                best, nearest = moved, distance
            if sum(math.log(ratio) for ratio in self.target.ratios(costs)) < 0:
                low = middle
            else:
                high = middle
        return best

    def run(self, architecture: Architecture, kinds: tuple, max_strides: int) -> Architecture:
        """Take best moves, kind after kind, until the target is met or none improves by much."""
        best = self.distance(architecture)
        for moves in kinds:
            for _ in range(MAX_MOVES_PER_KIND):
                if self.met(architecture):
                    return architecture
                moved = min(moves(architecture, max_strides), key=self.distance, default=architecture)
                if (distance := self.distance(moved)) > (1 - MIN_GAIN) * best:
                    break
                architecture, best = moved, distance
        return architecture


def _with(architecture: Architecture, changes: dict[int, dict]) -> Architecture:
    """The architecture with other channels or strides at some places."""
    triples = list(architecture.triples)
    for i, fields in changes.items():
        triples[i] = replace(triples[i], **fields)
    return replace(architecture, triples=tuple(triples))


def _shapes(architecture: Architecture, max_strides: int) -> Iterator[Architecture]:
    """The architecture with its strides elsewhere, as deep as it is, half and twice as deep."""
    plain = [replace(triple, stride=1) for triple in architecture.triples]
    deeper = [triple for triple in plain for _ in range(2)][:MAX_CELLS]
    for triples in {len(variant): variant for variant in (deeper, plain[::2], plain)}.values():
        places = sorted({i * len(triples) // STRIDE_PLACES for i in range(STRIDE_PLACES)})
        body = replace(architecture, triples=tuple(triples))
        for n in range(min(max_strides, len(places)) + 1):
            for strided in combinations(places, n):
                yield _with(body, dict.fromkeys(strided, {"stride": 2}))


# ---- moves, smallest kind first


def _width_moves(architecture: Architecture, max_strides: int) -> Iterator[Architecture]:
    """All widths by a factor; one width by 8, 16 or 30%."""
    for factor in WIDTH_FACTORS:
        yield scale_widths(architecture, factor)
    for i, triple in enumerate(architecture.triples):
        c = triple.channels
        for width in {c - 16, c - 8, c + 8, c + 16, round_channels(c * 0.7), round_channels(c * 1.4)} - {c}:
            if CHANNELS[0] <= width <= CHANNELS[-1]:
                yield _with(architecture, {i: {"channels": width}})


def _head_moves(architecture: Architecture, max_strides: int) -> Iterator[Architecture]:
    """Width moves, trades of width between two cells, and a head that appears, goes, or changes its width.

    In a trade one cell gets wider and another narrower, by a quarter or one step: this changes parameters and FLOPs
    differently.
    """
    yield from _width_moves(architecture, max_strides)
    triples = architecture.triples
    wider = [{t.channels + 8, round_channels(t.channels * 1.25)} for t in triples]
    narrower = [{t.channels - 8, round_channels(t.channels * 0.8)} for t in triples]
    for i, j in permutations(range(len(triples)), 2):
        for up, down in product(wider[i], narrower[j]):
            if triples[i].channels < up <= CHANNELS[-1] and CHANNELS[0] <= down < triples[j].channels:
                yield _with(architecture, {i: {"channels": up}, j: {"channels": down}})
    head = architecture.head_channels
    widths = {None, 8, 32, 128, 512}
    if head is not None:
        widths |= {head - 32, head - 8, head + 8, head + 32, 8 * round(head / 10), 8 * round(head / 6.4)}
    for width in sorted(widths - {head}, key=lambda w: w or 0):
        if width is None or 8 <= width <= MAX_HEAD_CHANNELS:
            yield replace(architecture, head_channels=width)


def _shape_moves(architecture: Architecture, max_strides: int) -> Iterator[Architecture]:
    """Head moves, and strides set, cleared or moved, cells removed or repeated; each also with widths rescaled."""
    yield from _head_moves(architecture, max_strides)
    triples, changed = architecture.triples, []
    strided = [i for i, triple in enumerate(triples) if triple.stride == 2]
    for i, triple in enumerate(triples):
        if triple.stride == 2 or len(strided) < max_strides:
            changed.append(_with(architecture, {i: {"stride": 3 - triple.stride}}))
        if triple.stride == 1:
            changed += [_with(architecture, {j: {"stride": 1}, i: {"stride": 2}}) for j in strided]
        if len(triples) > 1 and triple.stride == 1:
            changed.append(replace(architecture, triples=triples[:i] + triples[i + 1 :]))
        if len(triples) < MAX_CELLS:
            repeated = (triple, replace(triple, stride=1))
            changed.append(replace(architecture, triples=triples[:i] + repeated + triples[i + 1 :]))
    for body, factor in product(changed, (0.6, 1.0, 1.6)):
        yield scale_widths(body, factor)
