"""NATS-Bench's topology space (NAS-Bench-201): its 15,625 cells and its own skeleton.

A cell is a graph of four nodes; each of its six edges carries one of five operations, and a node is the sum of what
arrives. `NatsNetwork` is the network that the benchmark trained (Dong & Yang 2020; Dong et al. 2021), so that proxies
can be held against accuracies; `skeleton` also writes the same cell in the paper's space (Eq. 1-2).
A cell whose output no path of other operations than `none` joins to its input is disconnected: it computes a constant.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor, nn

from graphnas_lib.macro import stack_cell
from graphnas_lib.network import build, layers, sequence
from graphnas_lib.space import Cell, nats_operations
from graphnas_lib.store import one_of

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))  # source, target; in the order of an architecture string
STAGES = (16, 32, 64)  # channels
REPEATS = 5  # cells a stage
SKELETONS = ("nats", "alpha_x")


def string(operations: tuple[str, ...]) -> str:
    """Inverse of `space.nats_operations`."""
    a, b, c, d, e, f = operations
    return f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|"


def is_connected(text: str) -> bool:
    """True when a path of operations other than `none` joins the input (node 0) to the output (node 3)."""
    reached = {0}
    for name, (source, target) in sorted(zip(nats_operations(text), EDGES), key=lambda edge: edge[1][1]):
        if name != "none" and source in reached:
            reached.add(target)
    return 3 in reached


def sample(n: int, *, seed: int) -> list[str]:
    """n distinct architectures, uniform over all 15,625; a larger n begins with the same ones."""
    total = len(OPERATIONS) ** len(EDGES)
    if not 1 <= n <= total:
        raise ValueError(f"n must lie in 1..{total}, the size of the space; got {n}.")
    every = list(product(OPERATIONS, repeat=len(EDGES)))
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return [string(every[i]) for i in order[:n].tolist()]


_LAYERS = {  # operation of an edge -> its layer at a width
    "skip_connect": lambda channels: nn.Identity(),
    "nor_conv_1x1": lambda channels: sequence(layers("conv_1", channels, channels), 2),
    "nor_conv_3x3": lambda channels: sequence(layers("conv_3", channels, channels), 2),
    "avg_pool_3x3": lambda channels: nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
}


class NatsCell(nn.Module):
    """A cell at a width: (B, channels, H, W) -> the same; a node is the sum over its edges, zero without any."""

    def __init__(self, operations: tuple[str, ...], channels: int):
        super().__init__()
        kept = [(name, edge) for name, edge in zip(operations, EDGES) if name != "none"]
        self.edges = nn.ModuleDict({f"{a}_{b}": _LAYERS[name](channels) for name, (a, b) in kept})

    def forward(self, x: Tensor) -> Tensor:
        nodes = [x]
        for target in (1, 2, 3):
            keys = [(source, f"{source}_{target}") for source in range(target)]
            arriving = [self.edges[key](nodes[source]) for source, key in keys if key in self.edges]
            nodes.append(sum(arriving[1:], arriving[0]) if arriving else torch.zeros_like(x))
        return nodes[3]


class Reduction(nn.Module):
    """Residual block of stride 2 between stages: (B, inputs, H, W) -> (B, outputs, H / 2, W / 2)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        halved, same = layers("conv_3", inputs, outputs, 2), layers("conv_3", outputs, outputs)
        self.body = nn.Sequential(sequence(halved, 2), sequence(same, 2))
        self.shortcut = nn.Sequential(nn.AvgPool2d(2, 2), nn.Conv2d(inputs, outputs, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.body(x)


class NatsNetwork(nn.Module):
    """The network that NATS-Bench trained for an architecture; PyTorch's default initialisation.

    Stem conv3x3-BN at 16 channels; five cells each at 16, 32 and 64 channels with a `Reduction` between; BN-ReLU,
    global average pooling, linear classifier. An input's sides must be divisible by four. A disconnected architecture
    is built as well; a string that is no architecture raises InvalidCellError.
    """

    def __init__(self, text: str, *, classes: int = 10):
        super().__init__()
        operations, width = nats_operations(text), STAGES[0]
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.blocks = nn.Sequential()
        for channels in STAGES:
            self.blocks.extend([Reduction(width, channels)] if channels != width else [])
            self.blocks.extend(NatsCell(operations, channels) for _ in range(REPEATS))
            width = channels
        self.head = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 64, H / 4, W / 4), the maps that global pooling reads."""
        return self.head(self.blocks(self.stem(x)))

    def scores(self, features: Tensor) -> Tensor:
        """(B, 64, ...) -> (B, classes)."""
        return self.classifier(self.pool(features).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, classes)."""
        return self.scores(self.features(x))

    def sequential_parts(self) -> list[Callable[[Tensor], Tensor]]:
        """Functions whose composition is `forward`: stem, blocks, head, classifier."""
        return [self.stem, *self.blocks, self.head, self.scores]


def skeleton(text: str, name: str, *, classes: int = 10, seed: int = 0) -> nn.Module:
    """An architecture on one of `SKELETONS`, initialised reproducibly; the global generator stays as it is.

    InvalidCellError: `text` is no architecture, or a disconnected one that "alpha_x" (Eq. 1-2) cannot hold.
    """
    if one_of("skeleton", name, SKELETONS) == "alpha_x":
        return build(stack_cell(Cell.from_nats(text).canonical()), classes=classes, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return NatsNetwork(text, classes=classes)
