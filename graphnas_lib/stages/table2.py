"""Stage "table2": every search of Table 2 and App. E under one budget and one training recipe."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd
import torch
from torch import nn

from graphnas_lib import artifacts, datasets, evolution, network, zennet
from graphnas_lib.archives import MissingDataError
from graphnas_lib.datasets import Dataset
from graphnas_lib.design import design
from graphnas_lib.macro import Architecture, HLArchitecture
from graphnas_lib.scores import ProxyScore, TrainedScore
from graphnas_lib.search import SearchResult, best_so_far, evolve, random_search
from graphnas_lib.sequence import SequenceGenerator
from graphnas_lib.stages import Stage, rows
from graphnas_lib.synonyms import CellSampler, realise
from graphnas_lib.training import train
from graphnas_lib.zennet import ZenNet

MAX_LAYERS = 18  # of ZenNet for about 1M parameters (ZenNAS's released search)
TRAINED_MODELS = {"smoke": 2, "lite": 16, "paper": 40}  # paper: App. E.1
TRAINED_POPULATION = 8  # paper: App. E.1
MIXED = 5  # paper: App. E.1, generated networks whose cells are mixed
RECIPE = {"smoke": "nats12", "lite": "nats12", "paper": "zennas_cifar"}
COLUMNS = {"cifar10": "C-10", "digits": "C-10", "cifar100": "C-100"}


@dataclass(frozen=True)
class Found:
    """What one search gave: its best networks as text, their scores, and what it cost."""

    individuals: list[str]  # a ZenNet string, or the JSON of an Architecture
    scores: list[float]
    curve: list[float]
    evaluations: int
    seconds: float


def make(stage: Stage) -> dict:
    """Search once per method on the first data set's images; train the best networks on every data set at hand."""
    scale = stage.scale
    scoring = stage.dataset(resolution=scale.tcet_resolution)
    batch = scoring.batch(scale.tcet_batch, device=stage.device)
    sampler, generator = CellSampler.load(scale.name, device=stage.device), SequenceGenerator.load(scale.name)
    searches = _searches(stage, scoring, batch, sampler, generator)
    found: dict[str, Found] = {}
    for name, search in searches.items():
        began = time.monotonic()
        found[name] = replace(search(), seconds=time.monotonic() - began)
    jobs, facts = {}, {}
    for data in _data(stage):
        facts[data.name] = {"source": data.source, "n_train": data.size("train"), "n_test": data.size("test")}
        for name, result in found.items():
            jobs[f"{name} | {data.name}"] = partial(
                measure, name, result, data, scale.train_epochs, RECIPE[scale.name], stage.seed, stage.device.type
            )
    table = pd.DataFrame(rows.collect(jobs, stage.checkpoint(), device=stage.device, progress=stage.progress))
    curves = pd.DataFrame(
        [
            {"method": name, "evaluation": i, "best": value}
            for name, result in found.items()
            for i, value in enumerate(result.curve, start=1)
        ]
    )
    stage.config.update(datasets=facts, budget=scale.table2_budget, top=scale.table2_top, recipe=RECIPE[scale.name])
    stage.config.update(epochs=scale.train_epochs, scored_on=scoring.source, batch=scale.tcet_batch)
    return {"table2_rows.csv": table, "table2_curves.csv": curves}


def _data(stage: Stage) -> list[Dataset]:
    """CIFAR-10 or digits, and CIFAR-100 where it is there, cut to the scale."""
    scale = stage.scale
    options = {"resolution": scale.train_resolution, "n_train": scale.train_images, "n_test": scale.test_images}
    found = [datasets.load("auto", **options)]
    try:
        found.append(datasets.load("cifar100", **options))
    except MissingDataError as error:
        stage.config["C-100"] = str(error)
    return found


# ---- the searches


