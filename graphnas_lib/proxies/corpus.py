"""Cells on disk: the unlabelled corpus and the ZC-labelled one (App. A), and the labelling loop.

A table holds one cell a row: 28 edges as the bits of an integer, six operations as indices, the key. `label` adds the
raw ZC vector of each cell. It runs over processes (or a dask cluster), writes a shard at a time and goes on from the
shards it finds, so a killed run loses at most the shards in flight. A cell that cannot be scored keeps NaN and its
reason in `error`; it is counted and never given a number.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from graphnas_lib import store
from graphnas_lib.clusters import ZC_NAMES
from graphnas_lib.proxies.measures import ProxyError, zc_vector
from graphnas_lib.space import N_NODES, OP_NODES, OPERATIONS, Cell, InvalidCellError
from graphnas_lib.store import single_threaded

EDGE_ROWS, EDGE_COLUMNS = np.triu_indices(N_NODES, 1)  # bit i of `edges` is the i-th of these 28 pairs
OP_COLUMNS = tuple(f"op_{node}" for node in range(1, OP_NODES + 1))
CELL_COLUMNS = ("key", "edges", *OP_COLUMNS)
CELLS_A_TASK = 8
AHEAD = 3  # tasks a thread of a dask cluster that wait or run
SETTINGS = "labelling.json"


# ---- cells as a table


def cells_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """Cells as rows: key, edges (28 bits, int32), op_1..op_6 (index into `OPERATIONS`, -1 = unused node; int8)."""
    bits = np.array([cell.adjacency[EDGE_ROWS, EDGE_COLUMNS] for cell in cells], np.int64).reshape(-1, len(EDGE_ROWS))
    index = {name: i for i, name in enumerate(OPERATIONS)} | {None: -1}
    ops = np.array([[index[name] for name in cell.operations] for cell in cells], np.int8).reshape(-1, OP_NODES)
    table = {"key": [cell.key() for cell in cells], "edges": (bits << np.arange(bits.shape[1])).sum(1).astype(np.int32)}
    return pd.DataFrame(table | {name: ops[:, i] for i, name in enumerate(OP_COLUMNS)})


def cells_from_table(table: pd.DataFrame) -> list[Cell]:
    """Inverse of `cells_table`; other columns are ignored.

    Raises:
        InvalidCellError: a column is missing, or a row is no cell.
    """
    if not isinstance(table, pd.DataFrame):
        raise InvalidCellError(f"A table of cells must be a DataFrame; got {type(table).__name__}.")
    for name in CELL_COLUMNS[1:]:
        if (table.columns == name).sum() != 1:
            found = "missing" if name not in table.columns else "there more than once"
            raise InvalidCellError(f"A table of cells must have the columns {CELL_COLUMNS[1:]}; {name!r} is {found}.")
    adjacency = np.zeros((len(table), N_NODES, N_NODES), np.uint8)
    edges = _whole(table["edges"], 0, 2 ** len(EDGE_ROWS) - 1)
    adjacency[:, EDGE_ROWS, EDGE_COLUMNS] = edges[:, None] >> np.arange(len(EDGE_ROWS)) & 1  # (n, 28)
    names = (*OPERATIONS, None)  # -1 is the last
    ops = np.stack([_whole(table[name], -1, len(OPERATIONS) - 1) for name in OP_COLUMNS], axis=1)  # (n, 6)
    cells = []
    for row, (matrix, codes) in enumerate(zip(adjacency, ops.tolist())):
        try:
            cells.append(Cell(matrix, [names[code] for code in codes]))
        except InvalidCellError as error:
            raise InvalidCellError(f"Row {row} of the table: {error}") from error
    return cells


def _whole(column: pd.Series, low: int, high: int) -> np.ndarray:
    """A column's integers, int64; InvalidCellError names the first that is none or lies outside low..high."""
    must = f"Column {column.name!r} of a table of cells must hold integers from {low} to {high}"
    if not pd.api.types.is_integer_dtype(column.dtype):
        raise InvalidCellError(f"{must}; got dtype {column.dtype}.")
    outside = ~column.between(low, high).fillna(False).to_numpy(bool)
    if outside.any():
        row = int(outside.argmax())
        raise InvalidCellError(f"{must}; got {column.iloc[row]} in row {row}.")
    return column.to_numpy(np.int64)


