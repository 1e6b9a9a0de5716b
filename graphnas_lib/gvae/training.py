"""Training of the G-VAE: its loss on one batch (Eq. 4-5), and the loop."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import Tensor
from tqdm.auto import trange

import graphnas_lib.gvae.losses as losses
from graphnas_lib import store
from graphnas_lib.gvae.model import GVAE
from graphnas_lib.gvae.networks import GVAEConfig
from graphnas_lib.space import Cell, CellCodes, Logits, MixedBatches, as_codes, graph_view, soft_decodes
from graphnas_lib.store import Checkpoint, TrainLog

PARTS = tuple(field.name for field in fields(losses.GVAELoss))
MAX_STATISTICS_CELLS = 20_000  # training cells over which a latent's mean and deviation are taken


def gvae_loss(
    model: GVAE, codes: CellCodes, zc: Tensor, *, kl_weight: float, regularised: bool, generator: torch.Generator
) -> losses.GVAELoss:
    """Eq. 4-5 on one batch whose first `len(zc)` cells are the labelled ones.

    The latent is sampled, f = mu + sigma * noise, for the decoder and for q; the triplet term takes mu. With
    `regularised=False` both terms of Eq. 5 are zero, and so are ours: `decorrelation_loss` of all dimensions, and once
    more of those that the triplet term orders, which it makes copies of one another; `loose_ends_loss` and `cycle_loss`
    of independent normal latents, as many as labelled cells, with the mean and deviation of the batch's.
    """
    config, unit = model.config, model.encoder.unit
    mu, logvar = model.encoder(codes)
    noise = torch.randn(mu.shape, generator=generator, device=mu.device)
    latent = mu + (0.5 * logvar).exp() * noise
    parts = {
        "reconstruction": losses.reconstruction_loss(model.decoder(latent, codes.edges), codes),
        "kl": losses.kl_divergence(mu / unit, logvar - 2 * unit.log()),
    }
    if regularised and len(zc):
        triples = losses.choose_triplets(zc, min_gap=config.min_gap, generator=generator)
        ordered = (mu / unit)[:, : config.triplet_dims or None]
        parts["triplet"] = losses.triplet_margin_loss(ordered[: len(zc)], *triples, margin=config.margin)
        parts["predictor"] = losses.predictor_loss(model.predictor(latent[: len(zc)]), zc)
        if config.decorrelation_weight:
            parts["decorrelation"] = losses.decorrelation_loss(mu)
            if config.triplet_dims:
                parts["decorrelation"] = parts["decorrelation"] + losses.decorrelation_loss(ordered)
        if config.cycle_weight or config.loose_ends_weight:
            random = torch.randn(len(zc), mu.shape[1], generator=generator, device=mu.device)
            random = random * mu.detach().std(dim=0) + mu.detach().mean(dim=0)
            said = model.decoder(random)
            parts |= {"loose_ends": losses.loose_ends_loss(said), "cycle": cycle(model, random, said)}
    return losses.GVAELoss.of(parts, config, kl_weight=kl_weight)


def cycle(model: GVAE, latent: Tensor, logits: Logits) -> Tensor:
    """`cycle_loss` of random latents (n, m) and of the model's `logits` of them; zero when none says a valid cell.

    The gradient reaches the decoder's operations alone, straight through the arg-max and the encoder, whose weights it
    leaves.
    """
    cells, rows, features = soft_decodes(logits)
    if not len(rows):
        return latent.new_zeros(())
    given, asked = features.detach().requires_grad_(), latent[rows].detach()
    again, _ = model.encoder.of_view(graph_view(cells)[0], given)
    q, unit = model.predictor, model.encoder.unit
    loss = losses.cycle_loss(q(again), q(asked), again / unit, asked / unit, latent_weight=model.config.cycle_latent)
    return losses.gradient_through(loss, given, features)


def train(
    cells: Sequence[Cell] | CellCodes,
    labelled: Sequence[Cell] | CellCodes,
    zc_standardised: Tensor,
    *,
    config: GVAEConfig | None = None,
    steps: int,
    batch_size: int = 64,  # paper: Tab. 6
    seed: int = 0,
    device: str = "auto",
    regularised: bool = True,
    checkpoint: Checkpoint | None = None,
    progress: bool = False,
    log_every: int = 100,
    zc_hash: str = "",
) -> tuple[GVAE, TrainLog]:
    """Train a G-VAE on mixed batches: unlabelled cells, and a share of labelled ones for the terms of Eq. 5.

    AdamW with a cosine from `learning_rate` to 0, KL warm-up, at most `steps` steps; stops earlier once the loss has
    not fallen for `patience` epochs (App. A). A naive model sees the same batches and only loses Eq. 5. On a CPU with a
    fixed thread count a resumed run equals an uninterrupted one bit for bit. The checkpoint is left in place, complete,
    for the caller to clear once the result is saved.

    Args:
        cells: unlabelled cells, or their `CellCodes` (saves making 400,000 cells canonical again).
        zc_standardised: z of the labelled cells after `ZCTransform`, (n_labelled, 4).
        steps: upper bound, and length of the cosine; a log row averages over `log_every` of them.
        batch_size: cells a step, `config.labelled_fraction` of them labelled.
        zc_hash: `ZCTransform.hash` of the transform, kept with the model.

    Raises:
        ValueError: no cells, or labels and labelled cells differ in number.
        FloatingPointError: the loss is no longer finite.
    """
    config, device, checkpoint = config or GVAEConfig(), store.pick_device(device), checkpoint or Checkpoint()
    cells, labelled = as_codes(cells).to(device), as_codes(labelled).to(device)
    batches = MixedBatches(cells, labelled, zc_standardised.float().to(device))
    with torch.random.fork_rng(devices=[]):  # the weights depend on `seed` alone; global randomness is left as it was
        torch.manual_seed(seed)
        model = GVAE(config, regularised=regularised, zc_hash=zc_hash).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=config.weight_decay, fused=True)
    generator = torch.Generator(device).manual_seed(seed)
    run = {"step": 0, "rows": [], "sums": torch.zeros(len(PARTS), device=device), "seconds": 0.0}
    parts = {"model": model, "optimizer": optimizer, "generator": generator}
    run |= store.put_back(checkpoint.load(), **parts)
    run["sums"] = run["sums"].to(device)
    n_labelled = round(batch_size * config.labelled_fraction) if len(labelled) else 0
    epoch = math.ceil(len(cells) / batch_size / log_every)  # in log rows
    began = time.monotonic() - run["seconds"]
    for step in trange(run["step"], steps, initial=run["step"], total=steps, desc="G-VAE", disable=not progress):
        if step % log_every == 0 and _stalled(run["rows"], epoch=epoch, patience=config.patience):
            break
        optimizer.param_groups[0]["lr"] = 0.5 * config.learning_rate * (1 + math.cos(math.pi * step / steps))
        kl_weight = config.kl_weight * min(1.0, (step + 1) / max(config.kl_warmup * steps, 1))
        codes, zc = batches.draw(batch_size, n_labelled, generator=generator)
        loss = gvae_loss(model, codes, zc, kl_weight=kl_weight, regularised=regularised, generator=generator)
        optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        optimizer.step()
        run["sums"] += torch.stack([getattr(loss, name).detach() for name in PARTS])  # no .item(): a step never waits
        run["step"], run["seconds"] = step + 1, time.monotonic() - began
        if run["step"] % log_every == 0 or run["step"] == steps:
            run["rows"].append(_row(step + 1, run["sums"] / (step % log_every + 1), kl_weight))
            run["sums"].zero_()
        if checkpoint.due():
            checkpoint.save(run | store.states(**parts))
    checkpoint.save(run | store.states(**parts))
    mu = model.encode(cells[:MAX_STATISTICS_CELLS])
    model.latent_mean.copy_(mu.mean(dim=0))
    model.latent_std.copy_(mu.std(dim=0, correction=0))
    return model.eval(), TrainLog(run["rows"], run["step"], run["seconds"])


def _row(step: int, parts: Tensor, kl_weight: float) -> dict:
    """One line of the log: means over the steps since the last line."""
    row = {"step": step, "kl_weight": kl_weight, **dict(zip(PARTS, parts.tolist(), strict=True))}
    if not math.isfinite(row["total"]):
        raise FloatingPointError(f"The G-VAE loss must stay finite; it is {row}. Lower config.learning_rate.")
    return row


def _stalled(rows: list[dict], *, epoch: int, patience: int) -> bool:
    """Whether the loss at full KL weight has not fallen for `patience` epochs of `epoch` log rows each (App. A)."""
    totals = [row["total"] for row in rows if row["kl_weight"] == rows[-1]["kl_weight"]]
    means = [sum(totals[i : i + epoch]) / epoch for i in range(0, len(totals) - epoch + 1, epoch)]
    return len(means) > patience and min(means[-patience:]) >= min(means[:-patience])
