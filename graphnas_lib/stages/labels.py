"""Stage "labels": the zero-cost vectors of the first cells of the corpus (App. A), on real images."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from graphnas_lib import datasets, proxies, store
from graphnas_lib.datasets import Dataset, MissingDataError
from graphnas_lib.paper import SCALES
from graphnas_lib.plots import svg
from graphnas_lib.space import REFERENCE_CELL, Cell, CellCodes
from graphnas_lib.stages import cells, datacard
from graphnas_lib.stages.road import Stage
from graphnas_lib.store import processes


def make(stage: Stage) -> dict:
    """Label in processes, shard by shard; the NATS reference cell is labelled beside them."""
    scale = stage.scale
    codes, sampling = cells.load(scale.name), store.load_manifest("cells", scale.name)["config"]
    table, reference = score(stage, codes[: scale.labelled].cells(), "labels")
    stage.config.update(n=len(table), failed=int((table["error"] != "").sum()), reference=reference)
    facts = {**stage.config, "scale": scale.name, "seed": stage.seed, "held_out": sampling["held_out"]}
    return {
        "labels.parquet": table,
        "labels_card.md": datacard.card(table, codes, sampling["law"], facts),
        datacard.PICTURE: svg(datacard.plot_distributions(table, codes)),
    }


def score(stage: Stage, chosen: Sequence[Cell], prefix: str) -> tuple[pd.DataFrame, dict]:
    """ZC vectors of cells as the labels of this scale have them, and the reference cell's; goes on from its shards.

    Args:
        stage: whose scale, seed and device decide; what was done is noted in its `config`.
        chosen: cells.
        prefix: of the shards' folder among the checkpoints.

    Raises:
        MissingDataError: the images are not those that the labels were taken on.
    """
    scale = stage.scale
    data = stage.dataset(resolution=scale.label_resolution)
    images, targets = data.batch(scale.label_batch, device=stage.device)
    if stage.name != "labels":
        source = store.load_manifest("labels", scale.name)["config"]["data"]
        if source != data.source:
            raise MissingDataError(
                f"Cells must be scored on the images of this scale's labels, {source}; found are {data.source}. Point "
                f"$GRAPHNAS_DATA at the former, or label anew: python -m graphnas_lib run labels --scale {scale.name}."
            )
    # Beyond smoke the shards are named after what decides a label: work goes on when another size changes.
    decides = [stage.seed, scale.label_batch, scale.label_resolution, data.source, data.classes, stage.device.type]
    name = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]
    name = stage.identity if scale.name == "smoke" else name
    folder = store.data_dir(scale.name) / "checkpoints" / f"{prefix}-{name}"
    if stage.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    options, workers = {"seed": stage.seed, "classes": data.classes}, processes(stage.device)
    table = proxies.label(chosen, images, targets, out=folder, workers=workers, progress=stage.progress, **options)
    stage.config.update(batch=scale.label_batch, resolution=scale.label_resolution, classes=data.classes)
    return table, proxies.label_cell(REFERENCE_CELL, images, targets, options)


def load(scale: str) -> pd.DataFrame:
    """Labelled rows alone; `position` is the row's place in the corpus."""
    table = store.load("labels", "labels.parquet", scale)
    table["position"] = range(len(table))
    return proxies.labelled_only(table)


def vectors(table: pd.DataFrame) -> Tensor:
    """Raw ZC vectors, float64 (n, 4)."""
    return proxies.zc_matrix(table)


def codes_of(table: pd.DataFrame, codes: CellCodes) -> CellCodes:
    """Codes of the labelled cells, row by row."""
    return codes[torch.tensor(table["position"].to_numpy())]


def cells_of(table: pd.DataFrame, codes: CellCodes) -> list[Cell]:
    """The labelled cells, row by row."""
    return codes_of(table, codes).cells()


def proxy_batch(scale: str) -> tuple[Dataset, tuple[Tensor, Tensor]]:
    """The data set at the scale's resolution, and the first images and labels of it."""
    sizes = SCALES[scale]
    data = datasets.load("auto", resolution=sizes.label_resolution)
    return data, data.batch(sizes.label_batch)


def zc_table(cells: Mapping[str, Cell], batch: tuple[Tensor, Tensor], classes: int, *, seed: int) -> pd.DataFrame:
    """Raw ZC vectors of named cells."""
    rows = {name: proxies.zc_vector(cell, *batch, seed=seed, classes=classes).tolist() for name, cell in cells.items()}
    return pd.DataFrame(rows, index=["NASWOT", "SNIP-SSNR", "parameters", "FLOPs"]).T
