"""Stage "ccnf": the conditional flow by flow matching, then by likelihood (Eq. 6-7), and how good both are."""

from __future__ import annotations

import time

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from graphnas_lib import ccnf
from graphnas_lib.ccnf import CCNF, CCNFConfig
from graphnas_lib.clusters import ZC_NAMES, Families
from graphnas_lib.gvae import GVAE
from graphnas_lib.latents import PosteriorBatches, gaussian_baselines
from graphnas_lib.stages import Stage, generated
from graphnas_lib.stages.gvae import Data
from graphnas_lib.synonyms import CellSampler, label_costs

TOGETHER = 50  # latents an exact trace takes at once
STEPS = 5  # of rk4; a latent's density differs from that of ten by less than 1e-4 nats a dimension
JUDGED = {"smoke": 64, "lite": 1_000, "paper": 2_000}  # held-out latents whose exact likelihood is taken
SOLVERS = (("midpoint", 5), ("midpoint", 10), ("midpoint", 20), ("rk4", 10))


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
    sampler = CellSampler(model, flows["fm"], data.families, costs=label_costs(scale.name))
    family_cells, families = generated.of_families(stage, sampler, data.known)
    return {
        **flows["fm"].to_files("ccnf"),
        **flows["nll"].to_files("ccnf_nll"),
        "ccnf_log.csv": pd.DataFrame(logs),
        "ccnf_likelihood.csv": likelihood,
        "ccnf_conditions.csv": _conditional_error(flows, model, test, stage.seed),
        "ccnf_real.csv": generated.conditional(stage, sampler, data.unseen, data.unseen_zc),
        "ccnf_reference.csv": generated.around_reference(stage, sampler),
        "ccnf_families.csv": families,
        "ccnf_family_cells.csv": family_cells,
        "ccnf_solvers.csv": _solver_error(flow, model, data.families, stage.seed),
    }


def _posteriors(model: GVAE, codes) -> tuple[Tensor, Tensor, Tensor]:
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


def _conditional_error(flows: dict[str, CCNF], model: GVAE, test: PosteriorBatches, seed: int) -> pd.DataFrame:
    """|q(f) - z| of draws for held-out conditions, and of a random pair, in standard deviations a component.

    Conditions outside the range that training saw are left out: there every flow extrapolates.
    """
    low, high = (torch.stack([getattr(flow, end) for flow in flows.values()]) for end in ("zc_low", "zc_high"))
    inside = (test.zc >= low.max(dim=0).values) & (test.zc <= high.min(dim=0).values)
    zc = test.zc[inside.all(dim=1)][:200]
    rows = []
    for name, flow in flows.items():
        error = (model.predict_zc(flow.sample(zc, seed=seed)) - zc).abs().mean(dim=0)
        rows.append({"model": f"ccnf_{name}", **dict(zip(ZC_NAMES, error.tolist(), strict=True))})
    shuffled = zc[torch.randperm(len(zc), generator=torch.Generator().manual_seed(seed))]
    rows.append(
        {"model": "random pair", **dict(zip(ZC_NAMES, (shuffled - zc).abs().mean(dim=0).tolist(), strict=True))}
    )
    return pd.DataFrame(rows).assign(n=len(zc))


def _solver_error(flow: CCNF, model: GVAE, families: Families, seed: int, n: int = 64) -> pd.DataFrame:
    """Fixed-step solvers against dopri5 at 1e-5: latent error, share of equal decoded cells, seconds."""
    zc = families.means[torch.arange(n) % families.n_clusters]
    reference, slow = _timed(flow, zc, seed, "dopri5", 0)
    keys = [cell.key() if cell else "" for cell in model.decode(reference)]
    rows = [{"solver": "dopri5", "steps": 0, "error": 0.0, "same_cells": 1.0, "seconds": slow}]
    for method, steps in SOLVERS:
        latent, seconds = _timed(flow, zc, seed, method, steps)
        same = [key == (cell.key() if cell else "") for key, cell in zip(keys, model.decode(latent), strict=True)]
        error = (latent - reference).abs().max().item()
        rows.append({"solver": method, "steps": steps, "error": error, "same_cells": sum(same) / n, "seconds": seconds})
    return pd.DataFrame(rows)


def _timed(flow: CCNF, zc: Tensor, seed: int, method: str, steps: int) -> tuple[Tensor, float]:
    began = time.perf_counter()
    latent = flow.sample(zc, seed=seed, method=method, steps=steps or 1)
    return latent, time.perf_counter() - began
