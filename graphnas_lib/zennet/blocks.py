"""Structures of the ZenNet design space (Table 2's baselines): block strings, and what each block consists of.

A ZenNet is a list of super-blocks written `Kind(in,out,stride[,bottleneck],sub_layers)`. GraphNet does not contain
this space: kernel 7, expansions 1 and 4 and squeeze-excite have no counterpart (deviation D24). `space` builds, counts
and mutates these structures.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from graphnas_lib.network import Layer

CONV_KINDS = tuple(f"SuperConvK{k}BNRELU" for k in (1, 3, 5, 7))
BASIC_KINDS = tuple(f"SuperResK{k}K{k}" for k in (3, 5, 7))
BOTTLENECK_KINDS = tuple(f"SuperResK1K{k}K1" for k in (3, 5, 7))
INVERTED_KINDS = tuple(f"SuperResIDWE{e}K{k}" for k in (3, 5, 7) for e in (1, 2, 4, 6))


class ZenNetError(ValueError):
    """A string or a list of blocks is no ZenNet."""


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
        for before, after in pairwise(self.blocks):
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
            kind, numbers, n = match[1], [int(n) for n in match[2].split(",")], 4 if match[1] in CONV_KINDS else 5
            if len(numbers) != n:
                raise ZenNetError(f"{kind} takes {n} numbers; got {numbers}.")
            blocks.append(Block(kind, *numbers[:3], numbers[3] if n == 5 else None, numbers[-1]))
            rest = rest[match.end() :]
        return cls(tuple(blocks))

    @property
    def depth(self) -> int:
        """Sub-layers of all blocks; what ZenNAS's max_layers bounds."""
        return sum(block.sub_layers for block in self.blocks)

    def units(self) -> Iterator[Unit]:
        """Residual units and plain convolutions of all blocks in order."""
        return (unit for block in self.blocks for unit in units_of(block))

    def __str__(self) -> str:
        return "".join(map(str, self.blocks))


# ---- what a block consists of, read once to build and once to count


Conv = partial(Layer, "conv")  # (inputs, outputs, kernel, stride, groups=...); its batch norm is understood


@dataclass(frozen=True)
class Unit:
    """Convolutions with ReLU between them, an optional shortcut ('identity' or 'project'), ReLU after the sum."""

    convs: tuple[Layer, ...]
    shortcut: str | None = None

    @property
    def projection(self) -> Layer:
        """The 1x1 convolution of a shortcut that projects."""
        return Conv(self.convs[0].inputs, self.convs[-1].outputs, 1, max(conv.stride for conv in self.convs))


def units_of(block: Block) -> Iterator[Unit]:
    """Residual units (or plain convolutions) of one super-block; its first shortcut is always a projection."""
    inputs, stride = block.inputs, block.stride
    for i in range(block.sub_layers):
        for j, convs in enumerate(_stacks(block, inputs, stride)):
            fits = convs[0].inputs == convs[-1].outputs and i + j > 0
            yield Unit(convs, None if block.is_conv else "identity" if fits else "project")
        inputs, stride = block.outputs, 1


def _stacks(block: Block, inputs: int, stride: int) -> list[tuple[Layer, ...]]:
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
    return [(Conv(c, e, 1), Conv(e, e, k, s, groups=e), Conv(e, o, 1)) for c, e, o, s in ends]
