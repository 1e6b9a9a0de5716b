"""Cells as tables, and the labelling loop: parallel, resumable, failures counted."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from graphnas_lib import proxies
from graphnas_lib.clusters import ZC_NAMES
from graphnas_lib.plots import svg
from graphnas_lib.proxies import corpus
from graphnas_lib.space import OPERATIONS, Cell, CellCodes, sample_cells
from graphnas_lib.stages import datacard
from graphnas_lib.stages.cells import live_nodes
from graphnas_lib.store import artifacts, single_threaded

OPS = ("conv_3", "conv_1", "sep_conv_3", "mbconv2_1", "bconv0.5_1", "dil_conv_3", "mbconv2_3")
CELLS = [Cell.from_edges([(0, 1), (1, 7)], [op, *[None] * 5]) for op in OPS]
NO_PATH = Cell.from_edges([(0, 1)], ["conv_1", None, None, None, None, None])
SMALL = {"seed": 0, "width": 8, "repeats": 1, "workers": 1, "progress": False}


@pytest.fixture(scope="module")
def batch():
    g = torch.Generator().manual_seed(0)
    return torch.randn(6, 3, 8, 8, generator=g), torch.randint(10, (6,), generator=g)


@pytest.fixture(scope="module")
def labelled(batch, tmp_path_factory):
    return corpus.label(CELLS, *batch, out=tmp_path_factory.mktemp("whole") / "labels.jsonl", **SMALL)


def cells_of(table: pd.DataFrame) -> list[Cell]:
    """Cells of a table's rows, read as `cells_table` says that they are written."""
    names, cells = (*OPERATIONS, None), []  # -1 is the last
    for row in table.to_dict("records"):
        edges = [pair for i, pair in enumerate(combinations(range(8), 2)) if row["edges"] >> i & 1]
        cells.append(Cell.from_edges(edges, [names[row[f"op_{node}"]] for node in range(1, 7)]))
    return cells


def test_cells_survive_the_table(tmp_path):
    cells = [*sample_cells(60, seed=1), Cell.from_edges([(0, 7)], [None] * 6), NO_PATH]
    table = corpus.cells_table(cells)
    assert tuple(table.columns) == corpus.CELL_COLUMNS
    assert str(table["edges"].dtype) == "int32" and str(table["op_1"].dtype) == "int8"
    artifacts.write(tmp_path / "cells.parquet", table)
    assert cells_of(artifacts.read(tmp_path / "cells.parquet")) == cells
    assert table["key"].tolist() == [cell.key() for cell in cells]
    assert tuple(corpus.cells_table([]).columns) == corpus.CELL_COLUMNS


def test_labels_are_the_zc_vectors(labelled, batch):
    assert cells_of(labelled) == CELLS
    z = corpus.zc_matrix(labelled)
    assert z.shape == (7, 4) and z.dtype == torch.float64
    with single_threaded():  # as workers do: more threads may round otherwise
        assert torch.equal(z[4], proxies.zc_vector(CELLS[4], *batch, seed=0, width=8, repeats=1))


def test_labelling_goes_on_from_what_it_finds(labelled, batch, tmp_path):
    out = tmp_path / "labels.jsonl"
    corpus.label(CELLS[:4], *batch, out=out, **SMALL)
    header, *lines = out.read_text().splitlines(keepends=True)
    assert len(lines) == 4
    for i in range(3):  # shows that these are read and not computed again
        name, label = json.loads(lines[i])
        lines[i] = json.dumps([name, label | {"naswot": -1.0}]) + "\n"
    out.write_text("".join([header, *lines]))
    resumed = corpus.label(CELLS, *batch, out=out, **SMALL)
    assert (resumed["naswot"][:3] == -1.0).all()
    pd.testing.assert_frame_equal(resumed[3:], labelled[3:])
    pd.testing.assert_frame_equal(corpus.label(CELLS[:2], *batch, out=out, **SMALL), resumed[:2])
    twice = corpus.label([CELLS[6], CELLS[5], CELLS[6]], *batch, out=out, **SMALL)  # any cells, in any order
    pd.testing.assert_frame_equal(twice, resumed.iloc[[6, 5, 6]].reset_index(drop=True))


def test_labels_of_other_settings_are_refused(batch, tmp_path):
    out = tmp_path / "labels.jsonl"
    corpus.label(CELLS[:2], *batch, out=out, **SMALL)
    with pytest.raises(ValueError, match="seed: 0 -> 1"):
        corpus.label(CELLS[:2], *batch, out=out, **{**SMALL, "seed": 1})
    with pytest.raises(ValueError, match="batch: "):
        corpus.label(CELLS[:2], batch[0] + 1, batch[1], out=out, **SMALL)


def test_failures_are_counted_and_never_scored(batch, tmp_path):
    with pytest.warns(UserWarning, match="1 of 3 cells could not be scored.*InvalidCellError"):
        table = corpus.label([CELLS[0], NO_PATH, CELLS[1]], *batch, out=tmp_path / "a.jsonl", **SMALL)
    assert table["error"].tolist()[::2] == ["", ""] and all(math.isnan(v) for v in corpus.zc_matrix(table)[1])
    assert len(corpus.labelled_only(table)) == 2
    images = torch.full_like(batch[0], float("nan"))
    with pytest.warns(UserWarning, match="2 of 2 cells .*ProxyError"):
        corpus.label(CELLS[:2], images, batch[1], out=tmp_path / "b.jsonl", **SMALL)


def test_two_processes_give_the_same_labels(labelled, batch, tmp_path):
    found = corpus.label(CELLS, *batch, out=tmp_path / "labels.jsonl", **{**SMALL, "workers": 2})
    pd.testing.assert_frame_equal(found, labelled, check_exact=True)  # one thread a cell: bit for bit


