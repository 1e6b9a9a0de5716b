"""Networks that people write by hand, as wide as a budget lets them: what every design has to be held against."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from graphnas_lib.design.fitting import BudgetUnreachable, Target
from graphnas_lib.macro import Architecture, Triple, widest
from graphnas_lib.network import Costs, build
from graphnas_lib.proxies import module_costs
from graphnas_lib.space import REFERENCE_CELL

WIDTHS = tuple(range(2, 257))  # of the first stage; the second is twice, the third four times as wide
EXPANSION = 6  # of MobileNetV2's inverted residuals
STRIDES = (1, 2, 2)  # of the three stages
WIDE_STEM = 16  # channels


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution without bias, and batch normalisation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """A body beside a shortcut, which is a projection where sizes differ; `last` follows their sum."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, last: nn.Module):
        super().__init__()
        self.body, self.shortcut, self.last = body, shortcut, last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x) + self.shortcut(x))


def _sizes(inputs: int, width: int, blocks: int) -> Iterator[tuple[int, int, int]]:
    """Channels in and out, and stride, of each block of three stages, that strides as it enters a stage."""
    for stage, stride in enumerate(STRIDES):
        for i in range(blocks):
            yield inputs, width * 2**stage, 1 if i else stride
            inputs = width * 2**stage


def _staged(width: int, channels: int, classes: int, blocks: int, block: Callable[..., nn.Module]) -> nn.Module:
    """A stem, three stages of blocks, global pooling and a classifier."""
    stem, layers = [_conv(channels, width), nn.ReLU()], [block(*sizes) for sizes in _sizes(width, width, blocks)]
    return nn.Sequential(*stem, *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes))


def _plain(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Sequential(_conv(inputs, outputs, stride=stride), nn.ReLU())


def _basic(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Basic block (He et al. 2016)."""
    body = nn.Sequential(_conv(inputs, outputs, stride=stride), nn.ReLU(), _conv(outputs, outputs))
    same = inputs == outputs and stride == 1
    return Residual(body, nn.Identity() if same else _conv(inputs, outputs, 1, stride), nn.ReLU())


def _inverted(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Inverted residual (Sandler et al. 2018)."""
    hidden = EXPANSION * inputs
    wide = nn.Sequential(_conv(inputs, hidden, 1), nn.ReLU6(), _conv(hidden, hidden, 3, stride, hidden), nn.ReLU6())
    body = nn.Sequential(wide, _conv(hidden, outputs, 1))
    return Residual(body, nn.Identity(), nn.Identity()) if inputs == outputs and stride == 1 else body


def _nats(width: int, input_shape: Sequence[int], classes: int) -> nn.Module:
    """Three reference cells of NATS-Bench, one a stage."""
    triples = tuple(Triple(REFERENCE_CELL, width * 2**i, stride) for i, stride in enumerate(STRIDES))
    return build(Architecture(triples), input_shape=tuple(input_shape), classes=classes)


def _wide(width: int, shape: Sequence[int], classes: int, dense: bool) -> nn.Module:
    """WRN-16 (Zagoruyko & Komodakis 2016) for images or series; dense: no strides, and an answer a place."""
    dims = len(shape) - 1
    conv, norm, pool = (getattr(nn, f"{kind}{dims}d") for kind in ("Conv", "BatchNorm", "AdaptiveAvgPool"))
    layers = [conv(shape[0], WIDE_STEM, 3, padding=1, bias=False)]
    for before, after, stride in _sizes(WIDE_STEM, width, 2):
        step = 1 if dense else stride
        first = norm(before), nn.ReLU(), conv(before, after, 3, step, 1, bias=False)
        body = nn.Sequential(*first, norm(after), nn.ReLU(), conv(after, after, 3, 1, 1, bias=False))
        same = before == after and step == 1
        shortcut = nn.Identity() if same else conv(before, after, 1, step, bias=False)
        layers.append(Residual(body, shortcut, nn.Identity()))
    head = [conv(after, classes, 1)] if dense else [pool(1), nn.Flatten(), nn.Linear(after, classes)]
    return nn.Sequential(*layers, norm(after), nn.ReLU(), *head)


REFERENCES: dict[str, Callable[..., nn.Module]] = {  # name -> (width, input shape, classes) -> network
    "plain CNN": lambda width, shape, classes: _staged(width, shape[0], classes, 2, _plain),
    "ResNet-8": lambda width, shape, classes: _staged(width, shape[0], classes, 1, _basic),
    "ResNet-14": lambda width, shape, classes: _staged(width, shape[0], classes, 2, _basic),
    "MobileNetV2": lambda width, shape, classes: _staged(width, shape[0], classes, 2, _inverted),
    "three NATS cells": _nats,
}
ANY_SHAPE: dict[str, Callable[..., nn.Module]] = {"WRN-16": _wide}  # (width, input shape, classes, dense) -> network


@dataclass(frozen=True)
class Reference:
    """A network by hand, its width and costs."""

    name: str
    model: nn.Module
    width: int
    costs: Costs


def reference(
    name: str,
    *,
    params: float | None = None,
    flops: float | None = None,
    input_shape: tuple[int, ...] = (3, 32, 32),
    classes: int = 10,
    dense: bool = False,
    seed: int = 0,
) -> Reference:
    """The widest network of a kind within a budget.

    Args:
        name: one of `REFERENCES`, for images; or of `ANY_SHAPE`, for series and dense tasks too.
        params, flops: bounds, None for none; FLOPs in the paper's unit (2 x MACs) at `input_shape`.

    Raises:
        ValueError: an unknown name, or no budget.
        BudgetUnreachable: the narrowest network breaks it; names its costs.
    """
    known, plain = REFERENCES | ANY_SHAPE, len(input_shape) == 3 and not dense
    if name not in known or not (plain or name in ANY_SHAPE):
        raise ValueError(
            f"A reference must be one of {', '.join(known if plain else ANY_SHAPE)} for inputs of shape "
            f"{tuple(input_shape)}{' and dense outputs' * dense}; got {name!r}."
        )
    target, given = Target(params, flops), {"dense": dense} if name in ANY_SHAPE else {}
    widths = [width for width in WIDTHS if name != "three NATS cells" or width % 8 == 0]

    def made(width: int) -> tuple[nn.Module, Costs]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = known[name](width, input_shape, classes, **given)
        return model, module_costs(model, input_shape)

    width = widest(lambda width: max(target.ratios(made(width)[1])) <= 1, widths)
    if width is None:
        raise BudgetUnreachable(target, made(widths[0])[1])
    model, costs = made(width)
    return Reference(name, model, width, costs)
