"""The flow's vector field g, the trace of its Jacobian, and guarded ODE solves (Eq. 6-7).

du/dt = g(u, t, z): t runs from 0 (noise) to 1 (data), z is the condition. The log-density along a path changes by the
trace of g's Jacobian, taken exactly or by Hutchinson's estimator with noise that stays fixed inside a solve (drawn anew
it would make the right-hand side discontinuous, and adaptive solvers would never end). Function evaluations are
counted and limited; torchdiffeq's failures come out as `SolverError` with the remedy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

ADAPTIVE = ("dopri5", "dopri8", "bosh3", "adaptive_heun", "fehlberg2")
GRADIENTS = ("none", "adjoint", "backprop")


class SolverError(RuntimeError):
    """The ODE solver met its limit of function evaluations, an underflow of its step, or a state that is not finite."""


class ConcatSquash(nn.Module):
    """Linear layer gated and shifted by the context c = [t, z]: (W u + b) * sigmoid(G c + g) + H c.

    The layer of FFJORD with PointFlow's context: the gate has a bias, the shift has none.
    """

    def __init__(self, inputs: int, outputs: int, context: int):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.gate = nn.Linear(context, outputs)
        self.shift = nn.Linear(context, outputs, bias=False)

    def forward(self, u: Tensor, context: Tensor) -> Tensor:
        """(B, inputs), (B, context) -> (B, outputs)."""
        return self.linear(u) * torch.sigmoid(self.gate(context)) + self.shift(context)


class VectorField(nn.Module):
    """g(u, t, z) of Eq. 6: ConcatSquash layers with tanh between them; 2,149,376 parameters by default (App. A)."""

    def __init__(self, *, latent_dim: int = 256, condition_dim: int = 4, hidden: int = 512, layers: int = 9):
        super().__init__()
        widths = [latent_dim, *[hidden] * (layers - 1), latent_dim]
        self.layers = nn.ModuleList(ConcatSquash(widths[i], widths[i + 1], 1 + condition_dim) for i in range(layers))

    def forward(self, t: Tensor, u: Tensor, zc: Tensor) -> Tensor:
        """t: () or (B, 1), u: (B, m), zc: (B, P) -> velocity (B, m)."""
        context = torch.cat([t.expand(len(u), 1), zc], dim=1)  # (B, 1 + P)
        for layer in self.layers[:-1]:
            u = torch.tanh(layer(u, context))
        return self.layers[-1](u, context)


def exact_trace(velocity: Tensor, u: Tensor, *, create_graph: bool = False, chunk: int = 64) -> Tensor:
    """Tr(d velocity / d u), (B,), a row each, by m vector-Jacobian products taken `chunk` at a time.

    Args:
        velocity: g(u), (B, m), attached to the graph of `u`; row i may depend on row i of `u` only.
        u: (B, m), requires grad.
        create_graph: keep the trace differentiable.
        chunk: products computed at once; memory grows with it.
    """
    trace = torch.zeros(len(u), dtype=u.dtype, device=u.device)
    for rows in torch.eye(u.shape[1], dtype=u.dtype, device=u.device).split(chunk):
        seeds = rows[:, None, :].expand(-1, len(u), -1)  # (c, B, m)
        (products,) = torch.autograd.grad(
            velocity, u, seeds, is_grads_batched=True, create_graph=create_graph, retain_graph=True
        )
        trace = trace + (products * seeds).sum(dim=(0, 2))
    return trace


def hutchinson_trace(velocity: Tensor, u: Tensor, noise: Tensor, *, create_graph: bool = False) -> Tensor:
    """Unbiased estimate e^T J e of `exact_trace`, by one vector-Jacobian product (Sec. 3.2; Grathwohl et al. 2019).

    `noise` is e, (B, m), with zero mean and unit covariance.
    """
    (product,) = torch.autograd.grad(velocity, u, noise, create_graph=create_graph, retain_graph=True)
    return (product * noise).sum(dim=1)


def rademacher(like: Tensor, *, generator: torch.Generator) -> Tensor:
    """Signs +1 or -1, as `like`: Hutchinson noise whose variance is never above the Gaussian's."""
    signs = torch.randint(0, 2, like.shape, generator=generator, device=generator.device)
    return (2 * signs - 1).to(like)


