"""A network drawn by graphnas_lib 0.1.0; T-CET 853999 on 64 given images.

190,354 parameters and 408,109,556 FLOPs (2 x multiply-adds) for one input of 3 x 32 x 32, 10 classes.
Needs PyTorch alone. `Network()` is untrained; weights of graphnas_lib's own network fit: `load_state_dict` takes them.
"""

import torch
from torch import nn


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
    """24 -> 24 channels."""

    def __init__(self):
        super().__init__()
        self.nodes = nn.ModuleDict(
            {
                "1": bottleneck(24, 48, 24, 3),
                "2": bottleneck(24, 12, 24, 5),
                "3": bottleneck(24, 12, 24, 3),
                "4": bottleneck(24, 6, 24, 5),
                "5": bottleneck(24, 72, 24, 1),
                "6": bottleneck(24, 6, 24, 1),
            }
        )

    def forward(self, x):
        x1 = self.nodes["1"](x)
        x2 = self.nodes["2"](x + x1)
        x3 = self.nodes["3"](x + x2)
        x4 = self.nodes["4"](x1 + x2)
        x5 = self.nodes["5"](x2 + x3 + x4)
        x6 = self.nodes["6"](x + x2 + x3 + x4 + x5)
        return x3 + x5 + x6


class Network(nn.Module):
    """(B, 3, 32, 32) -> (B, 10)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, 1, 1, bias=False), nn.BatchNorm2d(24))
        self.cells = nn.ModuleList([
            Cell1(),
            Cell1(),
            Cell1(),
            Cell1(),
            Cell1(),
            Cell1(),
            Cell1(),
            Cell1(),
            Cell1(),
            Cell1(),
            Cell1(),
            Cell1(),
            Cell1(),
            Cell1(),
            Cell1(),
            Cell1(),
            Cell1(),
            Cell1(),
            Cell1(),
            Cell1(),
        ])
        self.head = nn.Sequential(nn.BatchNorm2d(24), nn.ReLU())
        self.classifier = nn.Linear(24, 10)

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
