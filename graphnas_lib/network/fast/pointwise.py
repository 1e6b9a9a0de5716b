"""Strided 1x1 convolution of a narrow input whose backward on a CPU stays inside its memory.

oneDNN (3.12 is the latest seen) writes past a buffer in the weight gradient of a strided 1x1 convolution over a
channels_last input with fewer channels than its blocks of 16 (with AVX2 of 8), when several threads share the batch
(https://github.com/uxlfoundation/oneDNN/issues/6035): wrong gradients, or the end of the process. Such a convolution
reads every other position alone, so taking those first and going on without a stride gives the same values.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

BLOCK = 16  # channels that oneDNN's widest kernels take at a time


class PointwiseConv2d(nn.Conv2d):
    """`nn.Conv2d` with a 1x1 kernel and a stride, without groups; of a narrow input the gradients take no stride."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.in_channels >= BLOCK or x.is_cuda or not torch.is_grad_enabled():
            return super()._conv_forward(x, weight, bias)
        rows, columns = self.stride
        return nn.functional.conv2d(x[:, :, ::rows, ::columns], weight, bias)
