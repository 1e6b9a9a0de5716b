"""Cells that the evolution kept: where the designs for a budget take theirs from (Eq. 8, deviation D50).

Cells of one family are alike in z, and still a deep network of fresh ones has half the T-CET of the network that the
evolution chose its cells for, one by one. So the history gives more than sequences: for a family and a budget, cells
that did well. They are draws of the flow (Eq. 9) like any other, that have been tried.
"""

from __future__ import annotations

import math
from collections import defaultdict
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
NETWORKS = 30  # the best so many of the near ones give their cells; where fewer are near, the nearest


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
        nearest = off.argsort(stable=True)
        count = max(int((off <= NEAR).sum()), min(NETWORKS, len(off)))
        chosen = nearest[:count][self.scores[nearest[:count]].argsort(descending=True, stable=True)][:NETWORKS]
        families, places = self.families[chosen].flatten().tolist(), self.places[chosen].flatten().tolist()
        found = defaultdict(list)
        for family, place in zip(families, places, strict=True):
            if family >= 0:
                found[family].append(place)
        used = sorted({place for listed in found.values() for place in listed})
        cells = dict(zip(used, self.codes[torch.tensor(used)].cells(), strict=True))
        return NearCells({family: [cells[i] for i in listed] for family, listed in found.items()}, sampler)

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
        cells: family -> its cells in networks near the request, one entry for each place that has it.
        sampler: of fresh cells, for the other families.
    """

    cells: dict[int, list[Cell]]
    sampler: CellSampler

    def generate_cells(self, families: Sequence[int], *, seed: int) -> list[Cell]:
        """One cell for each family of a list; a function of (seed, the list)."""
        generator = torch.Generator().manual_seed(seed)
        unknown = [family for family in families if family not in self.cells]
        fresh = iter(self.sampler.generate_cells(unknown, seed=seed) if unknown else ())
        found = []
        for family in families:
            known = self.cells.get(family)
            found.append(known[torch.randint(len(known), (), generator=generator)] if known else next(fresh))
        return found
