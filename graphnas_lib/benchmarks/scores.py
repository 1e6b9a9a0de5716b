"""Scores at initialisation of every network that the public tables trained: each once, however often it stands there.

Cells of NATS-Bench are scored on the skeleton that was trained and on the paper's alpha_x (Eq. 1-2); networks of
NAS-Bench-Macro and TransNAS-Bench-101's macro space as they are. One batch of images serves all; AZ-NAS and VKDNW draw
their own inputs. Accuracies take no part: a rule of selection sees these scores alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from graphnas_lib import proxies, store
from graphnas_lib.benchmarks import nats, tables
from graphnas_lib.clusters import ZC_NAMES
from graphnas_lib.datasets import MissingDataError
from graphnas_lib.network import build
from graphnas_lib.proxies import ProxyError
from graphnas_lib.store import single_threaded

BATCH = 16  # images, and random inputs of AZ-NAS and VKDNW; ours: T-CET and AZ-NAS rank as with 64 (Spearman 0.95-1)
NETWORKS = {"alpha_x": 6_740, "nats": 6_740, "nb_macro": 3_969, "tnb_macro": 3_256}  # distinct ones of each kind
KINDS = tuple(NETWORKS)
PROXIES = (*ZC_NAMES, "tcet", "tcet_none", "tcet_train", "layers")
SPECTRA = ("az_expressivity", "az_progressivity", "az_trainability", "vkdnw_entropy")
TASKS = {
    "nats": (*tables.NATS_TASKS.values(), *tables.NB360_TASKS.values()),
    "tnb_micro": tables.TNB_TASKS,
    "nb_macro": ("cifar10",),
    "tnb_macro": tables.TNB_TASKS,
}
HUNDREDTHS = ("darcy", "room_layout", "normal", "autoencoder")  # tasks whose tables hold fractions, not points
ALPHA = tuple(f"alpha_{name}" for name in ZC_NAMES)  # the ZC vector on alpha_x (Eq. 1)
COLUMNS = ("kind", "arch", *PROXIES, "width", *SPECTRA, "seconds", "error")


def network(kind: str, arch: str, *, side: int, classes: int, seed: int) -> nn.Module:
    """One network of a benchmark, initialised reproducibly, for images of `side` x `side` in three channels."""
    if kind in nats.SKELETONS:
        model = nats.skeleton(arch, kind, classes=classes, seed=seed)
    else:
        make = tables.nb_macro_architecture if kind == "nb_macro" else tables.tnb_macro_architecture
        model = build(make(arch), input_shape=(3, side, side), classes=classes, seed=seed)
    return model.to(memory_format=torch.channels_last)


def scored(part: str, kind: str, arch: str, images: Tensor, labels: Tensor, *, seed: int, classes: int) -> dict:
    """One part of a network's scores, and error: NaN and the reason where a proxy fails. One thread.

    Args:
        part: "proxies" for `PROXIES`, "spectra" for `SPECTRA`.
        kind: one of `KINDS`. On "alpha_x" the whole batch gives the ZC vector, as the paper has it; elsewhere the first
            `BATCH` images give T-CET too.
        images: (B, 3, H, W), normalised, on the device that computes.
        seed: of the initial weights and of random inputs.
    """
    names = PROXIES if part == "proxies" else SPECTRA
    try:
        with single_threaded():
            model = network(kind, arch, side=images.shape[-1], classes=classes, seed=seed).to(images.device)
            if part == "spectra":
                shape = (BATCH, *images.shape[1:])
                terms = proxies.az_terms(model, shape, seed=seed)
                return terms | {"vkdnw_entropy": proxies.vkdnw_entropy(model, shape, seed=seed), "error": ""}
            layers = float(len(weighted_layers(model)))
            taken, batch = (ZC_NAMES, len(images)) if kind == "alpha_x" else (PROXIES[:-1], BATCH)
            found = proxies.score(model, images[:batch], labels[:batch], taken, seed=seed)
            return dict.fromkeys(names, float("nan")) | found | {"layers": layers, "error": ""}
    except ProxyError as reason:
        return dict.fromkeys(names, float("nan")) | {"error": str(reason)}


def width(kind: str, arch: str) -> float:
    """`mean_width` of a network of a benchmark, which is built without its weights."""
    with torch.device("meta"):
        return mean_width(network(kind, arch, side=32, classes=10, seed=0))


def weighted_layers(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    """Convolutions and linear layers: what a training has to pass through."""
    return [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]


def mean_width(model: nn.Module) -> float:
    """Geometric mean over layers of what one output reads, c_in k^2: layers over it is DeepMAD's ratio (CVPR 2023)."""
    read = [module.weight[0].numel() for module in weighted_layers(model)]
    return math.exp(sum(map(math.log, read)) / len(read))


