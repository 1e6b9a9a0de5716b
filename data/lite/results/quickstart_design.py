"""A network drawn by graphnas_lib 0.1.0; T-CET 845376 on 64 given images.

195,050 parameters and 421,364,052 FLOPs (2 x multiply-adds) for one input of 3 x 32 x 32, 10 classes.
Needs PyTorch alone. `Network()` is untrained; weights of graphnas_lib's own network fit: `load_state_dict` takes them.
"""

import torch
from torch import nn


def conv(inputs, outputs, kernel, stride=1):
    """ReLU, convolution, batch normalisation."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


def separable(inputs, outputs, kernel, stride=1, dilation=1):
    """ReLU, depthwise and pointwise convolution, batch normalisation."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(inputs, inputs, kernel, stride, dilation * (kernel // 2), dilation, groups=inputs, bias=False),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
    )


def bottleneck(inputs, hidden, outputs, kernel, stride=1):
    """ReLU, then convolution 1x1, depthwise, 1x1, each batch-normalised, ReLU between."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(inputs, hidden, 1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(),
        nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(),
        nn.Conv2d(hidden, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Cell1(nn.Module):
    """8 -> 8 channels."""

    def __init__(self):
        super().__init__()
        self.nodes = nn.ModuleDict(
            {
                "1": bottleneck(8, 24, 8, 3),
                "2": bottleneck(8, 2, 8, 3),
                "3": bottleneck(8, 48, 8, 3),
                "4": bottleneck(8, 16, 8, 3),
                "5": bottleneck(8, 48, 8, 3),
                "6": bottleneck(8, 2, 8, 3),
            }
        )

    def forward(self, x):
        x1 = self.nodes["1"](x)
        x2 = self.nodes["2"](x1)
        x3 = self.nodes["3"](x1 + x2)
        x4 = self.nodes["4"](x2 + x3)
        x5 = self.nodes["5"](x2 + x3 + x4)
        x6 = self.nodes["6"](x1 + x3 + x4 + x5)
        return x + x1 + x2 + x4 + x6


class Cell2(nn.Module):
    """8 -> 16 channels."""

    def __init__(self):
        super().__init__()
        self.projection = conv(8, 16, 1)
        self.nodes = nn.ModuleDict(
            {
                "1": bottleneck(8, 24, 16, 3),
                "2": bottleneck(16, 4, 16, 3),
                "3": bottleneck(16, 96, 16, 3),
                "4": bottleneck(16, 32, 16, 3),
                "5": bottleneck(16, 96, 16, 3),
                "6": bottleneck(16, 4, 16, 3),
            }
        )

    def forward(self, x):
        projected = self.projection(x)
        x1 = self.nodes["1"](x)
        x2 = self.nodes["2"](x1)
        x3 = self.nodes["3"](x1 + x2)
        x4 = self.nodes["4"](x2 + x3)
        x5 = self.nodes["5"](x2 + x3 + x4)
        x6 = self.nodes["6"](x1 + x3 + x4 + x5)
        return projected + x1 + x2 + x4 + x6


class Cell3(nn.Module):
    """16 -> 8 channels."""

    def __init__(self):
        super().__init__()
        self.projection = conv(16, 8, 1)
        self.nodes = nn.ModuleDict(
            {
                "1": bottleneck(16, 48, 8, 3),
                "2": bottleneck(8, 2, 8, 3),
                "3": bottleneck(8, 48, 8, 3),
                "4": bottleneck(8, 16, 8, 3),
                "5": bottleneck(8, 48, 8, 3),
                "6": bottleneck(8, 2, 8, 3),
            }
        )

    def forward(self, x):
        projected = self.projection(x)
        x1 = self.nodes["1"](x)
        x2 = self.nodes["2"](x1)
        x3 = self.nodes["3"](x1 + x2)
        x4 = self.nodes["4"](x2 + x3)
        x5 = self.nodes["5"](x2 + x3 + x4)
        x6 = self.nodes["6"](x1 + x3 + x4 + x5)
        return projected + x1 + x2 + x4 + x6


class Cell4(nn.Module):
    """8 -> 8 channels."""

    def __init__(self):
        super().__init__()
        self.nodes = nn.ModuleDict(
            {
                "1": bottleneck(8, 48, 8, 3),
                "2": separable(8, 8, 5),
                "3": bottleneck(8, 16, 8, 5),
                "4": bottleneck(8, 48, 8, 1),
                "5": bottleneck(8, 24, 8, 3),
            }
        )

    def forward(self, x):
        x1 = self.nodes["1"](x)
        x2 = self.nodes["2"](x1)
        x3 = self.nodes["3"](x + x1)
        x4 = self.nodes["4"](x1 + x3)
        x5 = self.nodes["5"](x + x1 + x2 + x3 + x4)
        return x + x1 + x2 + x4 + x5


class Cell5(nn.Module):
    """16 -> 16 channels."""

    def __init__(self):
        super().__init__()
        self.nodes = nn.ModuleDict(
            {
                "1": bottleneck(16, 48, 16, 3),
                "2": bottleneck(16, 4, 16, 3),
                "3": bottleneck(16, 96, 16, 3),
                "4": bottleneck(16, 32, 16, 3),
                "5": bottleneck(16, 96, 16, 3),
                "6": bottleneck(16, 4, 16, 3),
            }
        )

    def forward(self, x):
        x1 = self.nodes["1"](x)
        x2 = self.nodes["2"](x1)
        x3 = self.nodes["3"](x1 + x2)
        x4 = self.nodes["4"](x2 + x3)
        x5 = self.nodes["5"](x2 + x3 + x4)
        x6 = self.nodes["6"](x1 + x3 + x4 + x5)
        return x + x1 + x2 + x4 + x6


class Network(nn.Module):
    """(B, 3, 32, 32) -> (B, 10)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8))
        self.cells = nn.ModuleList([
            Cell1(),
            Cell1(),
            Cell1(),
            Cell2(),
            Cell3(),
            Cell4(),
            Cell2(),
            Cell5(),
            Cell5(),
            Cell3(),
            Cell2(),
            Cell5(),
            Cell5(),
            Cell5(),
            Cell3(),
            Cell2(),
            Cell5(),
            Cell5(),
            Cell5(),
            Cell5(),
        ])
        self.head = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU())
        self.classifier = nn.Linear(16, 10)

    def forward(self, x):
        x = self.stem(x)
        for cell in self.cells:
            x = cell(x)
        x = self.head(x)
        return self.classifier(x.mean(dim=(-2, -1)))


if __name__ == "__main__":
    network = Network().eval()
    outputs = network(torch.randn(2, 3, 32, 32))
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters, outputs {tuple(outputs.shape)}")
