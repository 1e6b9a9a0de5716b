"""Cells that the evolution kept: where the designs for a budget take theirs from (Eq. 8, deviation D50).

Cells of one family are alike in z, and still a deep network of fresh ones has half the T-CET of the network that the
evolution chose its cells for, one by one. So the history gives more than sequences: for a family and a budget, cells
that did well. They are draws of the flow (Eq. 9) like any other, that have been tried.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graphnas_lib import artifacts
from graphnas_lib.codes import CellCodes
from graphnas_lib.mutations import HLIndividual
from graphnas_lib.space import Cell
from graphnas_lib.synonyms import CellSampler

FILE = "sequence_cells.safetensors"
BIN = 0.1  # of ln params and of ln FLOPs; the history is thinned to the best networks of each bin
OF_BIN = 30
NEAR = 0.1  # networks that far from a request, in ln, are near it
NETWORKS = 30  # where fewer are near, the nearest so many
LIKE = 10  # of these, so many give their cells to a sequence of families


@dataclass(frozen=True)
class KeptCells:
    """Families and cells of the best networks of every size in a history.

    Attributes:
        costs: params and FLOPs, float64 (n, 2).
        scores: T-CET, float64 (n,).
        families: int64 (n, l), -1 beyond a network's last cell.
        places: index into `codes` of the cell of each place, int64 (n, l), -1 likewise.
        codes: the distinct cells.
    """

    costs: Tensor
    scores: Tensor
    families: Tensor
    places: Tensor
    codes: CellCodes

    @classmethod
    def of(cls, individuals: Sequence[HLIndividual], costs: Tensor, scores: Tensor) -> KeptCells:
        """Thin a history to the best networks of each size.

        Args:
            individuals: n recorded individuals.
            costs: their params and FLOPs (n, 2).
            scores: their T-CET (n,).
        """
        costs, scores = costs.double(), scores.double()
        rows = _best_of_bins(costs, scores)
        cells, longest = {}, max(len(individuals[i].hl.triples) for i in rows)
        families, places = (torch.full((len(rows), longest), -1) for _ in range(2))
        for row, i in enumerate(rows):
            for place, (family, triple) in enumerate(individuals[i].pairs()):
                families[row, place] = family
                places[row, place] = cells.setdefault(triple.cell, len(cells))
        return cls(costs[rows], scores[rows], families, places, CellCodes.of(list(cells)))

    def near(self, sampler: CellSampler, *, params: float | None = None, flops: float | None = None) -> NearCells:
        """Where cells come from for a request; `sampler` gives those of families that no near network has.

        Args:
            sampler: of fresh cells.
            params: requested parameters, or None.
            flops: requested FLOPs in the unit and at the input shape of the history, or None.
        """
        asked = [(i, math.log(value)) for i, value in enumerate((params, flops)) if value is not None]
        off = torch.stack([(self.costs[:, i].log() - value).abs() for i, value in asked]).amax(dim=0)  # (n,)
        count = max(int((off <= NEAR).sum()), min(NETWORKS, len(off)))
        rows = off.argsort(stable=True)[:count]
        used, places = self.places[rows].unique(return_inverse=True)  # -1 first, beyond the last cells
        cells = [None, *self.codes[used[used >= 0]].cells()] if -1 in used else self.codes[used].cells()
        networks = []
        for families, listed, score in zip(self.families[rows].tolist(), places.tolist(), self.scores[rows].tolist()):
            pairs = [(family, cells[i]) for family, i in zip(families, listed, strict=True) if family >= 0]
            networks.append((score, pairs))
        return NearCells(networks, sampler)

    def to_tensors(self) -> dict[str, Tensor]:
        """Content of a safetensors file."""
        narrow = {"families": self.families.to(torch.int16), "places": self.places.to(torch.int32)}
        return {"costs": self.costs, "scores": self.scores, **narrow, **vars(self.codes)}

    @classmethod
    def load(cls, scale: str) -> KeptCells:
        """Of the history that a scale's sequence generator learnt."""
        return cls.from_tensors(artifacts.load("sequence", FILE, scale))

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> KeptCells:
        """Inverse of `to_tensors`."""
        codes = CellCodes(tensors["edges"], tensors["operations"])
        return cls(tensors["costs"], tensors["scores"], tensors["families"].long(), tensors["places"].long(), codes)


def _best_of_bins(costs: Tensor, scores: Tensor) -> list[int]:
    """Indices of the best networks in each bin of either cost, ascending."""
    kept = set()
    for column in costs.T:
        bins = (column.log() / BIN).floor()
        for value in bins.unique():
            rows = (bins == value).nonzero().flatten()
            kept |= set(rows[scores[rows].argsort(descending=True, stable=True)[:OF_BIN]].tolist())
    return sorted(kept)


@dataclass(frozen=True)
class NearCells:
    """Cells for one request; gives cells for a list of families as `CellSampler` does.

    Attributes:
        networks: T-CET, and (family, cell) of every place, of the networks near the request.
        sampler: of fresh cells, for families that they lack.
    """

    networks: list[tuple[float, list[tuple[int, Cell]]]]
    sampler: CellSampler

    def generate_cells(self, families: Sequence[int], *, seed: int) -> list[Cell]:
        """One cell for each family of a list; a function of (seed, the list).

        Cells are those of `LIKE` networks that have most families in common with the list and a high T-CET; of each,
        the n-th cell of a family where the list has the family for the n-th time.
        """
        generator = torch.Generator().manual_seed(seed)
        same, any_place = defaultdict(list), defaultdict(list)
        for _, pairs in sorted(self.networks, key=lambda network: -_likeness(network, families))[:LIKE]:
            for place, (_, cell) in zip(_numbered([family for family, _ in pairs]), pairs, strict=True):
                same[place].append(cell)
                any_place[place[0]].append(cell)
        unknown = [family for family in families if family not in any_place]
        fresh = iter(self.sampler.generate_cells(unknown, seed=seed) if unknown else ())
        found = []
        for place in _numbered(families):
            known = same.get(place) or any_place.get(place[0])
            found.append(known[torch.randint(len(known), (), generator=generator)] if known else next(fresh))
        return found


def _likeness(network: tuple[float, list[tuple[int, Cell]]], families: Sequence[int]) -> float:
    """T-CET times the share of families that a network and a list have in common."""
    score, pairs = network
    common = Counter(families) & Counter(family for family, _ in pairs)
    return score * common.total() / max(len(families), len(pairs))


def _numbered(families: Sequence[int]) -> list[tuple[int, int]]:
    """Each family with how often it came before."""
    seen: Counter[int] = Counter()
    numbered = []
    for family in families:
        numbered.append((family, seen[family]))
        seen[family] += 1
    return numbered
