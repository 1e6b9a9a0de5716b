"""What a run on a GPU needs of every stage, model and training: tensors on one device, and that the one it was given.

Simulated (`simulated_cuda`), so that a machine without a GPU tells. The whole road is `slow`.
"""

import os
from dataclasses import replace

import pytest
import simulated_cuda as simulation
import torch
from conftest import pytest_runtest_setup
from simulated_cuda import COUNTS, launches, simulated_cuda
from torch import nn

from graphnas_lib import ccnf, gvae, paper, proxies, sequence, stages
from graphnas_lib.ccnf import CCNF, CCNFConfig
from graphnas_lib.datasets import load as load_data
from graphnas_lib.evolution.evaluation import Evaluator
from graphnas_lib.macro import HLArchitecture, HLTriple, stack_cell
from graphnas_lib.network import build, moved
from graphnas_lib.proxies.measures import layer_ratios
from graphnas_lib.sequence import SequenceGenerator
from graphnas_lib.space import REFERENCE_CELL, sample_cells
from graphnas_lib.stages import Stage, labels
from graphnas_lib.stages.scores import ProxyScore
from graphnas_lib.store import gpus, pick_device, processes
from graphnas_lib.store.jobs import take_gpu
from graphnas_lib.training import RECIPES, train

SECOND = 1  # the device in use is the second of two, so that a device without its number is found

MICRO = {
    **{"unlabelled": 200, "labelled": 60, "labels_held_out": 42, "n_clusters": 2, "cluster_grid": (1, 2)},
    **{"gvae_hidden": 16, "latent_dim": 16, "gvae_steps": 20, "gvae_batch": 16, "gvae_ablation_steps": 2},
    **{"measured_cells": 40, "cycle_cells": 1, "ccnf_hidden": 16, "ccnf_layers": 2, "ccnf_steps": 4},
    **{"ccnf_nll_steps": 1, "ccnf_batch": 16, "likelihood_latents": 2, "conditions": 1, "condition_cells": 1},
    **{"reference_cells": 1, "family_decoded": 4, "solved_cells": 4, "iterations": 4, "population": 2},
    "between": {"budgets": (("params", 2e5),), "starts": 1, "iterations": 2, "asked": 1},
    "reach": {"budget": ("flops", 20e6), "iterations": 2, "cells": 2, "methods": ("HL-Evo, far", "Random")},
    "longest": {"budget": ("flops", 20e6), "cells": 2, "evaluations": {"Random, pooled": 2, "HL-Evo, far": 2}},
    **{"comparison_iterations": 2, "budgets": (("params", 3e5),), "table3_budgets": (18e6,)},
    **{"sequence_hidden": 16, "sequence_layers": 1, "sequence_heads": 2, "sequence_steps": 4, "sequence_batch": 8},
    **{"table1_cells": 1, "table1_decodes": 4, "reference_seeds": 1, "train_images": 64, "test_images": 64},
    **{"table2_evaluations": (2, 2), "table2_top": 1, "table2_images": 64, "reduced_training": (2, 1)},
    **{
        "table4_samples": 32,
        "table4_budget": ("params", 1e4),
        "validation_networks": 2,
        "benchmark_share": dict.fromkeys(("alpha_x", "nats", "nb_macro", "tnb_macro"), 1e-9),
        "requests": 4,
        "best_of": 1,
    },
}


# ---- the device itself


def test_the_simulated_device_refuses_what_cuda_refuses():
    with simulated_cuda(SECOND) as device:
        x, y = torch.ones(3, device=device), torch.ones(3)
        assert torch.cuda.is_available() and x.device == device and x.is_cuda and not y.is_cuda
        assert y.to(x.double()).dtype == torch.float64 and y.to(x).device == device
        assert (x + x).cpu().tolist() == [2, 2, 2] and (x * torch.tensor(2.0)).sum().item() == 6
        for refused in (
            lambda: x + y,
            lambda: y[torch.tensor([0], device=device)],
            lambda: torch.randn(2, device=device, generator=torch.Generator()),
            lambda: torch.randn(2, generator=torch.Generator(device)),
            lambda: torch.ones(3, device="cuda"),  # which is cuda:0
            lambda: y.to("cuda:0"),
        ):
            with pytest.raises(RuntimeError, match="device"):
                refused()
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
        weight = torch.ones(3, device=device, requires_grad=True)
        (weight * x).sum().backward()
        assert weight.grad.device == device and torch.equal(weight.grad.cpu(), y)
    assert not torch.cuda.is_available() and torch.ones(2).device.type == "cpu"