def _searches(stage: Stage, data: Dataset, batch, sampler, generator) -> dict[str, Callable[[], Found]]:
    scale, budget = stage.scale, stage.scale.table2_budget
    plain, hl, generated = scale.table2_evaluations
    costs = partial(network.count, input_shape=data.input_shape, classes=data.classes)
    feasible = evolution.budget(costs, params=budget, resolution=scale.tcet_resolution)
    score = ProxyScore(*batch, data.classes, seed=stage.seed)
    trained = TrainedScore(
        data.subset(scale.train_images).split_validation(0.25, seed=stage.seed),
        epochs=1 if scale.name == "smoke" else None,
        seed=stage.seed,
        device=stage.device.type,
    )
    options = {"population": scale.population, "seed": stage.seed, "progress": stage.progress}
    families = sampler.families.n_clusters
    generate = partial(sampler.generate_cell, seed=stage.seed)
    models = TRAINED_MODELS[scale.name]

    def zen(name: str) -> Found:
        return _zennet(name, stage, batch, data, plain)

    def flat() -> Found:
        result = evolution.flat_evo(
            evolution.flat_start(),
            score=score,
            feasible=feasible,
            iterations=plain,
            checkpoint=stage.checkpoint("flat"),
            **options,
        )
        return _found(result, scale.table2_top)

    def hl_evo() -> Found:
        result = evolution.hl_evo(
            evolution.hl_start(generate, families),
            score=score,
            feasible=feasible,
            generate_cell=generate,
            n_families=families,
            iterations=hl,
            checkpoint=stage.checkpoint("hl"),
            **options,
        )
        return _found(result, scale.table2_top, lambda individual: individual.architecture.to_json())

    def sequence() -> Found:
        designs = design(
            params=budget,
            input_shape=data.input_shape,
            classes=data.classes,
            n=min(scale.table2_top, generated),
            candidates=generated,
            images=batch[0],
            labels=batch[1],
            seed=stage.seed,
            device=stage.device.type,
            generator=generator,
            sampler=sampler,
        )
        scores = [d.tcet for d in designs]
        return Found([d.architecture.to_json() for d in designs], scores, [max(scores)] * generated, generated, 0.0)

    def random() -> Found:
        return _random(feasible, score, generated, stage)

    def params_only() -> Found:
        size = partial(_size, costs)
        result = evolution.flat_evo(evolution.flat_start(), score=size, feasible=feasible, iterations=plain, **options)
        return _found(result, scale.table2_top)

    def mixed() -> Found:
        return _mixed(sampler, generator, budget, data, trained, feasible, models, stage)

    def trained_flat() -> Found:
        small = {**options, "population": TRAINED_POPULATION}
        result = evolution.flat_evo(
            evolution.flat_start(),
            score=trained,
            feasible=feasible,
            iterations=models - 1,
            checkpoint=stage.checkpoint("e2"),
            **small,
        )
        return _found(result, 1)

    return {
        "ZenNet: Evo(Zen)": partial(zen, "zen"),
        "ZenNet: Evo(ZiCo)": partial(zen, "zico"),
        "ZenNet: Evo(T-CET)": partial(zen, "tcet"),
        "GraphNet: Evo(T-CET)": flat,
        "GraphNet: HL-Evo(T-CET)+CCNF": hl_evo,
        "GraphNet: SG+CCNF": sequence,
        "GraphNet: random in budget": random,
        "GraphNet: Evo(parameters)": params_only,
        "GraphNet: SG+CCNF, reduced training (App. E.1)": mixed,
        "GraphNet: Evo(reduced training) (App. E.2)": trained_flat,
    }


def _size(costs, architecture: Architecture) -> float:
    """Parameters as a score: what every proxy has to beat."""
    return float(costs(architecture).params)


@dataclass(frozen=True)
class _ZenMaker:
    """ZenNet structure -> module as ZenNAS scores it: without residual links."""

    classes: int

    def __call__(self, net: ZenNet) -> nn.Module:
        return zennet.build(net, classes=self.classes, residual=False)


def _zennet(proxy: str, stage: Stage, batch, data: Dataset, iterations: int) -> Found:
    """ZenNAS's evolution with one of three proxies; unlike there, a network over budget uses up no evaluation."""
    resolution, budget = data.input_shape[1], stage.scale.table2_budget

    def feasible(net: ZenNet) -> bool:
        costs = zennet.count(net, resolution=resolution, classes=data.classes, convention="paper")
        return costs.params <= budget and net.depth <= MAX_LAYERS

    result = evolve(
        zennet.initial("cifar"),
        mutate=lambda net, _, generator: zennet.mutate(net, generator, space="cifar"),
        score=ProxyScore(*batch, data.classes, name=proxy, make=_ZenMaker(data.classes), seed=stage.seed),
        feasible=feasible,
        iterations=iterations,
        population=stage.scale.population,
        seed=stage.seed,
        key=str,
        checkpoint=stage.checkpoint(f"zennet_{proxy}"),
        dump=str,
        parse=ZenNet.parse,
        progress=stage.progress,
    )
    return _found(result, stage.scale.table2_top, str)


def _random(feasible, score, evaluations: int, stage: Stage) -> Found:
    """Random architectures as wide as the budget allows, the best by T-CET of as many as the generator's."""
    result = random_search(
        lambda source: evolution.filled(evolution.random_architecture(source), feasible),
        score=score,
        feasible=feasible,
        iterations=evaluations - 1,
        seed=stage.seed,
        key=Architecture.key,
    )
    return _found(result, stage.scale.table2_top)


