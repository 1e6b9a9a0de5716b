"""Stage "sequence": the generator h, trained on the histories of HL-Evo (Eq. 10), and the best networks of these."""

from __future__ import annotations

import math
import os

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from graphnas_lib import sequence, store
from graphnas_lib.clusters import Families
from graphnas_lib.design import FILE, KeptNetworks
from graphnas_lib.macro import Architecture
from graphnas_lib.paper import Scale, Sizes
from graphnas_lib.sequence import CONDITIONS, SequenceConfig
from graphnas_lib.stages import evolution
from graphnas_lib.stages.stage import Stage

PRETRAINED = "GRAPHNAS_GPT_NEO"  # names a folder with the weights of GPT-Neo 125M, from which paper scale starts
LARGE_STATE_SECONDS = 600.0  # between checkpoints of the paper's generator, a gigabyte each
LOG_COST_BIN_WIDTH = 0.25  # of ln params and of ln FLOPs; networks of one bin are ranked together


def make(stage: Stage) -> tuple[dict, dict]:
    """Train on every network that HL-Evo recorded; conditions are params, FLOPs and NASWOT where it was taken."""
    scale = stage.scale
    table = pd.concat([evolution.load(scale.name), evolution.load(scale.name, "between")], ignore_index=True)
    individuals = [Architecture.from_json(text) for text in table["individual"]]
    designs = [individual.hl for individual in individuals]
    conditions = torch.tensor(table.assign(snip_ssnr=math.nan)[list(CONDITIONS)].to_numpy(float))
    shape = store.load_manifest("evolution", scale.name)["config"]["input_shape"]
    families = Families.load(scale.name).n_clusters
    config, pretrained = settings(scale, n_families=families, input_shape=tuple(shape))
    point = stage.checkpoint("training", config, pretrained, LOG_COST_BIN_WIDTH)
    point.every = LARGE_STATE_SECONDS if scale.name == "paper" else point.every
    options = {"steps": scale.sequence_steps, "log_every": max(1, scale.sequence_steps // 50), "pretrained": pretrained}
    options |= {"seed": stage.seed, "device": stage.device, "checkpoint": point, "progress": stage.progress}
    weights = learning_weights(table)
    generator, log = sequence.train(designs, conditions, config=config, weights=weights, **options)
    kept = KeptNetworks.of(individuals, conditions[:, :2], torch.tensor(table["score"].to_numpy()))
    facts = {
        "trunk": "pretrained GPT-Neo" if pretrained else "from scratch",
        **{"n_designs": len(designs), "n_distinct": len(set(designs)), "steps": log.steps},
        "parameters": sum(p.numel() for p in generator.model.parameters()),
    }
    files = generator.to_files(half=scale.name != "paper")
    return {**files, FILE: kept.to_tensors(), "sequence_log.csv": pd.DataFrame(log.rows)}, facts


def learning_weights(history: pd.DataFrame) -> Tensor:
    """How often each network is learnt from, (n,): its rank by T-CET among those of its size, to the fourth power.

    Among those of its parameters or of its FLOPs, whichever is higher: conditions ask for either.
    """
    ranks = []
    for cost in ("params", "flops"):
        sizes = np.floor(np.log(history[cost]) / LOG_COST_BIN_WIDTH)
        ranks.append(history["score"].groupby(sizes).rank(pct=True))
    return torch.tensor(np.maximum(*ranks).to_numpy() ** 4)


def settings(scale: Scale | Sizes, **sizes) -> tuple[SequenceConfig, str | None]:
    """The generator of a scale, and where the weights that it starts from are: at paper scale, `$GRAPHNAS_GPT_NEO`."""
    if scale.name == "paper":
        return SequenceConfig(**sizes), os.environ.get(PRETRAINED) or None
    given = {"hidden": scale.sequence_hidden, "layers": scale.sequence_layers, "heads": scale.sequence_heads}
    given |= {"batch_size": scale.sequence_batch, "lr": scale.sequence_lr}
    return SequenceConfig.small(warmup=min(500, scale.sequence_steps // 10), **given, **sizes), None
