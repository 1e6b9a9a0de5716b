"""Conditional continuous normalising flow: noise to latent cells, given a ZC vector (Sec. 3.2, Eq. 6-7, App. A).

A network g moves noise u_0 ~ N(0, I) along du/dt = g(u, t, z) to a latent cell u_1 = f(r). The density of a latent
follows from the same equation solved backwards (`dynamics`). Two objectives train the same network: "nll" is the
paper's (Eq. 6: dopri5, adjoint method, Hutchinson's trace); "fm" is flow matching with independent coupling, which
needs no solver and is some hundred times cheaper a step. `log_prob` judges both in the same units. The ODE runs in
coordinates given by one fixed affine map (`latents.Whitening`, deviation D31), in place of PointFlow's moving batch
norm.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from operator import index

import torch
from torch import Tensor, nn

from graphnas_lib import store
from graphnas_lib.ccnf.dynamics import GRADIENTS, Dynamics, VectorField, rademacher, solve
from graphnas_lib.ccnf.latents import Whitening

TRACES = ("hutchinson", "exact")
SOLVER, SOLVER_STEPS = "rk4", 6  # of samples: 99% of the decoded cells equal dopri5's, at 24 evaluations


@dataclass(frozen=True, kw_only=True)
class CCNFConfig:
    """Sizes and solver of the flow; the defaults are the paper's."""

    latent_dim: int = 256  # App. A
    condition_dim: int = 4  # P of Eq. 3
    hidden: int = 512  # App. A
    layers: int = 9  # App. A: nine Concat+Squash+Linear layers
    method: str = "dopri5"  # App. A; solver of the nll objective and of log_prob
    steps: int = 20  # ours: of a fixed-step `method`
    tolerance: float = 1e-5  # App. A: absolute and relative
    max_evaluations: int = 1000  # ours: a solve that needs more has diverged (healthy ones need 20 to 200)
    condition_names: tuple[str, ...] = ("naswot", "snip_ssnr", "params", "flops")  # columns of zc, for messages
    zc_hash: str = ""  # `ZCTransform.hash` of the conditions' transform, compared where models are joined