def score_networks(
    networks: Sequence[tuple[str, str]],
    images: Tensor,
    labels: Tensor,
    *,
    seed: int,
    out: Path | str,
    classes: int = 10,
    device: torch.device | None = None,
    **how: Any,
) -> pd.DataFrame:
    """Scores of (kind, arch) pairs, in parallel, each part kept at once; a killed run goes on.

    Arguments are those of `proxies.label`; `out` keeps one JSON line a part.

    Returns:
        `COLUMNS`, a row a network in the order given; spectra are NaN on "alpha_x", whose accuracies nobody knows, and
        so are seconds where a part was taken before they were noted.

    Raises:
        ValueError: `out` holds rows of other settings.
        RuntimeError: processes were killed; what was finished is kept, and the same call goes on from there.
    """
    options = {"seed": seed, "classes": classes}
    batch = images.cpu(), labels.cpu()  # a CUDA tensor cannot go to another process
    settings = {"proxies": PROXIES, "spectra": SPECTRA, "part": BATCH, "batch": proxies.batch_name(*batch)}
    device = device or images.device
    journal = store.Journal(out, options | settings | {"device": device.type})
    job = partial(_scored, batch=batch, device=device, **options)
    jobs = {f"{part} {kind} {arch}": partial(job, part, kind, arch) for part, kind, arch in _parts(networks)}
    store.collect(jobs, journal, **({"progress": True} | how), desc="scores", unit="part")
    rows = []
    for kind, arch in networks:
        parts = [journal.results.get(f"{part} {kind} {arch}", {}) for part in ("spectra", "proxies")]
        errors = dict.fromkeys(filter(None, (part.get("error") for part in parts)))
        shape = {"width": width(kind, arch)} if kind != "alpha_x" else {}
        took = {"seconds": sum(part.get("seconds", float("nan")) for part in parts if part)}
        rows.append({"kind": kind, "arch": arch, **parts[0], **parts[1], **shape, **took, "error": "; ".join(errors)})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _scored(part: str, kind: str, arch: str, *, batch: tuple[Tensor, Tensor], device, **options) -> dict:
    images, labels = (tensor.to(device) for tensor in batch)
    began = time.perf_counter()
    found = scored(part, kind, arch, images, labels, **options)
    return found | {"seconds": round(time.perf_counter() - began, 3)}


def _parts(networks: Sequence[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """(part, kind, arch) in the order of work: kinds keep pace with each other."""
    places = []
    for kind in KINDS:
        archs = [arch for of, arch in networks if of == kind]
        for i, arch in enumerate(archs):
            share = i / NETWORKS[kind]
            places.append((share, "proxies", kind, arch))
            places += [(share, "spectra", kind, arch)] * (kind != "alpha_x")
    return [tuple(place[1:]) for place in sorted(places)]


def every_network(*, share: float | Mapping[str, float] = 1.0, seed: int = 0) -> list[tuple[str, str]]:
    """(kind, arch) of each distinct network, by kind and then in a random order: any first part is a fair sample.

    Args:
        share: of each kind, or one a kind; at least one network. A larger share begins with the same ones.

    Raises:
        MissingDataError: a table is not at hand.
    """
    archs = {kind: distinct_networks("nats" if kind == "alpha_x" else kind)["arch"] for kind in KINDS}
    chosen = ((kind, every.sample(frac=1, random_state=seed)) for kind, every in archs.items())
    shares = dict.fromkeys(KINDS, share) if isinstance(share, int | float) else share
    return [(kind, arch) for kind, every in chosen for arch in every[: math.ceil(shares[kind] * len(every))]]


def distinct_networks(table: str) -> pd.DataFrame:
    """The rows of one of `TASKS`, each network once.

    Raises:
        MissingDataError: the table is not at hand.
    """
    if table in ("nats", "tnb_micro"):
        return tables.distinct(tables.cells())
    rows = tables.nb_macro_networks() if table == "nb_macro" else tables.tnb_macro_networks()
    return tables.distinct(rows.drop(columns=["params", "macs"], errors="ignore"))


# ---- beside true accuracies


def networks(table: str, scores: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Networks of one of `TASKS` that have every score: arch, copies, accuracies in points, scores; index: the key.

    Args:
        table: "nats" and "tnb_micro" are cells, whose ZC vector on alpha_x is in `ALPHA`.
        scores: kind -> rows of `score_networks`.
    """
    known = distinct_networks(table)
    if table in ("nats", "tnb_micro"):
        alpha = _by_arch(scores["alpha_x"])[list(ZC_NAMES)].set_axis(list(ALPHA), axis=1)
        known = known.join(_by_arch(scores["nats"]), on="arch", how="inner").join(alpha, on="arch", how="inner")
    else:
        known = known.join(_by_arch(scores[table]), on="arch", how="inner")
    tasks = [task for task in TASKS[table] if task in known]
    if not tasks:
        raise MissingDataError(f"No accuracies of the table {table!r} are at hand; $GRAPHNAS_DATA must hold its file.")
    known = known.assign(**{task: 100 * known[task] for task in HUNDREDTHS if task in known})
    return known[known[tasks].notna().any(axis=1)]


def _by_arch(rows: pd.DataFrame) -> pd.DataFrame:
    """Scores by arch, of networks that were scored."""
    known = rows[(rows["error"] == "") & rows["params"].notna()].set_index("arch")
    return known.drop(columns=["kind", "seconds", "error"])
