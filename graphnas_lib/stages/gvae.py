"""Stage "gvae": the regularised and the naive G-VAE (Eq. 4-5), the numbers behind Fig. 2b-c, and the ablation."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from graphnas_lib import gvae
from graphnas_lib.clusters import ZC_NAMES, Families
from graphnas_lib.gvae import GVAE, GVAEConfig, cluster_metrics, embed
from graphnas_lib.proxies import zc_matrix
from graphnas_lib.space import CellCodes
from graphnas_lib.stages import cells, labels
from graphnas_lib.stages.road import Stage
from graphnas_lib.store import processes, single_threaded

MEASURED = 10_000  # held-out cells, and random latents, at most
# z in two wide dimensions, all of them uncorrelated: so random latents lie where cells' do, and decode to what q says;
# and they come back (`losses.cycle_loss`), so that many latents do not decode to one cell.
WEIGHTS = {
    "kl_weight": 0.003,
    **{"triplet_dims": 2, "width": 16.0, "triplet_weight": 10.0, "margin": 1.0},
    **{"predictor_weight": 10.0, "decorrelation_weight": 3.0, "loose_ends_weight": 4.0, "cycle_weight": 1.5},
    "cycle_latent": 1.0,
}
AS_PRINTED = {
    **{"triplet_dims": 0, "width": 1.0, "triplet_weight": 1.0, "margin": 0.1},
    **{"predictor_weight": 1.0, "decorrelation_weight": 0.0, "loose_ends_weight": 0.0, "cycle_weight": 0.0},
}
ABLATION = {  # what changes -> fields of GVAEConfig
    "as trained": {},
    "readout of the global node alone": {"readout": "global"},
    "KL weight 0.0003": {"kl_weight": 0.0003},
    "KL weight 0.03": {"kl_weight": 0.03},
    "Eq. 5 as printed": AS_PRINTED,
    "triplets over all dimensions": {"triplet_dims": 0, "triplet_weight": 30.0, "margin": 0.3},
    "no wider unit": {"width": 1.0},
    "no decorrelation": {"decorrelation_weight": 0.0},
    "loose ends allowed": {"loose_ends_weight": 0.0},
    "cycle of q alone": {"cycle_latent": 0.0},
    "no cycle term": {"cycle_weight": 0.0},
    "learning rate halved": {"learning_rate": 0.5},  # of the scale's
}


class Data:
    """What the models are trained and measured on."""

    def __init__(self, stage: Stage):
        corpus, table = cells.load(stage.scale.name), labels.load(stage.scale.name)
        self.families = Families.load(stage.scale.name)
        training, held_out = cells.split(corpus)
        self.held_out = held_out[:MEASURED]
        codes, zc = labels.codes_of(table, corpus), self.families.transform(labels.vectors(table))
        n = len(zc) - stage.scale.labels_held_out
        self.labelled, self.zc = codes[:n], zc[:n]
        self.unseen, self.unseen_zc = codes[n:], zc[n:]  # labelled, and neither as cells nor as labels trained on
        seen = torch.ones(len(training), dtype=torch.bool)
        seen[torch.tensor(table["position"].to_numpy()[n:])] = False
        self.training = training[seen]
        self.known = {cell.key() for cell in self.training.cells()}


def make(stage: Stage) -> dict:
    """Train both models on the same batches with each seed; measure recovery, validity, predictor, neighbourhoods."""
    scale, data = stage.scale, Data(stage)
    config = GVAEConfig(
        hidden=scale.gvae_hidden,
        latent_dim=scale.latent_dim,
        decoder_hidden=max(512, scale.gvae_hidden),
        learning_rate=scale.gvae_lr,
        **WEIGHTS,
    )
    runs = {
        f"{variant}-{seed}": {"config": used, "seed": seed, "regularised": used is config}
        for seed in range(stage.seed, stage.seed + scale.gvae_seeds)
        for variant, used in (("regularised", config), ("naive", replace(config, **AS_PRINTED)))
    }
    short = {"seed": stage.seed, "steps": scale.gvae_ablation_steps}
    ablation = {
        f"ablation-{i}": {"config": _changed(config, fields), **short} for i, fields in enumerate(ABLATION.values())
    }
    if stage.device.type == "cpu":
        _train_beforehand(stage, data, runs | ablation)
        stage = replace(stage, fresh=False)  # what was just trained is not forgotten again
    files, logs, measures, maps, neighbours = {}, [], [], [], []
    family = data.families.assign(data.unseen_zc, standardised=True)
    for name, run in runs.items():
        variant, seed = name.split("-")[0], run["seed"]
        facts = {"variant": variant, "seed": seed}
        model, log = _train(stage, data, name, **run)
        latent = model.encode(data.unseen)
        logs += [{**facts, **row} for row in log.rows]
        measures.append({**facts, **_measures(model, data, seed)})
        neighbours.append(cluster_metrics(latent, data.unseen_zc, family, seed).assign(**facts))
        if seed == stage.seed:
            files |= model.to_files(gvae.VARIANTS[variant], half=variant == "naive")
            xy = embed(latent, seed)
            maps.append(pd.DataFrame({**facts, "x": xy[:, 0], "y": xy[:, 1], "family": family.numpy()}))
            if model.regularised:
                cycle = _cycle(stage, model, data.families)
    stage.config.update(
        n_training=len(data.training),
        n_labelled=len(data.labelled),
        n_labelled_held_out=len(data.unseen),
        n_held_out=len(data.held_out),
        steps=log.steps,
        seeds=scale.gvae_seeds,
    )
    return {
        **files,
        "gvae_log.csv": pd.DataFrame(logs),
        "gvae_measures.csv": pd.DataFrame(measures),
        "gvae_neighbours.csv": pd.concat(neighbours, ignore_index=True),
        "gvae_maps.csv": pd.concat(maps, ignore_index=True),
        "gvae_cycle.csv": cycle,
        "gvae_ablation.csv": _ablation(stage, data, ablation),
    }


def _train_beforehand(stage: Stage, data: Data, runs: dict[str, dict]) -> None:
    """All runs in one-thread processes; each leaves its complete checkpoint, from which `_train` takes the model."""
    from joblib import Parallel, delayed

    tasks = (delayed(_single_threaded)(replace(stage, progress=False), data, name, run) for name, run in runs.items())
    done = Parallel(n_jobs=processes(stage.device), return_as="generator_unordered")(tasks)
    for _ in tqdm(done, total=len(runs), desc="G-VAE trainings", disable=not stage.progress):
        pass


def _single_threaded(stage: Stage, data: Data, name: str, run: dict) -> None:
    with single_threaded():
        _train(stage, data, name, **run)


def _train(stage: Stage, data: Data, name: str, *, config: GVAEConfig, seed: int, steps: int = 0, regularised=True):
    """One training run of this stage, which goes on from the checkpoint of its name; the model lies on the CPU."""
    scale, steps = stage.scale, steps or stage.scale.gvae_steps
    model, log = gvae.train(
        data.training,
        data.labelled,
        data.zc,
        config=config,
        steps=steps,
        batch_size=scale.gvae_batch,
        seed=seed,
        device=stage.device.type,
        regularised=regularised,
        checkpoint=stage.checkpoint(name),
        progress=stage.progress,
        log_every=max(1, steps // 50),
        zc_hash=data.families.zc_transform.hash(),
    )
    return model.cpu(), log


def _measures(model: GVAE, data: Data, seed: int) -> dict:
    """Recovery of held-out cells, what random latents decode to, R^2 of q on labelled cells held out."""
    draws = gvae.random_latents(model, len(data.held_out), seed=seed)
    shares = ("valid", "unique", "new", "raw_strict", "no_path", "identity")
    found = {
        "exact_mean": gvae.reconstruction_rate(model, data.held_out),
        "exact_sampled": gvae.reconstruction_rate(model, data.held_out, sample_seed=seed),
        **{f"{name}_accuracy": v for name, v in gvae.element_accuracy(model, data.held_out).items()},
    }
    for name, latent in draws.items():
        validity = gvae.validity(model, latent, data.known)
        found |= {f"{name}_{share}": validity[share] for share in shares}
        found[f"{name}_valid_repaired"] = gvae.validity(model, latent, repair="loose_ends")["valid"]
    return found | (_predictor(model, data.unseen, data.unseen_zc) if model.regularised else {})


def _predictor(model: GVAE, held_out: CellCodes, zc: Tensor) -> dict:
    """R^2 of q on labelled cells that training did not see."""
    from sklearn.metrics import r2_score

    found = r2_score(zc, model.predict_zc(model.encode(held_out)), multioutput="raw_values")
    return {f"r2_{name}": value for name, value in zip(ZC_NAMES, found, strict=True)}


def _cycle(stage: Stage, model: GVAE, families: Families) -> pd.DataFrame:
    """Proxies really computed on cells decoded from random latents, beside q of these and q of the cells encoded again.

    One row a cell: which latents (`draws`), standardised components z_*, q_* and again_*; a cell whose proxies fail is
    left out and counted.
    """
    tables, failed = [], 0
    for kind in ("scaled", "normal"):
        latent, drawn = gvae.valid_draws(model, stage.scale.cycle_cells, seed=stage.seed, kind=kind)
        table, _ = labels.score(stage, drawn, f"gvae-{stage.identity}-{kind}")
        good = torch.tensor((table["error"] == "").to_numpy())
        failed += int((~good).sum())
        parts = {
            "z": families.transform(zc_matrix(table[good.numpy()])),
            "q": model.predict_zc(latent[good]),
            "again": model.predict_zc(model.encode(drawn))[good],
        }
        columns = {f"{p}_{name}": v[:, i].numpy() for p, v in parts.items() for i, name in enumerate(ZC_NAMES)}
        tables.append(pd.DataFrame({"draws": kind} | columns))
    stage.config["cycle_failed"] = failed
    return pd.concat(tables, ignore_index=True)


def _changed(config: GVAEConfig, fields: dict) -> GVAEConfig:
    """`config` with one of the changes of `ABLATION`."""
    return replace(config, **{k: v * config.learning_rate if k == "learning_rate" else v for k, v in fields.items()})


def _ablation(stage: Stage, data: Data, runs: dict[str, dict]) -> pd.DataFrame:
    """Short runs of one seed that each change one thing; the paper leaves all of these open."""
    rows, family = [], data.families.assign(data.unseen_zc, standardised=True)
    for change, (name, run) in zip(ABLATION, runs.items(), strict=True):
        model, log = _train(stage, data, name, **run)
        found = _measures(model, data, stage.seed)
        near = cluster_metrics(model.encode(data.unseen), data.unseen_zc, family, stage.seed).set_index("metric")
        near = {metric: near.loc[metric, "value"] for metric in near.index if metric.startswith(("kNN", "Spearman"))}
        kept = ["exact_mean", "exact_sampled", "scaled_valid", "scaled_unique", "normal_valid"]
        kept += [f"r2_{name}" for name in ZC_NAMES]
        row = {"change": change, "steps": run["steps"], "kl": log.rows[-1]["kl"], **{key: found[key] for key in kept}}
        rows.append(row | near)
    return pd.DataFrame(rows)
