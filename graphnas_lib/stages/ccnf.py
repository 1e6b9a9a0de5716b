"""Stage "ccnf": the conditional flow by flow matching, then by likelihood (Eq. 6-7), and both as densities."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from graphnas_lib import ccnf
from graphnas_lib.ccnf import CCNF, CCNFConfig, PosteriorBatches, gaussian_baselines
from graphnas_lib.gvae import GVAE
from graphnas_lib.space import CellCodes
from graphnas_lib.stages.gvae import Data
from graphnas_lib.stages.road import Stage

TOGETHER = 50  # latents an exact trace takes at once
STEPS = 5  # of rk4; a latent's density differs from that of ten by less than 1e-4 nats a dimension
JUDGED = {"smoke": 64, "lite": 1_000, "paper": 2_000}  # held-out latents whose exact likelihood is taken


def make(stage: Stage) -> dict:
    """Train on samples of the encoder's posteriors with z = q(f) (App. A); `nll` goes on from the `fm` weights."""
    scale = stage.scale
    model, data = GVAE.load(scale.name).to(stage.device), Data(stage)
    config = CCNFConfig(
        latent_dim=scale.latent_dim, hidden=scale.ccnf_hidden, layers=scale.ccnf_layers, zc_hash=model.zc_hash
    )
    corpus = _posteriors(model, data.training)
    options = {"batch_size": scale.ccnf_batch, "seed": stage.seed, "device": stage.device, "progress": stage.progress}
    flow, log = ccnf.train(
        corpus, config=config, objective="fm", steps=scale.ccnf_steps, checkpoint=stage.checkpoint("fm"), **options
    )
    nll, nll_log = ccnf.train(
        corpus,
        objective="nll",
        start=flow,
        steps=scale.ccnf_nll_steps,
        learning_rate=1e-4,
        checkpoint=stage.checkpoint("nll"),
        **options,
    )
    flows = {"fm": flow.cpu(), "nll": nll.cpu()}
    for trained in flows.values():  # beyond the labels nobody knows what q is worth
        trained.zc_low.copy_(data.zc.amin(dim=0))
        trained.zc_high.copy_(data.zc.amax(dim=0))
    model = model.cpu()
    test = PosteriorBatches(*_posteriors(model, data.held_out), condition_jitter=0.0)
    likelihood = _likelihood(stage, flows, corpus, test, JUDGED[scale.name])
    logs = [{"objective": "fm", **row} for row in log.rows] + [{"objective": "nll", **row} for row in nll_log.rows]
    stage.config.update(steps=log.steps, nll_steps=nll_log.steps, noised_dimensions=test.noised)
    return {
        **flows["fm"].to_files("ccnf"),
        **flows["nll"].to_files("ccnf_nll", half=True),
        "ccnf_log.csv": pd.DataFrame(logs),
        "ccnf_likelihood.csv": likelihood,
    }


def _posteriors(model: GVAE, codes: CellCodes) -> tuple[Tensor, Tensor, Tensor]:
    """What the flow is trained and judged on: mu and logvar of f for N cells, (N, m), and z = q(mu), (N, 4)."""
    mu, logvar = model.encode_distribution(codes)
    return mu, logvar, model.predict_zc(mu)


def _likelihood(stage: Stage, flows: dict[str, CCNF], corpus, test: PosteriorBatches, n: int) -> pd.DataFrame:
    """Exact negative log-likelihood of held-out latents, nats a dimension, beside three Gaussians.

    Minutes a hundred latents: densities are kept as they come, and a killed run goes on with the next.
    """
    generator = torch.Generator().manual_seed(stage.seed)
    latent, zc = test.draw(torch.arange(min(n, len(test.mu))), generator)
    train = PosteriorBatches(*(part.cpu() for part in corpus), condition_jitter=0.0)
    fitted = train.draw(torch.arange(len(train.mu)), generator)
    rows = [{"model": name, "nll": value} for name, value in gaussian_baselines(*fitted, latent, zc).items()]
    point = stage.checkpoint("likelihood")
    known = point.load() or {name: torch.empty(0) for name in flows}
    total, done = len(flows) * len(latent), sum(len(density) for density in known.values())
    with tqdm(total=total, initial=done, desc="exact likelihoods", disable=not stage.progress) as bar:
        for name, flow in flows.items():
            for start in range(len(known[name]), len(latent), TOGETHER):
                part = slice(start, start + TOGETHER)
                found = flow.log_prob(latent[part], zc[part], trace="exact", method="rk4", steps=STEPS)
                known[name] = torch.cat([known[name], found])
                point.save(known)
                bar.update(len(found))
            rows.append({"model": f"ccnf_{name}", "nll": -known[name].mean().item() / latent.shape[1]})
    return pd.DataFrame(rows).assign(n=len(latent))
