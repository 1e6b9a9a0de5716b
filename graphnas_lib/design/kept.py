"""Networks that the evolution kept: what the designs for a budget are judged by and take their cells from (Eq. 8, D50).

Cells of one family are alike in z (Eq. 4), not in what they do to a deep network: with fresh ones a macro design has
less T-CET than with the cells that the evolution chose for it, one by one. So the history gives more than sequences:
for a budget and a macro design, cells that did well there. They are draws of the flow (Eq. 9) like any other, that have
been tried.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from graphnas_lib import store
from graphnas_lib.macro import Architecture, HLArchitecture, HLTriple
from graphnas_lib.space import Cell, CellCodes
from graphnas_lib.synonyms import CellSampler

FILE = "sequence_cells.safetensors"
LOG_COST_BIN_WIDTH = 0.1  # of ln params and of ln FLOPs; the history is thinned to the best networks of each bin
MAX_NETWORKS_PER_BIN = 30
MAX_NEAR_NETWORKS = 30  # so many answer a request
MAX_CELL_DONORS = 4  # at most so many of these give their cells to a macro design


@dataclass(frozen=True)
class KeptNetworks:
    """The best networks of every size in a history, with their families and cells."""

    costs: Tensor  # params and FLOPs, float64 (n, 2)
    scores: Tensor  # T-CET, float64 (n,)
    triples: Tensor  # family, channels and stride of each place, int16 (n, l, 3); -1 beyond a network's last cell
    places: Tensor  # index into `codes` of the cell of each place, int32 (n, l), -1 likewise
    codes: CellCodes  # the distinct cells

    @classmethod
    def of(cls, individuals: Sequence[Architecture], costs: Tensor, scores: Tensor) -> KeptNetworks:
        """Thin a history to the best networks of each size: n architectures whose triples know their families, their
        params and FLOPs (n, 2), and their T-CET (n,)."""
        costs, scores = costs.double(), scores.double()
        kept = set()
        for column in costs.T:  # the best of each bin, by either cost
            bins = (column.log() / LOG_COST_BIN_WIDTH).floor()
            for value in bins.unique():
                rows = (bins == value).nonzero().flatten()
                best_first = rows[scores[rows].argsort(descending=True, stable=True)]
                kept |= set(best_first[:MAX_NETWORKS_PER_BIN].tolist())
        rows = sorted(kept)
        cells: dict[Cell, int] = {}
        triples, places = [], []
        for i in rows:
            own = individuals[i].triples
            triples.append(torch.tensor([[t.family, t.channels, t.stride] for t in own], dtype=torch.int16))
            places.append(torch.tensor([cells.setdefault(t.cell, len(cells)) for t in own], dtype=torch.int32))
        padded = (pad_sequence(column, batch_first=True, padding_value=-1) for column in (triples, places))
        return cls(costs[rows], scores[rows], *padded, CellCodes.of(list(cells)))

    def near(self, sampler: CellSampler, *, params: float | None = None, flops: float | None = None) -> NearNetworks:
        """The networks near a request: of highest T-CET times the share that the smaller cost is of the larger.

        `flops` in the unit and at the input shape of the history.
        """
        logs = [math.nan if value is None else math.log(value) for value in (params, flops)]
        asked = self.costs.new_tensor(logs)
        gap = (self.costs.log() - asked).abs().nan_to_num(0.0).amax(dim=1)  # (n,)
        promise = self.scores * (-gap).exp()
        rows = promise.argsort(descending=True, stable=True)[:MAX_NEAR_NETWORKS]
        used = [i for i in self.places[rows].unique().tolist() if i >= 0]
        cells = dict(zip(used, self.codes[torch.tensor(used)].cells(), strict=True))
        networks = []
        for score, triples, places in zip(*(x[rows].tolist() for x in (promise, self.triples, self.places))):
            own = tuple(HLTriple(*triple) for triple in triples if triple[0] >= 0)
            networks.append(KeptNetwork(score, own, tuple(cells[i] for i in places if i >= 0), _counts(own)))
        sizes = self.costs[rows].masked_fill(asked.isnan(), math.nan)
        return NearNetworks(networks, sizes, sampler)

    def to_tensors(self) -> dict[str, Tensor]:
        """Content of a safetensors file."""
        own = dict(vars(self))
        return own | vars(own.pop("codes"))

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> KeptNetworks:
        """Inverse of `to_tensors`."""
        own = dict(tensors)
        return cls(codes=CellCodes(own.pop("edges"), own.pop("operations")), **own)

    @classmethod
    def load(cls, scale: str) -> KeptNetworks:
        """Of the history that a scale's sequence generator learnt."""
        return cls.from_tensors(store.load("sequence", FILE, scale))


