"""AZ-NAS's terms and VKDNW's entropy against small independent implementations."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from graphnas_lib.macro import Architecture, Triple, stack_cell
from graphnas_lib.network import build
from graphnas_lib.proxies import ProxyError, spectra
from graphnas_lib.space import sample_cells


def small(seed=0, **options):
    triples = [
        Triple(cell, width, stride) for cell, width, stride in zip(sample_cells(3, seed=seed), (8, 16, 16), (1, 2, 1))
    ]
    return build(Architecture(tuple(triples)), seed=seed, **options)


@pytest.mark.parametrize("shape", [(4, 3, 16, 16), (4, 3, 24)], ids=["2-D", "1-D"])
def test_first_weight_jacobian_equals_autograd_image_by_image(shape):
    model = small(seed=1, input_shape=shape[1:], classes=5).double().eval()
    for module in model.modules():  # statistics and scales that make every norm do something
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.normal_(module.weight), nn.init.normal_(module.bias)
    images = torch.randn(*shape, dtype=torch.float64)
    jacobian, logits = spectra.first_weight_jacobian(model, images)
    named = list(model.parameters())
    wanted = torch.zeros(len(images), 5, len(named), dtype=torch.float64)
    for b in range(len(images)):
        out = model(images[b : b + 1])[0]
        for c in range(5):
            gradients = torch.autograd.grad(out[c], named, retain_graph=True, allow_unused=True)
            wanted[b, c] = torch.stack(
                [torch.tensor(0.0, dtype=torch.float64) if g is None else g.flatten()[0] for g in gradients]
            )
    assert torch.allclose(logits, model(images))
    got, want = jacobian.flatten(0, 1).T, wanted.flatten(0, 1).T  # tensors in the order of the forward: compare as sets
    distance = torch.cdist(got, want, compute_mode="donot_use_mm_for_euclid_dist")
    assert got.shape == want.shape and distance.min(1).values.max() < 1e-8 and distance.min(0).values.max() < 1e-8
    assert want.abs().sum() > 1


def plain_az(model, shape, seed):
    """The definitions, written out for square maps in two dimensions."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            fan = module.weight[0].numel()
            module.weight.data = torch.randn(module.weight.shape, generator=generator) * (2 / fan) ** 0.5
            if module.bias is not None:
                module.bias.data.zero_()
    model.train()
    x, maps = torch.randn(*shape, generator=generator), []
    for part in [model.stem, *model.cells]:
        x = part(x)
        maps.append(x)
    entropies, sizes = [], []
    for f in maps:
        rows = f.permute(0, 2, 3, 1).reshape(-1, f.shape[1]).detach().double().numpy()
        eigenvalues = np.linalg.eigvalsh(np.cov(rows.T, bias=True))
        p = eigenvalues / eigenvalues.sum()
        entropies.append(-(p * np.log(np.maximum(p, 0) + 1e-8)).sum())
    for before, after in zip(maps, maps[1:]):
        g = (torch.randint(0, 2, after.shape, generator=generator) * 2 - 1).float()
        back = torch.autograd.grad(after, before, g, retain_graph=True)[0]
        if back.shape[2] != g.shape[2]:
            back = F.pixel_unshuffle(back, back.shape[2] // g.shape[2])
        positions = g.shape[0] * g.shape[2] * g.shape[3]
        mean = torch.einsum("bixy,boxy->io", back.double(), g.double()) / positions
        s = float(torch.linalg.svdvals(mean)[0])
        sizes.append(2 - s - 1 / (s + 1e-6))
    return {
        "az_expressivity": sum(entropies),
        "az_progressivity": min(np.diff(entropies)),
        "az_trainability": np.mean(sizes),
    }


@pytest.mark.parametrize("seed", [0, 3])
def test_az_terms_are_their_definitions(seed):
    model, shape = small(seed=seed), (8, 3, 16, 16)
    assert spectra.az_terms(model, shape, seed=seed) == pytest.approx(plain_az(model, shape, seed), rel=1e-4, abs=1e-5)


def test_scores_leave_the_network_and_the_random_state_alone():
    model = small().train()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    first = spectra.az_terms(model, (4, 3, 16, 16)), spectra.vkdnw_entropy(model, (4, 3, 16, 16))
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values()))
    assert torch.equal(random, torch.get_rng_state()) and model.training and not model.cells[0]._forward_hooks
    assert first == (spectra.az_terms(model, (4, 3, 16, 16)), spectra.vkdnw_entropy(model, (4, 3, 16, 16)))
    assert first != (
        spectra.az_terms(model, (4, 3, 16, 16), seed=1),
        spectra.vkdnw_entropy(model, (4, 3, 16, 16), seed=1),
    )


def test_vkdnw_entropy_is_that_of_the_deciles():
    model = build(stack_cell(sample_cells(1, seed=2)[0], repeats=1), seed=0)
    entropy = spectra.vkdnw_entropy(model, (6, 3, 16, 16), seed=5)
    clone, generator = spectra.redrawn(model, 5, kaiming=True)
    jacobian, logits = spectra.first_weight_jacobian(clone, torch.randn(6, 3, 16, 16, generator=generator))
    information = 0
    for one, logit in zip(jacobian, logits):
        p = np.asarray(logit.softmax(0).double()) * 0.95 + 0.005
        information = information + one.T.numpy() @ (np.diag(p) - np.outer(p, p)) @ one.numpy() / 6
    deciles = np.quantile(np.linalg.eigvalsh(information).clip(0), np.arange(1, 10) / 10)
    p = (deciles / deciles.sum())[deciles > 0]
    assert entropy == pytest.approx(-(p * np.log(p)).sum(), rel=1e-4) and 0 < entropy < np.log(9)


def test_networks_without_parts_are_refused():
    with pytest.raises(ProxyError, match="sequential_parts"):
        spectra.az_terms(nn.Sequential(nn.Conv2d(3, 4, 1)), (2, 3, 8, 8))
