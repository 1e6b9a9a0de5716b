"""`Architecture` -> trainable network, and its exact costs without building it (Sec. 3, deviations D02-D08).

A network is stem (conv3x3-BN), cells, then BN-ReLU (and the optional conv1x1-BN head), global average pooling and a
linear classifier. `build` and `count` read the same lists of layers, so they cannot disagree by definition of an
operation. Inputs may have one or two spatial dimensions; `dense=True` keeps every position (Tab. 4's dense tasks).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from graphnas_lib.macro import Architecture
from graphnas_lib.network import operations as ops
from graphnas_lib.space import INPUT, N_NODES, OUTPUT, Cell, InvalidCellError


@dataclass(frozen=True)
class Costs:
    """params: trainable parameters; macs: of convolutions and linear layers; flops: the paper's unit (2 x all MACs)."""

    params: int
    macs: int
    flops: int


# ---- what a cell consists of


@dataclass(frozen=True)
class _CellPlan:
    """Layers of one cell at given widths: the projection of its input, and each live node's layers."""

    projection: tuple[ops.Layer, ...]  # empty: the input already fits, or nothing reads it projected
    nodes: tuple[tuple[int, tuple[int, ...], bool, tuple[ops.Layer, ...]], ...]  # node, inputs, reads raw, layers


@lru_cache(maxsize=65536)
def _plan(cell: Cell, inputs: int, channels: int, stride: int) -> _CellPlan:
    if cell.status == "no_path":
        raise InvalidCellError("A network's cells must have a path from input (0) to output (7); one has none.")
    changes = stride != 1 or inputs != channels
    live = set(cell.live)
    nodes, projected = [], False
    for node in (*cell.live, OUTPUT):
        sources = tuple(a for a in cell.predecessors(node) if a == INPUT or a in live)
        name = "skip" if node == OUTPUT else cell.operations[node - 1]
        raw = changes and sources == (INPUT,) and name != "skip"
        projected |= INPUT in sources and not raw
        layers = ops.layers(name, inputs, channels, stride) if raw else ops.layers(name, channels, channels)
        nodes.append((node, sources, raw, tuple(layers)))
    return _CellPlan(tuple(ops.projection(inputs, channels, stride)) if changes and projected else (), tuple(nodes))


@lru_cache(maxsize=65536)
def _cell_costs(cell: Cell, inputs: int, channels: int, stride: int, sides: tuple[int, ...]) -> Costs:
    plan = _plan(cell, inputs, channels, stride)
    inner = tuple(math.ceil(side / stride) for side in sides)
    total = _sequence_costs(plan.projection, sides)
    for _, _, raw, layers in plan.nodes:
        total = _add(total, _sequence_costs(layers, sides if raw else inner))
    return total


def _sequence_costs(layers, sides: tuple[int, ...]) -> Costs:
    params = macs = counted = 0
    for layer in layers:
        m, c = layer.macs(sides)
        params, macs, counted = params + layer.params(len(sides)), macs + m, counted + c
        sides = layer.output_side(sides)
    return Costs(params, macs, 2 * counted)


def _add(a: Costs, b: Costs) -> Costs:
    return Costs(a.params + b.params, a.macs + b.macs, a.flops + b.flops)


def _steps(architecture: Architecture, dense: bool) -> Iterator[tuple[Cell, int, int, int]]:
    """(cell, input channels, channels, stride) in order."""
    inputs = architecture.stem_channels
    for triple in architecture.triples:
        yield triple.cell, inputs, triple.channels, 1 if dense else triple.stride
        inputs = triple.channels


def _stem(architecture: Architecture, channels: int, stride: int) -> list[ops.Layer]:
    width = architecture.stem_channels
    return [ops.conv(channels, width, 3, stride=stride), ops.norm(width)]


def _head(architecture: Architecture) -> list[ops.Layer]:
    width = architecture.triples[-1].channels
    layers = [ops.norm(width), ops.relu(width, True)]
    if architecture.head_channels is not None:
        layers += [ops.conv(width, architecture.head_channels), ops.norm(architecture.head_channels)]
    return layers


def _check_input(input_shape, classes: int) -> None:
    shape = tuple(input_shape)
    if len(shape) not in (2, 3) or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ValueError(
            f"input_shape must be (channels, height, width) or (channels, length), all positive; got {input_shape!r}."
        )
    if not isinstance(classes, int) or classes < 1:
        raise ValueError(f"classes must be a positive number; got {classes!r}.")


# ---- costs