class KeptNetwork(NamedTuple):
    """T-CET, macro design and cells of a kept network."""

    score: float  # T-CET, less for a network farther from the request
    triples: tuple[HLTriple, ...]
    cells: tuple[Cell, ...]
    counts: tuple[Counter, Counter]  # how often each family and each triple occurs


def _counts(triples: Sequence[HLTriple]) -> tuple[Counter, Counter]:
    return Counter(triple.cluster for triple in triples), Counter(triples)


@dataclass(frozen=True)
class NearNetworks:
    """Kept networks near one request, and the sampler of fresh cells for families that they lack."""

    networks: list[KeptNetwork]  # of most promise first
    sizes: Tensor  # their params and FLOPs (n, 2); NaN where the request has none
    sampler: CellSampler

    def promise(self, hl: HLArchitecture) -> float:
        """What T-CET to expect of a macro design: the highest among the networks, each times its likeness to it."""
        return self._likest(hl, 1)[0][0]

    def realise(self, hl: HLArchitecture, *, seed: int, closest: bool = False) -> Architecture:
        """alpha(alpha-hat) of Eq. 8 with the cells of the likest networks; a function of (hl, seed, closest).

        For the n-th place of a family it is the cell of a network's n-th place of that family.

        `seed` decides which networks give their cells, and draws fresh ones. With `closest` the likest network alone
        gives them, else one to `MAX_CELL_DONORS` networks, mixed.
        """
        generator = torch.Generator().manual_seed(seed)
        mixed = 1 if closest else 1 + int(torch.randint(MAX_CELL_DONORS, (), generator=generator))
        same, any_place = defaultdict(list), defaultdict(list)
        for _, network in self._likest(hl, mixed):
            for place, cell in zip(_numbered(network.triples), network.cells, strict=True):
                same[place].append(cell)
                any_place[place[0]].append(cell)
        unknown = [triple.cluster for triple in hl.triples if triple.cluster not in any_place]
        fresh = iter(self.sampler.generate_cells(unknown, seed=seed) if unknown else ())
        cells = []
        for place in _numbered(hl.triples):
            known = same.get(place) or any_place.get(place[0])
            cells.append(known[torch.randint(len(known), (), generator=generator)] if known else next(fresh))
        return hl.with_cells(cells)

    def _likest(self, hl: HLArchitecture, n: int) -> list[tuple[float, KeptNetwork]]:
        """The n networks of highest T-CET times likeness, with it; likeness is the mean of two shares in common, of
        families and of whole triples."""
        own, rated = _counts(hl.triples), []
        for network in self.networks:
            common = sum((a & b).total() for a, b in zip(own, network.counts, strict=True)) / 2
            rated.append((network.score * common / max(len(hl.triples), len(network.triples)), network))
        return heapq.nlargest(n, rated, key=lambda pair: pair[0])


def _numbered(triples: Sequence[HLTriple]) -> list[tuple[int, int]]:
    """The family of each triple, with how often it came before."""
    families = [triple.cluster for triple in triples]
    return [(family, families[:place].count(family)) for place, family in enumerate(families)]
