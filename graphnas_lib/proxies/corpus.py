"""Cells on disk: the unlabelled corpus and the ZC-labelled one (App. A), and the labelling loop.

A table holds one cell a row: 28 edges as the bits of an integer, six operations as indices, the key. `label` adds the
raw ZC vector of each cell. It runs over processes (or a dask cluster) and goes on from the labels it finds, so a killed
run loses the cells in flight alone. A cell that cannot be scored keeps NaN and its reason in `error`; it is counted and
never given a number.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from graphnas_lib import store
from graphnas_lib.clusters import ZC_NAMES
from graphnas_lib.proxies.given import ProxyError
from graphnas_lib.proxies.measures import zc_vector
from graphnas_lib.space import N_NODES, OP_NODES, OPERATIONS, Cell, InvalidCellError
from graphnas_lib.store import single_threaded

EDGE_ROWS, EDGE_COLUMNS = np.triu_indices(N_NODES, 1)  # bit i of `edges` is the i-th of these 28 pairs
OP_COLUMNS = tuple(f"op_{node}" for node in range(1, OP_NODES + 1))
CELL_COLUMNS = ("key", "edges", *OP_COLUMNS)


def cells_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """Cells as rows: key, edges (28 bits, int32), op_1..op_6 (index into `OPERATIONS`, -1 = unused node; int8)."""
    bits = np.array([cell.adjacency[EDGE_ROWS, EDGE_COLUMNS] for cell in cells], np.int64).reshape(-1, len(EDGE_ROWS))
    index = {name: i for i, name in enumerate(OPERATIONS)} | {None: -1}
    ops = np.array([[index[name] for name in cell.operations] for cell in cells], np.int8).reshape(-1, OP_NODES)
    table = {"key": [cell.key() for cell in cells], "edges": (bits << np.arange(bits.shape[1])).sum(1).astype(np.int32)}
    return pd.DataFrame(table | {name: ops[:, i] for i, name in enumerate(OP_COLUMNS)})


def label(
    cells: Sequence[Cell],
    images: Tensor,
    labels: Tensor,
    *,
    seed: int,
    out: Path | str,
    width: int = 16,
    repeats: int = 5,
    classes: int = 10,
    device: torch.device | None = None,
    **how: Any,
) -> pd.DataFrame:
    """ZC vectors of cells (App. A), in parallel, each kept at once; a later call with the same arguments goes on.

    Args:
        cells: what to label; those that `out` has are not labelled again.
        images: (B, C, H, W) float, normalised; the paper's batch is 64.
        labels: (B,) class indices.
        seed: of every cell's initial weights; a label depends on the cell and these arguments alone.
        out: file of finished labels, one JSON line each.
        width: channels of the first stage.
        repeats: cells a stage.
        classes: outputs of the classifier.
        device: where workers label, default where the images are; "cuda" is a GPU for each worker in turn.
        how: `workers`, `progress` (a bar) and `dask` of `store.collect`.

    Returns:
        `cells_table` columns, then naswot, snip_ssnr, params, flops (float64, raw; NaN where failed) and error ("" or
        the reason), in the order of `cells`.

    Raises:
        ValueError: `out` holds labels of other settings.
        RuntimeError: processes were killed; what was finished is kept, and the same call goes on from there.
    """
    options = {"seed": seed, "width": width, "repeats": repeats, "classes": classes}
    batch = images.cpu(), labels.cpu()  # a CUDA tensor cannot go to another process
    journal = store.Journal(out, options | {"batch": batch_name(*batch)})
    table = cells_table(cells)
    names = [" ".join(map(str, row)) for row in table[list(CELL_COLUMNS[1:])].itertuples(index=False)]
    device = device or images.device
    jobs = {name: partial(_label, cell, *batch, options, device) for name, cell in zip(names, cells)}
    found = store.collect(jobs, journal, **({"progress": True} | how), desc="ZC vectors", unit="cell")
    rows = dict(zip(jobs, found))
    values = pd.DataFrame([rows[name] for name in names], columns=[*ZC_NAMES, "error"])
    if (failed := values["error"] != "").any():
        message = f"{failed.sum()} of {len(table)} cells could not be scored and have no label; first: "
        warnings.warn(message + values.loc[failed, "error"].iloc[0], stacklevel=2)
    return pd.concat([table, values], axis=1)


def batch_name(images: Tensor, labels: Tensor) -> str:
    """Shape and hash of a batch on the CPU, by which a file of scores knows what they were taken on."""
    digest = hashlib.sha256(b"".join(part.contiguous().numpy().tobytes() for part in (images, labels)))
    return f"{tuple(images.shape)} {digest.hexdigest()[:16]}"


def labelled_only(table: pd.DataFrame) -> pd.DataFrame:
    """Rows that have a ZC vector."""
    return table[table["error"] == ""].reset_index(drop=True)


def zc_matrix(table: pd.DataFrame) -> Tensor:
    """Raw ZC vectors of a labelled table, float64 (n, 4), columns in `ZC_NAMES` order."""
    return torch.tensor(table[list(ZC_NAMES)].to_numpy(np.float64))


def _label(cell: Cell, images: Tensor, labels: Tensor, options: dict, device: torch.device) -> dict:
    """One cell's row, the same wherever it is made (one thread): its ZC vector and error "", or NaN and the reason."""
    try:
        with single_threaded():
            values = zc_vector(cell, images.to(device), labels.to(device), **options).tolist()
    except (ProxyError, InvalidCellError, torch.OutOfMemoryError) as error:
        return dict.fromkeys(ZC_NAMES, float("nan")) | {"error": f"{type(error).__name__}: {error}"}
    return dict(zip(ZC_NAMES, values)) | {"error": ""}
