"""The network that anyone can write down: one dense cell, repeated as often and as wide as a budget allows.

No generator and no search: six inverted bottlenecks joined each to each, at one width. T-CET is close to layers times
the square root of width, so the few largest by that are scored, and the best is what every design must be held against.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import astuple
from functools import cache, partial

from torch import Tensor

from graphnas_lib import store
from graphnas_lib.design.budget import Request, selected
from graphnas_lib.design.designs import Designs
from graphnas_lib.design.fitting import BudgetUnreachable, Fitted, Target
from graphnas_lib.evolution import promise
from graphnas_lib.macro import CHANNELS, MAX_CELLS, Architecture, Triple
from graphnas_lib.network import Costs, count
from graphnas_lib.space import INPUT, OP_NODES, OUTPUT, Cell

OPERATIONS = ("mbconv6_5", "mbconv6_3", "mbconv3_5", "mbconv3_3")
SCORED = 4  # of the networks, those of the most layers times the square root of width


def dense_cell(operation: str) -> Cell:
    """Six nodes of one operation, every earlier place joined to every later one."""
    places = range(INPUT, OUTPUT + 1)
    edges = [(a, b) for a in places for b in places if a < b and (a, b) != (INPUT, OUTPUT)]
    return Cell.from_edges(edges, [operation] * OP_NODES)


def repeated(
    params: float | None = None,
    flops: float | None = None,
    *,
    input_shape: tuple[int, ...] = (3, 32, 32),
    classes: int = 10,
    n: int = 1,
    seed: int = 0,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    tolerance: float = 0.05,
    device: str = "cpu",
) -> Designs:
    """The n best networks of one repeated dense cell within a budget, by real T-CET; arguments as of `design`.

    Raises:
        BudgetUnreachable: no number of cells and width meets the budget; names the nearest.
    """
    target = Target(params, flops, tolerance)
    request = Request(target, input_shape, classes, dense=False, seed=seed)
    tried = list(_largest(request))
    met = [one for one in tried if target.met(one.costs, under=True)] or [one for one in tried if target.met(one.costs)]
    if not met:
        raise BudgetUnreachable(target, min(tried, key=lambda one: one.error).costs)
    best = sorted(met, key=lambda one: -promise(one.architecture))[: max(n, SCORED)]
    return selected(best, request, request.batch(images, labels), n, len(best), store.pick_device(device))


def _largest(request: Request) -> Iterator[Fitted]:
    """For each operation, number of cells and number of strides: the widest network within the budget."""
    for operation in OPERATIONS:
        for strides in range(request.max_strides + 1):
            cell = dense_cell(operation)
            costs = cache(partial(_first_costs, request, cell, strides))
            for depth in range(max(1, strides), MAX_CELLS + 1):

                def over(width: int, depth=depth, costs=costs, strides=strides) -> bool:
                    shorter, longer = costs(width)  # whatever comes after the strides costs the same again
                    further = depth - strides - 2
                    every = zip(*(astuple(one) for one in (shorter, longer)), strict=True)
                    found = Costs(*(b + further * (b - a) for a, b in every))
                    return max(request.target.ratios(found)) > 1

                width = CHANNELS[max(0, bisect_right(CHANNELS, 0, key=over) - 1)]
                architecture = _network(cell, depth, strides, request.stem_stride, width)
                made = count(architecture, **request.task)
                yield Fitted(architecture, made, request.target.error(made))


def _first_costs(request: Request, cell: Cell, strides: int, width: int) -> tuple[Costs, Costs]:
    """Costs with one and with two cells after those that halve the side."""
    made = (_network(cell, strides + more, strides, request.stem_stride, width) for more in (1, 2))
    return tuple(count(architecture, **request.task) for architecture in made)


def _network(cell: Cell, depth: int, strides: int, stem_stride: int, width: int) -> Architecture:
    """`depth` cells of one width, the first `strides` of which halve the side."""
    return Architecture(tuple(Triple(cell, width, 1 + (i < strides)) for i in range(depth)), stem_stride=stem_stride)
