"""Stage "ccnf": the conditional flow by flow matching, then by likelihood (Eq. 6-7), and both as densities."""

from __future__ import annotations

from functools import partial

import pandas as pd
import torch
from torch import Tensor

from graphnas_lib import ccnf
from graphnas_lib.ccnf import CCNF, CCNFConfig, PosteriorBatches, gaussian_baselines
from graphnas_lib.gvae import GVAE
from graphnas_lib.space import CellCodes
from graphnas_lib.stages.gvae import Data
from graphnas_lib.stages.stage import Stage

LATENTS_AT_ONCE = 50  # in an exact trace
RK4_STEPS = 5  # a latent's density differs from that of ten by less than 1e-4 nats a dimension
NLL_LEARNING_RATE = 1e-4  # a tenth of flow matching's: `nll` goes on from its weights


def make(stage: Stage) -> tuple[dict, dict]:
    """Train on samples of the encoder's posteriors with z = q(f) (App. A); `nll` goes on from the `fm` weights."""
    scale = stage.scale
    model, data = GVAE.load(scale.name).to(stage.device), Data(stage)
    config = CCNFConfig(
        latent_dim=scale.latent_dim, hidden=scale.ccnf_hidden, layers=scale.ccnf_layers, zc_hash=model.zc_hash
    )
    corpus = _posteriors(model, data.training)
    options = {"batch_size": scale.ccnf_batch, "seed": stage.seed, "device": stage.device, "progress": stage.progress}
    point = stage.checkpoint("fm", config)
    flow, log = ccnf.train(corpus, config=config, objective="fm", steps=scale.ccnf_steps, checkpoint=point, **options)
    options |= {"learning_rate": NLL_LEARNING_RATE, "checkpoint": stage.checkpoint("nll", config, NLL_LEARNING_RATE)}
    nll, nll_log = ccnf.train(corpus, objective="nll", start=flow, steps=scale.ccnf_nll_steps, **options)
    flows = {"fm": flow, "nll": nll}
    for trained in flows.values():  # beyond the labels nobody knows what q is worth
        trained.zc_low.copy_(data.zc.amin(dim=0))
        trained.zc_high.copy_(data.zc.amax(dim=0))
    test = PosteriorBatches(*(part.cpu() for part in _posteriors(model, data.held_out)), condition_jitter=0.0)
    likelihood = likelihood_table(stage, flows, corpus, test)
    logs = [{"objective": "fm", **row} for row in log.rows] + [{"objective": "nll", **row} for row in nll_log.rows]
    facts = {"steps": log.steps, "nll_steps": nll_log.steps, "noised_dimensions": test.noised}
    files = {
        **flows["fm"].to_files("ccnf"),
        **flows["nll"].to_files("ccnf_nll", half=True),
        "ccnf_log.csv": pd.DataFrame(logs),
        "ccnf_likelihood.csv": likelihood,
    }
    return files, facts


def _posteriors(model: GVAE, codes: CellCodes) -> tuple[Tensor, Tensor, Tensor]:
    """What the flow is trained and judged on: mu and logvar of f for N cells, (N, m), and z = q(mu), (N, 4)."""
    mu, logvar = model.encode_distribution(codes)
    return mu, logvar, model.predict_zc(mu)


def likelihood_table(
    stage: Stage, flows: dict[str, CCNF], corpus: tuple[Tensor, ...], test: PosteriorBatches
) -> pd.DataFrame:
    """Exact negative log-likelihood of held-out latents, nats a dimension, beside three Gaussians.

    Minutes a hundred latents: densities are kept as they come, and a killed run goes on with the next.
    """
    generator = torch.Generator().manual_seed(stage.seed)
    latent, zc = test.draw(torch.arange(min(stage.scale.likelihood_latents, len(test.mu))), generator)
    train = PosteriorBatches(*(part.cpu() for part in corpus), condition_jitter=0.0)
    fitted = train.draw(torch.arange(len(train.mu)), generator)
    baselines = gaussian_baselines(*fitted, latent, zc)  # whose last digit depends on where in memory they lie
    rows = [{"model": name, "nll": round(value, 9)} for name, value in baselines.items()]
    parts = list(zip(latent.split(LATENTS_AT_ONCE), zc.split(LATENTS_AT_ONCE), strict=True))
    for name, flow in flows.items():
        jobs = {f"{name} {i}": partial(_densities, flow, *part) for i, part in enumerate(parts)}
        settings = (flow.config, NLL_LEARNING_RATE, RK4_STEPS, LATENTS_AT_ONCE)
        found = stage.collect(jobs, f"exact likelihoods {name}", *settings, workers=1)
        density = torch.tensor([value for row in found for value in row["density"]])
        rows.append({"model": f"ccnf_{name}", "nll": -density.mean().item() / latent.shape[1]})
    return pd.DataFrame(rows).assign(n=len(latent))


def _densities(flow: CCNF, latent: Tensor, zc: Tensor) -> dict[str, list[float]]:
    return {"density": flow.log_prob(latent, zc, trace="exact", method="rk4", steps=RK4_STEPS).tolist()}


def trajectories(flow: CCNF, zc: Tensor, latents: Tensor, *, n: int = 16, seed: int = 0) -> pd.DataFrame:
    """How the flow carries the same noise to K conditions `zc` (K, P), in two planes, beside latents of cells (N, m).

    The first plane is where the equation is solved, along the directions in which the ends for the conditions differ
    most, fitted on other draws; the second that of the two widest directions of `latents`.

    Returns:
        One row a point: plane, condition (its row; -1 for `latents`, in the second plane alone), sample, time, x, y.
    """
    generator = torch.Generator().manual_seed(seed)
    fitted, shown = (torch.randn(count, flow.config.latent_dim, generator=generator) for count in (4 * n, n))
    ends = torch.stack([flow.paths(row.expand(len(fitted), -1), fitted)[-1].mean(dim=0) for row in zc])
    wanted = zc.repeat_interleave(n, dim=0)
    path = flow.paths(wanted, shown.repeat(len(zc), 1))  # (T, K n, m)
    places = [(time / (len(path) - 1), i // n, i % n) for time in range(len(path)) for i in range(len(wanted))]
    told, tables = pd.DataFrame(places, columns=["time", "condition", "sample"]), []
    there = torch.stack([flow.whitening.inverse(u, wanted.to(u)) for u in path])
    for plane, points, drawn in (("equation", ends, path), ("latents", latents, there)):
        axes = torch.linalg.eigh(torch.cov(points.double().T)).eigenvectors[:, -2:].flip(1)  # (m, 2), the widest first
        tables.append(told.assign(plane=plane, **_plane(drawn.flatten(0, 1), axes)))
    tables.append(pd.DataFrame({"plane": plane, "condition": -1, **_plane(latents, axes)}))
    return pd.concat(tables, ignore_index=True)


def _plane(points: Tensor, axes: Tensor) -> dict:
    return dict(zip("xy", (points.double() @ axes).T.numpy(), strict=True))