# ---- labelling


def label(
    cells: Sequence[Cell],
    images: Tensor,
    labels: Tensor,
    *,
    seed: int,
    out: Path | str,
    workers: int = 2,
    width: int = 16,
    repeats: int = 5,
    classes: int = 10,
    shard_size: int = 32,
    progress: bool = True,
    dask: str | None = None,
) -> pd.DataFrame:
    """ZC vectors of cells (App. A), in parallel, shard by shard; a later call with the same arguments goes on.

    Args:
        cells: what to label; a longer list with the same beginning goes on from the same shards.
        images: (B, C, H, W) float, normalised; the paper's batch is 64. On CUDA every worker labels on that device: a
            small network is bound by launches, so several processes share one.
        labels: (B,) class indices.
        seed: of every cell's initial weights; a label depends on the cell and these arguments alone.
        out: folder of the shards.
        workers: processes; 1 runs in this one.
        width: channels of the first stage.
        repeats: cells a stage.
        classes: outputs of the classifier.
        shard_size: cells a file, written when all are done.
        progress: draw a bar with the time left.
        dask: address of a dask scheduler ("tcp://host:port"); its workers replace `workers`.

    Returns:
        `cells_table` columns, then naswot, snip_ssnr, params, flops (float64, raw; NaN where failed) and error ("" or
        the reason), in the order of `cells`.

    Raises:
        ValueError: `out` holds shards of other settings or other cells.
        RuntimeError: a process was killed; what was finished is kept, and the same call goes on from there.
    """
    out = Path(out)
    options = {"seed": seed, "width": width, "repeats": repeats, "classes": classes}
    _check_settings(out, options | {"shard_size": shard_size, "batch": _batch_hash(images, labels)})
    table = cells_table(cells)
    spans = [range(start, min(start + shard_size, len(cells))) for start in range(0, len(cells), shard_size)]
    todo = [span for span in spans if not _is_done(_shard(out, span), table["key"].iloc[list(span)])]
    tasks = [span[i : i + CELLS_A_TASK] for span in todo for i in range(0, len(span), CELLS_A_TASK)]
    device, batch = images.device, (images.cpu(), labels.cpu())  # a CUDA tensor cannot go to another process
    calls = (([cells[i] for i in task], *batch, options, device) for task in tasks)
    rows: list[dict] = []
    left = iter(todo)
    span = next(left, None)
    done = len(cells) - sum(map(len, todo))  # tqdm: the time left is the mean rate's, as shards come in bursts
    with (
        _killed(out, spans),
        tqdm(total=len(cells), initial=done, smoothing=0, disable=not progress, unit="cell", desc="ZC vectors") as bar,
    ):
        processes = joblib.Parallel(n_jobs=workers, backend="loky", return_as="generator")
        for found in _on_dask(dask, calls) if dask else processes(joblib.delayed(_label_task)(*c) for c in calls):
            rows += found
            bar.update(len(found))
            if span is not None and len(rows) == len(span):
                _write_shard(out, span, table, rows)
                rows, span = [], next(left, None)
    parts = [store.read(_shard(out, span)).head(len(span)) for span in spans]
    return _reported(pd.concat(parts, ignore_index=True) if parts else table)


def label_cell(cell: Cell, images: Tensor, labels: Tensor, options: dict) -> dict:
    """One cell's row: its ZC vector and error "", or NaN and the reason; `options` go to `zc_vector`."""
    try:
        values = zc_vector(cell, images, labels, **options).tolist()
    except (ProxyError, InvalidCellError) as error:
        return dict.fromkeys(ZC_NAMES, float("nan")) | {"error": f"{type(error).__name__}: {error}"}
    return dict(zip(ZC_NAMES, values)) | {"error": ""}