# ---- labelling that is killed

FORTY = {"seed": 0, "width": 8, "repeats": 1, "workers": 2, "progress": False}
SCRIPT = """
import sys
import torch
from graphnas_lib.proxies import corpus
from graphnas_lib.space import sample_cells

g = torch.Generator().manual_seed(0)
batch = torch.randn(6, 3, 8, 8, generator=g), torch.randint(10, (6,), generator=g)
options = {"seed": 0, "width": 8, "repeats": 1, "progress": False}
corpus.label(sample_cells(40, seed=9), *batch, out=sys.argv[1], **options)
"""  # the labelling of `forty`, in two processes of its own


@pytest.fixture(scope="module")
def forty(batch, tmp_path_factory):
    """Forty cells and their labels of a run that nobody stopped."""
    cells = sample_cells(40, seed=9)
    return cells, corpus.label(
        cells, *batch, out=tmp_path_factory.mktemp("forty") / "labels.jsonl", **{**FORTY, "workers": 1}
    )


def finished(out: Path) -> list[str]:
    """The whole lines of finished cells."""
    return (
        [line for line in out.read_text().splitlines(keepends=True)[1:] if line.endswith("\n")] if out.exists() else []
    )


def spied(monkeypatch, folder: Path, kill_at: str = "", times: int = 1):
    """Note every cell that any process labels; the first `times` that are to label the cell `kill_at` die instead.

    The spy is a local function: it goes to other processes by value.
    """
    original, log, fired = corpus._label, folder / "log", folder / "fired"

    def spy(cell, *rest):
        if cell.key() == kill_at and (fired.stat().st_size if fired.exists() else 0) < times:
            with fired.open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        row = original(cell, *rest)
        with log.open("a") as file:
            file.write(f"{cell.key()}\n")
        return row

    monkeypatch.setattr(corpus, "_label", spy)
    return lambda: Counter(log.read_text().split())


@pytest.mark.skipif(os.name != "posix", reason="kill -9 and process groups are POSIX")
def test_labelling_goes_on_after_kill_9_and_labels_no_finished_cell_twice(forty, batch, tmp_path, monkeypatch):
    cells, whole = forty
    out = tmp_path / "labels.jsonl"
    run = subprocess.Popen([sys.executable, "-c", SCRIPT, str(out)], start_new_session=True)
    try:
        while len(finished(out)) < 6:
            assert run.poll() is None, "the labelling must not end before it is killed"
            time.sleep(0.005)
    finally:
        os.killpg(run.pid, signal.SIGKILL)  # the workers too
        assert run.wait() == -signal.SIGKILL
    kept = finished(out)
    assert 6 <= len(kept) < 40
    labelled = spied(monkeypatch, tmp_path)
    pd.testing.assert_frame_equal(corpus.label(cells, *batch, out=out, **FORTY), whole, check_exact=True)
    assert finished(out)[: len(kept)] == kept and len(finished(out)) == 40
    assert labelled().total() == 40 - len(kept) and set(labelled().values()) == {1}  # each of the others once


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_a_worker_killed_alone_is_replaced(forty, batch, tmp_path, monkeypatch):
    cells, whole = forty
    out = tmp_path / "labels.jsonl"
    labelled = spied(monkeypatch, tmp_path, kill_at=cells[30].key())
    pd.testing.assert_frame_equal(corpus.label(cells, *batch, out=out, **FORTY), whole, check_exact=True)
    assert (tmp_path / "fired").exists() and len(finished(out)) == 40  # each kept once
    assert set(labelled()) == {cell.key() for cell in cells}


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_a_worker_that_is_killed_again_and_again_ends_in_what_to_do(forty, batch, tmp_path, monkeypatch):
    cells, whole = forty
    out = tmp_path / "labels.jsonl"
    labelled = spied(monkeypatch, tmp_path, kill_at=cells[30].key(), times=3)
    with pytest.raises(
        RuntimeError, match=r"process was killed, .* 3 times; \d+ of 40 cells .*Run the same command again"
    ):
        corpus.label(cells, *batch, out=out, **FORTY)
    kept, before = finished(out), labelled()
    assert len(kept) >= 12
    pd.testing.assert_frame_equal(corpus.label(cells, *batch, out=out, **FORTY), whole, check_exact=True)
    assert finished(out)[: len(kept)] == kept
    assert (labelled() - before).total() == 40 - len(kept)


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
    found = corpus.label(cells, *batch, out=tmp_path / "labels.jsonl", dask=cluster.scheduler_address, **FORTY)
    assert (tmp_path / "fired").exists() and before != {worker.pid for worker in cluster.workers.values()}
    pd.testing.assert_frame_equal(found, whole, check_exact=True)
    assert set(labelled()) == {cell.key() for cell in cells}


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_a_cluster_that_gives_a_task_up_ends_in_what_to_do(forty, batch, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed", reason="dask.distributed is optional")
    import dask

    cells, whole = forty
    spied(monkeypatch, tmp_path, kill_at=cells[18].key(), times=3)
    local = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}), distributed.LocalCluster(**local) as cluster:
        options = {"out": tmp_path / "labels.jsonl", "dask": cluster.scheduler_address, **FORTY}
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
    assert live_nodes(codes).to_dict() == {n: live.count(n) for n in sorted(set(live))}
    pictures = {svg(datacard.plot_distributions(table, codes)) for _ in range(2)}
    assert len(pictures) == 1 and pictures.pop().count("live operation nodes") >= 1
