"""Stage "labels": the zero-cost vectors of the first cells of the corpus (App. A), on real images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from graphnas_lib import datasets, proxies, store
from graphnas_lib.clusters import ZC_NAMES
from graphnas_lib.datasets import Dataset, MissingDataError
from graphnas_lib.paper import SCALES, STAGES
from graphnas_lib.plots import svg
from graphnas_lib.space import REFERENCE_CELL, Cell, CellCodes
from graphnas_lib.stages import cells, datacard
from graphnas_lib.stages.stage import Stage
from graphnas_lib.store import processes


def make(stage: Stage) -> tuple[dict, dict]:
    """Label in processes, each cell kept at once; the NATS reference cell is labelled beside them."""
    scale = stage.scale
    codes, sampling = cells.load(scale.name), store.load_manifest("cells", scale.name)["config"]
    scored, facts = score(stage, [*codes[: scale.labelled].cells(), REFERENCE_CELL], "labels")
    table, reference = scored[:-1], scored.iloc[-1][[*ZC_NAMES, "error"]].to_dict()
    facts |= {"n": len(table), "failed": int((table["error"] != "").sum()), "reference": reference}
    told = {**facts, "scale": scale.name, "seed": stage.seed, "held_out": sampling["held_out"]}
    files = {
        "labels.parquet": table,
        "labels_card.md": datacard.card(table, codes, sampling["law"], told),
        datacard.PICTURE: svg(datacard.plot_distributions(table, codes)),
    }
    return files, facts


def score(
    stage: Stage, chosen: Sequence, prefix: str, scorer: Callable[..., pd.DataFrame] = proxies.label, batches: int = 1
) -> tuple[pd.DataFrame, dict]:
    """Proxies of cells on the images that the labels of this scale are taken on; a killed run goes on with the next.

    Args:
        stage: whose scale, seed and device decide.
        chosen: cells, or what else `scorer` takes.
        prefix: of the file's name among the checkpoints; it begins with the stage's.
        scorer: `proxies.label`, or one of its form.
        batches: how many of the labels' batches it takes.

    Returns:
        The scorer's table, and the facts of its batch: data, batch, resolution, classes.

    Raises:
        MissingDataError: the images are not those that the labels were taken on.
    """
    scale, data = stage.scale, images_of(stage)
    images, targets = data.batch(batches * scale.label_batch)  # each worker takes them to its own GPU
    facts = {"data": data.source, "batch": scale.label_batch, "resolution": scale.label_resolution}
    facts |= {"classes": data.classes}
    out = stage.scores_file(prefix, facts | {"seed": stage.seed, "device": stage.device.type})
    options = {"workers": processes(stage.device), "device": stage.device}
    options |= {"progress": stage.progress, "dask": stage.dask}
    return scorer(chosen, images, targets, seed=stage.seed, classes=data.classes, out=out, **options), facts


def images_of(stage: Stage) -> datasets.Dataset:
    """The images that cells are scored on, by themselves before hours of training; raises as `score`."""
    name, data = stage.scale.name, datasets.load("auto", resolution=stage.scale.label_resolution)
    if "labels" in STAGES[stage.name].needs:
        source = store.load_manifest("labels", name)["config"]["data"]
        if source != data.source:
            raise MissingDataError(
                f"Cells must be scored on the images of this scale's labels, {source}; found are {data.source}. Point "
                f"$GRAPHNAS_DATA at the former, or label anew: python -m graphnas_lib run labels --scale {name}."
            )
    return data


def load(scale: str) -> pd.DataFrame:
    """Labelled rows alone; `position` is the row's place in the corpus."""
    table = store.load("labels", "labels.parquet", scale)
    return proxies.labelled_only(table.assign(position=range(len(table))))


def codes_of(table: pd.DataFrame, codes: CellCodes) -> CellCodes:
    """Codes of the labelled cells, row by row."""
    return codes[torch.tensor(table["position"].to_numpy())]


def proxy_batch(scale: str) -> tuple[Dataset, tuple[Tensor, Tensor]]:
    """The data set at the scale's resolution, and the first images and labels of it."""
    sizes = SCALES[scale]
    data = datasets.load("auto", resolution=sizes.label_resolution)
    return data, data.batch(sizes.label_batch)


def zc_table(cells: Mapping[str, Cell], batch: tuple[Tensor, Tensor], classes: int, *, seed: int) -> pd.DataFrame:
    """Raw ZC vectors of named cells."""
    rows = {name: proxies.zc_vector(cell, *batch, seed=seed, classes=classes).tolist() for name, cell in cells.items()}
    return pd.DataFrame(rows, index=["NASWOT", "SNIP-SSNR", "parameters", "FLOPs"]).T
