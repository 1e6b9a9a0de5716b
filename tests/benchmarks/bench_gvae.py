"""G-VAE against a plain implementation, in one run at the same sizes (`make bench`, or as a script).

Plain: float64, and a loss that walks over the cells of a batch, their slots and their triples in Python, as formulas
are read. Ours: `gvae.train`'s step. Both take turns on the same batches and threads. Compare ratios only.

    python tests/benchmarks/bench_gvae.py --steps 40
"""

from __future__ import annotations

import argparse
import time

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from graphnas_lib.gvae import GVAE, GVAEConfig
from graphnas_lib.gvae.losses import choose_triplets, gvae_loss
from graphnas_lib.gvae.model import propagation
from graphnas_lib.paper import SCALES
from graphnas_lib.space import KERNEL_OF, TYPE_OF, CellCodes, MixedBatches, graph_view, sample_cells

TURN = 4  # steps one way makes before the other


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
        for norm, mix in zip(encoder.norms, encoder.mix, strict=True):
            x = x + torch.bmm(spread, mix(F.relu(norm(x))).view(len(x), spread.shape[2], -1))
        return encoder.readout(x[:, : encoder.nodes].flatten(1)).chunk(2, dim=-1)

    def loss(self, codes: CellCodes, zc: Tensor, kl_weight: float, noise: Tensor, triples) -> Tensor:
        config, n = self.model.config, len(codes)
        mu, logvar = self.encode(codes)
        latent = mu + (0.5 * logvar).exp() * noise
        logits = self.model.logits(latent, codes.edges)
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


def compare(config: GVAEConfig, *, steps: int, batch: int) -> dict[str, float]:
    """Seconds a step of both, in turns; and how far the losses of equal weights and batches lie apart."""
    cells = CellCodes.of(sample_cells(2_000, seed=0), canonical=True)
    zc = torch.randn(len(cells), 4, generator=torch.Generator().manual_seed(1))
    batches, generator = MixedBatches(cells, cells, zc), torch.Generator().manual_seed(2)
    torch.manual_seed(0)
    model = GVAE(config)
    ways = {"plain": Plain(model), "ours": Ours(model)}
    drawn = [batches.draw(batch, batch // 4, generator=generator) for _ in range(steps + 1)]
    losses = {name: way.step(*drawn[0], seed=0) for name, way in ways.items()}  # warm
    seconds = dict.fromkeys(ways, 0.0)
    for start in range(1, steps + 1, TURN):
        for name, way in ways.items():
            began = time.perf_counter()
            for i, (codes, labels) in enumerate(drawn[start : start + TURN]):
                way.step(codes, labels, seed=start + i)
            seconds[name] += time.perf_counter() - began
    return {name: spent / steps for name, spent in seconds.items()} | {
        "ratio": seconds["plain"] / seconds["ours"],
        "difference": abs(losses["ours"] / losses["plain"] - 1),
    }


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
