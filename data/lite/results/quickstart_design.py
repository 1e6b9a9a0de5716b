"""A network drawn by graphnas_lib 0.1.0; T-CET 818770 on 64 given images.

199,334 parameters and 428,712,276 FLOPs (2 x multiply-adds) for one input of 3 x 32 x 32, 10 classes.
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
    """16 -> 16 channels."""

    def __init__(self):
        super().__init__()
        self.nodes = nn.ModuleDict(
            {
                "1": bottleneck(16, 96, 16, 3),
                "2": bottleneck(16, 32, 16, 3),
                "3": bottleneck(16, 8, 16, 5),
                "4": separable(16, 16, 3),
                "5": bottleneck(16, 32, 16, 5),
                "6": bottleneck(16, 96, 16, 3),
            }
        )

    def forward(self, x):
        x1 = self.nodes["1"](x)
        x2 = self.nodes["2"](x + x1)
        x3 = self.nodes["3"](x + x1)
        x4 = self.nodes["4"](x1 + x2 + x3)
        x5 = self.nodes["5"](x + x1 + x2 + x3)
        x6 = self.nodes["6"](x + x2 + x3 + x4 + x5)
        return x + x2 + x5 + x6


class Cell2(nn.Module):
    """16 -> 8 channels."""

    def __init__(self):
        super().__init__()
        self.projection = conv(16, 8, 1)
        self.nodes = nn.ModuleDict(
            {
                "1": bottleneck(16, 96, 8, 3),
                "2": bottleneck(8, 16, 8, 3),
                "3": bottleneck(8, 4, 8, 5),
                "4": separable(8, 8, 3),
                "5": bottleneck(8, 16, 8, 5),
                "6": bottleneck(8, 48, 8, 3),
            }
        )

    def forward(self, x):
        projected = self.projection(x)
        x1 = self.nodes["1"](x)
        x2 = self.nodes["2"](projected + x1)
        x3 = self.nodes["3"](projected + x1)
        x4 = self.nodes["4"](x1 + x2 + x3)
        x5 = self.nodes["5"](projected + x1 + x2 + x3)
        x6 = self.nodes["6"](projected + x2 + x3 + x4 + x5)
        return projected + x2 + x5 + x6


class Cell3(nn.Module):
    """8 -> 8 channels."""

    def __init__(self):
        super().__init__()
        self.nodes = nn.ModuleDict(
            {
                "1": separable(8, 8, 5, dilation=2),
                "2": separable(8, 8, 5, dilation=2),
                "3": bottleneck(8, 24, 8, 5),
                "4": bottleneck(8, 24, 8, 1),
                "5": bottleneck(8, 48, 8, 1),
                "6": bottleneck(8, 24, 8, 1),
            }
        )

    def forward(self, x):
        x1 = self.nodes["1"](x)
        x2 = self.nodes["2"](x1)
        x3 = self.nodes["3"](x2)
        x4 = self.nodes["4"](x + x2 + x3)
        x5 = self.nodes["5"](x1 + x2 + x3)
        x6 = self.nodes["6"](x1 + x2 + x5)
        return x + x1 + x3 + x4 + x6


class Cell4(nn.Module):
    """8 -> 16 channels."""

    def __init__(self):
        super().__init__()
        self.projection = conv(8, 16, 1)
        self.nodes = nn.ModuleDict(
            {
                "1": bottleneck(8, 48, 16, 3),
                "2": bottleneck(16, 32, 16, 3),
                "3": bottleneck(16, 8, 16, 5),
                "4": separable(16, 16, 3),
                "5": bottleneck(16, 32, 16, 5),
                "6": bottleneck(16, 96, 16, 3),
            }
        )

    def forward(self, x):
        projected = self.projection(x)
        x1 = self.nodes["1"](x)
        x2 = self.nodes["2"](projected + x1)
        x3 = self.nodes["3"](projected + x1)
        x4 = self.nodes["4"](x1 + x2 + x3)
        x5 = self.nodes["5"](projected + x1 + x2 + x3)
        x6 = self.nodes["6"](projected + x2 + x3 + x4 + x5)
        return projected + x2 + x5 + x6


class Cell5(nn.Module):
    """8 -> 8 channels."""

    def __init__(self):
        super().__init__()
        self.nodes = nn.ModuleDict(
            {
                "1": bottleneck(8, 48, 8, 3),
                "2": bottleneck(8, 16, 8, 3),
                "3": bottleneck(8, 4, 8, 5),
                "4": separable(8, 8, 3),
                "5": bottleneck(8, 16, 8, 5),
                "6": bottleneck(8, 48, 8, 3),
            }
        )

    def forward(self, x):
        x1 = self.nodes["1"](x)
        x2 = self.nodes["2"](x + x1)
        x3 = self.nodes["3"](x + x1)
        x4 = self.nodes["4"](x1 + x2 + x3)
        x5 = self.nodes["5"](x + x1 + x2 + x3)
        x6 = self.nodes["6"](x + x2 + x3 + x4 + x5)
        return x + x2 + x5 + x6


class Cell6(nn.Module):
    """16 -> 24 channels."""

    def __init__(self):
        super().__init__()
        self.projection = conv(16, 24, 1)
        self.nodes = nn.ModuleDict(
            {
                "1": bottleneck(16, 96, 24, 3),
                "2": bottleneck(24, 48, 24, 3),
                "3": bottleneck(24, 12, 24, 5),
                "4": separable(24, 24, 3),
                "5": bottleneck(24, 48, 24, 5),
                "6": bottleneck(24, 144, 24, 3),
            }
        )

    def forward(self, x):
        projected = self.projection(x)
        x1 = self.nodes["1"](x)
        x2 = self.nodes["2"](projected + x1)
        x3 = self.nodes["3"](projected + x1)
        x4 = self.nodes["4"](x1 + x2 + x3)
        x5 = self.nodes["5"](projected + x1 + x2 + x3)
        x6 = self.nodes["6"](projected + x2 + x3 + x4 + x5)
        return projected + x2 + x5 + x6


class Cell7(nn.Module):
    """24 -> 8 channels."""

    def __init__(self):
        super().__init__()
        self.projection = conv(24, 8, 1)
        self.nodes = nn.ModuleDict(
            {
                "1": bottleneck(24, 144, 8, 3),
                "2": bottleneck(8, 16, 8, 3),
                "3": bottleneck(8, 4, 8, 5),
                "4": separable(8, 8, 3),
                "5": bottleneck(8, 16, 8, 5),
                "6": bottleneck(8, 48, 8, 3),
            }
        )

    def forward(self, x):
        projected = self.projection(x)
        x1 = self.nodes["1"](x)
        x2 = self.nodes["2"](projected + x1)
        x3 = self.nodes["3"](projected + x1)
        x4 = self.nodes["4"](x1 + x2 + x3)
        x5 = self.nodes["5"](projected + x1 + x2 + x3)
        x6 = self.nodes["6"](projected + x2 + x3 + x4 + x5)
        return projected + x2 + x5 + x6


class Cell8(nn.Module):
    """8 -> 24 channels."""

    def __init__(self):
        super().__init__()
        self.projection = conv(8, 24, 1)
        self.nodes = nn.ModuleDict(
            {
                "1": bottleneck(8, 48, 24, 3),
                "2": bottleneck(24, 48, 24, 3),
                "3": bottleneck(24, 12, 24, 5),
                "4": separable(24, 24, 3),
                "5": bottleneck(24, 48, 24, 5),
                "6": bottleneck(24, 144, 24, 3),
            }
        )

    def forward(self, x):
        projected = self.projection(x)
        x1 = self.nodes["1"](x)
        x2 = self.nodes["2"](projected + x1)
        x3 = self.nodes["3"](projected + x1)
        x4 = self.nodes["4"](x1 + x2 + x3)
        x5 = self.nodes["5"](projected + x1 + x2 + x3)
        x6 = self.nodes["6"](projected + x2 + x3 + x4 + x5)
        return projected + x2 + x5 + x6


class Network(nn.Module):
    """(B, 3, 32, 32) -> (B, 10)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16))
        self.cells = nn.ModuleList([
            Cell1(),
            Cell2(),
            Cell3(),
            Cell4(),
            Cell1(),
            Cell2(),
            Cell5(),
            Cell4(),
            Cell2(),
            Cell5(),
            Cell5(),
            Cell4(),
            Cell2(),
            Cell4(),
            Cell6(),
            Cell7(),
            Cell8(),
            Cell7(),
            Cell4(),
            Cell1(),
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
