"""Structures of the ZenNet design space (Table 2's baselines): block strings, and what each block consists of.

A ZenNet is a list of super-blocks written `Kind(in,out,stride[,bottleneck],sub_layers)`. GraphNet does not contain
this space: kernel 7, expansions 1 and 4 and squeeze-excite have no counterpart (deviation D24). `zennet` builds,
counts and mutates these structures.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

CONV_KINDS = tuple(f"SuperConvK{k}BNRELU" for k in (1, 3, 5, 7))
BASIC_KINDS = tuple(f"SuperResK{k}K{k}" for k in (3, 5, 7))
BOTTLENECK_KINDS = tuple(f"SuperResK1K{k}K1" for k in (3, 5, 7))
INVERTED_KINDS = tuple(f"SuperResIDWE{e}K{k}" for k in (3, 5, 7) for e in (1, 2, 4, 6))
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


class ZenNetError(ValueError):
    """A string or a list of blocks is no ZenNet."""


# ---- structures


@dataclass(frozen=True)
class Block:
    """One super-block; `bottleneck` is None for the convolution kinds."""

    kind: str
    inputs: int
    outputs: int
    stride: int
    bottleneck: int | None
    sub_layers: int

    def __post_init__(self):
        if self.kind not in (*CONV_KINDS, *BASIC_KINDS, *BOTTLENECK_KINDS, *INVERTED_KINDS):
            raise ZenNetError(f"A ZenNet block must be a known kind such as 'SuperResK1K5K1'; got {self.kind!r}.")
        numbers = (self.inputs, self.outputs, self.stride, self.sub_layers, 1 if self.is_conv else self.bottleneck)
        if None in numbers or min(numbers) < 1 or (self.is_conv and self.bottleneck is not None):
            raise ZenNetError(f"{self.kind} needs {4 if self.is_conv else 5} positive numbers; got {self}.")

    @property
    def is_conv(self) -> bool:
        """A stem or last convolution: no bottleneck, no residual."""
        return self.kind in CONV_KINDS

    @property
    def kernel(self) -> int:
        """Side of the block's spatial kernel."""
        return max(int(k) for k in re.findall(r"K(\d)", self.kind))

    def __str__(self) -> str:
        middle = "" if self.is_conv else f"{self.bottleneck},"
        return f"{self.kind}({self.inputs},{self.outputs},{self.stride},{middle}{self.sub_layers})"


@dataclass(frozen=True)
class ZenNet:
    """A structure of the ZenNet space: super-blocks whose widths meet; `str` and `parse` are inverse."""

    blocks: tuple[Block, ...]

    def __post_init__(self):
        if not self.blocks:
            raise ZenNetError("A ZenNet must have at least one block; got none.")
        for before, after in zip(self.blocks, self.blocks[1:]):
            if before.outputs != after.inputs:
                raise ZenNetError(f"Widths of neighbouring blocks must meet; got {before} then {after}.")

    @classmethod
    def parse(cls, text: str) -> ZenNet:
        """Read a block string; ZenNetError names the part that is wrong."""
        blocks, rest = [], re.sub(r"\s", "", text)
        while rest:
            match = re.match(r"(\w+)\((\d+(?:,\d+)*)\)", rest)
            if match is None:
                raise ZenNetError(f"A ZenNet string must be a row of Kind(numbers,...); got {rest[:40]!r}.")
            blocks.append(_block(match[1], [int(n) for n in match[2].split(",")]))
            rest = rest[match.end() :]
        return cls(tuple(blocks))

    @property
    def depth(self) -> int:
        """Sub-layers of all blocks; what ZenNAS's max_layers bounds."""
        return sum(block.sub_layers for block in self.blocks)

    def __str__(self) -> str:
        return "".join(map(str, self.blocks))


def _block(kind: str, numbers: list[int]) -> Block:
    if len(numbers) != (4 if kind in CONV_KINDS else 5):
        raise ZenNetError(f"{kind} takes {4 if kind in CONV_KINDS else 5} numbers; got {numbers}.")
    *ends, sub_layers = numbers
    return Block(kind, *ends[:3], ends[3] if len(ends) == 4 else None, sub_layers)


# ---- what a block consists of, read once to build and once to count


@dataclass(frozen=True)
class Conv:
    """A convolution with its batch norm; `squeeze`: squeeze-excite follows its ReLU when asked for."""

    inputs: int
    outputs: int
    kernel: int
    stride: int = 1
    groups: int = 1
    squeeze: bool = False


@dataclass(frozen=True)
class Unit:
    """Convolutions with ReLU between them, an optional shortcut ('identity' or 'project'), ReLU after the sum."""

    convs: tuple[Conv, ...]
    shortcut: str | None = None

    @property
    def stride(self) -> int:
        """Stride of the unit, and of its shortcut."""
        return max(conv.stride for conv in self.convs)


def units_of(block: Block) -> Iterator[Unit]:
    """Residual units (or plain convolutions) of one super-block; its first shortcut is always a projection."""
    inputs, stride = block.inputs, block.stride
    for i in range(block.sub_layers):
        for j, convs in enumerate(_stacks(block, inputs, stride)):
            fits = convs[0].inputs == convs[-1].outputs and i + j > 0
            yield Unit(convs, None if block.is_conv else "identity" if fits else "project")
        inputs, stride = block.outputs, 1


def _stacks(block: Block, inputs: int, stride: int) -> list[tuple[Conv, ...]]:
    """Convolutions of each unit of one sub-layer that reads `inputs` channels."""
    k, outputs, middle = block.kernel, block.outputs, block.bottleneck
    if block.is_conv:
        return [(Conv(inputs, outputs, k, stride),)]
    if block.kind in BASIC_KINDS:
        return [(Conv(inputs, middle, k, stride), Conv(middle, outputs, k))]
    if block.kind in BOTTLENECK_KINDS:
        ends = ((inputs, stride), (outputs, 1))
        return [(Conv(c, middle, 1), Conv(middle, middle, k, s), Conv(middle, outputs, 1)) for c, s in ends]
    expansion = int(block.kind.removeprefix("SuperResIDWE")[0])
    ends = ((inputs, middle * expansion, middle, stride), (middle, outputs * expansion, outputs, 1))
    return [(Conv(c, e, 1), Conv(e, e, k, s, groups=e, squeeze=True), Conv(e, o, 1)) for c, e, o, s in ends]
