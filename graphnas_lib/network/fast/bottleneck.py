"""The inverted bottleneck, conv1x1-BN-ReLU-depthwise-BN-ReLU-conv1x1, in train mode on a CPU without its wide maps.

Most operations of the search space are of this shape, and up to six times wider inside than outside. Layer by layer,
a CPU spends its time carrying the wide maps to memory and back: some 34 times for a forward and a backward. Here a few
images at a time go through all layers while they fit the core's cache, and only the depthwise output stays in memory:
it is written once and read three times. What batch normalisation needs of the whole batch is found beforehand:

- its statistics after the first convolution from the mean and covariance of the narrow input, as that layer is linear;
- after the depthwise one from sums taken in passing; its backward is linear in the incoming gradient and the map.

The values are those of the layers one by one, up to rounding.
"""

from __future__ import annotations

import threading

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from graphnas_lib.network.fast import folding, kernels
from graphnas_lib.network.fast.depthwise import convolve, input_gradient, weight_gradient

CACHED = 3 << 19  # bytes of a wide map that stay in a core's cache
_BUFFERS = threading.local()


class InvertedBottleneck(folding.Sequential):
    """ReLU, conv1x1, BN, ReLU, depthwise, BN, ReLU, conv1x1, BN (nine modules), inner ones fused where that pays.

    Fused: on a CPU in float32, wider inside than outside, stride 1; in eval mode while the norms learn nothing. All
    else, and modules with hooks, go layer by layer.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        if x.is_cuda or not x.dtype == self[4].weight.dtype == torch.float32:
            return super().forward(x)
        pays = self[1].out_channels > self[1].in_channels and self[4].stride == (1, 1)
        if torch.is_grad_enabled() and pays and folding.plain(self):
            if self.training:
                return self[8](fused(*self[1:8], self[0](x)))
            if all(folding.is_constant(self[i]) for i in (2, 5, 8)):
                return _FusedEval.apply(self[0](x), *_constants(*self[1:9]))
        if not torch.is_grad_enabled() and not self.training and folding.plain([self[i] for i in (2, 3, 5, 6)]):
            return self[8](self[7](_rectified(self[5], self[4](_rectified(self[2], self[1](self[0](x)))))))
        return super().forward(x)


def _rectified(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """ReLU(norm(x)) in eval mode, in place, in one pass."""
    if not x.is_contiguous(memory_format=torch.channels_last):
        x = x.contiguous(memory_format=torch.channels_last)
    scale, shift = folding.affine(norm)
    rows = _rows(x).numpy()
    kernels.norm_relu(rows, scale.numpy(), shift.numpy(), rows)
    return x


def _constants(expand, norm1, _relu1, depthwise, norm2, _relu2, project, norm3) -> tuple[Tensor, ...]:
    ends = expand.weight, *folding.affine(norm1), depthwise.weight, *folding.affine(norm2)
    return *ends, *folding.folded(project, norm3)


def fused(expand, norm1, _relu1, depthwise, norm2, _relu2, project, x: Tensor) -> Tensor:
    """The seven modules' train-mode output; running statistics move as they do layer by layer."""
    values = x, expand.weight, norm1.weight, norm1.bias, depthwise.weight, norm2.weight, norm2.bias, project.weight
    out, *statistics = _Fused.apply(*values, norm1.eps, norm2.eps)
    positions = x.numel() // x.shape[1]
    _track(norm1, *statistics[:2], positions)
    _track(norm2, *statistics[2:], positions)
    return out


