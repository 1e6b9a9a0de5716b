"""The ZenNet space: published counts, counts against built networks, mutation."""

from collections import Counter

import pytest
import torch

from graphnas_lib import proxies
from graphnas_lib.zennet import ZenNet
from graphnas_lib.zennet import space as zennet
from graphnas_lib.zennet.blocks import BASIC_KINDS, BOTTLENECK_KINDS, ZenNetError

# paper: the rows of Table 2 (CIFAR, 100 classes) and Table 3 (ImageNet); structures as published with ZenNAS and ZiCo
PUBLISHED = {
    "cifar-0.5M": "SuperConvK3BNRELU(3,64,1,1)SuperResK1K5K1(64,168,1,16,3)SuperResK1K3K1(168,80,2,32,4)"
    "SuperResK1K5K1(80,112,2,16,3)SuperResK1K5K1(112,144,1,24,3)SuperResK1K3K1(144,32,2,40,1)"
    "SuperConvK1BNRELU(32,512,1,1)",
    "cifar-1M": "SuperConvK3BNRELU(3,88,1,1)SuperResK1K7K1(88,120,1,16,1)SuperResK1K7K1(120,192,2,16,3)"
    "SuperResK1K5K1(192,224,1,24,4)SuperResK1K5K1(224,96,2,24,2)SuperResK1K3K1(96,168,2,40,3)"
    "SuperResK1K3K1(168,112,1,48,3)SuperConvK1BNRELU(112,512,1,1)",
    "cifar-2M": "SuperConvK3BNRELU(3,32,1,1)SuperResK1K5K1(32,120,1,40,1)SuperResK1K5K1(120,176,2,32,3)"
    "SuperResK1K7K1(176,272,1,24,3)SuperResK1K3K1(272,176,1,56,3)SuperResK1K3K1(176,176,1,64,4)"
    "SuperResK1K5K1(176,216,2,40,2)SuperResK1K3K1(216,72,2,56,2)SuperConvK1BNRELU(72,512,1,1)",
    "imagenet-400M": "SuperConvK3BNRELU(3,16,2,1)SuperResIDWE1K7(16,40,2,40,1)SuperResIDWE1K7(40,64,2,64,1)"
    "SuperResIDWE4K7(64,96,2,96,5)SuperResIDWE2K7(96,224,2,224,5)SuperConvK1BNRELU(224,2048,1,1)",
    "imagenet-600M": "SuperConvK3BNRELU(3,24,2,1)SuperResIDWE1K7(24,48,2,48,1)SuperResIDWE2K7(48,72,2,72,1)"
    "SuperResIDWE6K7(72,96,2,88,5)SuperResIDWE4K7(96,192,2,168,5)SuperConvK1BNRELU(192,2048,1,1)",
    "imagenet-900M": "SuperConvK3BNRELU(3,16,2,1)SuperResIDWE1K7(16,48,2,72,1)SuperResIDWE2K7(48,72,2,64,3)"
    "SuperResIDWE2K7(72,152,2,144,3)SuperResIDWE2K7(152,360,2,352,4)SuperResIDWE4K7(360,288,1,264,3)"
    "SuperConvK1BNRELU(288,2048,1,1)",
    "zico-450M": "SuperConvK3BNRELU(3,16,2,1)SuperResIDWE1K7(16,40,2,40,1)SuperResIDWE2K7(40,80,2,64,1)"
    "SuperResIDWE4K7(80,96,2,96,5)SuperResIDWE2K7(96,224,2,224,5)SuperConvK1BNRELU(224,2048,1,1)",
    "zico-600M": "SuperConvK3BNRELU(3,24,2,1)SuperResIDWE1K7(24,48,2,48,1)SuperResIDWE2K7(48,72,2,72,1)"
    "SuperResIDWE6K5(72,160,2,96,1)SuperResIDWE6K7(160,200,2,112,5)SuperResIDWE6K7(200,168,1,168,4)"
    "SuperConvK1BNRELU(168,2048,1,1)",
    "zico-1G": "SuperConvK3BNRELU(3,48,2,1)SuperResIDWE1K7(48,48,2,72,1)SuperResIDWE1K7(48,80,2,128,1)"
    "SuperResIDWE2K7(80,160,2,144,3)SuperResIDWE4K7(160,288,2,232,4)SuperResIDWE6K5(288,232,1,208,5)"
    "SuperConvK1BNRELU(232,2048,1,1)",
}

# name: layers, millions of params and of MACs, as published
COUNTS = {
    "cifar-0.5M": (16, 0.5403, 135.0),
    "cifar-1M": (18, 1.0312, 155.2),
    "cifar-2M": (20, 2.0151, 478.2),
    "imagenet-400M": (14, 5.674, 399.98),
    "imagenet-600M": (14, 7.088, 597.75),
    "imagenet-900M": (16, 13.249, 908.69),
    "zico-450M": (14, 5.716, 438.4),
    "zico-600M": (14, 9.654, 590.3),
    "zico-1G": (16, 15.248, 979.2),
}


