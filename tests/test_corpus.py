"""Cells as tables, and the labelling loop: parallel, resumable, failures counted."""

import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from graphnas_lib import proxies
from graphnas_lib.clusters import ZC_NAMES
from graphnas_lib.plots import svg
from graphnas_lib.proxies import corpus
from graphnas_lib.space import Cell, CellCodes, sample_cells
from graphnas_lib.stages import datacard
from graphnas_lib.store import artifacts, single_threaded

OPS = ("conv_3", "conv_1", "sep_conv_3", "mbconv2_1", "bconv0.5_1", "dil_conv_3", "mbconv2_3")
CELLS = [Cell.from_edges([(0, 1), (1, 7)], [op, *[None] * 5]) for op in OPS]
NO_PATH = Cell.from_edges([(0, 1)], ["conv_1", None, None, None, None, None])
SMALL = {"seed": 0, "width": 8, "repeats": 1, "shard_size": 3, "workers": 1, "progress": False}


@pytest.fixture(scope="module")
def batch():
    g = torch.Generator().manual_seed(0)
    return torch.randn(6, 3, 8, 8, generator=g), torch.randint(10, (6,), generator=g)


@pytest.fixture(scope="module")
def labelled(batch, tmp_path_factory):
    return corpus.label(CELLS, *batch, out=tmp_path_factory.mktemp("whole"), **SMALL)


def test_cells_survive_the_table(tmp_path):
    cells = [*sample_cells(60, seed=1), Cell.from_edges([(0, 7)], [None] * 6), NO_PATH]
    table = corpus.cells_table(cells)
    assert tuple(table.columns) == corpus.CELL_COLUMNS
    assert str(table["edges"].dtype) == "int32" and str(table["op_1"].dtype) == "int8"
    artifacts.write(tmp_path / "cells.parquet", table)
    assert corpus.cells_from_table(artifacts.read(tmp_path / "cells.parquet")) == cells
    assert table["key"].tolist() == [cell.key() for cell in cells]
    assert corpus.cells_from_table(corpus.cells_table([])) == []
    with pytest.raises(ValueError, match="'edges' is missing"):
        corpus.cells_from_table(table.drop(columns="edges"))


def test_labels_are_the_zc_vectors(labelled, batch):
    assert corpus.cells_from_table(labelled) == CELLS
    z = corpus.zc_matrix(labelled)
    assert z.shape == (7, 4) and z.dtype == torch.float64
    with single_threaded():  # as workers do: more threads may round otherwise
        assert torch.equal(z[4], proxies.zc_vector(CELLS[4], *batch, seed=0, width=8, repeats=1))


def test_labelling_goes_on_from_its_shards(labelled, batch, tmp_path):
    corpus.label(CELLS[:4], *batch, out=tmp_path, **SMALL)  # one full shard, one of a single cell
    shards = sorted(path.name for path in tmp_path.glob("shard-*"))
    assert shards == ["shard-0000000.parquet", "shard-0000003.parquet"]
    first = tmp_path / shards[0]
    marked = artifacts.read(first).assign(naswot=-1.0)  # shows that the shard is read and not computed again
    artifacts.write(first, marked)
    resumed = corpus.label(CELLS, *batch, out=tmp_path, **SMALL)
    assert (resumed["naswot"][:3] == -1.0).all()
    pd.testing.assert_frame_equal(resumed[3:], labelled[3:])
    pd.testing.assert_frame_equal(corpus.label(CELLS[:2], *batch, out=tmp_path, **SMALL), resumed[:2])


def test_shards_of_other_settings_or_cells_are_refused(batch, tmp_path):
    corpus.label(CELLS[:2], *batch, out=tmp_path, **SMALL)
    with pytest.raises(ValueError, match="seed: 0 -> 1"):
        corpus.label(CELLS[:2], *batch, out=tmp_path, **{**SMALL, "seed": 1})
    with pytest.raises(ValueError, match="batch: "):
        corpus.label(CELLS[:2], batch[0] + 1, batch[1], out=tmp_path, **SMALL)
    with pytest.raises(ValueError, match="must hold the cells asked for"):
        corpus.label(CELLS[1:3], *batch, out=tmp_path, **SMALL)