class _Fused(torch.autograd.Function):
    """Rows are positions, (B H W, C); `wide` stands for maps inside the block."""

    @staticmethod
    def forward(ctx, x, w1, gain1, bias1, w2, gain2, bias2, w3, eps1, eps2):
        h, w = x.shape[2:]
        rows, w1, w3 = _rows(x), w1.flatten(1), w3.flatten(1)  # (n, c), (wide, c), (out, wide)
        n, step = len(rows), max(1, CACHED // (4 * w1.shape[0] * h * w)) * h * w
        # mean and covariance of the rows; those of w1 r follow
        total = sum(part.sum(0).double() for part in rows.split(4096))
        second = sum((part.T @ part).double() for part in rows.split(step))  # (c, c)
        mean = total / n
        v = w1.double()
        mean1 = v @ mean
        var1 = ((v @ (second / n - torch.outer(mean, mean))) * v).sum(1).clamp_min(0)
        inv1 = (var1 + eps1).rsqrt()
        scale1 = gain1.double() * inv1
        folded, shift1 = (v * scale1[:, None]).float(), (bias1.double() - mean1 * scale1).float()
        scratch = _scratch(0, min(step, n), len(w1))
        wide, sums, squares, pivot = [], np.zeros(len(w1)), np.zeros(len(w1)), None
        for part in rows.split(step):
            inner = _expanded(part, folded, shift1, scratch)
            maps = convolve(_maps(inner, h, w), w2)
            wide.append(_rows(maps))
            if pivot is None:
                pivot = wide[0].mean(0)
            kernels.sums(wide[-1].numpy(), pivot.numpy(), sums, squares)
        offset = torch.from_numpy(sums) / n
        mean2, var2 = pivot.double() + offset, torch.from_numpy(squares) / n - offset.square()
        inv2 = (var2 + eps2).rsqrt()
        scale2 = gain2.double() * inv2
        affine2 = scale2.float(), (bias2.double() - mean2 * scale2).float()
        out = rows.new_empty(n, len(w3))
        for part, target in zip(wide, out.split(step)):
            torch.mm(_normed(part, *affine2, scratch), w3.T, out=target)
        ctx.save_for_backward(rows, w1, w2, w3, folded, shift1, gain1, gain2, *affine2, *wide)
        ctx.moments = total, second, mean1, inv1, mean2, inv2
        ctx.shape, ctx.step = (h, w), step
        ctx.mark_non_differentiable(mean1, var1, mean2, var2)
        return _maps(out, h, w), mean1, var1, mean2, var2

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, *_):
        rows, w1, w2, w3, folded, shift1, gain1, gain2, scale2, shift2, *wide = ctx.saved_tensors
        total, second, mean1, inv1, mean2, inv2 = ctx.moments
        (h, w), step, n = ctx.shape, ctx.step, len(rows)
        gradient = _rows(gradient).split(step)
        # pass 1: of w3, and the sums that the second norm's backward needs
        of_w3, sums, products = torch.zeros_like(w3), np.zeros(len(w2)), np.zeros(len(w2))
        pivot = mean2.float()
        scratch, other = (_scratch(i, min(step, n), len(w1)) for i in range(2))
        for g, part in zip(gradient, wide):
            inner = _normed(part, scale2, shift2, scratch)
            of_w3.addmm_(g.T, inner)
            d = torch.mm(g, w3, out=other[: len(g)])
            kernels.masked_sums(d.numpy(), part.numpy(), inner.numpy(), pivot.numpy(), sums, products)
        sums, products = torch.from_numpy(sums), torch.from_numpy(products)
        products = (products + (pivot.double() - mean2) * sums) * inv2  # sum of d * normalised map
        of_gain2, of_bias2 = products, sums
        factors = _backward_factors(gain2, mean2, inv2, sums, products, n)
        # pass 2: of w2, of w1 and of the input as if the first norm's statistics were constants
        of_w2, product, sums = torch.zeros_like(w2), torch.zeros_like(w1), np.zeros(len(w2))
        of_rows = torch.empty_like(rows)
        for g, part, r, target in zip(gradient, wide, rows.split(step), of_rows.split(step)):
            d = torch.mm(g, w3, out=other[: len(g)])
            kernels.norm_backward(d.numpy(), part.numpy(), scale2.numpy(), shift2.numpy(), *factors)
            inner, d = _expanded(r, folded, shift1, scratch), _maps(d, h, w)
            of_w2 += weight_gradient(_maps(inner, h, w), d, w2.shape[-1])
            d = _rows(input_gradient(d, w2))
            kernels.mask(d.numpy(), inner.numpy(), sums)
            product.addmm_(d.T, r)
            torch.mm(d, folded, out=target)
        # the first norm: its layer is linear, so its backward is linear in the narrow input
        sums, product, v = torch.from_numpy(sums), product.double(), w1.double()
        along = inv1 * ((product * v).sum(1) - mean1 * sums)  # sum of d * normalised map
        of_gain1, of_bias1 = along, sums
        a1 = gain1.double() * inv1
        centred = v @ second - torch.outer(mean1, total)  # sum of (map - mean) * row
        of_w1 = a1[:, None] * (product - torch.outer(sums / n, total) - (along * inv1 / n)[:, None] * centred)
        bend = -(v.T * (a1 * along * inv1 / n)) @ v  # (c, c)
        constant = v.T @ (a1 * (along * inv1 * mean1 - sums) / n)  # (c,)
        of_rows += torch.addmm(constant.float(), rows, bend.float())
        return (
            *(_maps(of_rows, h, w), of_w1.float()[:, :, None, None], of_gain1.float(), of_bias1.float(), of_w2),
            *(of_gain2.float(), of_bias2.float(), of_w3[:, :, None, None], None, None),
        )


def _scratch(index: int, rows: int, width: int) -> Tensor:
    """A buffer of this thread, (rows, width), kept between calls: touching new memory costs more than filling it."""
    buffers = _BUFFERS.__dict__
    if index not in buffers or len(buffers[index]) < rows * width:
        buffers[index] = torch.empty(rows * width)
    return buffers[index][: rows * width].view(rows, width)


