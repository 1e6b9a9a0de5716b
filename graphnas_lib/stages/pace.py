"""Hours of the stages on this machine, from a few items of each kind: vectors, T-CETs, steps and training images.

Networks are stood in for by the reference cell's alpha_x, and data by digits, so that nothing needs to be there. What
is not said here (families, draws of generated cells, designs, Tables 3 and 4) takes an hour or two, or has no data.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from graphnas_lib import ccnf, datasets, gvae, proxies, sequence, store
from graphnas_lib.ccnf import CCNFConfig
from graphnas_lib.macro import HLArchitecture, HLTriple, stack_cell
from graphnas_lib.network import build, moved
from graphnas_lib.paper import SCALES, Scale
from graphnas_lib.sequence import SequenceConfig
from graphnas_lib.space import REFERENCE_CELL, sample_cells
from graphnas_lib.stages.gvae import WEIGHTS
from graphnas_lib.stages.sequence import settings
from graphnas_lib.training import RECIPES, train

ITEMS = 3  # of each kind, after one that is not timed
METHODS = 3  # of "comparison" and of "variants"
STRATEGIES = 4  # of Table 1
T_CET_SEARCHES, SEARCHES = 4, 10  # of Table 2: those that score all of its evaluations, and all


def hours(scale: str, device: str = "auto") -> dict[str, float]:
    """Stage -> estimated hours; stages that are missing here are not estimated."""
    sizes, place = SCALES[scale], store.pick_device(device)
    data = datasets.load("digits")
    vectors, searchers = store.processes(place), len(store.gpus(place)) or store.on_cpu()
    batch = data.resized(sizes.label_resolution).batch(sizes.label_batch, device=place)
    vector = _seconds(lambda: proxies.zc_vector(REFERENCE_CELL, *batch, seed=0), place) / vectors
    tcet = _tcet(sizes, data, place) / searchers
    trained = sizes.train_images * sizes.train_epochs * (STRATEGIES * sizes.table1_cells + sizes.reference_seeds)
    image1, image2 = (_image(sizes, data, recipe, place) / searchers for recipe in ("nats12", sizes.table2_recipe))
    in_table2 = SEARCHES * sizes.table2_top * 2 * sizes.table2_epochs * sizes.table2_images
    compared = METHODS * sizes.comparison_seeds * sizes.comparison_iterations
    parts = len(sizes.reach["methods"]) * sizes.reach["iterations"]
    steps = 2 * sizes.gvae_seeds * sizes.gvae_steps + 12 * sizes.gvae_ablation_steps
    seconds = {
        "cells": sizes.unlabelled * _seconds(lambda: sample_cells(50, seed=0), place) / 50,
        "labels": sizes.labelled * vector,
        "gvae": steps * _gvae_step(sizes, place) / searchers,
        "ccnf": sizes.ccnf_steps * _flow_step(sizes, place),
        "evolution": len(sizes.budgets) * sizes.iterations * tcet,
        "comparison": compared * tcet,
        "variants": compared * tcet,
        "reach": (compared / METHODS + sizes.comparison_seeds * parts) * tcet,
        "longest": sum(sizes.longest["evaluations"].values()) * tcet,
        "sequence": sizes.sequence_steps * _generator_step(sizes, place),
        "table1": trained * image1,
        "table2": T_CET_SEARCHES * sizes.table2_evaluations[0] * tcet + in_table2 * image2,
        "validation": 2 * sizes.validation_networks * vector,
    }
    return {name: value / 3600 for name, value in seconds.items()}


def _seconds(item: Callable[[], object], place: torch.device) -> float:
    """Of one item, the device's work included."""
    item()
    began = time.perf_counter()
    for _ in range(ITEMS):
        item()
    if place.type == "cuda":
        torch.cuda.synchronize(place)
    return (time.perf_counter() - began) / ITEMS


def _tcet(sizes: Scale, data: datasets.Dataset, place: torch.device) -> float:
    images, labels = data.resized(sizes.tcet_resolution).batch(sizes.tcet_batch, device=place)
    network = stack_cell(REFERENCE_CELL)

    def item() -> float:
        return proxies.tcet(moved(build(network, input_shape=images.shape[1:], seed=0), place), images, labels)

    return _seconds(item, place)


def _image(sizes: Scale, data: datasets.Dataset, recipe: str, place: torch.device) -> float:
    """Seconds of training on one image."""
    few = min(2 * RECIPES[recipe].batch_size, data.size("train"))
    shown = data.resized(sizes.train_resolution).subset(few, 8)
    network = stack_cell(REFERENCE_CELL, width=sizes.train_width, repeats=sizes.train_repeats)
    model = build(network, input_shape=shown.input_shape, seed=0)
    return _seconds(lambda: train(model, shown, recipe, seed=0, device=place, epochs=1, test=False), place) / few


def _gvae_step(sizes: Scale, place: torch.device) -> float:
    cells = sample_cells(2 * sizes.gvae_batch, seed=0)
    width = {"hidden": sizes.gvae_hidden, "latent_dim": sizes.latent_dim, "decoder_hidden": max(512, sizes.gvae_hidden)}
    options = {"config": gvae.GVAEConfig(**width, **WEIGHTS), "batch_size": sizes.gvae_batch, "device": place}
    zc = torch.randn(len(cells), 4)
    return [gvae.train(cells, cells, zc, steps=ITEMS, **options) for _ in range(2)][1][1].seconds / ITEMS


def _flow_step(sizes: Scale, place: torch.device) -> float:
    latent = torch.randn(sizes.ccnf_batch, sizes.latent_dim, device=place)
    corpus = (latent, torch.zeros_like(latent), torch.randn(sizes.ccnf_batch, 4, device=place))
    config = CCNFConfig(latent_dim=sizes.latent_dim, hidden=sizes.ccnf_hidden, layers=sizes.ccnf_layers)
    options = {"config": config, "objective": "fm", "batch_size": sizes.ccnf_batch, "seed": 0, "device": place}
    return [ccnf.train(corpus, steps=4 * ITEMS, **options) for _ in range(2)][1][1].seconds / (4 * ITEMS)


def _generator_step(sizes: Scale, place: torch.device) -> float:
    designs = [HLArchitecture((HLTriple(0, 8 * (1 + i), 1),) * 15) for i in range(8)]
    config: SequenceConfig = settings(sizes, n_families=sizes.n_clusters, input_shape=(3, 32, 32))[0]
    options = {"config": config, "steps": 2 * ITEMS, "seed": 0, "batch_size": sizes.sequence_batch, "device": place}
    _, log = sequence.train(designs, torch.rand(8, 4, dtype=torch.float64) * 1e6 + 1, **options)
    return log.seconds / (2 * ITEMS)