def _mixed(sampler, generator, budget, data, score, feasible, models: int, stage: Stage) -> Found:
    """App. E.1: evolution with the reduced-training proxy over the cells of five networks of one macro sequence."""
    base = design(
        params=budget, input_shape=data.input_shape, classes=data.classes, n=1, seed=stage.seed, generator=generator,
        sampler=sampler, device=stage.device.type,
    )[0]  # fmt: skip
    hl: HLArchitecture = base.hl
    networks = [base.architecture, *(realise(hl, sampler, seed=stage.seed + i) for i in range(1, MIXED))]

    def mix(_parent, _exploration, source: torch.Generator) -> Architecture:
        triples = list(_parent.triples)
        i = torch.randint(len(triples), (), generator=source).item()
        j = torch.randint(MIXED, (), generator=source).item()
        triples[i] = networks[j].triples[i]
        return replace(_parent, triples=tuple(triples))

    try:
        result = evolve(
            base.architecture,
            mutate=mix,
            score=score,
            feasible=lambda a: evolution_size(a, data) <= 1.05 * budget,
            iterations=models - 1,
            population=TRAINED_POPULATION,
            seed=stage.seed,
            key=Architecture.key,
            checkpoint=stage.checkpoint("e1"),
            dump=Architecture.to_json,
            parse=Architecture.from_json,
            progress=stage.progress,
        )
    except evolution.SearchError:  # one cell a family: nothing to mix
        return Found([base.architecture.to_json()], [score(base.architecture)["score"]], [], 1, 0.0)
    return _found(result, 1)


def evolution_size(architecture: Architecture, data: Dataset) -> int:
    """Parameters of an architecture for this data set."""
    return network.count(architecture, input_shape=data.input_shape, classes=data.classes).params


def _found(result: SearchResult, top: int, dump: Callable = Architecture.to_json) -> Found:
    """The `top` distinct best networks of a history."""
    ranked, seen = sorted(result.history, key=lambda row: -row["score"]), {}
    for row in ranked:
        seen.setdefault(row["key"], row)
    chosen = list(seen.values())[:top]
    curve = best_so_far(result.history)
    return Found([dump(row["individual"]) for row in chosen], [row["score"] for row in chosen], curve, len(curve), 0.0)


# ---- training


def measure(method: str, found: Found, data: Dataset, epochs: int, recipe: str, seed: int, device: str) -> dict:
    """One row: the best of the found networks on a validation split (one needs none), its test accuracy read once."""
    options = {"seed": seed, "device": device, "epochs": epochs, "batch_size": min(256, data.size("train") // 8)}
    chosen, validation = 0, None
    if len(found.individuals) > 1:
        held = data.split_validation(0.1, seed=seed)
        trials = [train(rebuild(text, held, seed), held, recipe, **options).accuracy for text in found.individuals]
        chosen = max(range(len(trials)), key=lambda i: -1.0 if trials[i] is None else trials[i])
        validation = trials[chosen]
    text = found.individuals[chosen]
    result = train(rebuild(text, data, seed), data, recipe, **options)
    costs = costs_of(text, data)
    return {
        "method": method,
        "dataset": data.name,
        "accuracy": result.accuracy,
        "validation": validation,
        "score": found.scores[chosen],
        "evaluations": found.evaluations,
        "params": costs.params,
        "macs": costs.macs,
        "flops": costs.flops,
        "search_seconds": round(found.seconds, 2),
        "training_seconds": round(result.seconds, 2),
        "seed": seed,
        "network": text,
    }


def rebuild(text: str, data: Dataset, seed: int) -> nn.Module:
    """The trainable network of a stored individual, with residual links."""
    if text.startswith("Super"):
        return zennet.build(ZenNet.parse(text), classes=data.classes, seed=seed)
    architecture = Architecture.from_json(text)
    return network.build(architecture, input_shape=data.input_shape, classes=data.classes, seed=seed)


def costs_of(text: str, data: Dataset) -> network.Costs:
    """Costs in this package's units, for either space."""
    if text.startswith("Super"):
        return zennet.count(
            ZenNet.parse(text), resolution=data.input_shape[1], classes=data.classes, convention="paper"
        )
    return network.count(Architecture.from_json(text), input_shape=data.input_shape, classes=data.classes)


# ---- reading


def load(scale: str) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    """(trained rows, best-so-far curves, the stage's facts)."""
    files = (artifacts.load("table2", name, scale) for name in ("table2_rows.csv", "table2_curves.csv"))
    return *files, artifacts.load_manifest("table2", scale)["config"]


def summary(table: pd.DataFrame, facts: dict) -> dict[str, dict[str, dict]]:
    """Our Table 2, accuracy by data set; costs in seconds stand in the rows themselves."""
    ours: dict[str, dict[str, dict]] = {}
    for line in table.to_dict("records"):
        source = facts["datasets"][line["dataset"]]
        row = ours.setdefault(line["method"], {"Evals.": {"value": int(line["evaluations"]), "n": 1}})
        note = f"{source['source']}; {source['n_train']} training images, {facts['epochs']} epochs"
        row[f"{COLUMNS[line['dataset']]} Acc. (%)"] = {"value": line["accuracy"], "n": source["n_test"], "note": note}
        cost = line["search_seconds"] / 3600
        row[f"{COLUMNS[line['dataset']]} Cost"] = {"value": cost, "n": 1, "note": "hours of search on this machine"}
    return ours
