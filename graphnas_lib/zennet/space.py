"""The ZenNet design space as networks, costs and mutations: the space of Table 2's baselines."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from graphnas_lib.network import Costs
from graphnas_lib.zennet.blocks import BASIC_KINDS, BOTTLENECK_KINDS, INVERTED_KINDS, Block, Conv, Unit, ZenNet

SPACES = {"cifar": (*BOTTLENECK_KINDS, *BASIC_KINDS), "imagenet": INVERTED_KINDS}
WIDTH_FACTORS = (2.5, 2.0, 1.5, 1.25, 1.0, 1 / 1.25, 1 / 1.5, 1 / 2.0, 1 / 2.5)
MAX_CIFAR_CHANNELS = 2048
MAX_SUB_LAYERS = 5  # a longer block becomes two: three sub-layers and the rest
BN_EPS = 1e-3

INITIAL = {
    "cifar": "SuperConvK3BNRELU(3,8,1,1)SuperResK3K3(8,16,1,8,1)SuperResK3K3(16,32,2,16,1)SuperResK3K3(32,64,2,32,1)"
    "SuperResK3K3(64,64,2,32,1)SuperConvK1BNRELU(64,128,1,1)",
    "imagenet": "SuperConvK3BNRELU(3,8,2,1)SuperResIDWE6K3(8,32,2,8,1)SuperResIDWE6K3(32,48,2,32,1)"
    "SuperResIDWE6K3(48,96,2,48,1)SuperResIDWE6K3(96,128,2,96,1)SuperConvK1BNRELU(128,2048,1,1)",
}


# ---- costs


def count(
    net: ZenNet,
    *,
    resolution: int = 32,
    classes: int = 100,
    convention: str = "zennas",
    residual: bool = True,
) -> Costs:
    """Costs of a structure for one square image of side `resolution`.

    Args:
        convention: "zennas": the counter behind the budgets of ZenNAS, ZiCo and T-CET (one parameter a BN channel and
            one for the classifier's bias; MACs of BN once; shortcuts at output side / stride), which re-counts the
            published structures exactly, squeeze-excite left out. "paper": exact, in this package's units, as
            `network.count`.

    Returns:
        Costs; under "zennas" `macs` is the published "FLOPs" and `flops` twice that.
    """
    if convention not in ("zennas", "paper"):
        raise ValueError(f"convention must be one of ('zennas', 'paper'); got {convention!r}.")
    zennas, side = convention == "zennas", resolution
    convs, shortcuts = [], []  # (convolution, side of its output)
    for unit in net.units():
        entering = side
        for conv in unit.convs:
            side = -(-side // conv.stride)
            convs.append((conv, side))
        if residual and unit.shortcut == "project":
            stride = unit.projection.stride
            shortcuts.append((unit.projection, side / stride if zennas else -(-entering // stride)))
    outputs = sum(conv.outputs * side**2 for conv, side in convs)  # each goes through a ReLU
    convs += shortcuts
    width = net.blocks[-1].outputs
    weights = sum(conv.weights for conv, _ in convs) + width * classes
    macs = sum(conv.weights * side**2 for conv, side in convs) + width * classes
    channels, normed = sum(conv.outputs for conv, _ in convs), sum(conv.outputs * side**2 for conv, side in convs)
    if zennas:
        macs += normed
        return Costs(weights + channels + 1, round(macs), round(2 * macs))
    flops = 2 * (macs + 2 * normed + outputs + classes + width * side**2)  # the last term: pooling
    return Costs(weights + 2 * channels + classes, round(macs), round(flops))


# ---- networks


def build(net: ZenNet, *, classes: int = 100, residual: bool = True, seed: int | None = None) -> ZenNetwork:
    """Trainable network of a structure; `residual` False drops every shortcut, as ZenNAS does while scoring.

    PyTorch's default initialisation: by `seed`, the global generator left alone, or by that one without a seed.
    """
    if seed is None:
        return ZenNetwork(net, classes, residual)
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


def _conv_norm(conv: Conv) -> list[nn.Module]:
    shape = (conv.inputs, conv.outputs, conv.kernel, conv.stride, conv.kernel // 2)
    return [nn.Conv2d(*shape, groups=conv.groups, bias=False), nn.BatchNorm2d(conv.outputs, eps=BN_EPS)]


# ---- search


def initial(space: str) -> ZenNet:
    """The structure that ZenNAS's search starts from; `space` is "cifar" or "imagenet"."""
    return ZenNet.parse(INITIAL[_check_space(space)])


def mutate(net: ZenNet, generator: torch.Generator, *, space: str = "cifar", n_blocks: int = 2) -> ZenNet:
    """Change `n_blocks` random blocks and split long ones (ZenNAS's released code); the child may exceed a budget.

    ZenNAS mutates one block while the population is 10 or less, then two, possibly the same one.
    """
    _check_space(space)
    blocks = list(net.blocks)
    for _ in range(n_blocks):
        j = _draw(range(len(blocks)), generator)
        blocks[j] = mutate_block(blocks[j], generator, space)
    blocks = [part for block in blocks for part in _split(block)]
    later = (replace(block, inputs=before.outputs) for before, block in pairwise(blocks))
    return ZenNet((blocks[0], *later))


def mutate_block(block: Block, generator: torch.Generator, space: str) -> Block:
    """A new width for a stem or last convolution (ImageNet's last is fixed); for any other block a new kind, width,
    number of sub-layers and bottleneck, each uniform over its distinct candidates.
    """
    if block.is_conv:
        fixed = space == "imagenet" and block.kernel == 1
        return block if fixed else replace(block, outputs=_draw(_widths(block.outputs, space), generator))
    return replace(
        block,
        kind=_draw(SPACES[space], generator),
        outputs=_draw(_widths(block.outputs, space), generator),
        sub_layers=_draw([n for n in range(block.sub_layers - 2, block.sub_layers + 3) if n >= 1], generator),
        bottleneck=_draw(_widths(block.bottleneck, space), generator),
    )


def _widths(width: int, space: str) -> list[int]:
    """Distinct candidates: factors of `width`, rounded to 8, at least 8."""
    found = {max(8, 8 * round(width * factor / 8)) for factor in WIDTH_FACTORS}
    return sorted({min(w, MAX_CIFAR_CHANNELS) for w in found} if space == "cifar" else found)


def _split(block: Block) -> list[Block]:
    if block.is_conv or block.sub_layers <= MAX_SUB_LAYERS:
        return [block]
    rest = replace(block, inputs=block.outputs, stride=1, sub_layers=block.sub_layers - 3)
    return [replace(block, sub_layers=3), rest]


def _draw(options, generator: torch.Generator):
    p = torch.ones(len(options), dtype=torch.float64)
    return options[int(torch.multinomial(p, 1, generator=generator))]


def _check_space(space: str) -> str:
    if space not in SPACES:
        raise ValueError(f"space must be one of {tuple(SPACES)}; got {space!r}.")
    return space