def count(architecture: Architecture, *, input_shape=(3, 32, 32), classes: int = 10, dense: bool = False) -> Costs:
    """Exact costs, analytic: no network is built (deviation D02; 30 of 30 released networks re-count exactly).

    Args:
        architecture: cells, widths, strides.
        input_shape: (C, H, W), or (C, L) for one spatial dimension.
        classes: outputs of the classifier, or of each position when `dense`.
        dense: every stride is 1 and the classifier is applied at each position.

    Returns:
        Costs: parameters, MACs of convolutions and linear layers, FLOPs in the paper's unit, all for one input.
    """
    _check_input(input_shape, classes)
    channels, *sides = input_shape
    sides = tuple(sides)
    stride = 1 if dense else architecture.stem_stride
    stem = _stem(architecture, channels, stride)
    total = _sequence_costs(stem, sides)
    sides = tuple(math.ceil(side / stride) for side in sides)
    for cell, inputs, width, step in _steps(architecture, dense):
        total = _add(total, _cell_costs(cell, inputs, width, step, sides))
        sides = tuple(math.ceil(side / step) for side in sides)
    head = _head(architecture)
    total = _add(total, _sequence_costs(head, sides))
    width = head[-1].outputs
    positions = math.prod(sides) if dense else 1
    linear, pooled = width * classes, 0 if dense else math.prod(sides) * width
    counted = positions * (linear + classes) + pooled
    return _add(total, Costs(linear + classes, positions * linear, 2 * counted))


# ---- modules


class CellModule(nn.Module):
    """One cell x at a width and stride: (B, inputs, ...) -> (B, channels, ...)."""

    def __init__(self, cell: Cell, inputs: int, channels: int, stride: int, dims: int):
        super().__init__()
        plan = _plan(cell, inputs, channels, stride)
        self.projection = _sequential(plan.projection, dims)
        self.nodes = nn.ModuleDict(
            {str(node): _sequential(layers, dims, own=len(ins) > 1) for node, ins, _, layers in plan.nodes if layers}
        )
        self.wiring = [(node, sources, raw) for node, sources, raw, _ in plan.nodes]

    def forward(self, x: Tensor) -> Tensor:
        values: list[Tensor | None] = [None] * N_NODES
        values[INPUT] = self.projection(x)
        for node, sources, raw in self.wiring:
            total = x if raw else values[sources[0]]
            for i, source in enumerate(sources[1:]):
                total = total.add_(values[source]) if i else total + values[source]
            values[node] = self.nodes[str(node)](total) if str(node) in self.nodes else total
        return values[OUTPUT]


class Network(nn.Module):
    """A network of cells; `features` ends before global pooling, `forward` gives class scores."""

    def __init__(self, architecture: Architecture, input_shape: tuple[int, ...], classes: int, dense: bool):
        super().__init__()
        self.architecture, self.input_shape, self.dense = architecture, tuple(input_shape), dense
        dims = len(input_shape) - 1
        stride = 1 if dense else architecture.stem_stride
        self.stem = _sequential(_stem(architecture, input_shape[0], stride), dims)
        self.cells = nn.ModuleList(CellModule(*step, dims) for step in _steps(architecture, dense))
        head = _head(architecture)
        self.head = _sequential(head, dims)
        self.pool = nn.Identity() if dense else (nn.AdaptiveAvgPool1d(1) if dims == 1 else nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Linear(head[-1].outputs, classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, width, ...), the maps that global pooling reads."""
        x = self.stem(x)
        for cell in self.cells:
            x = cell(x)
        return self.head(x)

    def sequential_parts(self) -> list[Callable[[Tensor], Tensor]]:
        """Functions whose composition is `forward`, for those who cannot hold a whole backward in memory."""
        return [self.stem, *self.cells, self._classify]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, classes), or (B, classes, ...) when dense."""
        for part in self.sequential_parts():
            x = part(x)
        return x

    def _classify(self, x: Tensor) -> Tensor:
        x = self.head(x)
        if self.dense:
            return self.classifier(x.movedim(1, -1)).movedim(-1, 1)
        return self.classifier(self.pool(x).flatten(1))


def build(
    architecture: Architecture,
    *,
    input_shape=(3, 32, 32),
    classes: int = 10,
    dense: bool = False,
    seed: int | None = None,
) -> Network:
    """The network of an architecture, with PyTorch's default initialisation.

    Args:
        architecture: cells, widths, strides.
        input_shape: (C, H, W), or (C, L): then every operation is its one-dimensional twin.
        classes: outputs.
        dense: every stride is 1 and the classifier is applied at each position.
        seed: initialise reproducibly without touching the global generator; None uses the global one.
    """
    _check_input(input_shape, classes)
    if seed is None:
        return Network(architecture, tuple(input_shape), classes, dense)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's alone: torch.manual_seed would reseed CUDA too
        return Network(architecture, tuple(input_shape), classes, dense)


def _sequential(layers, dims: int, own: bool = False) -> nn.Module:
    """The layers one after another; `own` input may be overwritten."""
    if own and layers[0].kind == "relu":
        layers = [replace(layers[0], inplace=True), *layers[1:]]
    return ops.sequence(list(layers), dims)
