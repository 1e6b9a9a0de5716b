"""One call that puts the fast paths under a network for the length of a pass or a training, and takes them away.

A network's modules are PyTorch's own before and after. In between, some have a `forward` or `_conv_forward` of their
own among their attributes, and a ReLU that alone reads its input overwrites it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from graphnas_lib.network.fast import bottleneck, depthwise, folding, pointwise
from graphnas_lib.network.modules import CellModule, Network

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_LAYERS = (nn.ReLU, nn.Conv1d, nn.Conv2d, *_NORMS, nn.AvgPool1d, nn.AvgPool2d)


@contextmanager
def accelerated(model: nn.Module) -> Iterator[None]:
    """Inside the `with`, a network of `build` computes the same, up to rounding, in less time and memory on a CPU.

    What is not as `build` made it goes layer by layer as outside: a subclass, a layer of another class, whatever a
    hook sees; so does all of it off the CPU, in another dtype than float32 or under autocast. Afterwards every
    attribute is what it was, also when an exception leaves the `with`; a second `with` inside adds nothing. Other
    networks stay as they are, but for their narrow strided 1x1 convolutions (see `pointwise`).
    """
    modules = list(model.modules())  # walked once: this is entered for every pass
    with ExitStack() as undo:
        for module in filter(pointwise.applies, modules):
            _put(undo, module, "_conv_forward", pointwise.convolve)
        kinds = {(p.dtype, p.device.type) for module in modules for p in module.parameters(recurse=False)}
        watched = _has_any_global_hook() or torch.is_autocast_enabled("cpu")
        if type(model) is Network and kinds == {(torch.float32, "cpu")} and not watched:
            cells = [module for module in modules if type(module) is CellModule and not folding.is_seen([module])]
            sums = {node for cell in cells for node, places in zip(cell.nodes.values(), cell.wiring) if len(places) > 1}
            for cell in cells:
                _put(undo, cell, "forward", sum_in_place)
            for module in modules:
                if type(module) is nn.Sequential:
                    speed_up(undo, module, owned=module in sums)
        yield


def speed_up(undo: ExitStack, module: nn.Sequential, *, owned: bool) -> None:
    """The fast paths of a sequence, if its layers are all of PyTorch's own classes and nothing sees them.

    Args:
        undo: takes what gives the sequence its own ways back.
        owned: nothing else reads the sequence's input.
    """
    if folding.is_seen((module, *module)) or not all(type(layer) in _LAYERS for layer in module):
        return
    _put(undo, module, "forward", bottleneck.bottleneck if bottleneck.applies(module) else folding.sequence)
    for before, layer in zip((None, *module), module):
        if type(layer) is nn.ReLU and not layer.inplace and (owned if before is None else type(before) in _NORMS):
            layer.inplace = True
            undo.callback(setattr, layer, "inplace", False)
        elif depthwise.applies(layer):
            _put(undo, layer, "_conv_forward", depthwise.convolve)


def _put(undo: ExitStack, module: nn.Module, name: str, function: Callable) -> None:
    """`function(module, ...)` as the module's own `name`, until `undo` closes; what is there already stays."""
    if name not in vars(module):
        vars(module)[name] = partial(function, module)
        undo.callback(vars(module).pop, name)


def sum_in_place(cell: CellModule, x: Tensor) -> Tensor:
    """`CellModule.forward`; only the first addition of a sum makes a new tensor."""
    values = [cell.projection(x), x]
    for places, node in zip(cell.wiring, cell.nodes.values()):
        total = values[places[0]]
        for i, place in enumerate(places[1:]):
            total = total.add_(values[place]) if i else total + values[place]
        values.append(node(total))
    return values[-1]
