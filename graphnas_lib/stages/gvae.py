"""Stage "gvae": the regularised and the naive G-VAE (Eq. 4-5), and the numbers behind Fig. 2b-c."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

from graphnas_lib import gvae
from graphnas_lib.clusters import ZC_NAMES, Families
from graphnas_lib.codes import CellCodes
from graphnas_lib.embedding import cluster_metrics, embed
from graphnas_lib.gvae import GVAE, GVAEConfig
from graphnas_lib.stages import Stage, cells, labels

LABELS_HELD_OUT = 0.2
PICTURED = 2_000  # cells of the t-SNE maps, at most
PRIOR_DRAWS = 2_000


def make(stage: Stage) -> dict:
    """Train both models on the same batches; measure reconstruction, validity, predictor and neighbourhoods."""
    scale, families = stage.scale, Families.load(stage.scale.name)
    corpus = cells.load(scale.name)
    training, held_out = cells.split(corpus)
    table = labels.load(scale.name)
    labelled, zc = labels.codes_of(table, corpus), families.transform(labels.vectors(table))
    n_train = len(zc) - round(LABELS_HELD_OUT * len(zc))
    config = GVAEConfig(
        hidden=scale.gvae_hidden,
        latent_dim=scale.latent_dim,
        decoder_hidden=max(512, scale.gvae_hidden),
        learning_rate=scale.gvae_lr,
    )
    files, logs, measures, maps, neighbours = {}, [], [], [], []
    known = {cell.key() for cell in training.cells()}
    for variant, regularised in (("regularised", True), ("naive", False)):
        model, log = gvae.train(
            training,
            labelled[:n_train],
            zc[:n_train],
            config=config,
            steps=scale.gvae_steps,
            batch_size=scale.gvae_batch,
            seed=stage.seed,
            device=stage.device.type,
            regularised=regularised,
            checkpoint=stage.checkpoint(variant),
            progress=stage.progress,
            log_every=max(1, scale.gvae_steps // 50),
            zc_hash=families.zc_transform.hash(),
        )
        model = model.cpu()
        files |= model.to_files(gvae.VARIANTS[variant])
        logs += [{"variant": variant, **row} for row in log.rows]
        measures.append({"variant": variant, **_measures(model, held_out, known, stage.seed)})
        if regularised:
            measures[-1] |= _predictor(model, labelled[n_train:], zc[n_train:])
        latent, family = model.encode(labelled[:PICTURED]), families.assign(zc[:PICTURED], standardised=True)
        neighbours.append(cluster_metrics(latent, zc[:PICTURED], family, stage.seed).assign(variant=variant))
        xy = embed(latent, stage.seed)
        maps.append(pd.DataFrame({"variant": variant, "x": xy[:, 0], "y": xy[:, 1], "family": family.numpy()}))
    stage.config.update(n_training=len(training), n_labelled=n_train, n_held_out=len(held_out), steps=log.steps)
    return {
        **files,
        "gvae_log.csv": pd.DataFrame(logs),
        "gvae_measures.csv": pd.DataFrame(measures),
        "gvae_neighbours.csv": pd.concat(neighbours, ignore_index=True),
        "gvae_maps.csv": pd.concat(maps, ignore_index=True),
    }


def _measures(model: GVAE, held_out: CellCodes, known: set[str], seed: int) -> dict:
    """Reconstruction of held-out cells and what random latents decode to."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(PRIOR_DRAWS, model.config.latent_dim, generator=generator)
    scaled = gvae.validity(model, model.latent_mean + model.latent_std * noise, known)
    normal = gvae.validity(model, noise, known)
    return {
        "exact_mean": gvae.reconstruction_rate(model, held_out),
        "exact_sampled": gvae.reconstruction_rate(model, held_out, sample_seed=seed),
        **{f"{name}_accuracy": value for name, value in gvae.element_accuracy(model, held_out).items()},
        **{f"scaled_{name}": scaled[name] for name in ("valid", "unique", "new", "raw_strict")},
        **{f"normal_{name}": normal[name] for name in ("valid", "unique", "new", "raw_strict")},
    }


def _predictor(model: GVAE, held_out: CellCodes, zc: Tensor) -> dict:
    """R^2 of q on labelled cells that training did not see."""
    found = model.predict_zc(model.encode(held_out))
    r2 = 1 - (found - zc).square().sum(dim=0) / (zc - zc.mean(dim=0)).square().sum(dim=0)
    return {f"r2_{name}": value for name, value in zip(ZC_NAMES, r2.tolist(), strict=True)}
