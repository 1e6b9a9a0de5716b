"""Networks that `build` gives are plain PyTorch: whatever is done to one does the same to its twin from `to_code`.

`CASES` holds what other people's users do to networks (layers frozen, swapped, watched, traced, exported, transformed);
each function does one such thing to a network and returns all that can be seen of it, to compare with the twin's.
"""

import copy
import importlib.util
import io
import pickle
import random
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.fusion import fuse_conv_bn_eval

from graphnas_lib.macro import CHANNELS, Architecture, Triple
from graphnas_lib.network import Network, build, to_code
from graphnas_lib.network.modules import CellModule
from graphnas_lib.space import Cell, sample_cells

WIDE = Cell.from_edges([(0, 1), (1, 7)], ["mbconv6_3", *[None] * 5])
MIXED = Cell.from_edges(
    [(0, 1), (0, 2), (1, 3), (2, 3), (0, 3), (1, 4), (3, 5), (4, 5), (5, 6), (0, 6), (1, 7), (5, 7), (6, 7)],
    ["mbconv2_5", "dil_conv_3", "skip", "sep_conv_5", "avg_pool_3", "bconv0.25_1"],
)
ARCHITECTURE = Architecture((Triple(WIDE, 16, 1), Triple(MIXED, 8, 2)), 24)
SHAPES = {"2d": (3, 8, 8), "1d": (2, 24)}
CASES = {}
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
CONVS = (nn.Conv1d, nn.Conv2d)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """By dimensions: a network, its twin from the file that `to_code` writes, images and labels."""
    return {name: pair(shape, tmp_path_factory.mktemp("twin") / f"twin_{name}.py") for name, shape in SHAPES.items()}


def pair(shape, path):
    path.write_text(to_code(ARCHITECTURE, input_shape=shape, classes=5))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    file = sys.modules[path.stem] = importlib.util.module_from_spec(spec)  # pickle looks for its classes there
    spec.loader.exec_module(file)
    model, twin = build(ARCHITECTURE, input_shape=shape, classes=5, seed=0), file.Network()
    twin.load_state_dict(model.state_dict())
    images = 2 * torch.randn(12, *shape, generator=torch.Generator().manual_seed(0)) + 1
    return model, twin, images, torch.arange(12) % 5


def case(function):
    CASES[function.__name__] = function
    return function


def norms(model):
    return [module for module in model.modules() if isinstance(module, NORMS)]


def seen(model, outputs, y):
    """Outputs, gradients of a loss by name, and the running statistics afterwards."""
    F.cross_entropy(outputs, y).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return outputs.detach(), gradients, dict(model.named_buffers())


def settled(model, x):
    """In eval mode, after a few batches: the norms know their inputs."""
    with torch.no_grad():
        for part in x.split(4):
            model.train()(part)
    return model.eval()


def swapped(model, kinds, new):
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, kinds):
                setattr(parent, name, new(child))
    return model


# ---- modes


@case
def trained(m, x, y):
    return seen(m.train(), m(x), y)


@case
def evaluated(m, x, y):
    return seen(settled(m, x), m(x), y)


@case
def evaluated_without_gradients(m, x, y):
    with torch.no_grad():
        return settled(m, x)(x)


@case
def fine_tuned_with_frozen_norms(m, x, y):
    settled(m, x).train()
    for norm in norms(m):
        norm.eval()
    return seen(m, m(x), y)


@case
def evaluated_with_training_norms(m, x, y):
    m.eval()
    for norm in norms(m):
        norm.train()
    return seen(m, m(x), y)


@case
def searched_with_constant_norms(m, x, y):
    settled(m, x)
    for norm in norms(m):
        norm.requires_grad_(False)
    return seen(m, m(x), y)


@case
def averaged_statistics(m, x, y):
    for norm in norms(m):
        norm.momentum = None
    m.train()(x)
    return seen(m, m(x), y)


@case
def averaged_weights(m, x, y):
    average = torch.optim.swa_utils.AveragedModel(m)
    torch.optim.swa_utils.update_bn([x[:6], x[6:]], average)
    return seen(average.eval(), average(x), y)


@case
def batch_statistics_alone(m, x, y):
    for norm in norms(m):
        norm.track_running_stats, norm.running_mean, norm.running_var, norm.num_batches_tracked = False, *[None] * 3
    return seen(m.eval(), m(x), y)


@case
def channels_last(m, x, y):
    if x.dim() == 3:
        return None
    m.to(memory_format=torch.channels_last)
    return seen(m.train(), m(x.to(memory_format=torch.channels_last)), y)


@case
def in_double_precision(m, x, y):
    return seen(m.double().train(), m(x.double()), y)


@case
def under_autocast(m, x, y):
    with torch.autocast("cpu", torch.bfloat16):
        return m.train()(x).float().detach().sign()  # values of two roundings of a sum may differ


# ---- other layers


@case
def with_silu(m, x, y):
    swapped(m, nn.ReLU, lambda _: nn.SiLU())
    return seen(m.train(), m(x), y)


