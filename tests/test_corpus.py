"""Cells as tables, and the labelling loop: parallel, resumable, failures counted."""

import math

import pandas as pd
import pytest
import torch

from graphnas_lib import artifacts, corpus, proxies
from graphnas_lib.space import Cell, sample_cells

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
    with pytest.raises(ValueError, match="\\['edges'\\] are missing"):
        corpus.cells_from_table(table.drop(columns="edges"))


def test_labels_are_the_zc_vectors(labelled, batch):
    assert corpus.cells_from_table(labelled) == CELLS
    z = corpus.zc_matrix(labelled)
    assert z.shape == (7, 4) and z.dtype == torch.float64
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
    pd.testing.assert_frame_equal(found, labelled, rtol=1e-3)  # threads differ between the processes


def test_a_dask_cluster_gives_the_same_labels(labelled, batch, tmp_path):
    distributed = pytest.importorskip("distributed", reason="dask.distributed is optional")
    local = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**local) as cluster:
        found = corpus.label(CELLS, *batch, out=tmp_path, dask=cluster.scheduler_address, **SMALL)
    pd.testing.assert_frame_equal(found, labelled, rtol=1e-3)