def _expanded(rows: Tensor, weight: Tensor, shift: Tensor, scratch: Tensor) -> Tensor:
    """ReLU(rows weight^T + shift), in `scratch`."""
    out = torch.mm(rows, weight.T, out=scratch[: len(rows)])
    kernels.shift_relu(out.numpy(), shift.numpy())
    return out


def _normed(rows: Tensor, scale: Tensor, shift: Tensor, scratch: Tensor) -> Tensor:
    """ReLU(rows scale + shift), in `scratch`."""
    out = scratch[: len(rows)]
    kernels.norm_relu(rows.numpy(), scale.numpy(), shift.numpy(), out.numpy())
    return out


class _FusedEval(torch.autograd.Function):
    """The same with constant norms: nothing couples the images, so wide maps are made again and none is kept."""

    @staticmethod
    def forward(ctx, x, w1, scale1, shift1, w2, scale2, shift2, w3, bias3):
        h, w = x.shape[2:]
        rows, w1, w3 = _rows(x), w1.flatten(1), w3.flatten(1)
        step, folded = max(1, CACHED // (4 * len(w1) * h * w)) * h * w, w1 * scale1[:, None]
        scratch, out = _scratch(0, min(step, len(rows)), len(w1)), rows.new_empty(len(rows), len(w3))
        for part, target in zip(rows.split(step), out.split(step)):
            wide = _rows(convolve(_maps(_expanded(part, folded, shift1, scratch), h, w), w2))
            torch.addmm(bias3, _normed(wide, scale2, shift2, scratch), w3.T, out=target)
        ctx.save_for_backward(rows, w2, w3, folded, scale1, shift1, scale2, shift2)
        ctx.shape, ctx.step = (h, w), step
        return _maps(out, h, w)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        rows, w2, w3, folded, scale1, shift1, scale2, shift2 = ctx.saved_tensors
        (h, w), step = ctx.shape, ctx.step
        of_w1, of_w2, of_w3 = torch.zeros_like(folded), torch.zeros_like(w2), torch.zeros_like(w3)
        of_rows, zero = torch.empty_like(rows), np.zeros(len(w2), np.float32)
        first, second, third = (_scratch(i, min(step, len(rows)), len(w2)) for i in range(3))
        parts = zip(_rows(gradient).split(step), rows.split(step), of_rows.split(step))
        for g, r, target in parts:
            inner = _expanded(r, folded, shift1, first)
            wide = _rows(convolve(_maps(inner, h, w), w2))
            of_w3.addmm_(g.T, _normed(wide, scale2, shift2, second))
            d = torch.mm(g, w3, out=third[: len(g)])
            kernels.norm_backward(d.numpy(), wide.numpy(), *(t.numpy() for t in (scale2, shift2, scale2)), zero, zero)
            d = _maps(d, h, w)
            of_w2 += weight_gradient(_maps(inner, h, w), d, w2.shape[-1])
            d = _rows(input_gradient(d, w2))
            kernels.mask(d.numpy(), inner.numpy(), np.zeros(len(w2)))
            of_w1.addmm_(d.T, r)
            torch.mm(d, folded, out=target)
        of_w1 *= scale1[:, None]
        of_w1, of_w3 = of_w1[:, :, None, None], of_w3[:, :, None, None]
        return _maps(of_rows, h, w), of_w1, None, None, of_w2, None, None, of_w3, None


def _track(norm: nn.BatchNorm2d, mean: Tensor, var: Tensor, positions: int) -> None:
    """Move the running statistics as `nn.BatchNorm2d` does: with momentum, the variance unbiased."""
    if norm.track_running_stats:
        with torch.no_grad():
            norm.num_batches_tracked += 1
            norm.running_mean.lerp_(mean.float(), norm.momentum)
            norm.running_var.lerp_((var * (positions / max(1, positions - 1))).float(), norm.momentum)


def _rows(maps: Tensor) -> Tensor:
    """(B, C, H, W) -> (B H W, C); no copy from channels_last."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def _maps(rows: Tensor, h: int, w: int) -> Tensor:
    """(B H W, C) -> (B, C, H, W), channels_last, no copy."""
    return rows.view(-1, h, w, rows.shape[1]).permute(0, 3, 1, 2)


def _backward_factors(weight: Tensor | None, mean, inverse, sums, along, n: int) -> list[np.ndarray]:
    """(slope, tilt, level), float32 (C,): dL/dx = slope dL/dy + tilt x + level for n positions a channel.

    Args:
        weight: of the norm, or None.
        mean, inverse: of x, and 1 / its deviation; float64 (C,), as all sums.
        sums: of dL/dy.
        along: of dL/dy times the normalised x.
    """
    slope = inverse if weight is None else weight.double() * inverse
    tilt = -slope * inverse * along / n
    level = -slope * sums / n - tilt * mean
    return [factor.float().numpy() for factor in (slope, tilt, level)]
