"""Latents as a flow sees them: draws from the encoder's posteriors (Sec. 3.2), and the Gaussians to beat.

The paper fits a density to the codes f(r) of finitely many cells, whose likelihood has no bound. Flows here are trained
and judged on draws f ~ N(mu, sigma^2) from the encoder's posteriors, and every likelihood is set beside that of three
Gaussians fitted to the same draws.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MIN_STD = 0.05  # smallest spread that a dimension may have, in the latents' units


class PosteriorBatches:
    """Batches of latents drawn from the encoder's posteriors, with their ZC vectors.

    Dimensions whose spread over the corpus stays below `MIN_STD` get noise of that size; `noised` counts them.

    Args:
        mu, logvar: posterior of each cell, (N, m).
        zc: standardised ZC vectors, (N, P).
        batch_size: rows a batch.
        condition_jitter: standard deviation of the noise on `zc`, in standardised units.
    """

    def __init__(
        self, mu: Tensor, logvar: Tensor, zc: Tensor, *, batch_size: int = 256, condition_jitter: float = 0.02
    ):
        if not len(mu) == len(logvar) == len(zc):
            raise ValueError(f"mu, logvar, zc must have one row a cell; got {len(mu)}, {len(logvar)}, {len(zc)} rows.")
        self.mu, self.zc, self.batch_size, self.condition_jitter = mu, zc, batch_size, condition_jitter
        sigma = torch.exp(0.5 * logvar)
        spread = (mu.var(dim=0) + sigma.square().mean(dim=0)).sqrt()  # (m,) over the whole corpus
        self.noised = int((spread < MIN_STD).sum())
        self.sigma = torch.where(spread < MIN_STD, (sigma.square() + MIN_STD**2).sqrt(), sigma)

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


class Whitening(nn.Module):
    """Affine map of latents f to u = L^-1 (f - mean - z B), which is N(0, I) where f given z is Gaussian, linear in z.

    Buffers mean (m,), slope B (P, m) and factor L (m, m), lower triangular with a positive diagonal; the identity until
    `fit`. One wide dimension of f may hold all that z says: there a flow in other coordinates would have to hit a
    hundredth of its unit.
    """

    def __init__(self, latent_dim: int, condition_dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(latent_dim))
        self.register_buffer("slope", torch.zeros(condition_dim, latent_dim))
        self.register_buffer("factor", torch.eye(latent_dim))

    def fit(self, latent: Tensor, zc: Tensor) -> Whitening:
        """Least squares in z (n, P) of f (n, m), and the residual's covariance L L^T, in double precision.

        Raises:
            ValueError: too few rows for a full covariance.
            FloatingPointError: a row is not finite.
        """
        (n, m), p = latent.shape, zc.shape[1]
        if n <= m + p + 1:
            raise ValueError(
                f"The covariance of {m} dimensions given {p} conditions needs over {m + p + 1} rows; got {n}."
            )
        f, z = latent.double().cpu(), zc.double().cpu()
        if bad := int((~torch.cat([f, z], dim=1).isfinite()).any(dim=1).sum()):
            raise FloatingPointError(f"Latents and conditions must be finite; {bad} of {n} rows are not.")
        weights = torch.linalg.lstsq(torch.cat([z, torch.ones(n, 1, dtype=z.dtype)], dim=1), f).solution  # (P + 1, m)
        residual = f - z @ weights[:-1] - weights[-1]  # (n, m)
        covariance = residual.T @ residual / n + 1e-9 * torch.eye(m, dtype=f.dtype)
        self.slope.copy_(weights[:-1])
        self.mean.copy_(weights[-1])
        self.factor.copy_(torch.linalg.cholesky(covariance))
        return self

    def forward(self, latent: Tensor, zc: Tensor) -> Tensor:
        """f (B, m) given z (B, P) -> u (B, m)."""
        centred = latent - self.mean - zc @ self.slope
        return torch.linalg.solve_triangular(self.factor, centred.T, upper=False).T

    def inverse(self, u: Tensor, zc: Tensor) -> Tensor:
        """u (B, m) given z (B, P) -> f (B, m)."""
        return u @ self.factor.T + self.mean + zc @ self.slope

    def log_det(self) -> Tensor:
        """log |det du/df|, the same for every f and z."""
        return -self.factor.diagonal().log().sum()


def gaussian_baselines(
    train_latent: Tensor, train_zc: Tensor, test_latent: Tensor, test_zc: Tensor
) -> dict[str, float]:
    """Negative log-likelihood of three Gaussians on held-out latents, nats per dimension, in the G-VAE's units.

    Latents (n, m) are drawn from the posteriors as for the flow, conditions (n, P) are standardised. A flow that does
    not beat "linear_conditional" adds nothing.

    Returns:
        "standard_normal"; "diagonal": a mean and a variance each dimension; "linear_conditional": mean linear in z,
        full covariance of the residual.

    Raises:
        ValueError: too few training rows for a full covariance.
    """
    f, g, z = (part.double().cpu() for part in (train_latent, test_latent, test_zc))
    linear = Whitening(f.shape[1], z.shape[1]).double().fit(f, train_zc)
    standard = torch.distributions.Normal(0.0, 1.0)
    densities = {
        "standard_normal": standard.log_prob(g).sum(dim=1),
        "diagonal": torch.distributions.Normal(f.mean(dim=0), f.std(dim=0)).log_prob(g).sum(dim=1),
        "linear_conditional": standard.log_prob(linear(g, z)).sum(dim=1) + linear.log_det(),
    }
    return {name: float(-density.mean() / f.shape[1]) for name, density in densities.items()}
