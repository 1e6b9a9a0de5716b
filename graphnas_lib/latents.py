"""Latents as a flow sees them: draws from the encoder's posteriors (Sec. 3.2), and the Gaussians to beat.

The paper fits a density to the codes f(r) of finitely many cells, whose likelihood has no bound. Flows here are trained
and judged on draws f ~ N(mu, sigma^2) from the encoder's posteriors, and every likelihood is set beside that of three
Gaussians fitted to the same draws.
"""

from __future__ import annotations

import torch
from torch import Tensor


class PosteriorBatches:
    """Batches of latents drawn from the encoder's posteriors, with their ZC vectors.

    Dimensions whose spread over the corpus stays below `min_std` get noise of that size; `noised` counts them.

    Args:
        mu, logvar: posterior of each cell, (N, m).
        zc: standardised ZC vectors, (N, P).
        batch_size: rows a batch.
        condition_jitter: standard deviation of the noise on `zc`, in standardised units.
        min_std: smallest spread a dimension may have, in the latents' units.
    """

    def __init__(
        self,
        mu: Tensor,
        logvar: Tensor,
        zc: Tensor,
        *,
        batch_size: int = 256,
        condition_jitter: float = 0.02,
        min_std: float = 0.05,
    ):
        if not len(mu) == len(logvar) == len(zc):
            raise ValueError(
                f"mu, logvar and zc must have one row a cell; got {len(mu)}, {len(logvar)}, {len(zc)} rows."
            )
        self.mu, self.zc, self.batch_size, self.condition_jitter = mu, zc, batch_size, condition_jitter
        sigma = torch.exp(0.5 * logvar)
        spread = (mu.var(dim=0) + sigma.square().mean(dim=0)).sqrt()  # (m,) over the whole corpus
        self.noised = int((spread < min_std).sum())
        self.sigma = torch.where(spread < min_std, (sigma.square() + min_std**2).sqrt(), sigma)

    def __call__(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One batch: latents (B, m), conditions (B, P). The generator lives on the tensors' device."""
        rows = torch.randint(0, len(self.mu), (self.batch_size,), generator=generator, device=self.mu.device)
        return self.draw(rows, generator)

    def draw(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws for the cells `rows`: latents (B, m), conditions (B, P)."""
        mu, zc = self.mu[rows], self.zc[rows]
        latent = mu + self.sigma[rows] * normal(mu, generator=generator)
        return latent, zc + self.condition_jitter * normal(zc, generator=generator)


def normal(like: Tensor, *, generator: torch.Generator) -> Tensor:
    """Standard normal noise, shape, type and device of `like`."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def gaussian_baselines(
    train_latent: Tensor, train_zc: Tensor, test_latent: Tensor, test_zc: Tensor
) -> dict[str, float]:
    """Negative log-likelihood of three Gaussians on held-out latents, nats per dimension, in the G-VAE's units.

    A flow that does not beat "linear_conditional" adds nothing.

    Args:
        train_latent, test_latent: (n, m), drawn from the posteriors as for the flow.
        train_zc, test_zc: standardised conditions, (n, P).

    Returns:
        "standard_normal"; "diagonal": a mean and a variance each dimension; "linear_conditional": mean linear in z,
        full covariance of the residual.

    Raises:
        ValueError: too few training rows for a full covariance.
    """
    f, g = train_latent.double().cpu(), test_latent.double().cpu()
    (n, m), p = f.shape, train_zc.shape[1]
    if n <= m + p + 1:
        raise ValueError(f"The covariance of {m} dimensions given {p} conditions needs over {m + p + 1} rows; got {n}.")
    x, y = _with_ones(train_zc), _with_ones(test_zc)
    weights = torch.linalg.lstsq(x, f).solution  # (P + 1, m)
    residual = f - x @ weights  # (n, m)
    covariance = residual.T @ residual / n + 1e-9 * torch.eye(m, dtype=f.dtype)
    densities = {
        "standard_normal": torch.distributions.Normal(0.0, 1.0).log_prob(g).sum(dim=1),
        "diagonal": torch.distributions.Normal(f.mean(dim=0), f.std(dim=0)).log_prob(g).sum(dim=1),
        "linear_conditional": torch.distributions.MultivariateNormal(y @ weights, covariance).log_prob(g),
    }
    return {name: float(-density.mean() / m) for name, density in densities.items()}


def _with_ones(zc: Tensor) -> Tensor:
    """(n, P) -> (n, P + 1) in double precision, a constant column appended."""
    zc = zc.double().cpu()
    return torch.cat([zc, torch.ones(len(zc), 1, dtype=zc.dtype)], dim=1)
