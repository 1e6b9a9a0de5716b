"""`Architecture` -> trainable network, and its exact costs without building it (Sec. 3, deviations D02-D08).

A network is stem (conv3x3-BN), cells, then BN-ReLU (and the optional conv1x1-BN head), global average pooling and a
linear classifier. `build` and `count` read the same lists of layers, so they cannot disagree by definition of an
operation. Inputs may have one or two spatial dimensions; `dense=True` keeps every position (Tab. 4's dense tasks).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import accumulate
from operator import index

import torch
from torch import Tensor, nn

from graphnas_lib.macro import Architecture, whole
from graphnas_lib.network import operations as ops
from graphnas_lib.space import INPUT, OUTPUT, Cell, InvalidCellError

MEMORY_FORMATS = {"cpu": torch.channels_last, "cuda": torch.channels_last}  # for scoring; first_gpu.py measures them
ALIGNED = 64  # elements between the starts of two tensors of one buffer: 256 bytes of float32, as CUDA allocates


@dataclass(frozen=True)
class Costs:
    """params: trainable parameters; macs: of convolutions and linear layers; flops: the paper's unit (2 x all MACs)."""

    params: int
    macs: int
    flops: int

    def __add__(self, other: Costs) -> Costs:
        return Costs(self.params + other.params, self.macs + other.macs, self.flops + other.flops)


# ---- what a network consists of


@dataclass(frozen=True)
class NodePlan:
    """A node that the output needs: the nodes whose values it sums, and its layers (none: the sum is its value)."""

    node: int
    sources: tuple[int, ...]
    raw: bool  # it reads the cell's input itself, and makes the cell's change of width and stride
    layers: tuple[ops.Layer, ...]


@dataclass(frozen=True)
class CellPlan:
    """Layers of one cell at given widths; the last node is the output."""

    projection: tuple[ops.Layer, ...]  # of the cell's input; none: it fits already, or no node reads it projected
    nodes: tuple[NodePlan, ...]


@lru_cache(maxsize=65536)
def plan(cell: Cell, inputs: int, channels: int, stride: int) -> CellPlan:
    """What a cell at these widths and this stride consists of."""
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
        nodes.append(NodePlan(node, sources, raw, layers))
    return CellPlan(ops.projection(inputs, channels, stride) if changes and projected else (), tuple(nodes))


def steps(architecture: Architecture, dense: bool) -> Iterator[tuple[Cell, int, int, int]]:
    """(cell, input channels, channels, stride) in order."""
    inputs = architecture.stem_channels
    for triple in architecture.triples:
        yield triple.cell, inputs, triple.channels, 1 if dense else triple.stride
        inputs = triple.channels


def ends(architecture: Architecture, channels: int, dense: bool) -> tuple[tuple[ops.Layer, ...], tuple[ops.Layer, ...]]:
    """Layers before the cells, of an input of `channels`, and after them."""
    first, last, wide = architecture.stem_channels, architecture.triples[-1].channels, architecture.head_channels
    stem = (ops.conv(channels, first, 3, stride=1 if dense else architecture.stem_stride), ops.norm(first))
    head = (ops.norm(last), ops.relu(last))
    return stem, head if wide is None else (*head, ops.conv(last, wide), ops.norm(wide))


def checked_task(input_shape: Sequence[int], classes: int) -> tuple[tuple[int, ...], int]:
    """Both as ints; ValueError where they are no sizes."""
    try:
        shape = tuple(map(whole, input_shape))
    except TypeError:  # a number alone
        shape = ()
    if len(shape) not in (2, 3) or not all(n is not None and n > 0 for n in shape):
        raise ValueError(
            f"input_shape must be (channels, height, width) or (channels, length), all positive; got {input_shape!r}."
        )
    if whole(classes) is None or whole(classes) < 1:
        raise ValueError(f"classes must be a positive number; got {classes!r}.")
    return shape, whole(classes)


@lru_cache(maxsize=65536)
def _cell_costs(cell: Cell, inputs: int, channels: int, stride: int, sides: tuple[int, ...]) -> Costs:
    planned = plan(cell, inputs, channels, stride)
    inner = tuple(math.ceil(side / stride) for side in sides)
    parts = (_sequence_costs(node.layers, sides if node.raw else inner) for node in planned.nodes)
    return sum(parts, _sequence_costs(planned.projection, sides))


@cache
def _sequence_costs(layers: tuple[ops.Layer, ...], sides: tuple[int, ...]) -> Costs:
    params = macs = counted = 0
    for layer in layers:
        m, c = layer.macs(sides)
        params, macs, counted = params + layer.params(len(sides)), macs + m, counted + c
        sides = layer.output_side(sides)
    return Costs(params, macs, 2 * counted)


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
    (channels, *sides), classes = checked_task(input_shape, classes)
    stem, head = ends(architecture, channels, dense)
    total, sides = _sequence_costs(stem, tuple(sides)), stem[0].output_side(sides)
    for cell, inputs, width, stride in steps(architecture, dense):
        total += _cell_costs(cell, inputs, width, stride, sides)
        sides = tuple(math.ceil(side / stride) for side in sides)
    total += _sequence_costs(head, sides)
    width = head[-1].outputs
    positions = math.prod(sides) if dense else 1
    linear, pooled = width * classes, 0 if dense else math.prod(sides) * width
    counted = positions * (linear + classes) + pooled
    return total + Costs(linear + classes, positions * linear, 2 * counted)