@case
def with_group_norm(m, x, y):
    swapped(m, NORMS, lambda norm: nn.GroupNorm(2, norm.num_features))
    return seen(m.train(), m(x), y)


@case
def with_instance_norm(m, x, y):
    kind = nn.InstanceNorm2d if x.dim() == 4 else nn.InstanceNorm1d
    swapped(m, NORMS, lambda norm: kind(norm.num_features, affine=True, track_running_stats=True))
    return seen(m.train(), m(x), y)


@case
def without_norms(m, x, y):
    swapped(m, NORMS, lambda _: nn.Identity())
    return seen(m.train(), m(x), y)


class Doubled(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * x + super().forward(x)


@case
def with_a_norm_of_ones_own(m, x, y):
    for norm in norms(m):
        if type(norm) is nn.BatchNorm2d:
            norm.__class__ = Doubled
    return seen(settled(m, x), m(x), y)


@case
def with_a_forward_of_ones_own(m, x, y):
    for module in m.modules():
        if isinstance(module, CONVS):
            module.forward = lambda h, true=module.forward: 2 * true(h)
    return seen(m.train(), m(x), y)


@case
def with_norms_fused_into_convolutions(m, x, y):
    settled(m, x)
    for module in m.modules():
        if isinstance(module, nn.Sequential):
            for i in range(len(module) - 1):
                if isinstance(module[i], nn.Conv2d) and isinstance(module[i + 1], NORMS):
                    module[i], module[i + 1] = fuse_conv_bn_eval(module[i], module[i + 1]), nn.Identity()
    with torch.no_grad():
        return m(x)


@case
def pruned(m, x, y):
    for module in m.modules():
        if isinstance(module, CONVS):
            prune.l1_unstructured(module, "weight", amount=0.3)
    return seen(m.train(), m(x), y)


@case
def with_parametrised_weights(m, x, y):
    for module in list(m.modules()):
        if isinstance(module, CONVS):
            parametrizations.weight_norm(module)
    return seen(m.train(), m(x), y)


@case
def with_half_of_the_parameters_frozen(m, x, y):
    for i, parameter in enumerate(m.parameters()):
        parameter.requires_grad_(bool(i // 3 % 2))
    return seen(m.train(), m(x), y)


# ---- watched


@case
def full_backward_hooks_on_convolutions(m, x, y):
    found = {}
    for name, module in m.named_modules():
        if isinstance(module, CONVS):
            module.register_full_backward_hook(lambda _m, gi, go, name=name: found.update({name: (gi[0], go[0])}))
    result = seen(m.train(), m(x.requires_grad_()), y)
    assert len(found) == sum(isinstance(module, CONVS) for module in m.modules())
    return result, found


@case
def full_backward_hooks_on_frozen_norms(m, x, y):
    found = {}
    settled(m, x)
    for name, module in m.named_modules():
        if isinstance(module, NORMS):
            module.register_full_backward_hook(lambda _m, gi, go, name=name: found.update({name: go[0]}))
    return seen(m, m(x), y), found


@case
def full_backward_hooks_everywhere(m, x, y):
    names, found = {}, {}
    for name, module in m.named_modules():
        names[module] = name
        module.register_full_backward_hook(lambda module, gi, go: found.update({names[module]: go[0]}))
        module.register_full_backward_pre_hook(lambda module, go: None)
    result = seen(m.train(), m(x.requires_grad_()), y)
    return result, {name: found[name] for name, kind in m.named_modules() if isinstance(kind, (*CONVS, *NORMS))}


@case
def forward_hooks(m, x, y):
    names, found, handles = {module: name for name, module in m.named_modules()}, {}, []
    handles.append(nn.modules.module.register_module_forward_hook(lambda mod, i, o: found.update({names[mod]: o})))
    try:
        result = seen(m.train(), m(x), y)
    finally:
        handles[0].remove()
    kinds = (*CONVS, *NORMS, nn.ReLU)
    return result, {name: found[name].detach() for name, kind in m.named_modules() if isinstance(kind, kinds)}


@case
def forward_pre_hooks_that_change_the_input(m, x, y):
    for norm in norms(m):
        norm.register_forward_pre_hook(lambda _m, inputs: (inputs[0] + 1,))
    return seen(m.train(), m(x), y)


# ---- transforms


@case
def per_sample_gradients(m, x, y):
    settled(m, x)
    parameters, buffers = dict(m.named_parameters()), dict(m.named_buffers())

    def loss(parameters, image, label):
        return F.cross_entropy(functional_call(m, (parameters, buffers), (image[None],)), label[None])

    return vmap(grad(loss), (None, 0, 0))(parameters, x[:3], y[:3])


@case
def forward_mode_gradients(m, x, y):
    return jvp(settled(m, x), (x,), (torch.ones_like(x),))


@case
def gradient_penalty(m, x, y):
    inputs = x.clone().requires_grad_()
    first = torch.autograd.grad(m.train()(inputs).square().sum(), inputs, create_graph=True)[0]
    first.square().sum().backward()
    return first.detach(), {n: p.grad for n, p in m.named_parameters()}


@case
def second_gradients(m, x, y):
    settled(m, x)
    parameters = list(m.parameters())
    first = torch.autograd.grad(F.cross_entropy(m(x), y), parameters, create_graph=True)
    return torch.autograd.grad(sum(g.square().sum() for g in first), parameters)


@case
def checkpointed(m, x, y):
    return seen(m.train(), torch.utils.checkpoint.checkpoint(m, x.requires_grad_(), use_reentrant=False), y)


# ---- other forms of the network


def reformed(make):
    """A case for each mode: the form that `make` gives, in train mode against a batch, in eval mode settled."""
    for mode in ("train", "eval"):

        def of(m, x, y, mode=mode):
            settled(m, x).train(mode == "train")
            return seen(m, make(m, x)(x), y)

        CASES[f"{make.__name__}_{mode}"] = of
    return make


@reformed
def scripted(m, x):
    return torch.jit.script(m)


@reformed
def symbolically_traced(m, x):
    return torch.fx.symbolic_trace(m)


@reformed
def compiled(m, x):
    return torch.compile(m, backend="aot_eager")


@reformed
def in_parallel(m, x):
    return nn.DataParallel(m)


@case
def traced(m, x, y):
    settled(m, x)
    with torch.no_grad():
        form = torch.jit.trace(m, x)
        return form(x), form(x[:3])


@case
def traced_with_gradients(m, x, y):
    return seen(m, torch.jit.trace(settled(m, x), x)(x), y)


@case
def exported(m, x, y):
    form = torch.export.export(settled(m, x), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with torch.no_grad():
        return form.module()(x[:5])


@case
def exported_for_training(m, x, y):
    form = torch.export.export(settled(m, x).train(), (x,)).module()
    outputs = form(x)
    F.cross_entropy(outputs, y).backward()
    return outputs.detach(), {n: p.grad for n, p in form.named_parameters()}, dict(form.named_buffers())


@case
def copied(m, x, y):
    twice = pickle.loads(pickle.dumps(copy.deepcopy(m)))
    return seen(twice.train(), twice(x), y)


@case
def saved_and_loaded(m, x, y):
    file, other = io.BytesIO(), copy.deepcopy(m)
    torch.save(settled(m, x).state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    with torch.no_grad():
        return other.eval()(x)


@case
def quantised(m, x, y):
    form = torch.ao.quantization.quantize_dynamic(settled(m, x), {nn.Linear}, dtype=torch.qint8)
    with torch.no_grad():
        return form(x)


# ---- the tests


def agree(found, wanted, where=""):
    """Equal structures of nearly equal tensors; of the network's names those that the twin has."""
    assert type(found) is type(wanted), where
    if isinstance(wanted, dict):
        assert set(found) == set(wanted), where
        for key in wanted:
            agree(found[key], wanted[key], f"{where}.{key}")
    elif isinstance(wanted, (tuple, list)):
        assert len(found) == len(wanted), where
        for i, (a, b) in enumerate(zip(found, wanted)):
            agree(a, b, f"{where}[{i}]")
    elif wanted is not None:
        assert found.shape == wanted.shape and found.dtype == wanted.dtype, where
        scale = wanted.double().norm().item() + 1e-3
        assert (found.double() - wanted.double()).norm().item() <= 1e-3 * scale, where


@pytest.mark.parametrize(
    ("dims", "name"),
    [(dims, name) for dims in SHAPES for name in CASES if dims == "2d" or not name.startswith("compiled")],  # slow
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_done_to_a_network_does_what_it_does_to_its_twin(pairs, dims, name):
    *models, x, y = pairs[dims]
    results = []
    for model in models:
        with torch.random.fork_rng(), warnings.catch_warnings():
            torch.manual_seed(0)
            results.append(CASES[name](copy.deepcopy(model), x.clone(), y))
    agree(*results)


OWN = (
    *(nn.Conv1d, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.ReLU, nn.AvgPool1d, nn.AvgPool2d, nn.Linear),
    *(nn.Sequential, nn.ModuleDict, nn.ModuleList, nn.Identity, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d),
)


@pytest.mark.parametrize("sizes", [{}, {"input_shape": (2, 24)}, {"input_shape": (1, 8, 8), "dense": True}])
def test_every_module_is_of_pytorchs_own_class_or_a_container(sizes):
    cells, rng = sample_cells(200, seed=5), random.Random(0)
    for _ in range(25):
        triples = (Triple(rng.choice(cells), rng.choice(CHANNELS[:4]), rng.choice((1, 2))) for _ in range(3))
        model = build(Architecture(tuple(triples), rng.choice((None, 24))), **sizes)
        for module in model.modules():
            assert type(module) in (*OWN, Network, CellModule), type(module)
            if type(module) in OWN:
                assert not {"forward", "_conv_forward"} & set(vars(module))
            if type(module) is nn.ReLU:
                assert not module.inplace
            if type(module) in (Network, CellModule):  # what they add has no parameter
                assert not list(module.parameters(recurse=False)) and not list(module.buffers(recurse=False))
