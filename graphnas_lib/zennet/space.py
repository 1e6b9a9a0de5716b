"""The ZenNet design space as networks, costs and mutations: the space of Table 2's baselines."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from graphnas_lib.network import Costs, Layer
from graphnas_lib.zennet.blocks import BASIC_KINDS, BOTTLENECK_KINDS, Block, Unit, ZenNet

KINDS = (*BOTTLENECK_KINDS, *BASIC_KINDS)  # that mutations draw from, as ZenNAS's search for CIFAR does
WIDTH_FACTORS = (2.5, 2.0, 1.5, 1.25, 1.0, 1 / 1.25, 1 / 1.5, 1 / 2.0, 1 / 2.5)
MAX_CHANNELS = 2048
MAX_SUB_LAYERS = 5  # a longer block becomes two: three sub-layers and the rest
MUTATED_BLOCKS = 2  # at once, perhaps the same one twice; ZenNAS mutates one while the population is 10 or less
BN_EPS = 1e-3

INITIAL = (  # where ZenNAS's search starts
    "SuperConvK3BNRELU(3,8,1,1)SuperResK3K3(8,16,1,8,1)SuperResK3K3(16,32,2,16,1)SuperResK3K3(32,64,2,32,1)"
    "SuperResK3K3(64,64,2,32,1)SuperConvK1BNRELU(64,128,1,1)"
)


def count(net: ZenNet, *, resolution: int = 32, classes: int = 100) -> Costs:
    """Exact costs of a structure for one square image of side `resolution`, in this package's units (`network.count`).

    ZenNAS counts otherwise: its published sizes have one parameter a BN channel, and MACs of BN (`tests/test_zennet.py`
    counts so, and finds them).
    """
    side, convs, shortcuts = resolution, [], []  # (convolution, side of its output)
    for unit in net.units():
        entering = side
        for conv in unit.convs:
            side = -(-side // conv.stride)
            convs.append((conv, side))
        if unit.shortcut == "project":
            shortcuts.append((unit.projection, -(-entering // unit.projection.stride)))
    outputs = sum(conv.outputs * side**2 for conv, side in convs)  # each goes through a ReLU
    convs += shortcuts
    width = net.blocks[-1].outputs
    weights = sum(conv.params(2) for conv, _ in convs) + width * classes
    macs = sum(conv.params(2) * side**2 for conv, side in convs) + width * classes
    channels, normed = sum(conv.outputs for conv, _ in convs), sum(conv.outputs * side**2 for conv, side in convs)
    flops = 2 * (macs + 2 * normed + outputs + classes + width * side**2)  # the last term: pooling
    return Costs(weights + 2 * channels + classes, macs, flops)


def build(net: ZenNet, *, classes: int = 100, residual: bool = True, seed: int) -> ZenNetwork:
    """Trainable network of a structure; `residual` False drops every shortcut, as ZenNAS does while scoring.

    PyTorch's default initialisation by `seed`; the global generator is left alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return ZenNetwork(net, classes, residual)


class ZenNetwork(nn.Module):
    """Units in order, global average pooling, linear; `features` ends before pooling."""

    def __init__(self, net: ZenNet, classes: int, residual: bool):
        super().__init__()
        self.units = nn.Sequential(*(_UnitModule(unit, residual) for unit in net.units()))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(net.blocks[-1].outputs, classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, width, h, w)."""
        return self.units(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, classes)."""
        return self.classifier(self.pool(self.features(x)).flatten(1))


class _UnitModule(nn.Module):
    def __init__(self, unit: Unit, residual: bool):
        super().__init__()
        layers = [layer for conv in unit.convs for layer in (*_conv_norm(conv), nn.ReLU())]
        self.body = nn.Sequential(*layers[:-1])
        kinds = {"identity": nn.Identity, "project": lambda: nn.Sequential(*_conv_norm(unit.projection))}
        self.shortcut = kinds[unit.shortcut]() if residual and unit.shortcut else None
        self.relu = nn.ReLU()

    def close(self) -> None:
        """Zero scale of the last norm where there is a shortcut: the unit passes its input on (ZenNAS's training)."""
        if self.shortcut is not None:
            nn.init.zeros_(self.body[-1].weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return self.relu(y if self.shortcut is None else y + self.shortcut(x))


def _conv_norm(conv: Layer) -> list[nn.Module]:
    return [conv.module(2), nn.BatchNorm2d(conv.outputs, eps=BN_EPS)]


def initial() -> ZenNet:
    """The structure that the search starts from."""
    return ZenNet.parse(INITIAL)


def mutate(net: ZenNet, generator: torch.Generator) -> ZenNet:
    """Change random blocks and split long ones (ZenNAS's released code); the child may exceed a budget."""
    blocks = list(net.blocks)
    for _ in range(MUTATED_BLOCKS):
        j = _draw(range(len(blocks)), generator)
        blocks[j] = mutate_block(blocks[j], generator)
    blocks = [part for block in blocks for part in _split(block)]
    later = (replace(block, inputs=before.outputs) for before, block in pairwise(blocks))
    return ZenNet((blocks[0], *later))


def mutate_block(block: Block, generator: torch.Generator) -> Block:
    """A new width for a stem or last convolution; for any other block a new kind, width, number of sub-layers and
    bottleneck, each uniform over its distinct candidates.
    """
    if block.is_conv:
        return replace(block, outputs=_draw(_widths(block.outputs), generator))
    return replace(
        block,
        kind=_draw(KINDS, generator),
        outputs=_draw(_widths(block.outputs), generator),
        sub_layers=_draw([n for n in range(block.sub_layers - 2, block.sub_layers + 3) if n >= 1], generator),
        bottleneck=_draw(_widths(block.bottleneck), generator),
    )


def _widths(width: int) -> list[int]:
    """Distinct candidates: factors of `width`, rounded to 8, at least 8."""
    return sorted({min(max(8, 8 * round(width * factor / 8)), MAX_CHANNELS) for factor in WIDTH_FACTORS})


def _split(block: Block) -> list[Block]:
    if block.is_conv or block.sub_layers <= MAX_SUB_LAYERS:
        return [block]
    rest = replace(block, inputs=block.outputs, stride=1, sub_layers=block.sub_layers - 3)
    return [replace(block, sub_layers=3), rest]


def _draw(options, generator: torch.Generator):
    p = torch.ones(len(options), dtype=torch.float64)
    return options[int(torch.multinomial(p, 1, generator=generator))]
