"""HL-Evo (Algorithm 1, App. C, Eq. 11): its individuals and mutations, and the flat baseline on S.

An individual carries the families it was asked for beside the cells that were generated for them (Eq. 8). GenCell,
scores and costs come in as callables; `search` has the loop. Two departures from the listing are marked: insertion and
removal of cells while exploring (`depth_mutation`; the literal algorithm never changes depth), and equal children are
drawn again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from graphnas_lib.macro import CHANNELS, MAX_CELLS, STRIDES, Architecture, HLArchitecture, HLTriple, Triple
from graphnas_lib.search import ScoreError, SearchError, SearchResult, best_so_far, evolve, history_table, random_search
from graphnas_lib.space import EDGES, OPERATIONS, Cell, random_cell

__all__ = [  # the loop's names are reached through here as well
    "ScoreError",
    "SearchError",
    "SearchResult",
    "best_so_far",
    "evolve",
    "history_table",
    "random_search",
]

ALPHA_0 = ((5, 32, 1), (5, 64, 2), (5, 64, 1))  # paper: App. C, "the mean of the 5-th cluster"
MIN_SIDE = 4  # feature maps smaller than this in a search are refused; the paper is silent


# ---- Algorithm 1, lines 1 to 19: individuals of HL-Evo


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
        generate_cell: (family, index) -> Cell, the same for equal arguments.
        n_families: K.
    """

    def __init__(self, generate_cell: Callable[[int, int], Cell], n_families: int):
        self.generate_cell = generate_cell
        self.counts = [0] * n_families

    def __call__(self, family: int) -> Cell:
        """The next cell of `family`."""
        self.counts[family] += 1
        return self.generate_cell(family, self.counts[family] - 1)


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
    channel_step: str = "uniform",
) -> Architecture:
    """One mutation directly in S, for the evolution baselines: an edge, an operation, channels, stride, or depth.

    Arguments as for `hl_mutate`; an inserted cell is a random one. Depth changes while exploring only.
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
    elif kind == "insert":
        triples.insert(i + _choice((0, 1), generator), Triple(_valid_cell(generator), triple.channels, 1))
    else:
        triples[i] = replace(triple, cell=mutate_cell(triple.cell, kind, generator))
    return replace(architecture, triples=tuple(triples))


def mutate_cell(cell: Cell, kind: str, generator: torch.Generator) -> Cell:
    """A valid neighbour of `cell` in canonical form: one "edge" flipped or one live "operation" exchanged.

    Unused nodes first get random operations, so that a flipped edge can bring them in.
    """
    while True:
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


# ---- the searches


def hl_evo(
    initial: HLIndividual | None = None,
    *,
    score: Callable[[Architecture], float | dict],
    feasible: Callable[[Architecture], bool],
    generate_cell: Callable[[int, int], Cell],
    n_families: int,
    iterations: int,
    population: int,
    seed: int,
    costs: Callable[[Architecture], Any] | None = None,
    depth_mutation: bool = True,
    channel_step: str = "uniform",
    **options,
) -> SearchResult:
    """HL-Evo (Algorithm 1, Eq. 11): two phases over families, cells generated by the CCNF.

    Args:
        initial: alpha_0, by default the paper's.
        score: T-CET of an architecture, or a dict with "score" and more columns.
        feasible: constraints on the architecture (see `budget`).
        generate_cell: (family, index) -> Cell.
        n_families: K.
        iterations: T.
        population: N.
        seed: of the search.
        costs: `network.count`, for the history's columns params, macs and flops.
        depth_mutation: off gives the literal algorithm.
        channel_step: see `hl_mutate`.
        **options: `workers`, `checkpoint`, `count_discards`, `failures`, `progress` of `evolve`.
    """
    supply = CellSupply(generate_cell, n_families)
    kinds = {"depth_mutation": depth_mutation, "channel_step": channel_step}

    def mutate(individual, exploration, generator):
        return hl_mutate(individual, exploration, generator, generate_cell=supply, n_families=n_families, **kinds)

    return evolve(
        initial or initial_individual(supply, n_families),
        mutate=mutate,
        score=_OfArchitecture(score),
        feasible=lambda individual: feasible(individual.architecture),
        iterations=iterations,
        population=population,
        seed=seed,
        key=HLIndividual.key,
        describe=lambda individual: cost_columns(costs, individual.architecture),
        supply=supply,
        dump=HLIndividual.to_json,
        parse=HLIndividual.from_json,
        **options,
    )


def flat_evo(
    initial: Architecture,
    *,
    score: Callable[[Architecture], float | dict],
    feasible: Callable[[Architecture], bool],
    iterations: int,
    population: int,
    seed: int,
    costs: Callable[[Architecture], Any] | None = None,
    **options,
) -> SearchResult:
    """Evolution directly in the GraphNet space (Table 2, "Evo"); arguments as for `hl_evo`, every kind all the time."""
    return evolve(
        initial,
        mutate=flat_mutate,
        score=score,
        feasible=feasible,
        iterations=iterations,
        population=population,
        seed=seed,
        key=Architecture.key,
        describe=lambda architecture: cost_columns(costs, architecture),
        dump=Architecture.to_json,
        parse=Architecture.from_json,
        **{"exploration_share": 1.0, **options},
    )


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


@dataclass(frozen=True)
class _OfArchitecture:
    """A score of architectures as a score of individuals; picklable for the workers."""

    score: Callable

    def __call__(self, individual: HLIndividual):
        return self.score(individual.architecture)


def cost_columns(costs, architecture: Architecture) -> dict:
    if costs is None:
        return {}
    found = costs(architecture)
    return {"params": found.params, "macs": found.macs, "flops": found.flops}


def budget(
    costs: Callable[[Architecture], Any],
    *,
    params: float | None = None,
    flops: float | None = None,
    resolution: int = 32,
    min_side: int = MIN_SIDE,
) -> Callable[[Architecture], bool]:
    """Constraints of a search: upper bounds on parameters and FLOPs, and feature maps of at least `min_side`.

    Args:
        costs: `network.count` at the resolution in question.
        params: largest number of parameters.
        flops: largest number of FLOPs (2 x MACs, the paper's unit).
        resolution: side of the input.
        min_side: smallest side after the last stride.
    """
    depth_of_strides = max_strides(resolution, min_side)

    def feasible(architecture: Architecture) -> bool:
        strides = sum(triple.stride == 2 for triple in architecture.triples) + (architecture.stem_stride == 2)
        if strides > depth_of_strides:
            return False
        found = costs(architecture)
        return (params is None or found.params <= params) and (flops is None or found.flops <= flops)

    return feasible


def max_strides(resolution: int, min_side: int = MIN_SIDE) -> int:
    """How often a side of `resolution` can be halved (rounding up) and stay at least `min_side`."""
    n = 0
    while (resolution := -(-resolution // 2)) >= min_side:
        n += 1
    return n
