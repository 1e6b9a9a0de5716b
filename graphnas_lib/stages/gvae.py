"""Stage "gvae": the regularised and the naive G-VAE (Eq. 4-5), the numbers behind Fig. 2b-c, and the ablation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import pandas as pd
import torch

from graphnas_lib import gvae, plots, store
from graphnas_lib.clusters import ZC_NAMES, Families
from graphnas_lib.gvae import GVAE, GVAEConfig, cluster_metrics, embed
from graphnas_lib.proxies import zc_matrix
from graphnas_lib.space import Cell
from graphnas_lib.stages import cells, labels
from graphnas_lib.stages import families as families_stage
from graphnas_lib.stages.stage import Stage
from graphnas_lib.store import TrainLog

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
        self.held_out = held_out[: stage.scale.measured_cells]
        codes, zc = labels.codes_of(table, corpus), self.families.transform(zc_matrix(table))
        n = len(zc) - stage.scale.labels_held_out
        self.labelled, self.zc = codes[:n], zc[:n]
        self.unseen, self.unseen_zc = codes[n:], zc[n:]  # labelled, and neither as cells nor as labels trained on
        seen = torch.ones(len(training), dtype=torch.bool)
        seen[torch.tensor(table["position"].to_numpy()[n:])] = False
        self.training = training[seen]
        self.known = {cell.key() for cell in self.training.cells()}


@dataclass(frozen=True)
class Run:
    """One training: what is trained, how long, and what it changes."""

    kind: str  # "regularised", "naive" (Eq. 4 alone) or "ablation"
    change: str  # a key of `ABLATION`
    seed: int
    config: GVAEConfig
    steps: int

    def train(self, stage: Stage, data: Data) -> tuple[GVAE, TrainLog]:
        """Go on from this run's checkpoint, or start; the model lies on the CPU."""
        options = {"config": self.config, "regularised": self.kind != "naive", "seed": self.seed, "steps": self.steps}
        options |= {"batch_size": stage.scale.gvae_batch, "device": stage.device, "progress": stage.progress}
        model, log = gvae.train(
            *(data.training, data.labelled, data.zc),
            checkpoint=stage.checkpoint(f"{self.kind} {self.change} {self.seed}", self),
            log_every=max(1, self.steps // 50),
            zc_hash=data.families.zc_transform.hash(),
            **options,
        )
        return model.cpu(), log


def make(stage: Stage) -> tuple[dict, dict]:
    """Train both models on the same batches with each seed; measure recovery, validity, predictor, neighbourhoods."""
    labels.images_of(stage)
    data, (runs, short) = Data(stage), planned(stage)
    inner = replace(stage, progress=stage.progress and stage.workers == 1)
    jobs = {run: partial(run.train, inner, data) for run in (*runs, *short)}
    options = {"workers": stage.workers, "progress": stage.progress, "desc": "G-VAE trainings", "unit": "training"}
    models = dict(zip(jobs, store.collect(jobs, **options), strict=True))
    family = data.families.assign(data.unseen_zc, standardised=True)
    files, tables = {}, {name: [] for name in ("log", "measures", "neighbours", "maps")}
    for run in runs:
        (model, log), told = models[run], {"variant": run.kind, "seed": run.seed}
        latent = model.encode(data.unseen)
        near = cluster_metrics(latent, data.unseen_zc, family, run.seed)
        tables["log"].append(pd.DataFrame([told | row for row in log.rows]))
        tables["measures"].append(pd.DataFrame([told | measures(model, data, run.seed)]))
        tables["neighbours"].append(near.assign(**told))
        if run.seed == stage.seed:
            files |= model.to_files(gvae.VARIANTS[run.kind], half=run.kind == "naive")
            x, y = embed(latent, run.seed).T
            tables["maps"].append(pd.DataFrame({**told, "x": x, "y": y, "family": family.numpy()}))
    cycle, facts = cycle_table(stage, models[runs[0]][0], data.families)
    sets = {"training": data.training, "labelled": data.labelled, "labelled_held_out": data.unseen}
    facts |= {f"n_{name}": len(codes) for name, codes in {**sets, "held_out": data.held_out}.items()}
    facts |= {"steps": log.steps, "seeds": stage.scale.gvae_seeds}
    files |= {f"gvae_{name}.csv": pd.concat(parts, ignore_index=True) for name, parts in tables.items()}
    files["gvae_ablation.csv"] = ablation_table(stage, data, {run: models[run] for run in short})
    return files | {"gvae_cycle.csv": cycle}, facts


def latent_map(scale: str) -> str:
    """Writes `latent_map.html`, both maps of Fig. 2b-c with the cells behind the points; returns where it lies."""
    maps = store.load("gvae", "gvae_maps.csv", scale)
    pictures = {name: maps.loc[maps["variant"] == name, ["x", "y"]] for name in ("naive", "regularised")}
    unseen = labels.codes_of(labels.load(scale), cells.load(scale))[-len(pictures["naive"]) :]
    families = maps.loc[maps["variant"] == "naive", "family"]
    path = store.figures_dir(scale) / "latent_map.html"
    store.write(path, plots.latent_page(pictures, families, unseen.cells(), families_stage.distant(scale)))
    return path.relative_to(store.root()).as_posix()


def planned(stage: Stage) -> tuple[list[Run], list[Run]]:
    """The trainings of both models with each seed, and the short ones that change one thing each."""
    scale = stage.scale
    given = {"hidden": scale.gvae_hidden, "decoder_hidden": max(512, scale.gvae_hidden), "latent_dim": scale.latent_dim}
    config = GVAEConfig(learning_rate=scale.gvae_lr, **given, **WEIGHTS)
    kinds = {"regularised": config, "naive": replace(config, **AS_PRINTED)}
    seeds = range(stage.seed, stage.seed + scale.gvae_seeds)
    runs = [Run(kind, "", seed, used, scale.gvae_steps) for seed in seeds for kind, used in kinds.items()]
    short = []
    for change, fields in ABLATION.items():
        changed = {k: v * config.learning_rate if k == "learning_rate" else v for k, v in fields.items()}
        short.append(Run("ablation", change, stage.seed, replace(config, **changed), scale.gvae_ablation_steps))
    return runs, short


def measures(model: GVAE, data: Data, seed: int) -> dict:
    """Recovery of held-out cells, what random latents decode to, R^2 of q on labelled cells held out."""
    from sklearn.metrics import r2_score

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
    if model.regularised:
        said = model.predict_zc(model.encode(data.unseen)).numpy()
        r2 = r2_score(data.unseen_zc.numpy(), said, multioutput="raw_values").tolist()
        found |= {f"r2_{name}": value for name, value in zip(ZC_NAMES, r2, strict=True)}
    return found


def cycle_table(stage: Stage, model: GVAE, families: Families) -> tuple[pd.DataFrame, dict]:
    """Proxies really computed on cells decoded from random latents, beside q of these and q of the cells encoded again.

    One row a cell: which latents (`draws`), standardised components z_*, q_* and again_*; a cell whose proxies fail is
    left out and counted, beside the facts of the batch.
    """
    tables, failed = [], 0
    for kind in ("scaled", "normal"):
        latent, drawn = gvae.valid_draws(model, stage.scale.cycle_cells, seed=stage.seed, kind=kind)
        table, facts = labels.score(stage, drawn, f"gvae-{stage.identity}-{kind}")
        good = torch.tensor((table["error"] == "").to_numpy())
        failed += int((~good).sum())
        parts = {
            "z": families.transform(zc_matrix(table[good.numpy()])),
            "q": model.predict_zc(latent[good]),
            "again": model.predict_zc(model.encode(drawn))[good],
        }
        columns = {f"{p}_{name}": v[:, i].numpy() for p, v in parts.items() for i, name in enumerate(ZC_NAMES)}
        tables.append(pd.DataFrame({"draws": kind} | columns))
    return pd.concat(tables, ignore_index=True), facts | {"cycle_failed": failed}


def ablation_table(stage: Stage, data: Data, models: dict[Run, tuple[GVAE, TrainLog]]) -> pd.DataFrame:
    """Short runs of one seed that each change one thing; the paper leaves all of these open."""
    rows, family = [], data.families.assign(data.unseen_zc, standardised=True)
    for run, (model, log) in models.items():
        found = measures(model, data, stage.seed)
        near = cluster_metrics(model.encode(data.unseen), data.unseen_zc, family, stage.seed).set_index("metric")
        near = near["value"].filter(regex="^(kNN|Spearman)").to_dict()
        kept = ["exact_mean", "exact_sampled", "scaled_valid", "scaled_unique", "normal_valid"]
        kept += [f"r2_{name}" for name in ZC_NAMES]
        row = {"change": run.change, "steps": run.steps, "kl": log.rows[-1]["kl"], **{key: found[key] for key in kept}}
        rows.append(row | near)
    return pd.DataFrame(rows)


def walks(model: GVAE, cells: Sequence[Cell], points: int = 14) -> list[list[Cell | None]]:
    """Decodes at equal steps of the straight line from the latent of each cell to that of the next, with both ends."""
    latents = model.encode(cells)  # (n, m)
    shares = torch.linspace(0, 1, points)[:, None].to(latents)
    return [model.decode(a + shares * (b - a)) for a, b in pairwise(latents)]


def cycle_errors(cycle: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mean absolute errors of q a component, and the points behind them: a row for each cell and component.

    Of gvae_cycle.csv the points have draws, component, z, q (of the latent), again (q of the cell encoded again).
    """
    wide = cycle.reset_index(names="cell")
    points = pd.wide_to_long(wide, ["z", "q", "again"], i="cell", j="component", sep="_", suffix=r"\w+")
    points = points.reset_index("component")
    named = points.rename(columns={"q": "q of the latent", "again": "q of the cell encoded again"})
    off = named.melt(["draws", "component", "z"], named.columns[-2:], var_name="of")
    off["error"] = (off["value"] - off["z"]).abs()
    table = off.pivot_table(index=["draws", "of"], columns="component", values="error")[list(ZC_NAMES)]
    return table.assign(mean=table.mean(axis=1)), points
