"""Cells to latents and back, in numbers: exact recovery, what random latents decode to, how well q knows z."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from graphnas_lib.gvae.model import GVAE
from graphnas_lib.space import Cell, CellCodes, as_codes, decoded


@torch.no_grad()
def reconstruction_rate(gvae: GVAE, cells: Sequence[Cell] | CellCodes, *, sample_seed: int | None = None) -> float:
    """Share of cells that come back exactly, decode(encode(x)) = x in canonical form.

    From the mean latent, or from one sample of the posterior when `sample_seed` is given.
    """
    codes = as_codes(cells)
    latent, logvar = gvae.encode_distribution(codes)
    if sample_seed is not None:
        generator = torch.Generator(latent.device).manual_seed(sample_seed)
        latent = latent + (0.5 * logvar).exp() * torch.randn(latent.shape, generator=generator, device=latent.device)
    raw = gvae.decode_codes(latent).to(codes.edges.device)
    exact = (raw.edges == codes.edges).all(dim=1) & (raw.operations == codes.operations).all(dim=1)
    rest = torch.nonzero(~exact).squeeze(-1)  # may still be the same cell, written otherwise
    wanted = [cell.key() for cell in codes[rest].cells()]
    found = [outcome.cell.key() if outcome.cell else None for outcome in decoded(raw[rest])]
    same = sum(a == b for a, b in zip(wanted, found, strict=True))
    return (int(exact.sum()) + same) / max(len(codes), 1)


@torch.no_grad()
def element_accuracy(gvae: GVAE, cells: Sequence[Cell] | CellCodes) -> dict[str, float]:
    """Share of edge bits and of slots that come back, {"edges", "operations"}: arch2vec's weaker measure."""
    codes = as_codes(cells)
    raw = gvae.decode_codes(gvae.encode(codes)).to(codes.edges.device)
    edges, operations = raw.edges == codes.edges, raw.operations == codes.operations
    return {"edges": edges.float().mean().item(), "operations": operations.float().mean().item()}


def validity(
    gvae: GVAE, latents: Tensor, known_keys: set[str] | frozenset[str] = frozenset(), *, repair: str | None = None
) -> dict[str, float]:
    """What latents (n, m) decode to, as shares; `repair` is that of `GVAE.decode_raw`.

    Returns:
        n; "valid" of n; "unique" of the valid; "new" of the unique, not in `known_keys`; "raw_strict" of n, valid with
        no dangling node before pruning; "no_path" and "identity" of n.
    """
    outcomes = gvae.decode_raw(latents, repair=repair)
    n, keys = len(outcomes), [outcome.cell.key() for outcome in outcomes if outcome.cell]
    unique = set(keys)
    return {
        "n": n,
        "valid": len(keys) / max(n, 1),
        "unique": len(unique) / max(len(keys), 1),
        "new": len(unique - known_keys) / max(len(unique), 1),
        "raw_strict": sum(o.strict for o in outcomes) / max(n, 1),
        "no_path": sum(o.status == "no_path" for o in outcomes) / max(n, 1),
        "identity": sum(o.status == "identity" for o in outcomes) / max(n, 1),
    }


def random_latents(gvae: GVAE, n: int, *, seed: int) -> dict[str, Tensor]:
    """Normal latents, (n, m) each: "normal" of N(0, I), "scaled" with the training latents' mean and deviation."""
    noise = torch.randn(n, gvae.config.latent_dim, generator=torch.Generator().manual_seed(seed))
    return {"scaled": gvae.latent_mean + gvae.latent_std * noise, "normal": noise}


def valid_draws(gvae: GVAE, n: int, *, seed: int, kind: str = "scaled") -> tuple[Tensor, list[Cell]]:
    """`n` of `random_latents` that decode to a valid cell, (n, m), and their cells.

    Raises:
        RuntimeError: less than one draw in twenty decodes.
    """
    latent = random_latents(gvae, 20 * n, seed=seed)[kind]
    cells = gvae.decode(latent)
    valid = [i for i, cell in enumerate(cells) if cell is not None][:n]
    if len(valid) < n:
        raise RuntimeError(f"{n} valid cells are needed of {len(latent)} random latents; got {len(valid)}.")
    return latent[valid], [cells[i] for i in valid]