class CCNF(nn.Module):
    """The flow: a vector field, the affine map of the latents, and the range of conditions it was trained on.

    `field` is any module called as field(t, u, zc); by default a fresh `VectorField`.
    """

    def __init__(self, config: CCNFConfig | None = None, field: nn.Module | None = None):
        super().__init__()
        self.config = config = config or CCNFConfig()
        m, p = config.latent_dim, config.condition_dim
        if field is None:
            field = VectorField(latent_dim=m, condition_dim=p, hidden=config.hidden, layers=config.layers)
        self.field = field
        self.whitening = Whitening(m, p)
        self.register_buffer("zc_low", torch.full((p,), -math.inf))
        self.register_buffer("zc_high", torch.full((p,), math.inf))

    @torch.no_grad()
    def sample(
        self,
        zc: Tensor,
        *,
        seed: int = 0,
        noise: Tensor | None = None,
        temperature: float = 1.0,
        method: str = SOLVER,
        steps: int = SOLVER_STEPS,
        units: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Latent cells u_1 = u_0 + int_0^1 g dt for noise u_0 (Sec. 3.2), one a row of `zc`.

        Args:
            zc: standardised ZC vectors, (n, P), columns in `clusters.ZC_NAMES` order.
            seed: source of the noise, the same on every device.
            noise: u_0, (n, m); replaces `seed`.
            temperature: factor on the noise; 1 is the paper's, below 1 stays nearer to the condition's centre.
            method, steps: torchdiffeq solver, and steps of a fixed-step one, which keeps rows independent.
            units: standardised vectors to raw ones (`ZCTransform.inverse`), in which the warning speaks.

        Returns:
            (n, m), in the units of the G-VAE.

        Raises:
            ValueError: `zc` lacks P columns, or `noise` is not (n, m).
            SolverError: the solve failed.
            UserWarning (a warning): a condition lies outside the range seen in training.
        """
        zc = self._condition(zc)
        outside = ((zc < self.zc_low) | (zc > self.zc_high)).any(dim=0)
        ends = torch.stack([self.zc_low, self.zc_high, zc.amin(dim=0), zc.amax(dim=0)]) if outside.any() else zc
        ends = units(ends.cpu()) if units else ends  # (4, P)
        for i in outside.nonzero().flatten().tolist():
            low, high, least, most = (f"{value:.4g}" for value in ends[:, i].tolist())
            warnings.warn(
                f"Condition {self.config.condition_names[i]} must lie in the trained range [{low}, {high}]"
                f"{'' if units else ' (standardised units)'}; got [{least}, {most}]. Cells generated there are "
                "extrapolation: clamp the condition, or train on cells that reach it.",
                stacklevel=3,
            )
        if noise is None:
            noise = torch.randn(len(zc), self.config.latent_dim, generator=torch.Generator().manual_seed(index(seed)))
        dynamics = Dynamics(self.field, zc, limit=self.config.max_evaluations)
        u0, tolerance = temperature * self._rows(noise, zc), self.config.tolerance
        u1 = solve(dynamics, u0, forward=True, method=method, steps=steps, tolerance=tolerance)
        return self.whitening.inverse(u1, zc)

    @torch.no_grad()
    def paths(self, zc: Tensor, noise: Tensor, *, steps: int = 24) -> Tensor:
        """Where samples of `zc` (n, P) from `noise` (n, m) are on their way: u_t at equal times, (steps + 1, n, m).

        They are in the coordinates in which the equation is solved, where u_0 is the noise itself; `whitening.inverse`
        makes latents of the G-VAE of them. Raises what `sample` does.
        """
        zc = self._condition(zc)
        dynamics = Dynamics(self.field, zc, limit=self.config.max_evaluations)
        options = {"method": SOLVER, "steps": steps, "tolerance": self.config.tolerance}
        return solve(dynamics, self._rows(noise, zc), forward=True, whole=True, **options)

    @torch.no_grad()
    def log_prob(
        self,
        latent: Tensor,
        zc: Tensor,
        *,
        trace: str = "hutchinson",
        generator: torch.Generator | None = None,
        method: str | None = None,
        steps: int | None = None,
    ) -> Tensor:
        """Log-density of latent cells under the flow, log p(u_1 | r) (Eq. 6-7).

        Integrates g backwards, t = 1 to 0, accumulating the trace of its Jacobian; the prior is a standard normal on
        u_0. The affine map's log-determinant is included: the density is in the units of the G-VAE's latents.

        Args:
            latent: u_1 = f(r), (B, m).
            zc: standardised ZC vectors z(r), (B, P), columns in `clusters.ZC_NAMES` order.
            trace: "exact" (m vector-Jacobian products) or "hutchinson" (one, unbiased).
            generator: source of the Hutchinson noise, drawn once per solve; None seeds one with 0.
            method, steps: torchdiffeq solver, and steps of a fixed-step one; by default the configuration's (dopri5).

        Returns:
            Natural-log density, (B,).

        Raises:
            ValueError: B differs between `latent` and `zc`, `zc` lacks P columns, or `trace` is unknown.
            SolverError: the solve failed.
        """
        return self.density(latent, zc, trace, generator, method, steps)[0]

    def density(self, latent, zc, trace, generator, method=None, steps=None, gradient="none"):
        """`log_prob` with a `gradient` for `latent` and the field's parameters, and the dynamics that counted.

        The gradient is "none", of the "adjoint" method, or by "backprop" through the solver.
        """
        store.one_of("trace", trace, TRACES)
        store.one_of("gradient", gradient, GRADIENTS)
        config, zc = self.config, self._condition(zc)
        u1 = self.whitening(self._rows(latent, zc), zc)
        noise = rademacher(u1, generator=generator or torch.Generator().manual_seed(0))
        dynamics = Dynamics(self.field, zc, limit=config.max_evaluations, trace=trace, noise=noise)
        start = (u1, torch.zeros(len(u1), dtype=u1.dtype, device=u1.device))
        settings = {"method": method or config.method, "steps": steps or config.steps, "tolerance": config.tolerance}
        u0, minus_trace = solve(dynamics, start, forward=False, gradient=gradient, **settings)
        log_prior = -0.5 * (u0.square() + math.log(2 * math.pi)).sum(dim=1)  # (B,)
        return log_prior + minus_trace + self.whitening.log_det(), dynamics  # Eq. 6, and the affine map

    def _condition(self, zc: Tensor) -> Tensor:
        """`zc` on the flow's device and in its precision, its shape checked."""
        if zc.dim() != 2 or zc.shape[1] != self.config.condition_dim:
            raise ValueError(
                f"zc must be (B, {self.config.condition_dim}) in the order {', '.join(self.config.condition_names)}; "
                f"got {tuple(zc.shape)}. Standardise it with Families.transform first."
            )
        return zc.to(self.zc_low)

    def _rows(self, values: Tensor, zc: Tensor) -> Tensor:
        """Latents or noise on the flow's device and in its precision, one row a condition."""
        if tuple(values.shape) != (len(zc), self.config.latent_dim):
            raise ValueError(
                f"latent and noise must be ({len(zc)}, {self.config.latent_dim}), one row a condition; "
                f"got {tuple(values.shape)}."
            )
        return values.to(self.zc_low)

    @torch.no_grad()
    def fit(self, latent: Tensor, zc: Tensor, seen: Tensor | None = None) -> None:
        """Set the affine map from draws (n, m), (n, P), and the range of conditions to that of `seen` (N, P) or zc."""
        self.whitening.fit(latent, zc)
        zc = zc if seen is None else seen
        self.zc_low.copy_(zc.amin(dim=0))
        self.zc_high.copy_(zc.amax(dim=0))

    def to_files(self, name: str = "ccnf", *, half: bool = False) -> dict[str, object]:
        """Files of this flow for `store.save`; `half` keeps the weights in float16, `load` gives float32."""
        weights = dict(self.state_dict())
        if half:
            weights |= {key: weight.half() for key, weight in self.named_parameters()}
        return {f"{name}.safetensors": weights, f"{name}.json": asdict(self.config)}

    @classmethod
    def load(cls, scale: str | None = None, *, name: str = "ccnf", device: str | torch.device = "cpu") -> CCNF:
        """The flow that stage "ccnf" trained; `name` is that given to `to_files`. Raises as `store.load`."""
        scale = scale or store.default_scale("ccnf")
        stored = store.load("ccnf", f"{name}.json", scale)
        flow = cls(CCNFConfig(**stored | {"condition_names": tuple(stored["condition_names"])}))
        flow.load_state_dict(store.load("ccnf", f"{name}.safetensors", scale))
        return flow.to(device).eval()
