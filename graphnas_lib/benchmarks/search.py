"""P5 and P6: generator against evolution on whole networks, and families against single edits on cells.

Every evaluation is a T-CET that `benchmarks.score_networks` took; true accuracies are looked up when a search is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from graphnas_lib import sequence
from graphnas_lib.benchmarks import nats, tables
from graphnas_lib.evolution import Problem, evolve, random_search
from graphnas_lib.macro import HLArchitecture, HLTriple
from graphnas_lib.sequence import SequenceConfig
from graphnas_lib.space import nats_operations

EVALUATIONS = (100, 1_000)
POPULATION = 64
BUDGETS = tuple(np.arange(1, 11) / 10)  # quantiles of parameters
TRAINED_ON = BUDGETS[1::2]  # budgets whose histories the generator learns from
REQUEST = 0.97  # share of the bound that is asked for
REQUESTED_LAST = 0.9  # of the bound; requests lie between both
DRAWN = 100  # designs a request
INCUMBENTS = (10, 20, 50, 100, 200, 500, 1_000)  # evaluations at which a search is looked at


# ---- P5: whole networks


@dataclass(frozen=True)
class MacroSpace:
    """A table of whole networks as codes of digits: which codes there are, what each scores, how it is written.

    Attributes:
        name: "nb_macro" or "tnb_macro".
        networks: `networks(name, ...)`.
    """

    name: str
    networks: pd.DataFrame

    @property
    def digits(self) -> str:
        """Digits of a code; a digit's place in it is the "family" of a block."""
        return "012" if self.name == "nb_macro" else "1234"

    @property
    def lengths(self) -> range:
        """How many blocks a network may have."""
        return range(8, 9) if self.name == "nb_macro" else range(4, 7)

    def key(self, code: str) -> str:
        """The row of `networks` that a code belongs to."""
        return tables.nb_macro_key(code) if self.name == "nb_macro" else code

    def random(self, generator: torch.Generator) -> str:
        """A uniform code."""
        length = self.lengths[_below(len(self.lengths), generator)]
        return "".join(self.digits[_below(len(self.digits), generator)] for _ in range(length))

    def mutated(self, code: str, exploration: bool, generator: torch.Generator) -> str:
        """One block changed, two while exploring; where lengths differ, a block may come or go instead."""
        blocks = list(code)
        for _ in range(2 if exploration else 1):
            place, change = _below(len(blocks), generator), _below(3, generator)
            if change == 0 and len(blocks) + 1 in self.lengths:
                blocks.insert(place, self.digits[_below(len(self.digits), generator)])
            elif change == 1 and len(blocks) - 1 in self.lengths:
                blocks.pop(place)
            else:
                others = [digit for digit in self.digits if digit != blocks[place]]
                blocks[place] = others[_below(len(others), generator)]
        return "".join(blocks)

    def design(self, code: str) -> HLArchitecture:
        """The code as the sequence generator reads it: a family, width and stride a block."""
        make = tables.nb_macro_architecture if self.name == "nb_macro" else tables.tnb_macro_architecture
        triples = make(code).triples
        triples = triples[1:] if self.name == "nb_macro" else triples[::2]
        pairs = zip(code, triples, strict=True)
        return HLArchitecture(tuple(HLTriple(self.digits.index(d), t.channels, t.stride) for d, t in pairs))

    def code(self, design: HLArchitecture) -> str:
        """The families of a design as digits; what it says of widths and strides follows from them."""
        return "".join(self.digits[triple.cluster] for triple in design.triples)


def _below(n: int, generator: torch.Generator) -> int:
    return int(torch.randint(n, (1,), generator=generator))


def _problem(space: MacroSpace, bound: float) -> Problem:
    params, tcet = space.networks["params"].to_dict(), space.networks["tcet"].to_dict()
    given = {"start": space.networks["params"].idxmin(), "mutate": space.mutated, "key": space.key}
    given["feasible"] = lambda code: params.get(space.key(code), np.inf) <= bound
    return Problem(score=lambda code: float(tcet[space.key(code)]), **given)


def searches(space: MacroSpace, tasks: Sequence[str], *, seeds: int, evaluations: Sequence[int] = EVALUATIONS) -> dict:
    """Algorithm 1 and random search under each budget, over half of the networks within it at most.

    Returns:
        "rows": method, budget, seed, evaluations, tcet and accuracies of the network with the highest T-CET.
        "histories": codes that evolution evaluated under `TRAINED_ON`.
    """
    rows, histories = [], []
    for quantile in BUDGETS:
        bound = float(np.quantile(space.networks["params"], quantile))
        inside = space.networks[space.networks["params"] <= bound]
        largest = inside.loc[[inside["flops"].idxmax()]]
        told = {"method": "most FLOPs", "evaluations": 0, "seed": 0, "budget": quantile}
        rows.append(told | _reached(largest, tasks))
        most = len(inside) // 2  # beyond, a search that shuns what it has seen is an enumeration
        for seed in range(seeds):
            problem = _problem(space, bound)
            found = evolve(problem, iterations=min(max(evaluations), most), population=POPULATION, seed=seed)
            anywhere = replace(problem, mutate=lambda parent, exploration, generator: space.random(generator))
            drawn = random_search(anywhere, iterations=min(*evaluations, most), seed=seed)
            for method, result in (("evolution", found), ("random", drawn)):
                keys = [space.key(row["individual"]) for row in result.history]
                for n in evaluations if method == "evolution" else evaluations[:1]:
                    best = space.networks.loc[keys[: n + 1]].nlargest(1, "tcet")
                    told = {"method": method, "evaluations": n, "seed": seed, "budget": quantile}
                    rows.append(told | _reached(best, tasks))
            if quantile in TRAINED_ON:
                histories += [row["individual"] for row in found.history]
    return {"rows": pd.DataFrame(rows), "histories": histories}