def depth(architecture: Architecture) -> int:
    """Convolutions of a network, those that adapt a cell's input included, and its classifier."""
    stem, head = ends(architecture, 3, dense=False)
    layers = [*stem, *head]
    for cell, inputs, width, stride in steps(architecture, dense=False):
        planned = plan(cell, inputs, width, stride)
        layers += [*planned.projection, *(layer for node in planned.nodes for layer in node.layers)]
    return sum(layer.kind == "conv" for layer in layers) + 1


class CellModule(nn.Module):
    """One cell x at a width and stride: (B, inputs, ...) -> (B, channels, ...); it adds the sums of the graph alone.

    `nodes` holds each node's layers under its number, in order; `wiring` says which values each node sums, by place:
    0 is the projected input, 1 the input itself, k + 2 the value of the k-th node.
    """

    def __init__(self, cell: Cell, inputs: int, channels: int, stride: int, dims: int):
        super().__init__()
        planned = plan(cell, inputs, channels, stride)
        place = {INPUT: 0} | {node.node: k + 2 for k, node in enumerate(planned.nodes)}
        self.projection = ops.sequence(planned.projection, dims)
        self.nodes = nn.ModuleDict({str(node.node): ops.sequence(node.layers, dims) for node in planned.nodes})
        self.wiring = tuple((1,) if node.raw else tuple(place[a] for a in node.sources) for node in planned.nodes)

    def forward(self, x: Tensor) -> Tensor:
        values = [self.projection(x), x]
        for places, node in zip(self.wiring, self.nodes.values()):
            total = values[places[0]]
            for place in places[1:]:
                total = total + values[place]
            values.append(node(total))
        return values[-1]


class Network(nn.Module):
    """A network of cells; `features` ends before global pooling, `forward` gives class scores."""

    def __init__(self, architecture: Architecture, input_shape: tuple[int, ...], classes: int, dense: bool):
        super().__init__()
        self.architecture, self.input_shape, self.dense = architecture, tuple(input_shape), dense
        dims = len(input_shape) - 1
        stem, head = ends(architecture, input_shape[0], dense)
        self.stem = ops.sequence(stem, dims)
        self.cells = nn.ModuleList(CellModule(*step, dims) for step in steps(architecture, dense))
        self.head = ops.sequence(head, dims)
        self.pool = nn.Identity() if dense else (nn.AdaptiveAvgPool1d(1) if dims == 1 else nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Linear(head[-1].outputs, classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, width, ...), the maps that global pooling reads."""
        x = self.stem(x)
        for cell in self.cells:
            x = cell(x)
        return self.head(x)

    def scores(self, features: Tensor) -> Tensor:
        """(B, width, ...) -> (B, classes), or (B, classes, ...) when dense."""
        if self.dense:
            return self.classifier(features.movedim(1, -1)).movedim(-1, 1)
        return self.classifier(self.pool(features).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, classes), or (B, classes, ...) when dense."""
        return self.scores(self.features(x))

    def sequential_parts(self) -> list[Callable[[Tensor], Tensor]]:
        """Functions whose composition is `forward`, for those who cannot hold a whole backward in memory."""
        return [self.stem, *self.cells, self.head, self.scores]


def build(
    architecture: Architecture,
    *,
    input_shape=(3, 32, 32),
    classes: int = 10,
    dense: bool = False,
    seed: int | None = None,
) -> Network:
    """The network of an architecture, of PyTorch's own layers with their default initialisation.

    A layer may be replaced, hooked, frozen, traced or exported as in any network of PyTorch's. On a CPU, train in
    PyTorch's default memory format: in `torch.channels_last`, with several threads, oneDNN gives wrong gradients or
    ends the process for strided 1x1 convolutions of fewer channels than the CPU's vectors hold (a cell of 8 channels
    with AVX-512; `fast/pointwise.py` has the facts).

    Args:
        architecture: cells, widths, strides.
        input_shape: (C, H, W), or (C, L): then every operation is its one-dimensional twin.
        classes: outputs.
        dense: every stride is 1 and the classifier is applied at each position.
        seed: initialise reproducibly without touching the global generator; None uses the global one.
    """
    shape, classes = checked_task(input_shape, classes)
    if seed is None:
        return Network(architecture, shape, classes, dense)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(index(seed))  # the CPU's alone: torch.manual_seed would reseed CUDA too
        return Network(architecture, shape, classes, dense)


@torch.no_grad()
def moved(model: nn.Module, device: torch.device) -> nn.Module:
    """The model on a device to be scored there, its weights in that device's `MEMORY_FORMATS`.

    On a GPU all its tensors of a type are views of one, so that one copy moves them in place of a thousand.
    """
    model.to(memory_format=MEMORY_FORMATS.get(device.type, torch.contiguous_format))
    if device.type != "cuda":
        return model.to(device)
    every, there = [*model.parameters(), *model.buffers()], {}
    for dtype in {tensor.dtype for tensor in every}:
        own = [tensor for tensor in every if tensor.dtype == dtype]
        starts = [0, *accumulate(-(-tensor.numel() // ALIGNED) * ALIGNED for tensor in own)]
        flat = torch.zeros(starts[-1], dtype=dtype)
        for tensor, start in zip(own, starts):
            flat.as_strided(tensor.shape, tensor.stride(), start).copy_(tensor)
        flat = flat.to(device)
        there |= {t: flat.as_strided(t.shape, t.stride(), start) for t, start in zip(own, starts)}
    return model._apply(lambda tensor: there[tensor])
