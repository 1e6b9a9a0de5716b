"""The inverted bottleneck, conv1x1-BN-ReLU-depthwise-BN-ReLU-conv1x1, in train mode on a CPU without its wide maps.

Most operations of the search space are of this shape, and up to six times wider inside than outside. Layer by layer,
a CPU spends its time carrying the wide maps to memory and back: some 34 times for a forward and a backward. Here a few
images at a time go through all layers while they fit the core's cache, and only the depthwise output stays in memory:
it is written once and read three times. What batch normalisation needs of the whole batch is found beforehand. The
values are those of the layers one by one, up to rounding.

**Forward.** Positions are rows r of c channels, n in all. The first layer is linear, a = V r with V (wide, c), so its
statistics follow from those of the narrow rows: mean m1 = V mean(r), variance = diag(V cov(r) V'). The second norm's,
m2 and its variance, are sums over the depthwise output b, taken in passing.

**Backward of a norm** y = g i (x - m) + h, with gain g, shift h, mean m and i = 1 / deviation of its n inputs x. Let
d = dL/dy, S = sum of d and T = sum of d i (x - m), so that dL/dg = T and dL/dh = S. Mean and deviation depend on x, so

    dL/dx = g i (d - S / n - i (x - m) T / n) = slope d + tilt x + level,
    slope = g i,  tilt = -g i i T / n,  level = -g i S / n - tilt m.

S and T are sums over the whole batch, so dL/dx takes two passes.

- *Pass 1* goes back through the last convolution W3 and the ReLU, and sums S2 and T2 of the second norm, and dL/dW3.
- *Pass 2* makes that gradient again, applies slope, tilt and level, and goes back through the depthwise layer and the
  first ReLU to d, the gradient at the output of the first norm. Of d it keeps narrow sums alone: s = sum of d (wide),
  P = sum of d r' (wide, c), and the first part of dL/dr below.
- *The first norm* needs no third pass, as a = V r. With e = g1 i1, q = sum of r and Q = sum of r r':

      T1 = i1 (rowsum(P * V) - m1 s),  S1 = s
      dL/dV = sum of (dL/da) r' = e [P - (s / n) q' - (i1 T1 / n) (V Q - m1 q')]
      dL/dr = V' (dL/da) = (e V)' d - V' diag(e i1 T1 / n) V r + V' [e (i1 m1 T1 - s) / n]

  (e and the like scale rows); the last two terms of dL/dr, `bend` and `constant`, are one narrow product at the end.
"""

from __future__ import annotations

import threading

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from graphnas_lib.network.fast import folding, kernels
from graphnas_lib.network.fast.depthwise import input_gradient, same_size, weight_gradient

CACHED = 3 << 19  # bytes of a wide map that stay in a core's cache
_KINDS = [nn.ReLU, nn.Conv2d, nn.BatchNorm2d] * 3
_BUFFERS = threading.local()