def test_no_other_test_sees_a_real_device(request, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # as on a machine with one
    pytest_runtest_setup(request.node)
    assert not torch.cuda.is_available() and os.environ["CUDA_VISIBLE_DEVICES"] == ""


# ---- models and trainings


def test_the_flow_trains_samples_and_judges_on_the_device():
    generator = torch.Generator().manual_seed(0)
    latent, zc = torch.randn(32, 8, generator=generator), torch.randn(32, 4, generator=generator)
    config = CCNFConfig(latent_dim=8, hidden=8, layers=1, method="rk4", steps=1)
    with simulated_cuda(SECOND) as device:
        corpus = (latent.to(device), torch.zeros(32, 8, device=device) - 4, zc.to(device))
        options = {"batch_size": 8, "seed": 0, "device": device}
        flow, _ = ccnf.train(corpus, config=config, objective="fm", steps=2, **options)
        nll, _ = ccnf.train(corpus, objective="nll", start=flow, steps=1, **options)
        assert nll.sample(zc).device == device
        assert nll.log_prob(latent, zc, trace="exact", method="rk4", steps=1).device == device


def test_the_encoder_trains_and_decodes_on_the_device():
    cells = sample_cells(32, seed=0)
    config = gvae.GVAEConfig(hidden=16, latent_dim=16, decoder_hidden=16)
    with simulated_cuda(SECOND) as device:
        model, _ = gvae.train(cells, cells[:16], torch.randn(16, 4), config=config, steps=2, device=device)
        assert model.device == device and len(model.decode(model.encode(cells))) == 32


def test_the_generator_trains_and_writes_on_the_device():
    designs = [HLArchitecture((HLTriple(i % 4, 8 * (1 + i), 1),)) for i in range(8)]
    conditions = torch.rand(8, 4, dtype=torch.float64) * 1e6 + 1
    config = sequence.SequenceConfig.small(n_families=4, hidden=16, layers=1, heads=2, warmup=1)
    with simulated_cuda(SECOND) as device:
        generator, _ = sequence.train(designs, conditions, config=config, steps=2, seed=0, batch_size=4, device=device)
        assert generator.device == device and len(generator.generate(params=5e5, seed=0).triples) >= 1


@pytest.mark.parametrize("recipe", ["nats12", "zennas_cifar", "zennas_imagenet", "reduced50"])
def test_every_recipe_trains_and_tests_on_the_device(recipe):
    data = load_data("digits", resolution=16, n_train=32, n_test=16)
    model = build(stack_cell(REFERENCE_CELL, width=8, repeats=1), input_shape=data.input_shape, seed=0)
    with simulated_cuda(SECOND) as device:
        result = train(model, data, RECIPES[recipe], seed=0, device=device, epochs=1, batch_size=16)
        assert next(model.parameters()).device == device and result.accuracy is not None


def test_a_graphed_training_equals_an_eager_one(monkeypatch):
    """The passes that warm a graph up leave no trace in the running means."""
    data = load_data("digits", resolution=8, n_train=32, n_test=16)

    def trained() -> tuple[float, dict]:
        model = build(stack_cell(REFERENCE_CELL, width=8, repeats=1), input_shape=data.input_shape, seed=0)
        with simulated_cuda(SECOND) as device:
            result = train(model, data, "nats12", seed=0, device=device, epochs=2, batch_size=16)
            assert "forward" not in vars(model)
            return result.accuracy, {name: tensor.cpu() for name, tensor in model.state_dict().items()}

    eager, captures = trained(), []
    monkeypatch.setenv("GRAPHNAS_GRAPHED", "1")
    capture = simulation._graphed
    monkeypatch.setattr(simulation, "_graphed", lambda *given: captures.append(1) or capture(*given))
    graphed = trained()
    assert captures == [1] and graphed[0] == eager[0]
    assert all(torch.equal(graphed[1][name], tensor) for name, tensor in eager[1].items())


# ---- scores


def test_a_network_is_moved_in_one_copy_a_type():
    model, own = (build(stack_cell(REFERENCE_CELL, width=8, repeats=1), seed=0) for _ in range(2))
    with simulated_cuda(SECOND) as device:
        COUNTS.clear()
        moved(model, device)
        assert launches() == 2  # float32 and int64
        for name, tensor in model.state_dict().items():
            assert tensor.device == device and torch.equal(tensor.cpu(), own.state_dict()[name]), name
            assert tensor.dim() != 4 or tensor.is_contiguous(memory_format=torch.channels_last)
            assert tensor.storage_offset() % 64 == 0


def test_a_label_takes_few_launches():
    """Of 28 convolutions: passes through the network take the most; codes layer by layer and so on took 1,186."""
    images, labels = load_data("digits", resolution=8).batch(8)
    with simulated_cuda(SECOND) as device:
        batch = images.to(device), labels.to(device)
        COUNTS.clear()
        proxies.zc_vector(REFERENCE_CELL, *batch, seed=0, repeats=1)
        assert launches() <= 500


def test_ratios_of_all_layers_at_once_are_those_of_each():
    generator = torch.Generator().manual_seed(0)
    constant = torch.full((12,), 0.1, dtype=torch.float64)  # its deviation is rounding, not 0
    layers = {"constant": constant, "single": constant[:1], "none": constant * 0}
    layers |= {str(n): torch.rand(n, dtype=torch.float64, generator=generator) for n in (2, 9, 1_000)}
    expected = layer_ratios(layers)
    with simulated_cuda(SECOND) as device:
        COUNTS.clear()
        found = layer_ratios({name: saliency.to(device) for name, saliency in layers.items()})
        assert launches() < 30
    assert found == pytest.approx(expected, rel=1e-12) and found["constant"] == pytest.approx(1.2)


def test_workers_take_images_to_their_own_device():
    images, targets = load_data("digits", resolution=8).batch(8)
    score = ProxyScore(images, targets, 10, extra=("naswot",))
    network = stack_cell(REFERENCE_CELL, width=8, repeats=1)
    expected = score(network)
    with simulated_cuda(SECOND) as device:
        COUNTS.clear()
        assert replace(score, device=device)(network) == pytest.approx(expected, rel=1e-3) and COUNTS.total() > 100


# ---- the road


def home_of(folder, patch: pytest.MonkeyPatch, **sizes) -> None:
    """Artifacts of a micro smoke scale go to `folder`; jobs run in this process."""
    patch.setenv("GRAPHNAS_HOME", str(folder))
    patch.setitem(paper.SCALES, "smoke", replace(paper.SCALES["smoke"], **{**MICRO, **sizes}))
    patch.setattr(labels, "processes", lambda device: 1)


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """A folder whose stages are made one after another."""
    with pytest.MonkeyPatch.context() as patch:
        home_of(folder := tmp_path_factory.mktemp("road"), patch)
        patch.setattr(stages.table3, "BUDGETS", stages.table3.BUDGETS[:1])
        patch.setattr(stages.table3, "SEARCHES", 1)
        for name in ("cells", "labels", "families"):  # every launch is slow here, and the others score cells too
            stages.run(name, "smoke", device="cpu", progress=False)
        yield folder


ON_THE_CPU = {"cells", "families", "evidence"}  # they have no use for a device


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("stage", [name for name in paper.STAGES if name not in ON_THE_CPU])
def test_every_stage_is_made_on_the_device(road, stage, cifar, monkeypatch):
    if stage == "labels":
        monkeypatch.setitem(paper.SCALES, "smoke", replace(paper.SCALES["smoke"], labelled=1))
        monkeypatch.setattr(stages.road.store, "save", lambda *_, **__: {})  # the others need more of them
    COUNTS.clear()
    used, waits = set(), []
    for model, method in ((CCNF, "log_prob"), (CCNF, "sample"), (SequenceGenerator, "generate_many")):
        monkeypatch.setattr(model, method, noting_the_device(getattr(model, method), used))
    with simulated_cuda(SECOND) as device:
        monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
        stages.run(stage, "smoke", device=str(device), progress=False)
        assert used <= {device} and COUNTS.total() > 100
    assert len(waits) == (1 + len(stages.generated.SOLVERS) if stage == "generated" else 0)  # times are of results


def noting_the_device(method, used: set):
    def noted(self, *args, **options):
        used.add(self.zc_low.device if isinstance(self, CCNF) else self.device)
        return method(self, *args, **options)

    return noted


# ---- memory


class Large(nn.Module):
    """A network whose backward fits into memory for `fits` images at most."""

    def __init__(self, fits: int):
        super().__init__()
        torch.manual_seed(0)
        self.fits, self.conv, self.head = fits, nn.Conv2d(3, 8, 3), nn.Linear(8, 10)

    def forward(self, x):
        if torch.is_grad_enabled() and len(x) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 6.50 GiB.")
        return self.head(self.conv(x).relu().mean((2, 3)))


def test_a_network_too_large_for_one_pass_is_scored_in_parts():
    images, targets = load_data("digits", resolution=8).batch(32)
    with simulated_cuda() as device:
        batch = images.to(device), targets.to(device)
        found, whole = (proxies.tcet(Large(fits).to(device), *batch) for fits in (16, 32))
    assert found == pytest.approx(whole, rel=1e-4)


def test_a_network_too_large_for_the_memory_is_a_counted_failure():
    images, targets = load_data("digits", resolution=8).batch(32)
    with simulated_cuda() as device:
        score = ProxyScore(images.to(device), targets.to(device), 10, make=lambda fits, seed: Large(fits))
        evaluator = Evaluator(score, workers=1)
        assert evaluator.record("small", 32)["score"] > 0
        assert "must fit into the GPU's memory" in evaluator.record("large", 4)


@pytest.mark.parametrize(("free", "workers"), [(2, 1), (16, 4), (139, 8)])
def test_workers_of_a_gpu_follow_its_free_memory(monkeypatch, free, workers):
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    with simulated_cuda() as device:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free << 30, 140 << 30))
        assert processes(device) == workers


