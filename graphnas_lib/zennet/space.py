"""The ZenNet design space as networks, costs and mutations: the space of Table 2's baselines.

Budgets of ZenNAS, ZiCo and T-CET are in MACs of the ZenNAS counter, which counts one parameter a batch-norm channel
and under-counts a shortcut; `count(..., convention="zennas")` follows it, `convention="paper"` counts exactly and in
this package's units. Facts: the published structures, which re-count exactly; the structures are in `zenblocks`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from graphnas_lib.network import Costs
from graphnas_lib.zennet.blocks import (
    BASIC_KINDS,
    BOTTLENECK_KINDS,
    INVERTED_KINDS,
    PUBLISHED,
    Block,
    Conv,
    Unit,
    ZenNet,
    ZenNetError,
    units_of,
)

__all__ = ["PUBLISHED", "ZenNet", "ZenNetError", "build", "count", "feasible", "initial", "mutate"]

# families of the two spaces; the order within a family matters to the over-sampling quirk alone
SPACES = {"cifar": (BOTTLENECK_KINDS, BASIC_KINDS), "imagenet": (INVERTED_KINDS,)}

WIDTH_FACTORS = (2.5, 2.0, 1.5, 1.25, 1.0, 1 / 1.25, 1 / 1.5, 1 / 2.0, 1 / 2.5)
MAX_WIDTH = 2048  # of the CIFAR space
SPLIT_AT = 6  # a block of so many sub-layers becomes two: 3 and the rest
BN_EPS = 1e-3
SE_RATIO = 0.25
CONVENTIONS = ("zennas", "paper")

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
    se: bool = False,
) -> Costs:
    """Costs of a structure for one square image.

    Args:
        net: the structure.
        resolution: side of the input.
        classes: outputs of the classifier; published CIFAR counts use 100.
        convention: "zennas": the counter of its budgets (one parameter a BN channel and one for the classifier's
            bias; MACs of BN once; shortcuts at output side / stride). "paper": exact parameters, MACs of convolutions
            and linear layers, FLOPs in the paper's unit.
        residual: count the shortcuts.
        se: count squeeze-excite (ZenNAS trains its ImageNet networks with it, but checks budgets without).

    Returns:
        Costs; under "zennas" `macs` is the published "FLOPs" and `flops` twice that.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention must be one of {CONVENTIONS}; got {convention!r}.")
    tally = _Tally(convention == "zennas")
    side = resolution
    for unit in (unit for block in net.blocks for unit in units_of(block)):
        entering = side
        for i, conv in enumerate(unit.convs):
            side = -(-side // conv.stride)
            tally.conv(conv, side)
            tally.relu(conv.outputs * side**2 if i + 1 < len(unit.convs) else 0)
            if conv.squeeze and se:
                tally.squeeze_excite(conv.outputs, side)
        if residual and unit.shortcut == "project":
            shortcut = Conv(unit.convs[0].inputs, unit.convs[-1].outputs, 1)
            tally.conv(shortcut, side / unit.stride if convention == "zennas" else -(-entering // unit.stride))
        tally.relu(unit.convs[-1].outputs * side**2)
    width = net.blocks[-1].outputs
    tally.add(width * classes + (1 if tally.zennas else classes), width * classes, classes + width * side**2)
    return Costs(tally.params, round(tally.macs), round(2 * (tally.macs + tally.extra)))


@dataclass
class _Tally:
    """Running sums; `extra` holds what the paper's FLOPs add to MACs of convolutions and linear layers."""

    zennas: bool
    params: int = 0
    macs: float = 0
    extra: float = 0

    def add(self, params: int, macs: float, extra: float = 0) -> None:
        self.params, self.macs = self.params + params, self.macs + macs
        self.extra += 0 if self.zennas else extra

    def conv(self, conv: Conv, side: float) -> None:
        """A convolution and its batch norm at the output side."""
        weights = conv.inputs * conv.outputs * conv.kernel**2 // conv.groups
        self.add(weights, weights * side**2)
        if self.zennas:
            self.add(conv.outputs, conv.outputs * side**2)
        else:
            self.add(2 * conv.outputs, 0, 2 * conv.outputs * side**2)

    def relu(self, outputs: float) -> None:
        """Counted in the paper's FLOPs alone."""
        self.add(0, 0, outputs)

    def squeeze_excite(self, width: int, side: int) -> None:
        """Pool, two 1x1 convolutions with batch norm at side 1, and the product."""
        hidden = _squeezed(width)
        self.conv(Conv(width, hidden, 1), 1)
        self.conv(Conv(hidden, width, 1), 1)
        self.add(0, width * side**2 if self.zennas else 0, width * side**2 + hidden)
        self.add(hidden + width if self.zennas else 0, 0)  # here alone its counter takes two a channel


def _squeezed(width: int) -> int:
    return max(1, round(width * SE_RATIO))


def feasible(
    net: ZenNet,
    *,
    max_params: float | None = None,
    max_macs: float | None = None,
    max_layers: int | None = None,
    resolution: int = 32,
    classes: int = 100,
) -> bool:
    """True when the structure is within every given budget, by the ZenNAS counter without SE."""
    costs = count(net, resolution=resolution, classes=classes)
    limits = ((costs.params, max_params), (costs.macs, max_macs), (net.depth, max_layers))
    return all(limit is None or value <= limit for value, limit in limits)


# ---- networks


def build(
    net: ZenNet, *, classes: int = 100, residual: bool = True, se: bool = False, seed: int | None = None
) -> ZenNetwork:
    """Trainable network of a structure, PyTorch's default initialisation.

    Args:
        net: the structure.
        classes: outputs.
        residual: False drops every shortcut, as ZenNAS does while scoring.
        se: squeeze-excite in the inverted blocks (training on ImageNet alone).
        seed: initialise reproducibly without touching the global generator; None uses the global one.
    """
    if seed is None:
        return ZenNetwork(net, classes, residual, se)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return ZenNetwork(net, classes, residual, se)


class ZenNetwork(nn.Module):
    """Units in order, global average pooling, linear; `features` ends before pooling."""

    def __init__(self, net: ZenNet, classes: int, residual: bool, se: bool):
        super().__init__()
        self.structure = str(net)
        units = (unit for block in net.blocks for unit in units_of(block))
        self.units = nn.Sequential(*(_UnitModule(unit, residual, se) for unit in units))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(net.blocks[-1].outputs, classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, width, h, w)."""
        return self.units(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, classes)."""
        return self.classifier(self.pool(self.features(x)).flatten(1))


class _UnitModule(nn.Module):
    def __init__(self, unit: Unit, residual: bool, se: bool):
        super().__init__()
        layers: list[nn.Module] = []
        for conv in unit.convs:
            layers += [nn.ReLU()] if layers and not isinstance(layers[-1], _SqueezeExcite) else []
            layers += _conv_norm(conv)
            if conv.squeeze and se:
                layers += [nn.ReLU(), _SqueezeExcite(conv.outputs)]
        self.body = nn.Sequential(*layers)
        self.shortcut = None
        if residual and unit.shortcut == "identity":
            self.shortcut = nn.Identity()
        elif residual and unit.shortcut == "project":
            ends = unit.convs[0].inputs, unit.convs[-1].outputs
            self.shortcut = nn.Sequential(*_conv_norm(Conv(*ends, 1, unit.stride)))
        self.relu = nn.ReLU()

    def close(self) -> None:
        """Zero scale of the last norm where there is a shortcut: the unit passes its input on (ZenNAS's training)."""
        if self.shortcut is not None:
            last = [module for module in self.body if isinstance(module, nn.BatchNorm2d)][-1]
            nn.init.zeros_(last.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return self.relu(y if self.shortcut is None else y + self.shortcut(x))


class _SqueezeExcite(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        hidden = _squeezed(width)
        squeeze, excite = _conv_norm(Conv(width, hidden, 1)), _conv_norm(Conv(hidden, width, 1))
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), *squeeze, nn.ReLU(), *excite, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


def _conv_norm(conv: Conv) -> list[nn.Module]:
    weights = nn.Conv2d(
        *(conv.inputs, conv.outputs, conv.kernel, conv.stride), padding=conv.kernel // 2, groups=conv.groups, bias=False
    )
    return [weights, nn.BatchNorm2d(conv.outputs, eps=BN_EPS)]


# ---- search


def initial(space: str) -> ZenNet:
    """The structure that ZenNAS's search starts from; `space` is "cifar" or "imagenet"."""
    return ZenNet.parse(INITIAL[_check_space(space)])


def mutate(
    net: ZenNet, generator: torch.Generator, *, space: str = "cifar", n_blocks: int = 2, quirk: bool = False
) -> ZenNet:
    """Change `n_blocks` random blocks and split long ones (ZenNAS's released code); the child may exceed a budget.

    A stem or last convolution gets a new width (ImageNet's last is fixed); any other block a new kind, width, number
    of sub-layers and bottleneck, each uniform over its distinct candidates. ZenNAS mutates one block while the
    population is 10 or less, then two.

    Args:
        net: the parent.
        generator: source of the draws.
        space: which kinds are allowed.
        n_blocks: mutations in turn, possibly of one block.
        quirk: draw kinds as the released code does, where earlier kinds of a family weigh more (3 : 2 : 1).
    """
    _check_space(space)
    blocks = list(net.blocks)
    for _ in range(n_blocks):
        j = _draw(range(len(blocks)), generator)
        blocks[j] = _mutated(blocks[j], generator, space, quirk)
    return ZenNet(tuple(_joined(part for block in blocks for part in _split(block))))


def _mutated(block: Block, generator: torch.Generator, space: str, quirk: bool) -> Block:
    if block.is_conv:
        fixed = space == "imagenet" and block.kernel == 1
        return block if fixed else replace(block, outputs=_draw(_widths(block.outputs, space), generator))
    kinds = [kind for family in SPACES[space] for kind in family]
    weights = [len(family) - i if quirk else 1 for family in SPACES[space] for i in range(len(family))]
    return replace(
        block,
        kind=_draw(kinds, generator, weights),
        outputs=_draw(_widths(block.outputs, space), generator),
        sub_layers=_draw([n for n in range(block.sub_layers - 2, block.sub_layers + 3) if n >= 1], generator),
        bottleneck=_draw(_widths(block.bottleneck, space), generator),
    )


def _widths(width: int, space: str) -> list[int]:
    """Distinct candidates: factors of `width`, rounded to 8, at least 8."""
    limit = MAX_WIDTH if space == "cifar" else None
    found = {max(8, 8 * round(width * factor / 8)) for factor in WIDTH_FACTORS}
    return sorted({min(w, limit) if limit else w for w in found})


def _split(block: Block) -> list[Block]:
    if block.is_conv or block.sub_layers < SPLIT_AT:
        return [block]
    half = SPLIT_AT // 2
    rest = replace(block, inputs=block.outputs, stride=1, sub_layers=block.sub_layers - half)
    return [replace(block, sub_layers=half), rest]


def _joined(blocks: Iterator[Block]) -> Iterator[Block]:
    """Each block's input width set to the one before's output."""
    width = None
    for block in blocks:
        yield block if width is None else replace(block, inputs=width)
        width = block.outputs


def _draw(options, generator: torch.Generator, weights: list[float] | None = None):
    p = torch.tensor(weights or [1] * len(options), dtype=torch.float64)
    return options[int(torch.multinomial(p, 1, generator=generator))]


def _check_space(space: str) -> str:
    if space not in SPACES:
        raise ValueError(f"space must be one of {tuple(SPACES)}; got {space!r}.")
    return space