class Dynamics(nn.Module):
    """The right-hand side of one solve: condition and noise stay fixed, `evaluations` counts calls.

    Args:
        field, zc: module called as field(t, u, zc), with zc (B, P).
        limit: evaluations after which a solve counts as diverged.
        trace: None (state is u), "exact" or "hutchinson" with `noise` (B, m) (state is u and the accumulated trace).
    """

    def __init__(
        self, field: nn.Module, zc: Tensor, *, limit: int, trace: str | None = None, noise: Tensor | None = None
    ):
        super().__init__()
        self.field, self.zc, self.limit, self.trace, self.noise = field, zc, limit, trace, noise
        self.evaluations = 0

    def forward(self, t: Tensor, state):
        """u, or (u, trace), at time t -> its derivative."""
        self.evaluations += 1
        if self.evaluations > self.limit:
            raise SolverError(
                f"A solve of the flow must need at most {self.limit} function evaluations; the field has become too "
                "stiff. Train with a lower learning rate or more weight decay, use a fixed-step method ('rk4'), or "
                "raise max_evaluations."
            )
        if self.trace is None:
            return self.field(t, state, self.zc)
        differentiable = torch.is_grad_enabled()  # under the adjoint method true in the backward solve only
        with torch.enable_grad():
            u = state[0] if differentiable and state[0].requires_grad else state[0].detach().requires_grad_(True)
            velocity = self.field(t, u, self.zc)
            if self.trace == "exact":
                return velocity, exact_trace(velocity, u, create_graph=differentiable)
            return velocity, hutchinson_trace(velocity, u, self.noise, create_graph=differentiable)


def solve(
    dynamics: Dynamics, state, *, forward: bool, method: str, steps: int, tolerance: float, gradient: str = "none",
    whole: bool = False,
):  # fmt: skip
    """State at the other end of t in [0, 1]: noise to data when `forward`, data to noise else.

    With `whole` the states at all `steps` + 1 equal times, from the first on, (steps + 1, B, m).

    Args:
        state: u (B, m), or the tuple (u, trace (B,)).
        method: torchdiffeq solver; the names in `ADAPTIVE` choose their own steps, by `tolerance`.
        steps: equal steps of any other method.
        gradient: "adjoint" solves the adjoint equation for gradients; else autograd goes through the solver.

    Raises:
        SolverError: too many evaluations, underflow of the step, or a state that is not finite.
    """
    from torchdiffeq import odeint, odeint_adjoint

    u = state[0] if isinstance(state, tuple) else state
    ends = (0.0, 1.0) if forward else (1.0, 0.0)
    times = torch.linspace(*ends, steps + 1 if whole else 2, dtype=u.dtype, device=u.device)

    def grid(field, state, ends: Tensor) -> Tensor:  # equal steps whose ends are those of `ends`, bit for bit
        inner = torch.linspace(0, 1, steps + 1, dtype=ends.dtype, device=ends.device)[1:-1]
        return torch.cat([ends[:1], ends[0] + inner * (ends[-1] - ends[0]), ends[-1:]])

    options = {} if method in ADAPTIVE else {"grid_constructor": grid}
    settings = {"rtol": tolerance, "atol": tolerance, "method": method, "options": options}
    if gradient == "adjoint" and method in ADAPTIVE:  # the parameters' gradients need no error control of their own
        settings["adjoint_options"] = {"norm": "seminorm"}
    with solver_errors():
        path = (odeint_adjoint if gradient == "adjoint" else odeint)(dynamics, state, times, **settings)
    if whole:
        return path
    return tuple(part[-1] for part in path) if isinstance(path, tuple) else path[-1]


@contextmanager
def solver_errors() -> Iterator[None]:
    """torchdiffeq reports a failed solve by assertions; callers get a SolverError with the remedy."""
    try:
        yield
    except AssertionError as error:
        raise SolverError(
            f"The flow must stay finite and smooth along a solve; the solver stopped with '{error}'. Use a fixed-step "
            "method ('midpoint', 'rk4'), or train with a lower learning rate or more weight decay."
        ) from error
