"""Strided 1x1 convolution of a narrow input whose backward on a CPU stays inside its memory.

oneDNN (3.12 is the latest seen) writes past a buffer in the weight gradient of a strided 1x1 convolution over a
channels_last input with fewer channels than its blocks of 16 (with AVX2 of 8), when several threads share the batch
(https://github.com/uxlfoundation/oneDNN/issues/6035): wrong gradients, or the end of the process. Such a convolution
reads every other position alone, so taking those first and going on without a stride gives the same values. In
PyTorch's default memory format, of input and weights, the fault does not strike.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK = 16  # channels that oneDNN's widest kernels take at a time


def applies(module: nn.Module) -> bool:
    """Whether a module is PyTorch's own convolution with a 1x1 kernel and a stride, without groups or padding."""
    if type(module) is not nn.Conv2d or module.kernel_size != (1, 1) or module.stride == (1, 1):
        return False
    return module.groups == 1 and module.padding in ((0, 0), "valid")


def convolve(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`conv._conv_forward`; where gradients of a narrow input are wanted on a CPU, without a stride."""
    if conv.in_channels >= BLOCK or x.is_cuda or not torch.is_grad_enabled():
        return nn.Conv2d._conv_forward(conv, x, weight, bias)
    rows, columns = conv.stride
    return F.conv2d(x[..., ::rows, ::columns], weight, bias)
