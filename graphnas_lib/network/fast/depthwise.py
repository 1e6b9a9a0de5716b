"""Depthwise convolution whose backward on a CPU runs at the speed of its forward.

The CPU library behind PyTorch has quick kernels for the forward of any depthwise convolution, and for the weight
gradient of one at most three columns wide; a wider or dilated one falls back to a dense kernel, 5 to 16 times slower.
The gradients here are the same sums, put so that the quick kernels serve:

- of the input: a forward convolution with the kernel turned by 180 degrees;
- of the weight: the kernel's columns three at a time, and a dilation of d as d x d undilated grids.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CACHED = 3 << 20  # bytes of a tensor that stays in a core's cache
COLUMNS = 3  # widest kernel with a quick weight gradient


def applies(module: nn.Module) -> bool:
    """Whether a module is PyTorch's own depthwise convolution."""
    return type(module) is nn.Conv2d and module.groups == module.in_channels == module.out_channels


def convolve(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`conv._conv_forward` of a depthwise convolution; where a quick backward exists it is used, with the same result.

    It exists for a wide or dilated square kernel in float32, of stride 1, with sizes kept and without bias.
    """
    k, d = conv.kernel_size[0], conv.dilation[0]
    quick = (
        not x.is_cuda
        and x.dtype == torch.float32
        and torch.is_grad_enabled()
        and (k > COLUMNS or d > 1 or k == 1)
        and bias is None
        and conv.stride == (1, 1)
        and conv.kernel_size == (k, k)
        and conv.dilation == (d, d)
        and conv.padding == (d * (k // 2), d * (k // 2))
        and conv.padding_mode == "zeros"
        and k % 2 == 1
        and x.shape[2] % d == x.shape[3] % d == 0
    )
    return _Depthwise.apply(x, weight, d) if quick else nn.Conv2d._conv_forward(conv, x, weight, bias)


class _Depthwise(torch.autograd.Function):
    """Stride 1, padding that keeps the size, square odd kernel."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        return same_size(x, weight, dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        x, weight = ctx.saved_tensors
        dilation = ctx.dilation
        of_input = of_weight = None
        if ctx.needs_input_grad[0]:
            of_input = input_gradient(gradient, weight, dilation)
        if ctx.needs_input_grad[1]:
            of_weight = weight_gradient(_grids(x, dilation), _grids(gradient, dilation), weight.shape[-1])
        return of_input, of_weight, None


def same_size(x: Tensor, weight: Tensor, dilation: int = 1) -> Tensor:
    """Depthwise convolution of stride 1 that keeps the size, (B, C, H, W); weight (C, 1, k, k), k odd."""
    if weight.shape[-1] == 1:
        return x * weight.view(-1, 1, 1)
    return F.conv2d(x, weight, None, 1, dilation * (weight.shape[-1] // 2), dilation, len(weight))


def input_gradient(gradient: Tensor, weight: Tensor, dilation: int = 1) -> Tensor:
    """dL/dx, (B, C, H, W): a forward with the kernel turned."""
    return same_size(gradient, weight.flip(2, 3), dilation)


def weight_gradient(x: Tensor, gradient: Tensor, kernel: int) -> Tensor:
    """dL/dw of an undilated depthwise convolution of stride 1 that keeps the size, three columns of w at a time.

    Args:
        x: input, (B, C, H, W).
        gradient: dL/dy, (B, C, H, W).
        kernel: side of the square kernel, odd.

    Returns:
        (C, 1, kernel, kernel).
    """
    channels, padding = x.shape[1], kernel // 2
    if kernel == 1:
        return (x * gradient).sum((0, 2, 3)).view(-1, 1, 1, 1)
    if kernel <= COLUMNS:
        options = (None, (1, 1), (padding, padding), (1, 1), False, (0, 0), channels, (False, True, False))
        return torch.ops.aten.convolution_backward(gradient, x, x.new_empty(channels, 1, kernel, kernel), *options)[1]
    found = x.new_zeros(channels, 1, kernel, kernel)
    narrow = x.new_empty(channels, 1, kernel, COLUMNS)  # gives the shape alone
    options = (None, (1, 1), (padding, 0), (1, 1), False, (0, 0), channels, (False, True, False))
    images = max(1, CACHED // x[0].nbytes)
    for part, of_part in zip(x.split(images), gradient.split(images), strict=True):
        done = 0
        for start in (*range(0, kernel - COLUMNS, COLUMNS), kernel - COLUMNS):  # 5: 0 and 2; 7: 0, 3 and 4
            left = padding - start  # column j of the narrow kernel reads x[w + start + j - padding]; < 0 crops
            shifted = F.pad(part, (left, COLUMNS - 1 - left)).contiguous(memory_format=torch.channels_last)
            columns = torch.ops.aten.convolution_backward(of_part, shifted, narrow, *options)[1]
            found[..., done : start + COLUMNS] += columns[..., done - start :]
            done = start + COLUMNS
    return found


def _grids(x: Tensor, d: int) -> Tensor:
    """(B, C, H, W) -> (d d B, C, H/d, W/d): the d x d grids that a dilation of d keeps apart."""
    if d == 1:
        return x
    b, c, h, w = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(b, h // d, d, w // d, d, c)  # no copy from channels_last
    return rows.permute(2, 4, 0, 1, 3, 5).reshape(d * d * b, h // d, w // d, c).permute(0, 3, 1, 2)
