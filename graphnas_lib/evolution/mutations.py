"""What HL-Evo and the flat baseline evolve (Algorithm 1, lines 1 to 19; App. C): individuals and their mutations.

An individual is an `Architecture`; in the HL space its triples know the families that their cells were generated for
(Eq. 8). GenCell comes in as a callable. Insertion and removal of cells while exploring (`depth_mutation`) are ours: the
literal algorithm never changes depth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count

import torch

from graphnas_lib.macro import CHANNELS, MAX_CELLS, STRIDES, Architecture, Triple
from graphnas_lib.space import EDGES, OPERATIONS, Cell, valid_cell
from graphnas_lib.store import one_of

MAX_EDGE_FLIPS = 300  # one in 28 suffices for all but a few cells
ALPHA_0 = ((5, 32, 1), (5, 64, 2), (5, 64, 1))  # paper: App. C, "the mean of the 5-th cluster"


class CellSupply:
    """GenCell with a running index a family: the n-th call for a family gets its n-th generated cell.

    `generate_cell` is (family, index=...) -> Cell, the same for equal arguments.
    """

    def __init__(self, generate_cell: Callable[..., Cell], n_families: int):
        self.generate_cell = generate_cell
        self.counts = [0] * n_families

    def __call__(self, family: int) -> Cell:
        """The next cell of `family`."""
        self.counts[family] += 1
        return self.generate_cell(family, index=self.counts[family] - 1)


def initial_individual(generate_cell: Callable[[int], Cell], n_families: int) -> Architecture:
    """alpha_0 of App. C: three cells of the fifth family, one generated cell in all three (family modulo K)."""
    family = ALPHA_0[0][0] % n_families
    cell = generate_cell(family)
    return Architecture(tuple(Triple(cell, channels, stride, family) for _, channels, stride in ALPHA_0))


def hl_mutate(
    individual: Architecture,
    exploration: bool,
    generator: torch.Generator,
    *,
    generate_cell: Callable[[int], Cell],
    n_families: int,
    depth_mutation: bool = True,
    repeats: bool = False,
    alike: bool = False,
    channel_step: str = "uniform",
) -> Architecture:
    """Mutate of Algorithm 1 (lines 6 to 19): one random cell, one random kind of change.

    Kinds are equally likely: channels, stride, cell design; while exploring also cell family and, unless
    `depth_mutation` is off (the literal algorithm, which never changes depth), insertion and removal of a cell.

    Args:
        individual: the parent; its triples know their families.
        exploration: phase e of Algorithm 1.
        generate_cell: GenCell, family -> Cell (see `CellSupply`).
        depth_mutation: allow insertion (a neighbour's width, stride 1, a random family) and removal.
        repeats: an inserted cell is its neighbour's once more, as the released code's stages repeat theirs.
        alike: half of the new cells go to every place that holds the old one, since repeats are one decision.
        channel_step: "uniform" over C as printed, or "local" (within 30%).
    """
    triples = list(individual.triples)
    i = _choice(range(len(triples)), generator)  # line 7
    triple, kinds = triples[i], ("channels", "stride", "cell")
    if exploration:
        kinds += ("family",) + depth_mutation * _depth_kinds(len(triples))
    kind = _choice(kinds, generator)  # line 9
    if kind in ("cell", "family"):
        family = triple.family if kind == "cell" else _choice(range(n_families), generator)  # lines 8 and 14
        cell = generate_cell(family)  # lines 12 and 15
        everywhere = alike and _choice((False, True), generator)
        places = [j for j, other in enumerate(triples) if other.cell == triple.cell] if everywhere else [i]
        for j in places:
            triples[j] = replace(triples[j], cell=cell, family=family)
    elif kind == "insert" and not repeats:
        family = _choice(range(n_families), generator)
        added = Triple(generate_cell(family), triple.channels, 1, family)
        triples.insert(i + _choice((0, 1), generator), added)
    else:
        _change_macro(triples, i, kind, generator, channel_step)
    return replace(individual, triples=tuple(triples))  # lines 17 and 18


def flat_mutate(
    architecture: Architecture,
    exploration: bool,
    generator: torch.Generator,
    *,
    repeats: bool = False,
    channel_step: str = "uniform",
) -> Architecture:
    """One mutation directly in S, for the evolution baselines: an edge, an operation, channels, stride, or depth.

    Arguments as for `hl_mutate`; an inserted cell is a random one, or a repeat. Depth changes while exploring only.
    """
    triples = list(architecture.triples)
    i = _choice(range(len(triples)), generator)
    triple, kinds = triples[i], ("edge", "operation", "channels", "stride")
    if exploration:
        kinds += _depth_kinds(len(triples))
    kind = _choice(kinds, generator)
    if kind in ("edge", "operation"):
        triples[i] = replace(triple, cell=mutate_cell(triple.cell, kind, generator))
    elif kind == "insert" and not repeats:
        triples.insert(i + _choice((0, 1), generator), Triple(valid_cell(generator), triple.channels, 1))
    else:
        _change_macro(triples, i, kind, generator, channel_step)
    return replace(architecture, triples=tuple(triples))


def _depth_kinds(n: int) -> tuple[str, ...]:
    return ("insert",) * (n < MAX_CELLS) + ("remove",) * (n > 1)


def _change_macro(triples: list[Triple], i: int, kind: str, generator: torch.Generator, step: str = "uniform") -> None:
    """Changes that need no new cell: width (line 10), stride (line 11), removal, and a repeat of the cell."""
    if kind == "channels":
        triples[i] = replace(triples[i], channels=mutate_channels(triples[i].channels, step, generator))
    elif kind == "stride":
        triples[i] = replace(triples[i], stride=_choice(STRIDES, generator))
    elif kind == "remove":
        del triples[i]
    else:
        triples.insert(i + 1, replace(triples[i], stride=1))


def mutate_cell(cell: Cell, kind: str, generator: torch.Generator) -> Cell:
    """A valid neighbour of `cell` in canonical form: one "edge" flipped or one live "operation" exchanged.

    Unused nodes first get random operations, so that a flipped edge can bring them in. A few cells have no neighbour
    by an edge (a skip beside an edge from input to output): after `MAX_EDGE_FLIPS` flips these get another operation.
    """
    for attempt in count():
        if attempt == MAX_EDGE_FLIPS:
            kind = "operation"
        operations, matrix = list(cell.operations), cell.adjacency.copy()
        if kind == "edge":
            operations = [name or _choice(OPERATIONS, generator) for name in operations]
            matrix[_choice(EDGES, generator)] ^= 1
        else:
            operations[_choice(cell.live, generator) - 1] = _choice(OPERATIONS, generator)
        changed = Cell(matrix, operations)
        if changed.is_valid and (changed := changed.canonical()).is_valid and changed.key() != cell.key():
            return changed


def _choice(options, generator: torch.Generator):
    return options[torch.randint(len(options), (), generator=generator).item()]


def mutate_channels(channels: int, step: str, generator: torch.Generator) -> int:
    """Another width: "uniform" over C, or "local", within 30% of `channels`."""
    if one_of("channel_step", step, ("uniform", "local")) == "uniform":
        return _choice(CHANNELS, generator)  # paper: c ~ U{C}
    factor = 1.3 ** (2 * torch.rand((), generator=generator).item() - 1)
    moved = round_channels(channels * factor)
    return moved if moved != channels else round_channels(channels + 8 * (1 if factor > 1 else -1))


def round_channels(width: float) -> int:
    """The member of C nearest to `width`."""
    return min(max(8 * round(width / 8), CHANNELS[0]), CHANNELS[-1])


def scale_widths(architecture: Architecture, factor: float) -> Architecture:
    """All widths times one factor."""
    triples = tuple(replace(t, channels=round_channels(t.channels * factor)) for t in architecture.triples)
    return replace(architecture, triples=triples)


def random_individual(
    generator: torch.Generator, *, generate_cell: Callable[[int], Cell], n_families: int
) -> Architecture:
    """A draw from the HL space: depth and families uniform, widths log-uniform, three strides of 2 on average.

    Uniform widths would meet no small budget: their mean is 516.
    """
    sizes, drawn = _random_sizes(generator, MAX_CELLS), partial(_choice, range(n_families), generator)
    return Architecture(tuple(Triple(generate_cell(k := drawn()), channels, s, k) for channels, s in sizes))


def random_architecture(generator: torch.Generator, *, max_cells: int = MAX_CELLS) -> Architecture:
    """A draw from S: random valid cells, sizes as in `random_individual`."""
    sizes = _random_sizes(generator, max_cells)
    return Architecture(tuple(Triple(valid_cell(generator), channels, stride) for channels, stride in sizes))


def _random_sizes(generator: torch.Generator, max_cells: int) -> list[tuple[int, int]]:
    n = 1 + torch.randint(max_cells, (), generator=generator).item()
    draws = torch.rand(n, 2, generator=generator).tolist()
    return [(round_channels(8 * 128**u), 2 if v < min(0.5, 3 / n) else 1) for u, v in draws]
