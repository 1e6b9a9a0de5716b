"""Training of the flow: two objectives for the same network (Sec. 3.2, App. A), and the loop."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from graphnas_lib.ccnf.dynamics import Dynamics, SolverError, solver_errors
from graphnas_lib.ccnf.flow import CCNF, CCNFConfig
from graphnas_lib.ccnf.latents import PosteriorBatches, normal
from graphnas_lib.store import Checkpoint, TrainLog, one_of, put_back, states

OBJECTIVES = ("fm", "nll")
TRIES = 3  # batches of a step of which a solve may fail: one failure must not end hours
MIN_FITTED_ROWS = 32_768  # draws that the affine map is fitted to
MAX_GRADIENT_NORM = 10.0

BatchSampler = Callable[[torch.Generator], tuple[Tensor, Tensor]]


def flow_matching_loss(flow: CCNF, latent: Tensor, zc: Tensor, *, generator: torch.Generator) -> Tensor:
    """Mean of |g(u_t, t, z) - (u_1 - u_0)|^2 on straight paths u_t = (1-t) u_0 + t u_1 (Lipman et al. 2023).

    Noise and data are paired independently: a minibatch optimal-transport pairing that ignores z would skew p(u_0 | z).
    """
    u1 = flow.whitening(latent, zc)
    u0 = normal(u1, generator=generator)
    t = torch.rand(len(u1), 1, generator=generator, dtype=u1.dtype, device=u1.device)
    return (flow.field(t, (1 - t) * u0 + t * u1, zc) - (u1 - u0)).square().mean()


def nll_loss(flow: CCNF, latent: Tensor, zc: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Dynamics]:
    """Mean negative log-density in nats per dimension (Eq. 6), by the adjoint method, and the dynamics of the solve."""
    density, dynamics = flow.density(latent, zc, "hutchinson", generator, gradient="adjoint")
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
    seed: int = 0,
    device: str | torch.device = "cpu",
    start: CCNF | None = None,
    checkpoint: Checkpoint | None = None,
    progress: bool = False,
) -> tuple[CCNF, TrainLog]:
    """Fit the flow; a killed run continues from its checkpoint as if nothing had happened.

    Args:
        batches: function of a generator (on `device`) to a batch (latent (B, m), zc (B, P)) on `device`; or the tensors
            (mu, logvar, zc) of a corpus anywhere, see `PosteriorBatches`.
        config: sizes and solver; None takes those of `start`, else the paper's.
        objective: "fm" or "nll".
        steps: optimiser steps in all.
        batch_size: rows a step, when tensors are given. App. A: 256.
        learning_rate, weight_decay: of AdamW. App. A: 1e-3 and 0.01.
        seed: of the weights and of every draw.
        start: flow to go on from (its affine map is kept), for example a flow-matched one before "nll".
        checkpoint: where to keep the state; left in place, complete, for the caller to clear once the result is saved.

    Returns:
        The flow on `device`, and the log: mean loss since the last row, gradient norm, and for "nll" mean function
        evaluations of a forward and a backward solve.

    Raises:
        ValueError (unknown objective, checkpoint of another run), SolverError (the solves of `TRIES` batches in a row
        failed), FloatingPointError (loss not finite).
    """
    one_of("objective", objective, OBJECTIVES)
    cosine = objective == "fm"  # the rate decays to 0; App. A: fixed
    ema = 0.999 if objective == "fm" else 0.0  # decay of the averaged weights that are returned, 0 for none
    checkpoint, device = checkpoint or Checkpoint(), torch.device(device)
    if isinstance(batches, tuple):
        batches = PosteriorBatches(*(part.to(device) for part in batches), batch_size=batch_size)
    generator = torch.Generator(device=device).manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # the weights depend on `seed` alone; global randomness is left as it was
        torch.manual_seed(seed)
        flow = (CCNF(config) if start is None else deepcopy(start)).to(device).train()
    flow.config = config or flow.config
    if start is None:
        draws = [batches(generator)]
        draws += [batches(generator) for _ in range(math.ceil(MIN_FITTED_ROWS / len(draws[0][0])) - 1)]
        flow.fit(*(torch.cat(parts) for parts in zip(*draws, strict=True)), seen=getattr(batches, "zc", None))
    parameters = list(flow.field.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    settings = [asdict(flow.config), objective, steps, batch_size, learning_rate, weight_decay, cosine, ema, seed]
    run = {"settings": json.dumps(settings), "done": 0, "seconds": 0.0, "rows": []}
    run |= {"sums": torch.zeros(3, device=device), "average": [p.detach().clone() for p in parameters]}
    parts = {"flow": flow, "optimizer": optimizer, "generator": generator}
    _resume(run, checkpoint.load(), parts, device)
    began, every = time.perf_counter() - run["seconds"], max(1, steps // 100)
    for step in tqdm(range(run["done"], steps), "CCNF", initial=run["done"], total=steps, disable=not progress):
        if cosine:
            optimizer.param_groups[0]["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        run["sums"] += _gradients(flow, batches, objective=objective, generator=generator)
        norm = nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        optimizer.step()
        if ema:
            weight = 1 - min(ema, (1 + step) / (10 + step))  # short memory at first
            torch._foreach_lerp_(run["average"], [p.detach() for p in parameters], weight)
        if (step + 1) % every == 0 or step + 1 == steps:
            _log(run, step + 1, float(norm), objective)
        run["done"], run["seconds"] = step + 1, time.perf_counter() - began
        if checkpoint.due() or step + 1 == steps:
            checkpoint.save(run | states(**parts))
    if ema:
        nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(run["average"]), parameters)
    return flow.eval(), TrainLog(run["rows"], steps, run["seconds"])


def _resume(run: dict, state: dict | None, parts: dict, device: torch.device) -> None:
    """Put a stored state back into every part of the loop."""
    if state is not None and state["settings"] != run["settings"]:
        raise ValueError("The checkpoint must belong to this run; it was made with other settings. Clear it.")
    run |= put_back(state, **parts)
    run |= {"sums": run["sums"].to(device), "average": [a.to(device) for a in run["average"]]}


def _gradients(flow: CCNF, batches: BatchSampler, *, objective: str, generator: torch.Generator) -> Tensor:
    """Gradients of one batch, or of the next where a solve fails; loss and evaluations forward and backward, (3,)."""
    for left in reversed(range(TRIES)):
        flow.zero_grad(set_to_none=True)
        forward = backward = 0
        try:
            if objective == "fm":
                loss = flow_matching_loss(flow, *batches(generator), generator=generator)
                loss.backward()
            else:
                loss, dynamics = nll_loss(flow, *batches(generator), generator=generator)
                forward, dynamics.evaluations = dynamics.evaluations, 0  # the limit holds for each solve
                with solver_errors():
                    loss.backward()
                backward = dynamics.evaluations
            return torch.stack([loss.detach(), *loss.new_tensor([forward, backward])])
        except SolverError:
            if not left:
                raise


def _log(run: dict, step: int, norm: float, objective: str) -> None:
    """One more row: means over the steps since the last one."""
    count = step - (run["rows"][-1]["step"] if run["rows"] else 0)
    loss, nfe_forward, nfe_backward = (run["sums"] / count).tolist()
    if not math.isfinite(loss):
        raise FloatingPointError(f"The loss must stay finite; it was {loss} by step {step}. Lower the learning rate.")
    counted = {"nfe_forward": nfe_forward, "nfe_backward": nfe_backward} if objective == "nll" else {}
    run["rows"].append({"step": step, "loss": loss, "gradient_norm": norm, **counted})
    run["sums"].zero_()