def _reached(rows: pd.DataFrame, tasks: Sequence[str]) -> dict[str, float]:
    first = rows.iloc[0]
    return {name: float(first[name]) for name in ("tcet", "params", *tasks)}


def generated(
    space: MacroSpace, histories: Sequence[str], tasks: Sequence[str], *, seed: int, config: SequenceConfig, steps: int
) -> pd.DataFrame:
    """The generator of one seed, trained on histories, asked for each budget: the best of 100 by T-CET.

    Returns:
        As "rows" of `searches`, with method "generator" and, of its designs, `within` (share that is a network of the
        table within the bound) and `distinct`. NaN where no design was.
    """
    codes = sorted(set(histories))
    costs = space.networks.loc[[space.key(code) for code in codes]]
    conditions = torch.tensor(costs[["params", "flops", "naswot", "snip_ssnr"]].to_numpy(float))
    best = torch.tensor(costs["tcet"].rank(pct=True).to_numpy() ** 4)  # T-CET decides how often a network is seen
    designs = [space.design(code) for code in codes]
    config = replace(config, n_families=len(space.digits))
    h, _ = sequence.train(designs, conditions, config=config, steps=steps, seed=seed, weights=best)
    rows = []
    for i, quantile in enumerate(BUDGETS):
        bound = float(np.quantile(space.networks["params"], quantile))
        asked = torch.linspace(REQUESTED_LAST, REQUEST, 4).double() * bound
        request = torch.full((len(asked), 4), float("nan"), dtype=torch.float64)
        request[:, 0] = asked
        found = h.generate_many(request, n=DRAWN // len(asked), seed=seed * len(BUDGETS) + i, max_strides=8)
        written = [space.code(design) for row in found for design in row if design is not None]
        keys = [space.key(code) for code in written if len(code) in space.lengths]
        keys = [key for key in keys if key in space.networks.index and space.networks["params"][key] <= bound]
        told = {"method": "generator", "evaluations": DRAWN, "seed": seed, "budget": quantile}
        told |= {"within": len(keys) / DRAWN, "distinct": len(set(keys))}
        empty = dict.fromkeys(("tcet", "params", *tasks), float("nan"))
        rows.append(told | (_reached(space.networks.loc[keys].nlargest(1, "tcet"), tasks) if keys else empty))
    return pd.DataFrame(rows)


# ---- P6: cells


def cell_searches(
    cells: pd.DataFrame, pools: Sequence[Sequence[int]], *, seed: int, evaluations: int = max(INCUMBENTS)
) -> pd.DataFrame:
    """Search over families, flat evolution by one edit, and random search, on T-CET of NATS-Bench's cells (App. C).

    An individual is a family and a row of the table. Over families a child is another draw of a family: of any while
    exploring, then of the parent's or of one beside it, as families are ordered by size.

    Args:
        cells: `networks("nats", ...)`, every function once.
        pools: for each family the flow's draws (`latent.family_pools`).

    Returns:
        method, evaluations, seed, accuracy (CIFAR-10, of the incumbent by T-CET), tcet.
    """
    tcet, accuracy, places = cells["tcet"].to_numpy(), cells["cifar10"].to_numpy(), [0] * len(pools)
    archs, rows = cells["arch"].tolist(), {key: i for i, key in enumerate(cells.index)}

    def families(parent: tuple[int, int], exploration: bool, generator: torch.Generator) -> tuple[int, int]:
        near = min(max(parent[0] + _below(3, generator) - 1, 0), len(pools) - 1)
        family = _below(len(pools), generator) if exploration else near
        places[family] += 1
        return family, pools[family][places[family] % len(pools[family])]

    def flat(parent: tuple[int, int], exploration: bool, generator: torch.Generator) -> tuple[int, int]:
        return 0, _edited(archs, rows, parent[1], generator)

    def random(parent: tuple[int, int], exploration: bool, generator: torch.Generator) -> tuple[int, int]:
        return 0, _below(len(cells), generator)

    start, found = (0, random((0, 0), True, torch.Generator().manual_seed(seed))[1]), []
    for mutate in (families, flat, random):
        score = {"score": lambda one: float(tcet[one[1]]), "feasible": lambda one: True, "key": lambda one: str(one[1])}
        problem = Problem(start=start, mutate=mutate, **score)
        history = evolve(problem, iterations=evaluations - 1, population=POPULATION, seed=seed).history
        seen = np.array([row["individual"][1] for row in history])
        for at in (at for at in INCUMBENTS if at <= evaluations):
            best = seen[:at][tcet[seen[:at]].argmax()]
            told = {"method": mutate.__name__, "evaluations": at, "seed": seed, "tcet": float(tcet[best])}
            found.append(told | {"accuracy": float(accuracy[best])})
    return pd.DataFrame(found)


def _edited(archs: list[str], rows: dict[str, int], row: int, generator: torch.Generator) -> int:
    """Row of a random cell that one changed operation makes of this one; of any cell where the table has none."""
    before = nats_operations(archs[row])
    for change in torch.randperm(len(before) * len(nats.OPERATIONS), generator=generator).tolist():
        place, name = divmod(change, len(nats.OPERATIONS))
        text = nats.string((*before[:place], nats.OPERATIONS[name], *before[place + 1 :]))
        if (other := rows.get(tables.cell_key(text), row)) != row:
            return other
    return _below(len(archs), generator)