def zennas_count(net: ZenNet, name: str) -> tuple[float, float]:
    """Params and MACs by the counter behind the budgets of ZenNAS, ZiCo and T-CET, squeeze-excite left out.

    It has one parameter a BN channel and one for the classifier's bias, MACs of BN once, and shortcuts at output side /
    stride.
    """
    side, classes = (32, 100) if name.startswith("cifar") else (224, 1000)
    convs = []  # (convolution, side of its output)
    for unit in net.units():
        for conv in unit.convs:
            side = -(-side // conv.stride)
            convs.append((conv, side))
        if unit.shortcut == "project":
            convs.append((unit.projection, side / unit.projection.stride))
    linear = net.blocks[-1].outputs * classes
    params = sum(conv.params(2) + conv.outputs for conv, _ in convs) + linear + 1
    return params, sum((conv.params(2) + conv.outputs) * side**2 for conv, side in convs) + linear


@pytest.mark.parametrize("name", COUNTS)
def test_published_structures_count_as_published(name):
    net, (layers, params, macs) = ZenNet.parse(PUBLISHED[name]), COUNTS[name]
    counted, digits = zennas_count(net, name), 4 if name.startswith("cifar") else 3
    assert net.depth == layers
    assert round(counted[0] / 1e6, digits) == params
    assert round(counted[1] / 1e6, 2 if name.startswith("imagenet") else 1) == macs


def test_the_initial_structure_counts_as_published():
    params, macs = zennas_count(zennet.initial(), "cifar")
    assert round(params / 1e6, 3) == 0.102 and round(macs / 1e6, 1) == 6.6


def test_strings_round_trip_and_wrong_ones_are_named():
    for text in PUBLISHED.values():
        assert str(ZenNet.parse(text)) == text
    assert str(ZenNet.parse(" SuperConvK3BNRELU(3, 8,1,1)\n")) == "SuperConvK3BNRELU(3,8,1,1)"
    for text, message in {
        "SuperConvK3BNRELU(3,8,1,1": "must be a row of Kind",
        "SuperConvK9BNRELU(3,8,1,1,1)": "must be a known kind",
        "SuperConvK3BNRELU(3,8,1,4,1)": "takes 4 numbers",
        "SuperResK3K3(8,16,1,1)": "takes 5 numbers",
        "SuperResK3K3(8,16,1,0,1)": "needs 5 positive numbers",
        "SuperConvK3BNRELU(3,8,1,1)SuperResK3K3(16,16,1,8,1)": "must meet",
        "": "at least one block",
    }.items():
        with pytest.raises(ZenNetError, match=message):
            ZenNet.parse(text)


MIXED = (
    "SuperConvK3BNRELU(3,8,2,2)SuperResK5K5(8,16,2,8,2)SuperResK1K7K1(16,24,2,8,2)SuperResK1K3K1(24,24,1,8,1)"
    "SuperResIDWE4K3(24,16,1,16,2)SuperResIDWE1K5(16,16,2,8,2)SuperConvK1BNRELU(16,40,1,1)"
)


def test_exact_count_equals_the_built_network():
    net = ZenNet.parse(MIXED)
    model = zennet.build(net, classes=7, seed=0)
    assert proxies.module_costs(model, (3, 30, 30)) == zennet.count(net, resolution=30, classes=7)
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 30, 30)).shape == (2, 7)
        assert model.features(torch.zeros(2, 3, 30, 30)).shape == (2, 40, 2, 2)


def test_residual_off_drops_every_shortcut_and_nothing_else():
    net = ZenNet.parse(MIXED)
    models = [zennet.build(net, residual=on, seed=0) for on in (True, False)]
    full, plain = (model.state_dict() for model in models)
    assert set(plain) == {name for name in full if "shortcut" not in name} < set(full)
    assert models[1](torch.zeros(2, 3, 30, 30)).shape == (2, 100)


def test_an_identity_shortcut_adds_its_input():
    unit = zennet.build(ZenNet.parse("SuperResK3K3(4,4,1,4,2)"), classes=2, seed=0).units[1].eval()
    x = torch.randn(1, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(unit(x), (unit.body(x) + x).relu())


def test_build_is_reproducible_and_leaves_the_random_state():
    net, state = zennet.initial(), torch.get_rng_state()
    a, b, c = (zennet.build(net, seed=s).classifier.weight for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_mutants_stay_in_their_space():
    g = torch.Generator().manual_seed(0)
    net, seen = zennet.initial(), set()
    kinds = {*BASIC_KINDS, *BOTTLENECK_KINDS}
    for _ in range(150):
        net = zennet.mutate(net, g)
        seen |= {block.kind for block in net.blocks[1:-1]}
        assert net.blocks[0].inputs == 3 and net.blocks[0].kind == "SuperConvK3BNRELU"
        assert all(block.outputs % 8 == 0 and block.sub_layers <= zennet.MAX_SUB_LAYERS for block in net.blocks)
        assert all(block.kind in kinds and block.bottleneck % 8 == 0 for block in net.blocks[1:-1])
        if net.depth > 40:
            net = zennet.initial()
    assert seen == kinds


def test_mutation_changes_only_the_blocks_drawn():
    g = torch.Generator().manual_seed(1)
    net = zennet.initial()
    for _ in range(20):
        child = zennet.mutate(net, g)
        changed = [a.kind != b.kind or a.outputs != b.outputs for a, b in zip(net.blocks, child.blocks, strict=True)]
        assert sum(changed) <= 2
    assert str(net) == zennet.INITIAL


def test_long_blocks_are_split_in_two():
    parts = zennet._split(ZenNet.parse("SuperResK3K3(8,16,2,8,7)").blocks[0])
    assert "".join(map(str, parts)) == "SuperResK3K3(8,16,2,8,3)SuperResK3K3(16,16,1,8,4)"


def test_kinds_are_uniform():
    """ZenNAS's released code draws earlier kinds of a family more often; here each distinct kind is as likely."""
    g, block = torch.Generator().manual_seed(2), ZenNet.parse(PUBLISHED["cifar-1M"]).blocks[2]
    n = 1000
    found = Counter(zennet.mutate_block(block, g).kind for _ in range(n))
    assert [found[kind] / n for kind in (*BASIC_KINDS, *BOTTLENECK_KINDS)] == pytest.approx([1 / 6] * 6, abs=0.06)