def test_each_gpu_has_its_workers(monkeypatch):
    """ "cuda" stands for every visible GPU, a number for one; workers take them in turn by their own number."""
    assert gpus(torch.device("cpu")) == [] and gpus(torch.device("cuda:1")) == [1]
    stage = Stage(name="table2", scale=None, seed=0, device=torch.device("cuda"), identity="")
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    with simulated_cuda(SECOND):
        assert gpus(torch.device("cuda")) == [0, 1]
        assert stage.workers == 2 and replace(stage, device=torch.device("cuda", 1)).workers == 1
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: ((8, 80)[index] << 30, 80 << 30))
        assert processes(torch.device("cuda")) == 2 + 8 and processes(torch.device("cuda:0")) == 2
        chosen = []
        monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
        take_gpu.cache_clear()
        assert [take_gpu(f"LokyProcess-{number}") for number in (1, 2, 3, 12)] == [1, 0, 1, 0] and chosen == [1, 1]
    take_gpu.cache_clear()
    assert take_gpu("LokyProcess-7") == 0
    assert replace(stage, device=torch.device("cpu")).workers == 2
    take_gpu.cache_clear()


def test_a_gpu_that_is_not_there_is_named():
    with simulated_cuda(SECOND), pytest.raises(ValueError, match="'cuda:2' must be one of cuda:0 to cuda:1"):
        pick_device("cuda:2")