def test_failures_are_counted_and_never_scored(batch, tmp_path):
    with pytest.warns(UserWarning, match="1 of 3 cells could not be scored.*InvalidCellError"):
        table = corpus.label([CELLS[0], NO_PATH, CELLS[1]], *batch, out=tmp_path / "a", **SMALL)
    assert table["error"].tolist()[::2] == ["", ""] and all(math.isnan(v) for v in corpus.zc_matrix(table)[1])
    assert len(corpus.labelled_only(table)) == 2
    images = torch.full_like(batch[0], float("nan"))
    with pytest.warns(UserWarning, match="2 of 2 cells .*ProxyError"):
        corpus.label(CELLS[:2], images, batch[1], out=tmp_path / "b", **SMALL)


def test_two_processes_give_the_same_labels(labelled, batch, tmp_path):
    found = corpus.label(CELLS, *batch, out=tmp_path, **{**SMALL, "workers": 2})
    pd.testing.assert_frame_equal(found, labelled, check_exact=True)  # one thread a cell: bit for bit


# ---- labelling that is killed

FORTY = {"seed": 0, "width": 8, "repeats": 1, "shard_size": 4, "workers": 2, "progress": False}
SCRIPT = """
import sys
import torch
from graphnas_lib.proxies import corpus
from graphnas_lib.space import sample_cells

g = torch.Generator().manual_seed(0)
batch = torch.randn(6, 3, 8, 8, generator=g), torch.randint(10, (6,), generator=g)
options = {"seed": 0, "width": 8, "repeats": 1, "shard_size": 4, "progress": False}
corpus.label(sample_cells(40, seed=9), *batch, out=sys.argv[1], **options)
"""  # the labelling of `forty`, in two processes of its own


@pytest.fixture(scope="module")
def forty(batch, tmp_path_factory):
    """Forty cells and their labels of a run that nobody stopped."""
    cells = sample_cells(40, seed=9)
    return cells, corpus.label(cells, *batch, out=tmp_path_factory.mktemp("forty"), **{**FORTY, "workers": 1})


