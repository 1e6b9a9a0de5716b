"""G-VAE against a plain implementation, its encoder against other layers, in one run (`make bench`, or as a script).

Plain: float64, and a loss that walks over the cells of a batch, their slots and their triples in Python, as formulas
are read. Ours: `gvae.train`'s step. The same step with two other encoders of equal weights: `HandWritten`, one linear
map to all three weights and one batched product for all sums, and `Sparse`, PyTorch Geometric's convolution over lists
of edges. All take turns on the same batches and threads. Compare ratios only.

    python tests/benchmarks/bench_gvae.py --steps 40
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphnas_lib.gvae import GVAE, GVAEConfig
from graphnas_lib.gvae.losses import choose_triplets
from graphnas_lib.gvae.networks import GraphEncoder, propagation
from graphnas_lib.gvae.training import gvae_loss
from graphnas_lib.paper import SCALES
from graphnas_lib.space import KERNEL_OF, TYPE_OF, VIEW_NODES, CellCodes, MixedBatches, graph_view, sample_cells
from graphnas_lib.stages.gvae import WEIGHTS

TURN = 4  # steps one way makes before the other


class HandWritten(GraphEncoder):
    """An encoder of the same weights without PyTorch Geometric: x + [A, A', I] mix(h), as one product."""

    def __init__(self, config: GVAEConfig, encoder: GraphEncoder):
        super().__init__(config)
        self.load_state_dict(encoder.state_dict())
        self.mix = nn.ModuleList(nn.Linear(config.hidden, 3 * config.hidden) for _ in range(config.layers))
        for mix, along, against in zip(self.mix, self.along, self.against, strict=True):
            weights = [along["lin_rel"].weight, against["lin_rel"].weight, along["lin_root"].weight]
            mix.weight.data, mix.bias.data = torch.cat(weights).data.split([config.hidden, 1], dim=1)
            mix.weight.data, mix.bias.data = mix.weight.data.contiguous(), mix.bias.data.flatten()
        del self.along, self.against

    def of_view(self, adjacency: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        spread = propagation(adjacency)
        spread = torch.stack([spread, spread.mT, torch.eye(VIEW_NODES).expand_as(spread)], dim=-1).flatten(2)
        x = self.embed(features) + self.position
        for norm, mix in zip(self.norms, self.mix, strict=True):
            x = torch.baddbmm(x, spread, mix(F.relu(norm(x))).view(len(x), 3 * VIEW_NODES, -1))
        mu, logvar = self.readout(x[:, : self.nodes].flatten(1)).chunk(2, dim=-1)
        return mu * self.unit, logvar + 2 * self.unit.log()


class Sparse(GraphEncoder):
    """An encoder of the same weights that sums over lists of edges, one graph of all cells in a batch."""

    def __init__(self, config: GVAEConfig, encoder: GraphEncoder):
        from torch_geometric.nn import GraphConv

        super().__init__(config)
        self.load_state_dict(encoder.state_dict())
        for layers in (self.along, self.against):
            for i, weights in enumerate(layers):
                layers[i] = GraphConv(config.hidden + 1, config.hidden, bias=False)
                layers[i].lin_rel, layers[i].lin_root = weights["lin_rel"], weights["lin_root"]

    def of_view(self, adjacency: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        spread = propagation(adjacency)
        i, a, b = torch.nonzero(spread, as_tuple=True)
        weight, edges = spread[i, a, b], VIEW_NODES * i + torch.stack([b, a])  # a sums b
        x = (self.embed(features) + self.position).flatten(0, 1)
        for norm, along, against in zip(self.norms, self.along, self.against, strict=True):
            h = F.pad(F.relu(norm(x)), (0, 1), value=1.0)
            x = x + along(h, edges, weight) + against((h, None), edges.flip(0), weight)
        x = x.view(len(adjacency), VIEW_NODES, -1)
        mu, logvar = self.readout(x[:, : self.nodes].flatten(1)).chunk(2, dim=-1)
        return mu * self.unit, logvar + 2 * self.unit.log()


class Plain:
    """The same model, loss and optimiser in float64, cell by cell."""

    def __init__(self, model: GVAE):
        self.model = GVAE(model.config).double()
        self.model.load_state_dict(model.state_dict())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), foreach=False)

    def encode(self, codes: CellCodes) -> tuple[Tensor, Tensor]:
        encoder = self.model.encoder
        adjacency, features = (part.double() for part in graph_view(codes))
        spread, x = propagation(adjacency), encoder.embed(features) + encoder.position
        for norm, along, against in zip(encoder.norms, *encoder.convolutions(), strict=True):
            h = F.pad(F.relu(norm(x)), (0, 1), value=1.0)
            x = x + spread @ along.lin_rel(h) + spread.mT @ against.lin_rel(h) + along.lin_root(h)
        return encoder.readout(x[:, : encoder.nodes].flatten(1)).chunk(2, dim=-1)

    def loss(self, codes: CellCodes, zc: Tensor, kl_weight: float, noise: Tensor, triples) -> Tensor:
        config, n = self.model.config, len(codes)
        mu, logvar = self.encode(codes)
        latent = mu + (0.5 * logvar).exp() * noise
        logits = self.model.decoder(latent, codes.edges)
        total = mu.new_zeros(())
        for i in range(n):
            total = total + F.binary_cross_entropy_with_logits(
                logits.edges[i], codes.edges[i].double(), reduction="sum"
            )
            for slot, operation in enumerate(codes.operations[i].tolist()):
                total = total + F.cross_entropy(logits.types[i, slot], TYPE_OF[operation])
                if KERNEL_OF[operation] >= 0:
                    total = total + F.cross_entropy(logits.kernels[i, slot], KERNEL_OF[operation])
            total = total + kl_weight * 0.5 * (mu[i] ** 2 + logvar[i].exp() - 1 - logvar[i]).sum()
        total, ordered = total / n, mu.new_zeros(())
        for x, a, b, counts in zip(*(part.tolist() for part in triples), strict=True):
            if counts:
                near, far = (mu[x] - mu[a]).abs().mean(), (mu[x] - mu[b]).abs().mean()
                ordered = ordered + F.relu(near**2 - far**2 + config.margin)
        total = total + config.triplet_weight * ordered / max(1, int(triples[3].sum()))
        squared = mu.new_zeros(())
        for i, wanted in enumerate(zc.double()):
            squared = squared + ((self.model.predictor(latent[i]) - wanted) ** 2).mean()
        return total + config.predictor_weight * squared / len(zc)

    def step(self, codes: CellCodes, zc: Tensor, seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)  # the draws of ours, in its order
        noise = torch.randn(len(codes), self.model.config.latent_dim, generator=generator).double()
        triples = choose_triplets(zc, min_gap=self.model.config.min_gap, generator=generator)
        total = self.loss(codes, zc, 0.005, noise, triples)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        return total.item()


class Ours:
    """The step of `gvae.train`."""

    def __init__(self, model: GVAE):
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step(self, codes: CellCodes, zc: Tensor, seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        loss = gvae_loss(self.model, codes, zc, kl_weight=0.005, regularised=True, generator=generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        self.optimizer.step()
        return loss.total.item()


def batches_of(batch: int, steps: int) -> list[tuple[CellCodes, Tensor]]:
    """Batches whose first quarter is labelled, by chance."""
    cells = CellCodes.of(sample_cells(2_000, seed=0), canonical=True)
    zc = torch.randn(len(cells), 4, generator=torch.Generator().manual_seed(1))
    batches, generator = MixedBatches(cells, cells, zc), torch.Generator().manual_seed(2)
    return [batches.draw(batch, batch // 4, generator=generator) for _ in range(steps)]


def in_turns(ways: dict, *, steps: int, batch: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds a step of each way, in turns; and the loss of each on the first batch, at equal weights."""
    drawn = batches_of(batch, steps + 1)
    losses = {name: way.step(*drawn[0], seed=0) for name, way in ways.items()}  # warm
    seconds = {name: [] for name in ways}
    for start in range(1, steps + 1, TURN):
        for name, way in ways.items():
            for i, (codes, labels) in enumerate(drawn[start : start + TURN]):
                began = time.perf_counter()
                way.step(codes, labels, seed=start + i)
                seconds[name].append(time.perf_counter() - began)
    return {name: median(spent) for name, spent in seconds.items()}, losses


def compare(config: GVAEConfig, *, steps: int, batch: int) -> dict[str, float]:
    """Seconds a step of both, in turns; and how far the losses of equal weights and batches lie apart."""
    torch.manual_seed(0)
    model = GVAE(config)
    seconds, losses = in_turns({"plain": Plain(model), "ours": Ours(model)}, steps=steps, batch=batch)
    ratio, difference = seconds["plain"] / seconds["ours"], abs(losses["ours"] / losses["plain"] - 1)
    return seconds | {"ratio": ratio, "difference": difference}


def layers(config: GVAEConfig, *, steps: int, batch: int) -> dict[str, float]:
    """How often a step with each encoder fits into one with the hand-written layers, and the losses' distance to it."""
    models = {name: GVAE(config) for name in ("dense", "sparse", "hand-written")}
    for model in models.values():
        model.load_state_dict(models["dense"].state_dict())
    models["sparse"].encoder = Sparse(config, models["dense"].encoder)
    models["hand-written"].encoder = HandWritten(config, models["dense"].encoder)
    seconds, losses = in_turns({name: Ours(model) for name, model in models.items()}, steps=steps, batch=batch)
    found = {name: seconds["hand-written"] / spent for name, spent in seconds.items()}
    return found | {"difference": max(abs(loss / losses["hand-written"] - 1) for loss in losses.values())}


def round_trip(config: GVAEConfig, n: int = 10_000) -> dict[str, float]:
    """Seconds to encode n canonical cells and to decode n latents, cells to cells."""
    model, cells = GVAE(config).eval(), sample_cells(n, seed=3)
    latent = torch.randn(n, config.latent_dim)
    model.decode(model.encode(cells[:64]))  # warm
    began = time.perf_counter()
    model.encode(cells)
    encoded = time.perf_counter()
    model.decode(latent)
    return {"encode": encoded - began, "decode": time.perf_counter() - encoded}


def main() -> None:
    scale = SCALES["lite"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="training steps of each way (default 40)")
    parser.add_argument("--hidden", type=int, default=scale.gvae_hidden, help=f"width (default {scale.gvae_hidden})")
    parser.add_argument("--batch", type=int, default=scale.gvae_batch, help=f"cells (default {scale.gvae_batch})")
    options = parser.parse_args()
    config = GVAEConfig(hidden=options.hidden, latent_dim=scale.latent_dim)
    found = compare(config, steps=options.steps, batch=options.batch)
    print(
        f"hidden {config.hidden}, latent {config.latent_dim}, batch {options.batch}, {torch.get_num_threads()} threads"
    )
    print(
        f"training step: plain {found['plain']:.3f} s, ours {found['ours']:.3f} s, {found['ratio']:.1f} times; "
        f"losses of equal weights differ by {found['difference']:.1e}"
    )
    for name, used in (("as printed", config), ("as trained", GVAEConfig(**vars(config) | WEIGHTS))):
        found = layers(used, steps=5 * options.steps, batch=options.batch)
        print(
            f"training step {name}, times as fast as with hand-written layers: dense {found['dense']:.2f}, "
            f"sparse {found['sparse']:.2f}; losses differ by {found['difference']:.1e}"
        )
    times = round_trip(config)
    print(f"10,000 cells: encode {times['encode']:.2f} s, decode {times['decode']:.2f} s")


if __name__ == "__main__":
    main()


SMALL = GVAEConfig(hidden=64, latent_dim=64, decoder_hidden=64)


@pytest.mark.parametrize("way", [Plain, Ours])
def test_training_step(benchmark, way):
    """One step on 64 cells, hidden 64."""
    cells = CellCodes.of(sample_cells(64, seed=0), canonical=True)
    stepper, zc = way(GVAE(SMALL)), torch.randn(16, 4)
    benchmark(lambda: stepper.step(cells, zc, seed=0))
