"""Conditional continuous normalising flow: noise to latent cells, given a ZC vector (Sec. 3.2, Eq. 6-7, App. A).

A network g moves noise u_0 ~ N(0, I) along du/dt = g(u, t, z) to a latent cell u_1 = f(r). The density of a latent
follows from the same equation solved backwards (`dynamics`). Two objectives train the same network: "nll" is the
paper's (Eq. 6: dopri5, adjoint method, Hutchinson's trace); "fm" is flow matching with independent coupling, which
needs no solver and is some hundred times cheaper a step. `log_prob` judges both in the same units. The ODE runs in
coordinates given by one fixed affine map (`latents.Whitening`, deviation D31), in place of PointFlow's moving batch
norm.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from graphnas_lib import store
from graphnas_lib.ccnf.dynamics import GRADIENTS, Dynamics, SolverError, VectorField, rademacher, solve, solver_errors
from graphnas_lib.ccnf.latents import PosteriorBatches, Whitening, normal
from graphnas_lib.store import Checkpoint, TrainLog

OBJECTIVES = ("fm", "nll")
TRACES = ("hutchinson", "exact")
SOLVER, SOLVER_STEPS = "rk4", 6  # of samples: 99% of the decoded cells equal dopri5's, at 24 evaluations
TRIES = 3  # batches of a step of which a solve may fail: one failure must not end hours

BatchSampler = Callable[[torch.Generator], tuple[Tensor, Tensor]]


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
            method: torchdiffeq solver; a fixed-step one keeps rows independent of each other.
            steps: steps of a fixed-step method.
            units: standardised vectors to raw ones (`ZCTransform.inverse`), in which the warning speaks.

        Returns:
            (n, m), in the units of the G-VAE.

        Raises:
            ValueError: `zc` lacks P columns, or `noise` is not (n, m).
            SolverError: the solve failed.

        Warns:
            UserWarning: a condition lies outside the range seen in training.
        """
        zc = self._condition(zc)
        self._warn_out_of_range(zc, units)
        if noise is None:
            noise = torch.randn(len(zc), self.config.latent_dim, generator=torch.Generator().manual_seed(seed))
        u0 = temperature * self._rows(noise, zc)
        return self.whitening.inverse(self._transport(u0, zc, True, method, steps), zc)

    @torch.no_grad()
    def to_noise(self, latent: Tensor, zc: Tensor, *, method: str = SOLVER, steps: int = SOLVER_STEPS) -> Tensor:
        """u_0 from which the flow reaches `latent` under `zc` (Eq. 7): inverse of `sample`, (B, m) -> (B, m)."""
        zc = self._condition(zc)
        return self._transport(self.whitening(self._rows(latent, zc), zc), zc, False, method, steps)

    def log_prob(
        self,
        latent: Tensor,
        zc: Tensor,
        *,
        trace: str = "hutchinson",
        generator: torch.Generator | None = None,
        method: str | None = None,
        steps: int | None = None,
        gradient: str = "none",
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
            gradient: "none", "adjoint" (for the field's parameters and `latent`), or "backprop" (through the solver).

        Returns:
            Natural-log density, (B,).

        Raises:
            ValueError: B differs between `latent` and `zc`, `zc` lacks P columns, or a choice is unknown.
            SolverError: the solve failed.
        """
        with torch.set_grad_enabled(gradient != "none"):
            return self._log_prob(latent, zc, trace, generator, method, steps, gradient)[0]

    def _log_prob(self, latent, zc, trace, generator, method=None, steps=None, gradient="none"):
        """`log_prob`, and the dynamics that counted the evaluations."""
        _one_of("trace", trace, TRACES)
        _one_of("gradient", gradient, GRADIENTS)
        config, zc = self.config, self._condition(zc)
        u1 = self.whitening(self._rows(latent, zc), zc)
        noise = rademacher(u1, generator=generator or torch.Generator().manual_seed(0))
        dynamics = Dynamics(self.field, zc, limit=config.max_evaluations, trace=trace, noise=noise)
        start = (u1, torch.zeros(len(u1), dtype=u1.dtype, device=u1.device))
        method, steps = method or config.method, steps or config.steps
        u0, minus_trace = solve(
            dynamics, start, forward=False, method=method, steps=steps, tolerance=config.tolerance, gradient=gradient
        )
        log_prior = -0.5 * (u0.square() + math.log(2 * math.pi)).sum(dim=1)  # (B,)
        return log_prior + minus_trace + self.whitening.log_det(), dynamics  # Eq. 6, and the affine map

    def _transport(self, u: Tensor, zc: Tensor, forward: bool, method: str, steps: int) -> Tensor:
        dynamics = Dynamics(self.field, zc, limit=self.config.max_evaluations)
        return solve(dynamics, u, forward=forward, method=method, steps=steps, tolerance=self.config.tolerance)

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

    def _warn_out_of_range(self, zc: Tensor, units: Callable[[Tensor], Tensor] | None) -> None:
        outside = ((zc < self.zc_low) | (zc > self.zc_high)).any(dim=0)
        if not outside.any():
            return
        ends = torch.stack([self.zc_low, self.zc_high, zc.amin(dim=0), zc.amax(dim=0)])  # (4, P)
        ends = units(ends.cpu()) if units else ends
        for i in outside.nonzero().flatten().tolist():
            low, high, least, most = (f"{value:.4g}" for value in ends[:, i].tolist())
            warnings.warn(
                f"Condition {self.config.condition_names[i]} must lie in the trained range [{low}, {high}]"
                f"{'' if units else ' (standardised units)'}; got [{least}, {most}]. Cells generated there are "
                "extrapolation: clamp the condition, or train on cells that reach it.",
                stacklevel=4,
            )

    def to_files(self, name: str = "ccnf", *, half: bool = False) -> dict[str, object]:
        """Files of this flow for `store.save("ccnf", ...)`; `half` keeps the weights in float16, `load` gives float32."""
        weights = dict(self.state_dict())
        if half:
            weights |= {key: weight.half() for key, weight in self.named_parameters()}
        return {f"{name}.safetensors": weights, f"{name}.json": asdict(self.config)}

    @classmethod
    def load(cls, scale: str | None = None, *, name: str = "ccnf", device: str | torch.device = "cpu") -> CCNF:
        """The flow that stage "ccnf" trained; `name` is that given to `to_files`.

        Raises: as `artifacts.load`.
        """
        scale = scale or store.default_scale("ccnf")
        stored = store.load("ccnf", f"{name}.json", scale)
        flow = cls(CCNFConfig(**stored | {"condition_names": tuple(stored["condition_names"])}))
        flow.load_state_dict(store.load("ccnf", f"{name}.safetensors", scale))
        return flow.to(device).eval()


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}; got {value!r}.")


# ---- the two objectives


def flow_matching_loss(flow: CCNF, latent: Tensor, zc: Tensor, *, generator: torch.Generator) -> Tensor:
    """Mean of |g(u_t, t, z) - (u_1 - u_0)|^2 on straight paths u_t = (1-t) u_0 + t u_1 (Lipman et al. 2023).

    Noise and data are paired independently: a minibatch optimal-transport pairing that ignores z would skew p(u_0 | z).
    """
    u1 = flow.whitening(latent, zc)
    u0 = normal(u1, generator=generator)
    t = torch.rand(len(u1), 1, generator=generator, dtype=u1.dtype, device=u1.device)
    return (flow.field(t, (1 - t) * u0 + t * u1, zc) - (u1 - u0)).square().mean()


def nll_loss(flow: CCNF, latent: Tensor, zc: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Dynamics]:
    """Mean negative log-density in nats per dimension (Eq. 6), with gradients by the adjoint method.

    Returns:
        The loss, and the dynamics whose `evaluations` counts function evaluations.
    """
    density, dynamics = flow._log_prob(latent, zc, "hutchinson", generator, gradient="adjoint")
    return -density.mean() / latent.shape[1], dynamics


def train(
    batches: BatchSampler | tuple[Tensor, Tensor, Tensor],
    *,
    config: CCNFConfig | None = None,
    objective: str = "fm",
    steps: int,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.01,
    cosine: bool | None = None,
    ema: float | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    start: CCNF | None = None,
    checkpoint: Checkpoint | None = None,
    progress: bool = False,
) -> tuple[CCNF, TrainLog]:
    """Fit the flow; a killed run continues from its checkpoint as if nothing had happened.

    Args:
        batches: function of a generator (on `device`) to a batch (latent (B, m), zc (B, P)) on `device`; or the tensors
            (mu, logvar, zc) of a corpus, see `PosteriorBatches`.
        config: sizes and solver; None takes those of `start`, else the paper's.
        objective: "fm" or "nll".
        steps: optimiser steps in all.
        batch_size: rows a step, when tensors are given. App. A: 256.
        learning_rate, weight_decay: of AdamW. App. A: 1e-3 and 0.01.
        cosine: decay the rate to 0; by default in "fm" only (App. A: fixed).
        ema: decay of the averaged weights that are returned, 0 for none; by default 0.999 in "fm", 0 in "nll".
        seed: of the weights and of every draw.
        device: where to train; the tensors are moved there.
        start: flow to go on from (its affine map is kept), for example a flow-matched one before "nll".
        checkpoint: where to keep the state; left in place, complete, for the caller to clear once the result is saved.
        progress: draw a bar.

    Returns:
        The flow on `device`, and the log: mean loss since the last row, gradient norm, and for "nll" mean function
        evaluations of a forward and a backward solve.

    Raises:
        ValueError (unknown objective, checkpoint of another run), SolverError (the solves of `TRIES` batches in a row
        failed), FloatingPointError (loss not finite).
    """
    _one_of("objective", objective, OBJECTIVES)
    cosine = objective == "fm" if cosine is None else cosine
    ema = (0.999 if objective == "fm" else 0.0) if ema is None else ema
    checkpoint, device = checkpoint or Checkpoint.none(), torch.device(device)
    if isinstance(batches, tuple):
        batches = PosteriorBatches(*(part.to(device) for part in batches), batch_size=batch_size)
    generator = torch.Generator(device=device).manual_seed(seed)
    flow = _begin(config, start, seed).to(device).train()
    if start is None:
        _fit_buffers(flow, batches, generator)
    parameters = list(flow.field.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    settings = [asdict(flow.config), objective, steps, batch_size, learning_rate, weight_decay, cosine, ema, seed]
    run = {"settings": json.dumps(settings), "done": 0, "seconds": 0.0, "rows": []}
    run |= {"sums": torch.zeros(3, device=device), "average": [p.detach().clone() for p in parameters]}
    _resume(run, checkpoint.load(), flow, optimizer, generator)

    began, every = time.perf_counter() - run["seconds"], max(1, steps // 100)
    for step in tqdm(range(run["done"], steps), "CCNF", initial=run["done"], total=steps, disable=not progress):
        if cosine:
            optimizer.param_groups[0]["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        for left in reversed(range(TRIES)):
            optimizer.zero_grad(set_to_none=True)
            try:
                run["sums"] += _backward(flow, *batches(generator), objective=objective, generator=generator)
                break
            except SolverError:
                if not left:
                    raise
        norm = nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        if ema:
            weight = 1 - min(ema, (1 + step) / (10 + step))  # short memory at first
            torch._foreach_lerp_(run["average"], [p.detach() for p in parameters], weight)
        if (step + 1) % every == 0 or step + 1 == steps:
            run["rows"].append(_row(step + 1, run, float(norm), objective))
            run["sums"].zero_()
        run["done"], run["seconds"] = step + 1, time.perf_counter() - began
        if checkpoint.due() or step + 1 == steps:
            state = {"flow": flow.state_dict(), "optimizer": optimizer.state_dict(), "generator": generator.get_state()}
            checkpoint.save(run | state)
    if ema:
        nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(run["average"]), parameters)
    return flow.eval(), TrainLog(run["rows"], steps, run["seconds"])


def _begin(config: CCNFConfig | None, start: CCNF | None, seed: int) -> CCNF:
    """A copy of `start`, or a fresh flow whose weights depend on `seed` alone; global randomness is left as it was."""
    if start is not None:
        flow = deepcopy(start)
        flow.config = config or start.config
        return flow
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CCNF(config)


def _resume(run: dict, state: dict | None, flow: CCNF, optimizer, generator: torch.Generator) -> None:
    """Put a stored state back into every part of the loop."""
    if state is None:
        return
    if state["settings"] != run["settings"]:
        raise ValueError("The checkpoint must belong to this run; it was made with other settings. Clear it.")
    flow.load_state_dict(state["flow"])
    optimizer.load_state_dict(state["optimizer"])
    generator.set_state(state["generator"])
    run |= {name: state[name] for name in ("done", "seconds", "rows")}
    run["sums"] = state["sums"].to(flow.zc_low.device)
    run["average"] = [a.to(flow.zc_low.device) for a in state["average"]]


def _backward(flow: CCNF, latent: Tensor, zc: Tensor, *, objective: str, generator) -> Tensor:
    """Gradients of one step; returns loss and function evaluations (forward, backward), (3,)."""
    forward = backward = 0
    if objective == "fm":
        loss = flow_matching_loss(flow, latent, zc, generator=generator)
        loss.backward()
    else:
        loss, dynamics = nll_loss(flow, latent, zc, generator=generator)
        forward, dynamics.evaluations = dynamics.evaluations, 0  # the limit holds for each solve
        with solver_errors():
            loss.backward()
        backward = dynamics.evaluations
    return torch.stack([loss.detach(), *loss.new_tensor([forward, backward])])


def _row(step: int, run: dict, norm: float, objective: str) -> dict:
    """One line of the log: means over the steps since the last line."""
    count = step - (run["rows"][-1]["step"] if run["rows"] else 0)
    loss, nfe_forward, nfe_backward = (run["sums"] / count).tolist()
    if not math.isfinite(loss):
        raise FloatingPointError(f"The loss must stay finite; it was {loss} by step {step}. Lower the learning rate.")
    row = {"step": step, "loss": loss, "gradient_norm": norm}
    return row | ({"nfe_forward": nfe_forward, "nfe_backward": nfe_backward} if objective == "nll" else {})


@torch.no_grad()
def _fit_buffers(flow: CCNF, batches: BatchSampler, generator: torch.Generator, rows: int = 32_768) -> None:
    """Set the affine map and the range of conditions from draws; the range is exact where the corpus is at hand."""
    draws = [batches(generator)]
    draws += [batches(generator) for _ in range(math.ceil(rows / len(draws[0][0])) - 1)]
    latent, zc = torch.cat([f for f, _ in draws]), torch.cat([z for _, z in draws])
    flow.whitening.fit(latent, zc)
    zc = batches.zc if isinstance(batches, PosteriorBatches) else zc
    flow.zc_low.copy_(zc.amin(dim=0))
    flow.zc_high.copy_(zc.amax(dim=0))
