"""Fast paths against the layers one by one: values, gradients, statistics, when they stay out, and what they leave."""

import copy
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager

import pytest
import torch
from torch import nn

from graphnas_lib import proxies
from graphnas_lib.datasets import Dataset
from graphnas_lib.macro import Architecture, Triple, stack_cell
from graphnas_lib.network import accelerated, build, operations
from graphnas_lib.network.fast import bottleneck, depthwise, pointwise, switch
from graphnas_lib.proxies import probe
from graphnas_lib.space import Cell
from graphnas_lib.training import train


def images(*shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return x.to(memory_format=torch.channels_last)


def gradients(module, x, seed=1):
    """(output, gradients of the input and of every parameter) for one random output gradient."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = module(x)
    up = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(y)
    return y, torch.autograd.grad(y, [x, *(p for p in module.parameters() if p.requires_grad)], up)


@contextmanager
def quick(module):
    """A sequence of layers on its fast paths, as `accelerated` has those of a network."""
    with ExitStack() as undo:
        switch.speed_up(undo, module, owned=False)
        yield module


def agree(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert (a.double() - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (5, 1), (7, 1), (3, 2), (5, 2)])
def test_depthwise_gradients_are_those_of_pytorch(kernel, dilation, layout, monkeypatch):
    monkeypatch.setattr(depthwise, "CACHED", 2 * 6 * 8 * 10 * 4)  # several parts of two images
    options = {"padding": dilation * (kernel // 2), "dilation": dilation, "groups": 6, "bias": False}
    module = nn.Sequential(nn.Conv2d(6, 6, kernel, **options))
    plain = copy.deepcopy(module).double()
    x = images(5, 6, 8, 10).contiguous(memory_format=layout)
    with quick(module):
        (y, found), (z, expected) = gradients(module, x), gradients(plain, x.double())
    agree([y, *found], [z, *expected], 1e-6)


@pytest.mark.parametrize("width", [4, 8, 16])
def test_strided_pointwise_gradients_are_those_of_pytorch(width):
    module = nn.Sequential(nn.Conv2d(width, 8, 1, stride=2))
    plain, x = copy.deepcopy(module).double(), images(5, width, 9, 8)
    with accelerated(module):  # in any network
        (y, found), (z, expected) = gradients(module, x), gradients(plain, x.double())
    agree([y, *found], [z, *expected], 1e-6)


NARROW = """
import torch
from torch import nn
from graphnas_lib.network import accelerated

torch.set_num_threads(2)
conv = nn.Conv2d(4, 8, 1, 2, bias=False)
with accelerated(conv):
    for _ in range(30):
        x = torch.randn(21, 4, 32, 32).to(memory_format=torch.channels_last)
        y = conv(x)
        up = torch.randn_like(y)
        y.backward(up)
        expected = torch.einsum("bohw,bchw->oc", up.double(), x[..., ::2, ::2].double())
        assert (conv.weight.grad[..., 0, 0] - expected).norm() < 1e-4 * expected.norm()
        conv.weight.grad = None
"""


def test_narrow_strided_convolutions_train_with_two_threads():
    """In a process of its own: oneDNN's fault gives wrong gradients or ends it (see `pointwise`)."""
    done = subprocess.run([sys.executable, "-c", NARROW], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_scoring_and_training_guard_narrow_strided_convolutions(monkeypatch):
    def refuse(*_):
        raise AssertionError("the guard was called")

    monkeypatch.setattr(pointwise, "convolve", refuse)
    cell = Cell.from_edges([(0, 7)], [None] * 6)
    model = build(Architecture((Triple(cell, 8, 1), Triple(cell, 8, 2))), input_shape=(3, 8, 8), seed=0)
    data = torch.randn(4, 3, 8, 8), torch.arange(4)
    for scored in (model, nn.Sequential(nn.Conv2d(3, 8, 1, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())):
        with pytest.raises(proxies.ProxyError, match="guard"):
            proxies.naswot(scored, data[0])
        scored(data[0])
    some = torch.zeros(8, 3, 8, 8, dtype=torch.uint8), torch.arange(8)
    dataset = Dataset("zeros", *some, *some, classes=8, mean=(0.5,) * 3, std=(0.5,) * 3, source="none")
    with pytest.raises(AssertionError, match="guard"):
        train(model, dataset, seed=0, device="cpu", epochs=1, batch_size=4)


def test_depthwise_leaves_what_it_cannot_do_quicker_to_pytorch(monkeypatch):
    def refuse(*_):
        raise AssertionError("the quick path must not be taken")

    monkeypatch.setattr(depthwise._Depthwise, "apply", refuse)
    for options, shape in (({"stride": 2, "padding": 2}, (1, 4, 8, 8)), ({"padding": 1}, (1, 4, 8, 8))):
        with quick(nn.Sequential(nn.Conv2d(4, 4, 5, groups=4, bias=False, **options))) as module:
            module(images(*shape))
    with quick(nn.Sequential(nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4, bias=False))) as odd:
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
    assert bottleneck.applies(module)
    return module.to(memory_format=torch.channels_last)


def layer_by_layer(module):
    """A float64 copy without fast paths."""
    return copy.deepcopy(module).double()


@pytest.fixture
def fused(monkeypatch):
    """Names of the fused passes that ran."""
    ran = []
    for name in ("_Fused", "_FusedEval"):
        kind = getattr(bottleneck, name)
        monkeypatch.setattr(kind, "apply", lambda *a, true=kind.apply, name=name: (ran.append(name), true(*a))[1])
    return ran


@pytest.mark.parametrize("name", ["mbconv6_3", "mbconv2_1", "mbconv3_5"])
@pytest.mark.parametrize("cached", [1, 1 << 30])  # an image at a time, all at once
def test_a_fused_bottleneck_trains_like_its_layers(name, cached, fused, monkeypatch):
    monkeypatch.setattr(bottleneck, "CACHED", cached)
    module, x = block(name), images(6, 8, 6, 6)
    plain = layer_by_layer(module)
    with quick(module):
        (y, found), (z, expected) = gradients(module, x), gradients(plain, x.double())
    agree([y, *found], [z, *expected], 3e-6 if name != "mbconv2_1" else 1e-4)  # 1x1: a scale that the norm undoes
    for (key, a), b in zip(module.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=1e-5), key
    assert fused == ["_Fused"]


@pytest.mark.parametrize("cached", [1, 1 << 30])
def test_a_fused_bottleneck_evaluates_like_its_layers(cached, fused, monkeypatch):
    monkeypatch.setattr(bottleneck, "CACHED", cached)
    module, x = block("mbconv3_5").eval(), images(6, 8, 6, 6)
    for norm in (module[2], module[5], module[8]):
        norm.requires_grad_(False)
    plain = layer_by_layer(module)
    with quick(module):
        (y, found), (z, expected) = gradients(module, x), gradients(plain, x.double())
        agree([y, *found], [z, *expected], 3e-6)
        with torch.no_grad():
            agree([module(x)], [z], 1e-6)
            agree([module(x.contiguous())], [z], 1e-6)
    assert fused == ["_FusedEval"]


def test_a_bottleneck_with_a_watched_or_replaced_layer_is_not_fused(fused):
    module, x, seen = block(), images(4, 8, 4, 4), []
    with quick(module):
        handle = module[4].register_forward_hook(lambda *_: seen.append(1))
        module(x)
        assert seen == [1]
        handle.remove()
        module[4].forward = torch.zeros_like
        assert module(x).std() < 1e-3 + module[8].bias.std()  # what follows the zeros is constant over positions
        del module[4].forward
        assert not fused
        module(x)
    assert fused == ["_Fused"]


@pytest.mark.parametrize("frozen", [(2,), (2, 5, 8)])
def test_a_bottleneck_with_frozen_norms_is_not_fused(frozen, fused):
    module, x = block(), images(4, 8, 4, 4)
    for i in frozen:
        module[i].eval()
    plain = layer_by_layer(module)
    with quick(module):
        (y, found), (z, expected) = gradients(module, x), gradients(plain, x.double())
    agree([y, *found], [z, *expected], 3e-6)
    for (key, a), b in zip(module.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=1e-5), key
    assert not fused


def test_norms_that_learn_in_eval_mode_are_not_taken_for_constants():
    module, x = block().eval(), images(4, 8, 4, 4)
    with quick(module):
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
    plain = layer_by_layer(module)
    with quick(module):
        (y, found), (z, expected) = gradients(module, x), gradients(plain, x.double())
        agree([y, *found], [z, *expected], 3e-6)
        monkeypatch.setattr(nn.functional, "batch_norm", lambda *_, **__: pytest.fail("a norm was not folded"))
        if name in ("conv_3", "sep_conv_5", "dil_conv_3"):  # every norm here follows a convolution of all channels
            module(x)


def test_a_watched_norm_is_not_folded():
    module, seen = own_norms(operations.sequence(operations.layers("conv_3", 4, 4), 2)), []
    x = images(2, 4, 6, 6)
    with quick(module):
        module[1].register_forward_hook(lambda _m, _i, output: seen.append(output))
        module(x)
        assert torch.equal(seen[0], module[1](module[0](x)))


def test_norms_that_learn_are_not_folded():
    module = own_norms(operations.sequence(operations.layers("conv_3", 4, 4), 2))
    module[2].requires_grad_(True)
    with quick(module):
        module(images(2, 4, 6, 6)).square().sum().backward()
        assert module[2].weight.grad.abs().min() > 0
        module.train()
        before = module[2].running_mean.clone()
        module(images(2, 4, 6, 6))
        assert not torch.equal(module[2].running_mean, before)


# ---- put under a network and taken away


def snapshot(model):
    """Everything that a module holds: its attributes by identity, tensors by value too."""
    found = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            found[name, key] = dict(value) if isinstance(value, dict) else value
        found |= {(name, key, "value"): value.clone() for key, value in module.state_dict(prefix=name).items()}
    return found


def same(before, after):
    assert before.keys() == after.keys()
    for key, value in before.items():
        if key[-1] == "value":
            assert torch.equal(after[key], value), key
        elif isinstance(value, dict):
            assert value.keys() == after[key].keys() and all(after[key][k] is v for k, v in value.items()), key
        else:
            assert after[key] is value, key


def is_plain(model):
    return not any({"forward", "_conv_forward"} & set(vars(module)) for module in model.modules())


@pytest.mark.parametrize("inner", [False, True])
def test_a_network_is_afterwards_what_it_was(inner):
    model = network().eval()
    before, x = snapshot(model), torch.randn(4, 3, 8, 8)
    with accelerated(model):
        assert not is_plain(model)
        if inner:
            with accelerated(model):
                model(x)
            assert not is_plain(model)  # the inner one takes nothing away
        model(x).sum().backward()
    model.zero_grad()
    same(before, snapshot(model))
    with pytest.raises(KeyError), accelerated(model), accelerated(model):
        raise KeyError
    same(before, snapshot(model))


def test_two_threads_may_lend_to_one_network():
    model, x = network().eval(), torch.randn(4, 3, 8, 8)
    wanted, entered, left = model(x).detach(), threading.Event(), threading.Event()

    def other():
        with accelerated(model):
            entered.set()
            left.wait(60)
            found.append(model(x).detach())  # plain by now

    found, thread = [], threading.Thread(target=other)
    with accelerated(model):
        thread.start()
        entered.wait(60)
        found.append(model(x).detach())
    left.set()
    thread.join()
    assert is_plain(model) and len(found) == 2
    agree(found, [wanted, wanted], 1e-5)


def test_scores_leave_a_network_as_it_was():
    model, x, y = network(), torch.randn(6, 3, 8, 8), torch.arange(6)
    before = snapshot(model)
    proxies.score(model, x, y, ["naswot", "snip_ssnr", "tcet", "zico", "zen", "synflow", "naswot_relu"])
    same(before, snapshot(model))


def served(model):
    """Modules that have a fast path while lent one."""
    with accelerated(model):
        return {name for name, m in model.named_modules() if {"forward", "_conv_forward"} & set(vars(m))}


def test_what_somebody_changed_or_watches_goes_layer_by_layer():
    model = network()
    whole = served(model)
    assert {"stem", "head", "cells.0", "cells.0.nodes.1", "cells.0.nodes.3.1"} <= whole
    handle = model.get_submodule("cells.0.nodes.1.4").register_full_backward_hook(lambda *_: None)
    assert whole - served(model) == {"cells.0.nodes.1", "cells.0.nodes.1.4"}
    handle.remove()
    model.cells[0].nodes["1"][3] = nn.SiLU()
    assert whole - served(model) == {"cells.0.nodes.1", "cells.0.nodes.1.4"}
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert not served(model) & {"stem", "cells.0"}
    handle.remove()
    assert not served(copy.deepcopy(model).double()) & {"stem", "cells.0"}
    with torch.autocast("cpu"):
        assert not served(model) & {"stem", "cells.0"}
    assert not served(nn.Sequential(model)) & {"0.stem", "0.cells.0"}


@pytest.mark.parametrize(("layer", "change"), [(2, {"momentum": None}), (4, {"padding_mode": "reflect"})])
def test_a_changed_bottleneck_is_none(layer, change):
    module = block()
    for name, value in change.items():
        setattr(module[layer], name, value)
    assert not bottleneck.applies(module)
