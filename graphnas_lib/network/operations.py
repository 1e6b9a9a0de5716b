"""The 28 operations (App. B) as lists of layers: one definition, read once to build modules and once to count costs.

Every operation maps (in, H, W) to (out, ceil(H / stride), ceil(W / stride)). Inside a cell in = out and stride = 1,
except for a node that reads the cell's raw input and makes its width and stride change itself (deviation D04).
The definitions follow deviations D04-D07: ReLU first, batch normalisation last, no residual inside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from torch import nn

_CONV = {1: nn.Conv1d, 2: nn.Conv2d}
_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}
_POOL = {1: nn.AvgPool1d, 2: nn.AvgPool2d}


@dataclass(frozen=True)
class Layer:
    """One elementary layer; `kind` is 'relu', 'conv', 'norm' or 'avg_pool'."""

    kind: str
    inputs: int
    outputs: int
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    bias: bool = False  # conv: additive bias; norm: learnt scale and shift

    def module(self, dims: int) -> nn.Module:
        """The layer as a module over `dims` spatial dimensions (1 or 2)."""
        if self.kind == "relu":
            return nn.ReLU()
        if self.kind == "norm":
            return _NORM[dims](self.outputs, affine=self.bias)
        if self.kind == "avg_pool":
            return _POOL[dims](self.kernel, self.stride, padding=self.kernel // 2, count_include_pad=False)
        return _CONV[dims](
            self.inputs,
            self.outputs,
            self.kernel,
            stride=self.stride,
            padding=self.dilation * (self.kernel // 2),
            dilation=self.dilation,
            groups=self.groups,
            bias=self.bias,
        )

    def output_side(self, sides: tuple[int, ...]) -> tuple[int, ...]:
        """Spatial sides after the layer; every layer here pads to ceil(side / stride)."""
        return tuple(math.ceil(side / self.stride) for side in sides)

    def params(self, dims: int) -> int:
        """Trainable parameters."""
        if self.kind == "norm":
            return 2 * self.outputs if self.bias else 0
        if self.kind == "conv":
            return self.kernel**dims * self.inputs * self.outputs // self.groups + (self.outputs if self.bias else 0)
        return 0

    def macs(self, sides: tuple[int, ...]) -> tuple[int, int]:
        """(multiply-accumulates of convolutions, all operations by the counter's rule); deviation D02.

        The second counts a convolution's bias as its outputs, a norm as one or two times its inputs, ReLU as its
        outputs, pooling as its inputs; the paper's FLOPs are twice the second.
        """
        ins, outs = math.prod(sides), math.prod(self.output_side(sides))
        if self.kind == "conv":
            macs = outs * self.kernel ** len(sides) * self.inputs * self.outputs // self.groups
            return macs, macs + (outs * self.outputs if self.bias else 0)
        if self.kind == "norm":
            return 0, ins * self.inputs * (2 if self.bias else 1)
        return 0, ins * self.inputs


def sequence(layers: Sequence[Layer], dims: int) -> nn.Module:
    """The layers one after another as a module; the identity for none."""
    return nn.Sequential(*(layer.module(dims) for layer in layers)) if layers else nn.Identity()


def relu(channels: int) -> Layer:
    """ReLU."""
    return Layer("relu", channels, channels)


def norm(channels: int, affine: bool = True) -> Layer:
    """Batch normalisation."""
    return Layer("norm", channels, channels, bias=affine)


def conv(inputs: int, outputs: int, kernel: int = 1, **options) -> Layer:
    """Convolution without bias."""
    return Layer("conv", inputs, outputs, kernel, **options)


@cache
def projection(inputs: int, outputs: int, stride: int) -> tuple[Layer, ...]:
    """ReLU-conv1x1-BN that adapts a cell's input to its width and stride (deviation D04)."""
    return relu(inputs), conv(inputs, outputs, stride=stride), norm(outputs)


@cache
def layers(name: str, inputs: int, outputs: int, stride: int = 1) -> tuple[Layer, ...]:
    """The operation `name` of `space.OPERATIONS` from `inputs` to `outputs` channels; () for 'skip' (App. B)."""
    if name == "skip":
        return ()
    kind, _, kernel = name.rpartition("_")
    k = int(kernel)
    if kind == "avg_pool":
        pool = (Layer("avg_pool", inputs, inputs, k, stride), norm(inputs, affine=False))
        widen = (relu(inputs), conv(inputs, outputs, bias=True), norm(outputs))
        return pool if inputs == outputs else pool + widen
    if kind == "conv":
        return relu(inputs), conv(inputs, outputs, k, stride=stride), norm(outputs)
    if kind in ("sep_conv", "dil_conv"):
        dilation = 2 if kind == "dil_conv" else 1
        depthwise = conv(inputs, inputs, k, stride=stride, dilation=dilation, groups=inputs)
        return relu(inputs), depthwise, conv(inputs, outputs), norm(outputs)
    ratio = float(kind.removeprefix("mbconv").removeprefix("bconv"))
    hidden = max(1, int(inputs * ratio))
    return (
        *(relu(inputs), conv(inputs, hidden), norm(hidden)),
        *(relu(hidden), conv(hidden, hidden, k, stride=stride, groups=hidden), norm(hidden)),
        *(relu(hidden), conv(hidden, outputs), norm(outputs)),
    )