def applies(module: nn.Sequential) -> bool:
    """Whether nine layers are ReLU-conv1x1-BN-ReLU-depthwise-BN-ReLU-conv1x1-BN as an operation has them."""
    if [type(layer) for layer in module] != _KINDS:
        return False
    convs, norms = (module[1], module[4], module[7]), (module[2], module[5], module[8])
    k, wide = module[4].kernel_size[0], module[1].out_channels
    return (
        all(conv.bias is None and conv.padding_mode == "zeros" and conv.dilation == (1, 1) for conv in convs)
        and all(conv.kernel_size == conv.stride == (1, 1) for conv in convs[::2])
        and all(conv.padding == (0, 0) and conv.groups == 1 for conv in convs[::2])
        and module[4].kernel_size == (k, k)
        and module[4].padding == (k // 2, k // 2)
        and k % 2 == 1
        and module[4].groups == module[4].in_channels == module[4].out_channels == wide
        and all(norm.affine and norm.track_running_stats and norm.momentum is not None for norm in norms)
    )


def bottleneck(module: nn.Sequential, x: Tensor) -> Tensor:
    """`nn.Sequential.forward` of nine layers for which `applies` holds, (B, C, H, W) -> (B, C', H', W').

    Fused on a CPU in float32 where that pays: wider inside than outside, stride 1; in eval mode while the norms learn
    nothing. All else, and layers that a hook sees, go layer by layer.
    """
    layers, norms = list(module), (module[2], module[5], module[8])
    training = {norm.training for norm in norms}
    if x.is_cuda or not x.dtype == module[4].weight.dtype == torch.float32 or len(training) > 1:
        return folding.sequence(module, x)
    pays = module[1].out_channels > module[1].in_channels and module[4].stride == (1, 1)
    if torch.is_grad_enabled() and pays and not folding.is_seen(layers):
        if training == {True}:
            weights = [p for layer in (layers[i] for i in (1, 2, 4, 5, 7)) for p in layer.parameters()]
            out, *moments = _Fused.apply(layers[0](x), *weights, norms[0].eps, norms[1].eps)
            positions = x.numel() // x.shape[1]
            with torch.no_grad():
                for norm, mean, var in ((norms[0], *moments[:2]), (norms[1], *moments[2:])):
                    norm.num_batches_tracked += 1
                    norm.running_mean.lerp_(mean.float(), norm.momentum)
                    unbiased = var * (positions / max(1, positions - 1))
                    norm.running_var.lerp_(unbiased.float(), norm.momentum)
            return layers[8](out)
        if all(map(folding.is_constant, norms)):
            constants = *folding.affine(norms[0]), module[4].weight, *folding.affine(norms[1])
            return _FusedEval.apply(layers[0](x), module[1].weight, *constants, *folding.folded(*layers[7:]))
    if not torch.is_grad_enabled() and training == {False} and not folding.is_seen(layers[i] for i in (2, 3, 5, 6)):
        inner = _rectified(norms[0], layers[1](layers[0](x)))
        return layers[8](layers[7](_rectified(norms[1], layers[4](inner))))
    return folding.sequence(module, x)


def _rectified(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """ReLU(norm(x)) in eval mode, in place, in one pass."""
    x = x.contiguous(memory_format=torch.channels_last)
    scale, shift = folding.affine(norm)
    rows = _rows(x).numpy()
    kernels.norm_relu(rows, scale.numpy(), shift.numpy(), rows)
    return x


class _Fused(torch.autograd.Function):
    """The seven layers in train mode, as the module's docstring derives them; `wide` stands for parts of b."""

    @staticmethod
    def forward(ctx, x, w1, gain1, bias1, w2, gain2, bias2, w3, eps1, eps2):
        h, w = x.shape[2:]
        rows, w1, w3 = _rows(x), w1.flatten(1), w3.flatten(1)  # (n, c), (wide, c), (out, wide)
        n, step = len(rows), max(1, CACHED // (4 * w1.shape[0] * h * w)) * h * w
        total = sum(part.sum(0).double() for part in rows.split(4096))  # q
        second = sum((part.T @ part).double() for part in rows.split(step))  # Q, (c, c)
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
            wide.append(_rows(same_size(_maps(inner, h, w), w2)))
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
        of_w3, pivot = torch.zeros_like(w3), mean2.float()
        sums, products = np.zeros(len(w2)), np.zeros(len(w2))
        scratch, other = (_scratch(i, min(step, n), len(w1)) for i in range(2))
        for g, part in zip(gradient, wide):  # pass 1
            inner = _normed(part, scale2, shift2, scratch)
            of_w3.addmm_(g.T, inner)
            d = torch.mm(g, w3, out=other[: len(g)])
            kernels.masked_sums(d.numpy(), part.numpy(), inner.numpy(), pivot.numpy(), sums, products)
        sums2, products = torch.from_numpy(sums), torch.from_numpy(products)
        along2 = (products + (pivot.double() - mean2) * sums2) * inv2  # T2
        slope = gain2.double() * inv2
        tilt = -slope * inv2 * along2 / n
        factors = [factor.float().numpy() for factor in (slope, tilt, -slope * sums2 / n - tilt * mean2)]
        of_w2, product, sums = torch.zeros_like(w2), torch.zeros_like(w1), np.zeros(len(w2))
        of_rows = torch.empty_like(rows)
        for g, part, r, target in zip(gradient, wide, rows.split(step), of_rows.split(step)):  # pass 2
            d = torch.mm(g, w3, out=other[: len(g)])
            kernels.norm_backward(d.numpy(), part.numpy(), scale2.numpy(), shift2.numpy(), *factors)
            inner, d = _expanded(r, folded, shift1, scratch), _maps(d, h, w)
            of_w2 += _through_depthwise(d, inner, w2, folded, r, sums, product, target)
        of_w1, along1, sums1 = _through_first(rows, of_rows, w1, gain1, product, sums, total, second, mean1, inv1)
        narrow = _maps(of_rows, h, w), of_w1.float()[:, :, None, None], along1.float(), sums1.float()
        return *narrow, of_w2, along2.float(), sums2.float(), of_w3[:, :, None, None], None, None


def _through_depthwise(d, inner, w2, folded, rows, sums, product, target) -> Tensor:
    """dL/dw2 of some images, d being dL/db; dL/d(first norm) goes into `sums` (s), `product` (P) and `target`."""
    of_w2 = weight_gradient(_maps(inner, *d.shape[2:]), d, w2.shape[-1])
    d = _rows(input_gradient(d, w2))
    kernels.mask(d.numpy(), inner.numpy(), sums)
    product.addmm_(d.T, rows)
    torch.mm(d, folded, out=target)
    return of_w2


def _through_first(rows, of_rows, w1, gain1, product, sums, total, second, mean1, inv1) -> tuple[Tensor, ...]:
    """dL/dV, T1 and S1 of the first norm and its linear layer; `of_rows` gets the rest of dL/dr."""
    sums, product, v, n = torch.from_numpy(sums), product.double(), w1.double(), len(rows)
    along = inv1 * ((product * v).sum(1) - mean1 * sums)
    scale = gain1.double() * inv1  # e
    centred = v @ second - torch.outer(mean1, total)  # sum of (a - m1) r'
    of_w1 = scale[:, None] * (product - torch.outer(sums / n, total) - (along * inv1 / n)[:, None] * centred)
    bend = -(v.T * (scale * along * inv1 / n)) @ v  # (c, c)
    constant = v.T @ (scale * (along * inv1 * mean1 - sums) / n)  # (c,)
    of_rows += torch.addmm(constant.float(), rows, bend.float())
    return of_w1, along, sums


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
            wide = _rows(same_size(_maps(_expanded(part, folded, shift1, scratch), h, w), w2))
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
            wide = _rows(same_size(_maps(inner, h, w), w2))
            of_w3.addmm_(g.T, _normed(wide, scale2, shift2, second))
            d = torch.mm(g, w3, out=third[: len(g)])
            kernels.norm_backward(d.numpy(), wide.numpy(), *(t.numpy() for t in (scale2, shift2, scale2)), zero, zero)
            of_w2 += _through_depthwise(_maps(d, h, w), inner, w2, folded, r, np.zeros(len(w2)), of_w1, target)
        of_w1 *= scale1[:, None]
        of_w1, of_w3 = of_w1[:, :, None, None], of_w3[:, :, None, None]
        return _maps(of_rows, h, w), of_w1, None, None, of_w2, None, None, of_w3, None


def _rows(maps: Tensor) -> Tensor:
    """(B, C, H, W) -> (B H W, C); no copy from channels_last."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def _maps(rows: Tensor, h: int, w: int) -> Tensor:
    """(B H W, C) -> (B, C, H, W), channels_last, no copy."""
    return rows.view(-1, h, w, rows.shape[1]).permute(0, 3, 1, 2)
