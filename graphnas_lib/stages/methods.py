"""The searches of Table 2 and of App. E under one budget: each leaves its best networks, its curve and its cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch

from graphnas_lib import evolution, network, store, zennet
from graphnas_lib.datasets import Dataset
from graphnas_lib.design import Trained, below, design
from graphnas_lib.macro import Architecture
from graphnas_lib.stages import evolution as histories
from graphnas_lib.stages.scores import ProxyScore, TrainedScore
from graphnas_lib.stages.stage import Stage
from graphnas_lib.synonyms import realise
from graphnas_lib.training import RECIPES, cut_batch
from graphnas_lib.zennet import ZenNet

MAX_LAYERS = 18  # of ZenNet for about 1M parameters (ZenNAS's released search)
TRAINED_POPULATION = 8  # paper: App. E.1
MIXED = 5  # paper: App. E.1, generated networks whose cells are mixed
_SETTINGS = (MAX_LAYERS, TRAINED_POPULATION, MIXED, RECIPES[TrainedScore.recipe])


@dataclass(frozen=True)
class Found:
    """What one search gave: its best networks as text, their scores, and what it cost."""

    individuals: list[str]  # a ZenNet string, or the JSON of an Architecture
    scores: list[float]
    curve: list[float]  # best score after each evaluation
    evaluations: int
    seconds: float


class Methods:
    """Table 2's six rows, two baselines that it lacks, and the two experiments of App. E, on one batch of images."""

    def __init__(self, stage: Stage, data: Dataset, shown: Dataset):
        """Proxies are taken on a batch of `data`; reduced trainings see `shown`, as the final ones do."""
        scale = stage.scale
        self.stage, self.data, self.budget, self.top = stage, data, scale.table2_budget, scale.table2_top
        self.plain, self.generated = scale.table2_evaluations
        self.batch = data.batch(scale.tcet_batch)
        self.trained = Trained.load(scale.name, device=stage.device)
        self.costs = partial(network.count, input_shape=data.input_shape, classes=data.classes)
        self.feasible = evolution.budget(self.costs, **dict([self.budget]), resolution=scale.tcet_resolution)
        self.score = ProxyScore(*self.batch, data.classes, seed=stage.seed, device=stage.device)
        self.models, epochs = scale.reduced_training
        size = cut_batch(RECIPES[TrainedScore.recipe].batch_size, shown.size("train"))
        options = {"epochs": epochs, "batch_size": size, "seed": stage.seed, "device": stage.device}
        self.accuracy = TrainedScore(shown.split_validation(0.25, seed=stage.seed), **options)

    def find(self) -> dict[str, Found]:
        """Every search, by the names of `paper.TABLE_2`; a killed run goes on inside the search that it was in."""
        searches = {
            "ZenNet: Evo(Zen)": partial(self.zennet, "zen"),
            "ZenNet: Evo(ZiCo)": partial(self.zennet, "zico"),
            "ZenNet: Evo(T-CET)": partial(self.zennet, "tcet"),
            "GraphNet: Evo(T-CET)": partial(self.flat, self.score, "flat", self.plain),
            "GraphNet: HL-Evo(T-CET)+CCNF": self.hl_evo,
            "GraphNet: SG+CCNF": self.sequence,
            "GraphNet: random in budget": self.random,
            "GraphNet: Evo(parameters)": partial(self.flat, self.size, "size", self.plain, workers=1, dask=None),
            "GraphNet: SG+CCNF, reduced training (App. E.1)": self.mixed,
            "GraphNet: Evo(reduced training) (App. E.2)": partial(
                self.flat, self.accuracy, "e2", self.models, population=TRAINED_POPULATION
            ),
        }
        jobs = {name: lambda search=search: asdict(search()) for name, search in searches.items()}
        found = self.stage.collect(jobs, "searches", *_SETTINGS, workers=1)  # each of them is parallel in itself
        return {row.pop("id"): Found(**row) for row in found}

    def size(self, architecture: Architecture) -> float:
        """Parameters as a score: what every proxy has to beat."""
        return float(self.costs(architecture).params)

    def _options(self, name: str, evaluations: int, **changes) -> dict:
        """Of any search: its start is one evaluation; the population is the paper's share of T, 512 of 20,000."""
        return {
            "iterations": evaluations - 1,
            "population": min(512, max(8, round(evaluations * 512 / 20_000))),
            "seed": self.stage.seed,
            "workers": self.stage.workers,
            "dask": self.stage.dask,
            "checkpoint": self.stage.checkpoint(name, *_SETTINGS),
            "progress": self.stage.progress,
            **changes,
        }

    def flat(self, score: Callable, name: str, evaluations: int, **changes) -> Found:
        """Plain evolution in this package's space by some score."""
        options = self._options(name, evaluations, **changes)
        return self._found(evolution.flat_evo(evolution.flat_start(), score=score, feasible=self.feasible, **options))

    def hl_evo(self) -> Found:
        """The history of stage "evolution" under this budget; of its seconds the share of these evaluations."""
        every = histories.load(self.stage.scale.name)
        history = every[every["budget"] == histories.budget_name(*self.budget)]
        seconds = store.load_manifest("evolution", self.stage.scale.name)["seconds"] * len(history) / len(every)
        return self._best(history.to_dict("records"), lambda text: Architecture.from_json(text).to_json(), seconds)

    def random(self) -> Found:
        """As many random architectures as the generator draws, each as wide as the budget allows."""
        options = self._options("random", self.generated)
        del options["population"]
        problem = evolution.network_problem(
            mutate=lambda _, __, source: evolution.filled(evolution.random_architecture(source), self.feasible),
            score=self.score,
            feasible=self.feasible,
        )
        return self._found(evolution.random_search(problem, **options))

    def zennet(self, proxy: str) -> Found:
        """ZenNAS's evolution with one of three proxies; unlike there, a network over budget uses up no evaluation."""
        data, resolution = self.data, self.data.input_shape[1]

        def feasible(net: ZenNet) -> bool:
            costs = zennet.count(net, resolution=resolution, classes=data.classes)
            return getattr(costs, self.budget[0]) <= self.budget[1] and net.depth <= MAX_LAYERS

        problem = evolution.Problem(
            start=zennet.initial(),
            mutate=lambda net, _, generator: zennet.mutate(net, generator),
            score=replace(self.score, name=proxy, make=partial(zennet.build, classes=data.classes, residual=False)),
            feasible=feasible,
            key=str,
            dump=str,
            parse=ZenNet.parse,
        )
        return self._found(evolution.evolve(problem, **self._options(f"zennet_{proxy}", self.plain)), str)

    def sequence(self) -> Found:
        """The generator's designs, best of as many candidates as it has evaluations."""
        began = time.monotonic()
        designs = self._designs(n=min(self.top, self.generated), candidates=self.generated)
        scores = [made.tcet for made in designs]
        texts = [made.architecture.to_json() for made in designs]
        return Found(texts, scores, [max(scores)] * self.generated, self.generated, time.monotonic() - began)

    def _designs(self, **options):
        images, labels = self.batch
        options |= {"images": images, "labels": labels, "classes": self.data.classes, "trained": self.trained}
        options |= {"seed": self.stage.seed, "device": self.stage.device}
        return design(**below(*self.budget), input_shape=self.data.input_shape, **options)

    def mixed(self) -> Found:
        """App. E.1: evolution with the reduced-training proxy over the cells of five networks of one macro design.

        The first is the generator's best; the others have cells drawn anew, as those that the evolution kept are few.
        """
        base = self._designs(n=10)[0]
        others = (realise(base.hl, self.trained.sampler, seed=self.stage.seed + i) for i in range(1, MIXED))
        mix = partial(mixture, (base.architecture, *others))
        scored = {"score": self.accuracy, "feasible": self.feasible}
        problem = evolution.network_problem(start=base.architecture, mutate=mix, **scored)
        try:
            result = evolution.evolve(problem, **self._options("e1", self.models, population=TRAINED_POPULATION))
        except evolution.SearchError:  # every mixture is above the budget: there is one network
            score = self.accuracy(base.architecture)["score"]
            return Found([base.architecture.to_json()], [score], [score], 1, 0.0)
        return self._found(result)

    def _found(self, result: evolution.SearchResult, dump: Callable = Architecture.to_json) -> Found:
        return self._best(result.history, dump, result.seconds)

    def _best(self, history: list[dict], dump: Callable, seconds: float) -> Found:
        """The `top` best networks of a history, no two of one key."""
        seen: dict[str, dict] = {}
        for row in sorted(history, key=lambda row: -row["score"]):
            seen.setdefault(row["key"], row)
        chosen, curve = list(seen.values())[: self.top], evolution.best_so_far(history)
        texts = [dump(row["individual"]) for row in chosen]
        return Found(texts, [row["score"] for row in chosen], curve, len(curve), seconds)


def mixture(networks: tuple[Architecture, ...], parent: Architecture, _: bool, generator) -> Architecture:
    """A mutation for networks of one macro design: one cell becomes that of another network at the same place."""
    triples = list(parent.triples)
    i, j = (torch.randint(n, (), generator=generator).item() for n in (len(triples), len(networks)))
    triples[i] = networks[j].triples[i]
    return replace(parent, triples=tuple(triples))
