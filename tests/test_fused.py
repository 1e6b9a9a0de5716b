"""Fused layers against the layers one by one: values, gradients, running statistics, and when they stay out."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from graphnas_lib.macro import stack_cell
from graphnas_lib.network import PointwiseConv2d, build, operations
from graphnas_lib.network.fast import bottleneck, depthwise
from graphnas_lib.network.fast.bottleneck import InvertedBottleneck
from graphnas_lib.network.fast.depthwise import DepthwiseConv2d
from graphnas_lib.proxies import probe
from graphnas_lib.space import Cell


def images(*shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return x.to(memory_format=torch.channels_last)


def gradients(module, x, seed=1):
    """(output, gradients of the input and of every parameter) for one random output gradient."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = module(x)
    up = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(y)
    return y, torch.autograd.grad(y, [x, *(p for p in module.parameters() if p.requires_grad)], up)


def agree(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert (a.double() - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (5, 1), (7, 1), (3, 2), (5, 2)])
def test_depthwise_gradients_are_those_of_pytorch(kernel, dilation, layout, monkeypatch):
    monkeypatch.setattr(depthwise, "CACHED", 2 * 6 * 8 * 10 * 4)  # several parts of two images
    options = {"padding": dilation * (kernel // 2), "dilation": dilation, "groups": 6, "bias": False}
    quick = DepthwiseConv2d(6, 6, kernel, **options)
    plain = nn.Conv2d(6, 6, kernel, **options).double()
    plain.load_state_dict(quick.state_dict())
    x = images(5, 6, 8, 10).contiguous(memory_format=layout)
    (y, found), (z, expected) = gradients(quick, x), gradients(plain, x.double())
    agree([y, *found], [z, *expected], 1e-6)


@pytest.mark.parametrize("width", [4, 8, 16])
def test_strided_pointwise_gradients_are_those_of_pytorch(width):
    quick, plain = (kind(width, 8, 1, stride=2, bias=False) for kind in (PointwiseConv2d, nn.Conv2d))
    plain.double().load_state_dict(quick.state_dict())
    x = images(5, width, 9, 8)
    (y, found), (z, expected) = gradients(quick, x), gradients(plain, x.double())
    agree([y, *found], [z, *expected], 1e-6)


NARROW = """
import torch
from graphnas_lib.network import operations

torch.set_num_threads(2)
projection = operations.sequence(operations.projection(8, 8, 2), 2)
for _ in range(30):
    x = torch.randn(21, 8, 32, 32).to(memory_format=torch.channels_last)
    projection(x).square().mean().backward()
"""


def test_narrow_strided_projections_train_with_two_threads():
    """In a process of its own: oneDNN's fault ends it (see `pointwise`)."""
    done = subprocess.run([sys.executable, "-c", NARROW], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_depthwise_leaves_what_it_cannot_do_quicker_to_pytorch(monkeypatch):
    def refuse(*_):
        raise AssertionError("the quick path must not be taken")

    monkeypatch.setattr(depthwise._Depthwise, "apply", refuse)
    for options, shape in (({"stride": 2, "padding": 2}, (1, 4, 8, 8)), ({"padding": 1}, (1, 4, 8, 8))):
        DepthwiseConv2d(4, 4, 5, groups=4, bias=False, **options)(images(*shape))
    odd = DepthwiseConv2d(4, 4, 3, padding=2, dilation=2, groups=4, bias=False)
    odd(images(1, 4, 7, 8))  # no grid of every second position
    with pytest.raises(AssertionError, match="quick path"):
        odd(images(1, 4, 8, 8))


def block(name="mbconv6_3", channels=8, seed=0):
    """An operation whose norms have scales, shifts and running statistics of their own."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = operations.sequence(operations.layers(name, channels, channels), 2)
        for norm in (module[2], module[5], module[8]):
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                tensor.data = torch.rand_like(tensor) + 0.3
    assert isinstance(module, InvertedBottleneck)
    return module.to(memory_format=torch.channels_last)


def layer_by_layer(module):
    """A float64 copy that no fused path serves."""
    return nn.Sequential(*copy.deepcopy(module)).double().train(module.training)


@pytest.mark.parametrize("name", ["mbconv6_3", "mbconv2_1", "mbconv3_5"])
@pytest.mark.parametrize("cached", [1, 1 << 30])  # an image at a time, all at once
def test_a_fused_bottleneck_trains_like_its_layers(name, cached, monkeypatch):
    monkeypatch.setattr(bottleneck, "CACHED", cached)
    module, x = block(name), images(6, 8, 6, 6)
    plain = layer_by_layer(module)
    (y, found), (z, expected) = gradients(module, x), gradients(plain, x.double())
    agree([y, *found], [z, *expected], 3e-6 if name != "mbconv2_1" else 1e-4)  # 1x1: a scale that the norm undoes
    for (key, a), b in zip(module.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=1e-5), key


@pytest.mark.parametrize("cached", [1, 1 << 30])
def test_a_fused_bottleneck_evaluates_like_its_layers(cached, monkeypatch):
    monkeypatch.setattr(bottleneck, "CACHED", cached)
    module, x = block("mbconv3_5").eval(), images(6, 8, 6, 6)
    for norm in (module[2], module[5], module[8]):
        norm.requires_grad_(False)
    plain = layer_by_layer(module)
    (y, found), (z, expected) = gradients(module, x), gradients(plain, x.double())
    agree([y, *found], [z, *expected], 3e-6)
    with torch.no_grad():
        agree([module(x)], [z], 1e-6)
        agree([module(x.contiguous())], [z], 1e-6)


def test_a_bottleneck_with_a_watched_or_replaced_layer_is_not_fused():
    module, x, seen = block(), images(4, 8, 4, 4), []
    handle = module[4].register_forward_hook(lambda *_: seen.append(1))
    module(x)
    assert seen == [1]
    handle.remove()
    module[4].forward = lambda h: torch.zeros_like(h)
    assert (module[:7](x) == module[:7](x)[:1]).all() and torch.isfinite(module(x)).all()
    assert module(x).std() < 1e-3 + module[8].bias.std()  # what follows the zeros is constant over positions


def test_norms_that_learn_in_eval_mode_are_not_taken_for_constants():
    module, x = block().eval(), images(4, 8, 4, 4)
    _, found = gradients(module, x)
    _, expected = gradients(layer_by_layer(module), x.double())
    agree(found, expected, 3e-6)


def network():
    cell = Cell.from_edges(
        [(0, 1), (1, 2), (0, 2), (2, 3), (1, 3), (0, 3), (3, 7)], ["mbconv2_3", "sep_conv_5", "dil_conv_3", *[None] * 3]
    )
    return build(stack_cell(cell, width=8, repeats=1), input_shape=(3, 8, 8), seed=0)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_parts_that_are_run_again_give_the_same_gradients(mode, monkeypatch):
    model = network().to(memory_format=torch.channels_last)
    x, y = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    kept = probe.run(model, x, y, mode=mode, watch=probe.layers_of(model))
    monkeypatch.setattr(probe, "KEPT", 0)
    again = probe.run(model, x, y, mode=mode, watch=probe.layers_of(model))
    assert all(torch.equal(kept.kernels[n], again.kernels[n]) for n in kept.kernels)
    assert all(torch.equal(kept.gradients[n], again.gradients[n]) for n in kept.gradients)


def test_gradients_of_a_network_are_those_of_a_plain_backward():
    model = network().to(memory_format=torch.channels_last)
    x, y = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    found = probe.run(model, x, y, mode="train").gradients
    exact = build(model.architecture, input_shape=(3, 8, 8), seed=0).double().train()
    nn.functional.cross_entropy(exact(x.double()), y).backward()
    for name, gradient in found.items():
        expected = exact.get_submodule(name).weight.grad
        assert (gradient.double() - expected).norm() < 1e-4 * expected.norm(), name


# ---- norms folded into convolutions


def own_norms(module, seed=0):
    """The module in eval mode, its norms with scales, shifts and statistics of their own that nothing learns."""
    generator = torch.Generator().manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (*norm.parameters(), norm.running_mean, norm.running_var):
                tensor.data = torch.rand(tensor.shape, generator=generator) + 0.3
            norm.requires_grad_(False)
    return module.eval()


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("name", ["conv_3", "sep_conv_5", "dil_conv_3", "avg_pool_3", "mbconv6_3", "bconv0.25_5"])
def test_folded_norms_change_nothing(name, dims, monkeypatch):
    module = own_norms(operations.sequence(operations.layers(name, 8, 12, 2 if "conv6" in name else 1), dims))
    x = torch.randn(5, 8, *(8,) * dims, generator=torch.Generator().manual_seed(3))
    (y, found), (z, expected) = gradients(module, x), gradients(layer_by_layer(module), x.double())
    agree([y, *found], [z, *expected], 3e-6)
    monkeypatch.setattr(nn.functional, "batch_norm", lambda *_, **__: pytest.fail("a norm was not folded"))
    if name in ("conv_3", "sep_conv_5", "dil_conv_3"):  # no norm but such that follows a convolution of all channels
        module(x)


def test_a_watched_norm_is_not_folded():
    module, seen = own_norms(operations.sequence(operations.layers("conv_3", 4, 4), 2)), []
    x = images(2, 4, 6, 6)
    module(x)
    assert not seen
    module[1].register_forward_hook(lambda _m, _i, output: seen.append(output))
    module(x)
    assert torch.equal(seen[0], module[1](module[0](x)))


def test_norms_that_learn_are_not_folded():
    module = own_norms(operations.sequence(operations.layers("conv_3", 4, 4), 2))
    module[2].requires_grad_(True)
    module(images(2, 4, 6, 6)).square().sum().backward()
    assert module[2].weight.grad.abs().min() > 0
    module.train()
    before = module[2].running_mean.clone()
    module(images(2, 4, 6, 6))
    assert not torch.equal(module[2].running_mean, before)
