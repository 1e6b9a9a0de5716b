"""The parts of the G-VAE: its sizes and weights, the encoder f, the decoder f^-1 (Sec. 3.1, Tab. 6).

The encoder sees a canonical cell as a graph of 9 nodes: a global node reads all, then input, six operations, output.
The decoder says 28 edge bits and then, given these, for each of six operation slots one of ten types or "unused", and a
kernel. One canonical order a cell makes exact recovery possible; the "unused" class makes the description total, so
that every slot and every bit has a target and a decode never has to guess how many nodes were meant.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphnas_lib.space import (
    EDGES,
    KERNELS,
    OP_NODES,
    OP_TYPES,
    VIEW_FEATURES,
    VIEW_NODES,
    CellCodes,
    Logits,
    graph_view,
)
from graphnas_lib.store import one_of

READOUTS = ("both", "global")
START_LOGVAR = -4.0  # not in the paper; a unit variance at the start slowed the first steps in short trials


@dataclass(frozen=True, kw_only=True)
class GVAEConfig:
    """Sizes and weights; defaults are the paper's where it states them."""

    hidden: int = 512  # paper: Tab. 6
    latent_dim: int = 256  # paper: Tab. 6
    layers: int = 4  # paper: Tab. 6
    readout: str = "both"  # flattened node states, the global node's among them; "global": that node's alone
    decoder_hidden: int = 512
    learning_rate: float = 3.5e-4  # paper: Tab. 6 ("3.5e4"); the text of App. A has 1e-3
    weight_decay: float = 5e-4  # paper: App. A
    kl_weight: float = 0.005  # Eq. 4 prints 1, at which most units collapse
    kl_warmup: float = 0.1  # share of the steps over which the KL weight rises from 0
    triplet_weight: float = 1.0  # paper: Eq. 5
    predictor_weight: float = 1.0  # paper: Eq. 5
    decorrelation_weight: float = 0.0  # not in the paper, see `losses.decorrelation_loss`
    loose_ends_weight: float = 0.0  # not in the paper, see `losses.loose_ends_loss`
    cycle_weight: float = 0.0  # not in the paper, see `losses.cycle_loss`
    cycle_latent: float = 0.0  # weight in it of the latent itself beside q
    margin: float = 0.1  # m of Eq. 5, in mean-L1 units of a latent of unit scale
    triplet_dims: int = 0  # leading dimensions whose distances the triplet term orders; 0 is all, as printed
    width: float = 1.0  # unit of these dimensions: 1 in their loss terms, in decoder and predictor, is `width` in f
    min_gap: float = 0.25  # triples whose two d differ by less say nothing
    labelled_fraction: float = 0.25  # of a batch
    patience: int = 10  # paper: App. A, epochs without a fall of the loss


class Rescaled(nn.Module):
    """Latents in units of `unit`, (m,): `width` in the dimensions that the triplet term orders, which L1(f) follows."""

    def __init__(self, config: GVAEConfig):
        super().__init__()
        self.register_buffer("unit", torch.ones(config.latent_dim), persistent=False)
        self.unit[: config.triplet_dims] = config.width

    def forward(self, latent: Tensor) -> Tensor:
        return latent / self.unit