def labelled_only(table: pd.DataFrame) -> pd.DataFrame:
    """Rows that have a ZC vector."""
    return table[table["error"] == ""].reset_index(drop=True)


def zc_matrix(table: pd.DataFrame) -> Tensor:
    """Raw ZC vectors of a labelled table, float64 (n, 4), columns in `ZC_NAMES` order."""
    return torch.tensor(table[list(ZC_NAMES)].to_numpy(np.float64))


def _label_task(cells: list[Cell], images: Tensor, labels: Tensor, options: dict, device: torch.device) -> list[dict]:
    """Rows of a few cells."""
    with single_threaded():
        images, labels = images.to(device), labels.to(device)
        return [label_cell(cell, images, labels, options) for cell in cells]


@contextmanager
def _killed(out: Path, spans: list[range]) -> Iterator[None]:
    """Say what to do when a process dies alone: joblib then stops all of them."""
    try:
        yield
    except BrokenProcessPool as error:
        done = sum(len(span) for span in spans if _shard(out, span).exists())
        raise RuntimeError(
            f"A labelling process was killed, from outside or for want of memory; {done} of {sum(map(len, spans))} "
            f"cells are kept in {out.name}. Run the same command again to go on."
        ) from error


def _on_dask(address: str, calls: Iterator[tuple]) -> Iterator[list[dict]]:
    """The same from the workers of a dask cluster; those of a lost worker are done again by another.

    A few calls a thread are under way at a time, so that the scheduler holds few copies of the images.
    """
    from distributed import Client, KilledWorker

    with Client(address) as client:
        waiting: deque = deque()
        while True:
            wanted = AHEAD * max(1, sum(client.nthreads().values())) - len(waiting)
            waiting += [client.submit(_label_task, *call, pure=False) for call in islice(calls, max(0, wanted))]
            if not waiting:
                return
            try:
                yield waiting.popleft().result()
            except KilledWorker as error:  # lost more workers than the cluster allows
                raise BrokenProcessPool(str(error)) from error


def _batch_hash(images: Tensor, labels: Tensor) -> str:
    digest = hashlib.sha256(b"".join(part.cpu().contiguous().numpy().tobytes() for part in (images, labels)))
    return f"{tuple(images.shape)} {digest.hexdigest()[:16]}"


def _check_settings(out: Path, settings: dict) -> None:
    """Shards of one folder come from one setting; ValueError when they do not."""
    path = out / SETTINGS
    if not path.exists():
        store.write(path, settings)
        return
    before = store.read(path)
    if before != settings:
        changed = ", ".join(f"{k}: {before.get(k)} -> {settings[k]}" for k in settings if before.get(k) != settings[k])
        raise ValueError(f"Shards of a folder must share settings; {out.name} differs: {changed}. Use another folder.")


def _shard(out: Path, span: range) -> Path:
    return out / f"shard-{span.start:07d}.parquet"


def _is_done(path: Path, keys: pd.Series) -> bool:
    """True when the shard holds these cells; a shorter last shard of an earlier, shorter list is done anew."""
    if not path.exists():
        return False
    found = store.read(path)["key"].tolist()
    if found != keys.tolist()[: len(found)] and keys.tolist() != found[: len(keys)]:
        raise ValueError(f"Shard {path.name} must hold the cells asked for; it holds others. Use another folder.")
    return len(found) >= len(keys)


def _write_shard(out: Path, span: range, table: pd.DataFrame, rows: list[dict]) -> None:
    cells = table.iloc[list(span)].reset_index(drop=True)
    store.write(_shard(out, span), pd.concat([cells, pd.DataFrame(rows)], axis=1))


def _reported(table: pd.DataFrame) -> pd.DataFrame:
    failed = int((table["error"] != "").sum()) if "error" in table else 0
    if failed:
        first = table.loc[table["error"] != "", "error"].iloc[0]
        message = f"{failed} of {len(table)} cells could not be scored and have no label; first: {first}"
        warnings.warn(message, stacklevel=3)
    return table
