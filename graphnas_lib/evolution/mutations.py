"""What HL-Evo and the flat baseline evolve (Algorithm 1, lines 1 to 19; App. C): individuals and their mutations.

An individual carries the families it was asked for beside the cells that were generated for them (Eq. 8); GenCell comes
in as a callable. Insertion and removal of cells while exploring (`depth_mutation`) are ours: the literal algorithm
never changes depth.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count

import torch

from graphnas_lib.macro import CHANNELS, MAX_CELLS, STRIDES, Architecture, HLArchitecture, HLTriple, Triple
from graphnas_lib.space import EDGES, OPERATIONS, Cell, random_cell

EDGES_TRIED = 300  # one in 28 suffices for all but a few cells
ALPHA_0 = ((5, 32, 1), (5, 64, 2), (5, 64, 1))  # paper: App. C, "the mean of the 5-th cluster"


@dataclass(frozen=True)
class HLIndividual:
    """A high-level design and the concrete architecture drawn from it (Eq. 8); same widths and strides."""

    hl: HLArchitecture
    architecture: Architecture

    def key(self) -> str:
        """Hash over families and the concrete architecture."""
        families = [triple.cluster for triple in self.hl.triples]
        return hashlib.sha256(f"{families}{self.architecture.key()}".encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """Text that `from_json` reads."""
        return json.dumps({"hl": self.hl.to_dict(), "architecture": self.architecture.to_dict()})

    @classmethod
    def from_json(cls, text: str) -> HLIndividual:
        """Inverse of `to_json`."""
        data = json.loads(text)
        return cls(HLArchitecture.from_dict(data["hl"]), Architecture.from_dict(data["architecture"]))

    @classmethod
    def from_pairs(cls, pairs: list[tuple[int, Triple]], like: HLIndividual | None = None) -> HLIndividual:
        """Individual of (family, triple) pairs; head and stem as in `like`."""
        head, stem = (like.architecture.head_channels, like.architecture.stem_stride) if like else (None, 1)
        hl = tuple(HLTriple(family, triple.channels, triple.stride) for family, triple in pairs)
        return cls(HLArchitecture(hl, head, stem), Architecture(tuple(triple for _, triple in pairs), head, stem))

    def pairs(self) -> list[tuple[int, Triple]]:
        """(family, triple) of every cell."""
        return [(hl.cluster, triple) for hl, triple in zip(self.hl.triples, self.architecture.triples, strict=True)]


class CellSupply:
    """GenCell with a running index a family: the n-th call for a family gets its n-th generated cell.

    Args:
        generate_cell: (family, index=...) -> Cell, the same for equal arguments.
        n_families: K.
    """

    def __init__(self, generate_cell: Callable[..., Cell], n_families: int):
        self.generate_cell = generate_cell
        self.counts = [0] * n_families

    def __call__(self, family: int) -> Cell:
        """The next cell of `family`."""
        self.counts[family] += 1
        return self.generate_cell(family, index=self.counts[family] - 1)


def initial_individual(generate_cell: Callable[[int], Cell], n_families: int, *, stem_stride: int = 1) -> HLIndividual:
    """alpha_0 of App. C: three cells of the fifth family, one generated cell in all three (family modulo K)."""
    family = ALPHA_0[0][0] % n_families
    cell = generate_cell(family)
    pairs = [(family, Triple(cell, channels, stride)) for _, channels, stride in ALPHA_0]
    individual = HLIndividual.from_pairs(pairs)
    return HLIndividual(
        replace(individual.hl, stem_stride=stem_stride), replace(individual.architecture, stem_stride=stem_stride)
    )


def hl_mutate(
    individual: HLIndividual,
    exploration: bool,
    generator: torch.Generator,
    *,
    generate_cell: Callable[[int], Cell],
    n_families: int,
    depth_mutation: bool = True,
    repeats: bool = False,
    channel_step: str = "uniform",
) -> HLIndividual:
    """Mutate of Algorithm 1: one random cell, one random kind of change.

    Kinds are equally likely: channels, stride, cell design; while exploring also cell family and, unless
    `depth_mutation` is off (the literal algorithm, which never changes depth), insertion and removal of a cell.

    Args:
        individual: the parent.
        exploration: phase e of Algorithm 1.
        generator: source of every choice but the cells'.
        generate_cell: GenCell, family -> Cell (see `CellSupply`).
        n_families: K.
        depth_mutation: allow insertion (a neighbour's width, stride 1, a random family) and removal.
        repeats: an inserted cell is its neighbour's once more, as the released code's stages repeat theirs.
        channel_step: "uniform" over C as printed, or "local" (within 30%).
    """
    pairs = individual.pairs()
    i = _choice(range(len(pairs)), generator)
    family, triple = pairs[i]
    kind = _choice(
        _kinds(("channels", "stride", "cell"), ("family",), exploration, depth_mutation, len(pairs)), generator
    )
    if kind == "channels":
        pairs[i] = (family, replace(triple, channels=_channels(triple.channels, channel_step, generator)))
    elif kind == "stride":
        pairs[i] = (family, replace(triple, stride=_choice(STRIDES, generator)))
    elif kind == "cell":
        pairs[i] = (family, replace(triple, cell=generate_cell(family)))
    elif kind == "remove":
        del pairs[i]
    elif kind == "insert" and repeats:
        pairs.insert(i + 1, (family, replace(triple, stride=1)))
    else:
        family = _choice(range(n_families), generator)
        cell = generate_cell(family)
        if kind == "family":
            pairs[i] = (family, replace(triple, cell=cell))
        else:
            place = i + _choice((0, 1), generator)
            pairs.insert(place, (family, Triple(cell, triple.channels, 1)))
    return HLIndividual.from_pairs(pairs, individual)


def flat_mutate(
    architecture: Architecture,
    exploration: bool,
    generator: torch.Generator,
    *,
    depth_mutation: bool = True,
    repeats: bool = False,
    channel_step: str = "uniform",
) -> Architecture:
    """One mutation directly in S, for the evolution baselines: an edge, an operation, channels, stride, or depth.

    Arguments as for `hl_mutate`; an inserted cell is a random one, or a repeat. Depth changes while exploring only.
    """
    triples = list(architecture.triples)
    i = _choice(range(len(triples)), generator)
    triple = triples[i]
    kind = _choice(
        _kinds(("edge", "operation", "channels", "stride"), (), exploration, depth_mutation, len(triples)), generator
    )
    if kind == "channels":
        triples[i] = replace(triple, channels=_channels(triple.channels, channel_step, generator))
    elif kind == "stride":
        triples[i] = replace(triple, stride=_choice(STRIDES, generator))
    elif kind == "remove":
        del triples[i]
    elif kind == "insert" and repeats:
        triples.insert(i + 1, replace(triple, stride=1))
    elif kind == "insert":
        triples.insert(i + _choice((0, 1), generator), Triple(_valid_cell(generator), triple.channels, 1))
    else:
        triples[i] = replace(triple, cell=mutate_cell(triple.cell, kind, generator))
    return replace(architecture, triples=tuple(triples))


def mutate_cell(cell: Cell, kind: str, generator: torch.Generator) -> Cell:
    """A valid neighbour of `cell` in canonical form: one "edge" flipped or one live "operation" exchanged.

    Unused nodes first get random operations, so that a flipped edge can bring them in. A few cells have no neighbour
    by an edge (a skip beside an edge from input to output): after `EDGES_TRIED` flips these get another operation.
    """
    for attempt in count():
        if attempt == EDGES_TRIED:
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


def _kinds(always, exploring, exploration: bool, depth_mutation: bool, n: int) -> tuple[str, ...]:
    if not exploration:
        return always
    depth = ("insert",) * (n < MAX_CELLS) + ("remove",) * (n > 1) if depth_mutation else ()
    return (*always, *exploring, *depth)


def _choice(options, generator: torch.Generator):
    return options[torch.randint(len(options), (), generator=generator).item()]


def _channels(channels: int, step: str, generator: torch.Generator) -> int:
    if step == "uniform":
        return _choice(CHANNELS, generator)  # paper: c ~ U{C}
    if step != "local":
        raise ValueError(f"channel_step must be one of ('uniform', 'local'); got {step!r}.")
    factor = 1.3 ** (2 * torch.rand((), generator=generator).item() - 1)
    moved = round_channels(channels * factor)
    return moved if moved != channels else round_channels(channels + 8 * (1 if factor > 1 else -1))


def round_channels(width: float) -> int:
    """The member of C nearest to `width`."""
    return min(max(8 * round(width / 8), CHANNELS[0]), CHANNELS[-1])


def _valid_cell(generator: torch.Generator) -> Cell:
    while True:
        cell = random_cell(generator)
        if cell.is_valid and (cell := cell.canonical()).is_valid:
            return cell


# ---- random draws


def random_individual(
    generator: torch.Generator, *, generate_cell: Callable[[int], Cell], n_families: int, max_cells: int = MAX_CELLS
) -> HLIndividual:
    """A draw from the HL space: depth and families uniform, widths log-uniform, three strides of 2 on average.

    Uniform widths would meet no small budget: their mean is 516.
    """
    pairs = []
    for channels, stride in _random_sizes(generator, max_cells):
        family = _choice(range(n_families), generator)
        pairs.append((family, Triple(generate_cell(family), channels, stride)))
    return HLIndividual.from_pairs(pairs)


def random_architecture(generator: torch.Generator, *, max_cells: int = MAX_CELLS) -> Architecture:
    """A draw from S: random valid cells, sizes as in `random_individual`."""
    sizes = _random_sizes(generator, max_cells)
    return Architecture(tuple(Triple(_valid_cell(generator), channels, stride) for channels, stride in sizes))


def _random_sizes(generator: torch.Generator, max_cells: int) -> list[tuple[int, int]]:
    n = 1 + torch.randint(max_cells, (), generator=generator).item()
    draws = torch.rand(n, 2, generator=generator).tolist()
    return [(round_channels(8 * 128**u), 2 if v < min(0.5, 3 / n) else 1) for u, v in draws]