def shards(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of each finished shard: a shard that is written again changes both."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("shard-*")}


def spied(monkeypatch, folder: Path, kill_at: str = ""):
    """Note every cell that any process labels; the first process that is to label the cell `kill_at` dies instead.

    The spy is a local function: it goes to other processes by value.
    """
    original, log, fired = corpus._label_task, folder / "log", folder / "fired"

    def spy(cells, *rest):
        if kill_at in [cell.key() for cell in cells] and not fired.exists():
            fired.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        rows = original(cells, *rest)
        with log.open("a") as file:
            file.write("".join(f"{cell.key()}\n" for cell in cells))
        return rows

    monkeypatch.setattr(corpus, "_label_task", spy)
    return lambda: Counter(log.read_text().split())


@pytest.mark.skipif(os.name != "posix", reason="kill -9 and process groups are POSIX")
def test_labelling_goes_on_after_kill_9_and_labels_no_finished_cell_twice(forty, batch, tmp_path, monkeypatch):
    cells, whole = forty
    out = tmp_path / "out"
    run = subprocess.Popen([sys.executable, "-c", SCRIPT, str(out)], start_new_session=True)
    try:
        while len(shards(out)) < 3:
            assert run.poll() is None, "the labelling must not end before it is killed"
            time.sleep(0.005)
    finally:
        os.killpg(run.pid, signal.SIGKILL)  # the workers too
        assert run.wait() == -signal.SIGKILL
    kept = shards(out)
    assert 3 <= len(kept) < 10
    labelled = spied(monkeypatch, tmp_path)
    pd.testing.assert_frame_equal(corpus.label(cells, *batch, out=out, **FORTY), whole, check_exact=True)
    assert {name: shards(out)[name] for name in kept} == kept
    finished = {cell.key() for name in kept for cell in cells[int(name[6:13]) :][:4]}
    assert labelled() == Counter({cell.key() for cell in cells} - finished)  # each of the others once


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_a_worker_killed_alone_ends_in_what_to_do(forty, batch, tmp_path, monkeypatch):
    cells, whole = forty
    out, other = tmp_path / "out", {**FORTY, "workers": 2}
    labelled = spied(monkeypatch, tmp_path, kill_at=cells[30].key())
    with pytest.raises(RuntimeError, match=r"process was killed, .*; \d+ of 40 cells .*Run the same command again"):
        corpus.label(cells, *batch, out=out, **other)
    kept, before = shards(out), labelled()
    assert len(kept) >= 3
    pd.testing.assert_frame_equal(corpus.label(cells, *batch, out=out, **other), whole, check_exact=True)
    assert {name: shards(out)[name] for name in kept} == kept
    assert (labelled() - before).total() == 40 - 4 * len(kept)


# ---- labelling on a cluster


@pytest.fixture
def cluster():
    """Two worker processes of dask."""
    distributed = pytest.importorskip("distributed", reason="dask.distributed is optional")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as made:
        yield made


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_a_dask_cluster_gives_the_same_labels_although_a_worker_is_killed(cluster, forty, batch, tmp_path, monkeypatch):
    cells, whole = forty
    labelled = spied(monkeypatch, tmp_path, kill_at=cells[18].key())
    before = {worker.pid for worker in cluster.workers.values()}
    found = corpus.label(cells, *batch, out=tmp_path / "out", dask=cluster.scheduler_address, **FORTY)
    assert (tmp_path / "fired").exists() and before != {worker.pid for worker in cluster.workers.values()}
    pd.testing.assert_frame_equal(found, whole, check_exact=True)
    assert set(labelled()) == {cell.key() for cell in cells}


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_a_cluster_that_gives_a_task_up_ends_in_what_to_do(forty, batch, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed", reason="dask.distributed is optional")
    import dask

    cells, whole = forty
    spied(monkeypatch, tmp_path, kill_at=cells[18].key())
    local = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}), distributed.LocalCluster(**local) as cluster:
        options = {"out": tmp_path / "out", "dask": cluster.scheduler_address, **FORTY}
        with pytest.raises(RuntimeError, match="process was killed.*Run the same command again"):
            corpus.label(cells, *batch, **options)
        pd.testing.assert_frame_equal(corpus.label(cells, *batch, **options), whole, check_exact=True)


# ---- data card


def test_data_card_states_what_the_table_holds():
    cells = sample_cells(60, seed=4)
    table = corpus.cells_table(cells[:40])
    for i, name in enumerate(ZC_NAMES):
        table[name] = np.arange(1, 41.0) * 10**i
    table["error"] = ""
    table.loc[[3, 7], [*ZC_NAMES, "error"]] = [np.nan] * 4 + ["ProxyError: no"]
    facts = dict(scale="lite", seed=5, data="toy images", batch=8, resolution=16, classes=10, held_out=6)
    codes = CellCodes.of(cells)
    text = datacard.card(table, codes, {"valid": 0.75, "strict": 0.125, "mean_live": 3.5}, facts)
    for said in (
        "60 distinct cells, the first 40",
        "25.0% are invalid",
        "12.5% need no pruning",
        "2 of 40 cells could",
    ):
        assert said in text
    good = table.drop(index=[3, 7])["naswot"]
    assert f"| 50% | {good.median():.2f} | " in text
    live = [len(cell.live) for cell in cells]
    assert datacard.node_shares(codes).to_dict() == {n: live.count(n) / 60 for n in sorted(set(live))}
    pictures = {svg(datacard.plot_distributions(table, codes)) for _ in range(2)}
    assert len(pictures) == 1 and pictures.pop().count("live operation nodes") >= 1
