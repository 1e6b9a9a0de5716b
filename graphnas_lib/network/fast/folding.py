"""Layers one after another; a norm that is a constant scale and shift is folded into the convolution before it.

A search takes T-CET in eval mode: norms are then fixed scales and shifts, and only the weights of convolutions want
gradients. Scaling a weight costs nothing beside scaling its map, forward and backward.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_NORM = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d}


class Sequential(nn.Sequential):
    """`nn.Sequential` that folds norms in eval mode while gradients are taken and the norms learn nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C', ...)."""
        if self.training or not torch.is_grad_enabled():
            return super().forward(x)
        modules = list(self)
        while modules:
            module = modules.pop(0)
            if modules and is_foldable(module, modules[0]):
                x = module._conv_forward(x, *folded(module, modules.pop(0)))
            else:
                x = module(x)
        return x


def plain(modules) -> bool:
    """Nobody watches or replaces a module's forward."""
    return not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in modules)


def is_constant(norm: nn.Module) -> bool:
    """A norm in eval mode that scales and shifts by what no gradient reaches."""
    return not norm.training and norm.track_running_stats and not any(p.requires_grad for p in norm.parameters())


def is_foldable(module: nn.Module, after: nn.Module) -> bool:
    """A convolution over all channels, and a constant norm of its output."""
    kind = _NORM.get(type(module))
    return kind is not None and type(after) is kind and is_constant(after) and plain((module, after))


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