class Nothing(nn.Module):
    """In place of a root weight: the node itself adds nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())


class GraphEncoder(nn.Module):
    """Graph convolutions along and against the edges, LayerNorm, ReLU; then (mu, logvar).

    A layer is x + A h W_1 + A' h W_2 + h W_3 with h = [ReLU(LayerNorm(x)), 1]: the convolution of Kipf & Welling (2017)
    in both directions of a directed graph, and the node itself with weights of its own in place of a self-loop
    (Schlichtkrull et al., 2018). These are two dense graph convolutions of PyTorch Geometric with one root weight, W_3,
    between them; the 1 gives each weight a bias. Cells come in canonical order, so nodes carry a learned embedding of
    their position. The posterior starts narrow (deviation D45).

    PyTorch Geometric takes seconds to import, and who only decodes does not need it. So `along` and `against` hold the
    weights of its layers, under the layers' names, until `convolutions` puts the layers around them.
    """

    def __init__(self, config: GVAEConfig):
        super().__init__()
        one_of("readout", config.readout, READOUTS)
        width, layers = config.hidden, range(config.layers)
        self.nodes = VIEW_NODES if config.readout == "both" else 1
        self.embed = nn.Linear(VIEW_FEATURES, width)
        self.position = nn.Parameter(0.3 * torch.randn(VIEW_NODES, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in layers)
        linear = lambda: nn.Linear(width + 1, width, bias=False)  # noqa: E731
        self.along = nn.ModuleList(nn.ModuleDict({"lin_rel": linear(), "lin_root": linear()}) for _ in layers)
        self.against = nn.ModuleList(nn.ModuleDict({"lin_rel": linear(), "lin_root": Nothing()}) for _ in layers)
        for weight in (*self.along.parameters(), *self.against.parameters()):  # as if one layer read all three
            nn.init.uniform_(weight, -((3 * width) ** -0.5), (3 * width) ** -0.5)
        self.readout = nn.Linear(self.nodes * width, 2 * config.latent_dim)
        self.register_buffer("unit", Rescaled(config).unit, persistent=False)
        nn.init.constant_(self.readout.bias[config.latent_dim :], START_LOGVAR)

    def forward(self, codes: CellCodes) -> tuple[Tensor, Tensor]:
        """mu and logvar of p(f | x), (B, m) each."""
        return self.of_view(*graph_view(codes))

    def of_view(self, adjacency: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """The same of `graph_view`'s tensors, (B, 9, 9) and (B, 9, 15)."""
        spread = propagation(adjacency)
        x = self.embed(features) + self.position  # (B, 9, hidden)
        for norm, along, against in zip(self.norms, *self.convolutions(), strict=True):
            h = F.pad(F.relu(norm(x)), (0, 1), value=1.0)  # (B, 9, hidden + 1)
            x = x + along(h, spread) + against(h, spread.mT)
        mu, logvar = self.readout(x[:, : self.nodes].flatten(1)).chunk(2, dim=-1)
        return mu * self.unit, logvar + 2 * self.unit.log()

    def convolutions(self) -> tuple[nn.ModuleList, nn.ModuleList]:
        """`along` and `against`, made layers of PyTorch Geometric that keep the very weights (optimisers hold them)."""
        from torch_geometric.nn import DenseGraphConv

        for layers in (self.along, self.against):
            for i, weights in enumerate(layers):
                if isinstance(weights, nn.ModuleDict):
                    with torch.device("meta"):  # weights of its own, which nobody draws
                        layers[i] = DenseGraphConv(self.embed.out_features + 1, self.embed.out_features, bias=False)
                    layers[i].lin_rel, layers[i].lin_root = weights["lin_rel"], weights["lin_root"]
        return self.along, self.against


def propagation(adjacency: Tensor) -> Tensor:
    """What a node sums along the edges: (B, 9, 9) of `graph_view`'s adjacency, [n, a, b] the weight of b's state in a.

    Self-loops are left out. An edge counts 1 / sqrt(out-degree of its source * in-degree of its target) (Kipf &
    Welling, 2017, for a directed graph); the transpose is the sum against the edges.
    """
    edges = adjacency * (1 - torch.eye(VIEW_NODES, device=adjacency.device))
    outward, inward = edges.sum(dim=2, keepdim=True), edges.sum(dim=1, keepdim=True)
    return edges * (outward * inward).clamp(min=1).rsqrt()


class CellDecoder(nn.Module):
    """Latents to edges, then to operations given these: what a cell computes hangs on both together."""

    def __init__(self, config: GVAEConfig):
        super().__init__()
        m, width = config.latent_dim, config.decoder_hidden
        block = lambda inputs: [nn.Linear(inputs, width), nn.LayerNorm(width), nn.ReLU()]  # noqa: E731
        outputs = OP_NODES * (len(OP_TYPES) + 1 + len(KERNELS))
        self.rescaled = Rescaled(config)
        self.edges = nn.Sequential(*block(m), *block(width), nn.Linear(width, len(EDGES)))
        self.operations = nn.Sequential(*block(m + len(EDGES)), *block(width), nn.Linear(width, outputs))

    def forward(self, latent: Tensor, edges: Tensor | None = None) -> Logits:
        """Logits of latents (B, m); operations for `edges` (B, 28) of 0 and 1, by default the most likely ones."""
        latent = self.rescaled(latent)
        said = self.edges(latent)
        given = (said.detach() > 0 if edges is None else edges).to(latent.dtype)
        out = self.operations(torch.cat([latent, 2 * given - 1], dim=1))
        types, kernels = out.split([OP_NODES * (len(OP_TYPES) + 1), OP_NODES * len(KERNELS)], dim=-1)
        return Logits(said, types.unflatten(-1, (OP_NODES, -1)), kernels.unflatten(-1, (OP_NODES, -1)))
