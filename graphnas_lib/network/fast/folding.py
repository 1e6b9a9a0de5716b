"""Layers one after another; a norm that is a constant scale and shift is folded into the convolution before it.

A search takes T-CET in eval mode: norms are then fixed scales and shifts, and only the weights of convolutions want
gradients. Scaling a weight costs nothing beside scaling its map, forward and backward.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_NORM = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d}


def sequence(module: nn.Sequential, x: Tensor) -> Tensor:
    """`nn.Sequential.forward`, (B, C, ...) -> (B, C', ...); norms are folded where gradients are taken in eval mode."""
    if module.training or not torch.is_grad_enabled():
        return nn.Sequential.forward(module, x)
    modules = list(module)
    while modules:
        layer = modules.pop(0)
        if modules and is_foldable(layer, modules[0]):
            x = layer._conv_forward(x, *folded(layer, modules.pop(0)))
        else:
            x = layer(x)
    return x


def is_seen(modules: Iterable[nn.Module]) -> bool:
    """Whether a hook or another `forward` of a module sees what goes in and comes out."""
    return any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks or "forward" in vars(m)
        for m in modules
    )


def is_constant(norm: nn.Module) -> bool:
    """A norm in eval mode that scales and shifts by what no gradient reaches."""
    return not norm.training and norm.track_running_stats and not any(p.requires_grad for p in norm.parameters())


def is_foldable(layer: nn.Module, after: nn.Module) -> bool:
    """A convolution without a fast path of its own, and a constant norm of its output."""
    kind = _NORM.get(type(layer))
    if kind is None or type(after) is not kind or "_conv_forward" in vars(layer):
        return False
    return is_constant(after) and not is_seen((layer, after))


def affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """(scale, shift) of a norm in eval mode, (C,)."""
    with torch.no_grad():
        scale = (norm.running_var + norm.eps).rsqrt()
        if norm.weight is None:
            return scale, -norm.running_mean * scale
        scale = norm.weight * scale
        return scale, norm.bias - norm.running_mean * scale


def folded(conv: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """(weight, bias) of the convolution that does what both do; gradients reach the convolution's own weight."""
    scale, shift = affine(norm)
    weight = conv.weight * scale.view(-1, *(1,) * (conv.weight.dim() - 1))
    return weight, shift if conv.bias is None else shift + scale * conv.bias
