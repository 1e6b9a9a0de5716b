"""The network that anyone can write down: one dense cell, repeated as often and as wide as a budget allows.

No generator and no search: six inverted bottlenecks joined each to each, at one width. T-CET is close to layers times
the square root of width, so the few largest by that are scored, and the best is what every design must be held against.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product

from torch import Tensor

from graphnas_lib import store
from graphnas_lib.design.budget import Request, selected
from graphnas_lib.design.designs import Designs
from graphnas_lib.design.fitting import BudgetUnreachable, Fitted, Target
from graphnas_lib.evolution import promise
from graphnas_lib.macro import CHANNELS, MAX_CELLS, repeat_cell, widest
from graphnas_lib.network import count, depth
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
    best = sorted(met, key=lambda one: -promise(one.architecture, depth))[: max(n, SCORED)]
    return selected(best, request, request.batch(images, labels), n, len(best), store.pick_device(device))


def _largest(request: Request) -> Iterator[Fitted]:
    """For each operation, number of cells and number of strides: the widest network within the budget."""
    ratios = request.target.ratios
    for operation, strides in product(OPERATIONS, range(request.max_strides + 1)):
        for cells in range(max(1, strides), MAX_CELLS + 1):
            made = partial(_made, request, dense_cell(operation), cells, strides)
            yield made(widest(lambda width, made=made: max(ratios(made(width).costs)) <= 1) or CHANNELS[0])


def _made(request: Request, cell: Cell, cells: int, strides: int, width: int) -> Fitted:
    """`cells` cells of one width, the first `strides` of which halve the side."""
    architecture = repeat_cell(cell, cells, width, strides=strides, stem_stride=request.stem_stride)
    costs = count(architecture, **request.task)
    return Fitted(architecture, costs, request.target.error(costs))
