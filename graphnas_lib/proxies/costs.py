"""Costs of any network, counted in one forward, and the parameters that no proxy looks at."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from graphnas_lib.network import Costs
from graphnas_lib.proxies.given import as_batch, failing, readable
from graphnas_lib.proxies.probe import LAYERS, NORMS, hooked, moded, stand_ins, substituted

POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
MAX_SHARE_LEFT_OUT = 0.05  # of the parameters, above which a score says what it did not look at

_ATEN = torch.ops.aten
_ALSO_PRODUCTS = {  # matrix products that PyTorch's counter leaves out; FLOPs of the shapes of their arguments
    _ATEN.mv: lambda matrix, vector, *_, **__: 2 * math.prod(matrix),
    _ATEN.addmv: lambda bias, matrix, vector, *_, **__: 2 * math.prod(matrix),
    _ATEN.dot: lambda a, b, *_, **__: 2 * math.prod(a),
    _ATEN.mkldnn_rnn_layer: lambda x, w, v, *_, **__: (
        2 * math.prod(x[:2]) * (math.prod(w) + math.prod(v))
    ),  # x (T, B, C)
}


def module_costs(model: nn.Module, shape: Sequence[int]) -> Costs:
    """Costs of any network, counted in one forward of one input; agrees with `network.count` on our networks.

    params: all parameters. macs: of all convolutions and matrix products, whichever layer or function makes them
    (recurrent layers, attention, transposed and 3-D convolutions, bare parameters). flops: the paper's unit, 2 x (those
    + biases of Conv1d, Conv2d and Linear + twice the inputs of an affine norm + outputs of ReLU + inputs of pooling),
    for `shape`. Sums, other activations and products of single numbers are not counted.

    Args:
        shape: of one input without the batch, (C, ...).

    Raises:
        ProxyError: the network fails on such an input.
    """
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return costs_of(model, torch.zeros(1, *shape, dtype=first.dtype, device=first.device))


def costs_of(model: nn.Module, example: Tensor) -> Costs:
    """`module_costs` for the input `example`, a batch of one."""
    extra = []

    def see(_name: str, module: nn.Module, x: Tensor, y: Tensor) -> None:
        if isinstance(module, LAYERS):
            extra.append(y.numel() if module.bias is not None else 0)
        elif isinstance(module, NORMS):
            extra.append(x.numel() * (2 if module.affine else 1))
        else:
            extra.append(y.numel() if isinstance(module, nn.ReLU) else x.numel())

    readable(model)
    example, _ = as_batch(model, example)
    watched = {n: m for n, m in model.named_modules() if isinstance(m, (*LAYERS, *NORMS, *POOLS, nn.ReLU))}
    fails, mode, hooks = failing("The network fails in eval mode"), moded(model, "eval"), hooked(watched, see)
    with fails, mode, torch.no_grad(), substituted(model, stand_ins(model)), hooks, _counter() as counter:
        model(example.clone())
    macs = counter.get_total_flops() // 2
    return Costs(sum(p.numel() for p in model.parameters()), macs, 2 * (macs + sum(extra)))


@contextmanager
def _counter() -> Iterator[FlopCounterMode]:
    """PyTorch's counter; recurrent layers and attention go through plain matrix products meanwhile, which it sees."""
    quick = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as undo:
        undo.callback(torch.backends.mha.set_fastpath_enabled, quick)
        torch.backends.mha.set_fastpath_enabled(False)
        undo.enter_context(torch.backends.cudnn.flags(enabled=False))
        undo.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield undo.enter_context(FlopCounterMode(display=False, custom_mapping=_ALSO_PRODUCTS))


def left_out(model: nn.Module) -> str:
    """In words, the parameters that proxies do not look at, where these are many; "" where they are few.

    A proxy looks at the weights of Conv1d, Conv2d and Linear. Biases and scales are part of what these do; any other
    tensor of two or more dimensions is left out.
    """
    seen = {layer._parameters.get("weight") for layer in model.modules() if isinstance(layer, LAYERS)}
    missed = {name: p.numel() for name, p in model.named_parameters() if p.dim() > 1 and p not in seen}
    total = sum(p.numel() for p in model.parameters())
    if sum(missed.values()) <= MAX_SHARE_LEFT_OUT * total:
        return ""
    largest = sorted(missed, key=missed.__getitem__, reverse=True)
    names = ", ".join(largest[:3]) + (f" and {len(largest) - 3} more" if len(largest) > 3 else "")
    return (
        f"Proxies look at the weights of Conv1d, Conv2d and Linear; {sum(missed.values()) / total:.0%} of this "
        f"network's parameters lie elsewhere and are left out: {names}."
    )
