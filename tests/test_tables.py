"""Public tables of trained networks: read back exactly, joined to cells and networks of this space."""

import lzma
import shutil

import numpy as np
import pandas as pd
import pytest

from graphnas_lib.benchmarks import tables
from graphnas_lib.datasets import MissingDataError
from graphnas_lib.network import count
from graphnas_lib.space import Cell
from graphnas_lib.store import CorruptArtifactError


def needs(*names):
    missing = set(names) - set(tables.available())
    return pytest.mark.skipif(bool(missing), reason=f"benchmark tables {sorted(missing)} are not at hand")


@pytest.fixture(scope="module")
def cells():
    return tables.cells()


@needs("nats", "tnb_micro")
def test_cells_read_back_exactly(cells):
    assert len(cells) == 15_625 and (cells["key"] != "").sum() == 15_284
    assert cells["key"].nunique() == 6_740 + 1  # and "" for the disconnected
    maxima = cells[["cifar10", "cifar100", "imagenet16"]].max().round(2).tolist()
    assert maxima == [94.37, 73.51, 47.31]
    assert cells["class_object"].notna().sum() == 4_096
    best = cells["cifar10"].idxmax()
    assert cells["key"][best] == Cell.from_nats(cells["arch"][best]).key()


@needs("nats")
def test_isomorphic_cells_tell_the_noise(cells):
    assert tables.noise(cells, "cifar10") == pytest.approx(0.24, abs=0.01)
    assert tables.noise(cells, "cifar100") == pytest.approx(0.38, abs=0.01)
    single = tables.distinct(cells)
    assert len(single) == 6_740 and single["copies"].sum() == 15_284
    group = cells[cells["key"] == single.index[0]]
    assert single["cifar10"].iloc[0] == pytest.approx(group["cifar10"].mean())
    shuffled = cells.assign(cifar10=np.random.default_rng(0).permutation(cells["cifar10"]))
    assert tables.noise(shuffled, "cifar10") > 5  # of other cells it is the spread of the space


@needs("nats", "nb360")
def test_tasks_of_nas_bench_360(cells):
    assert cells[["ninapro", "darcy"]].notna().all().all()
    assert cells["ninapro"].max() == pytest.approx(100 - 5.61, abs=0.01)
    assert 1 - cells["darcy"].max() == pytest.approx(0.0152, abs=1e-4)


@needs("nb_macro")
def test_every_macro_network_is_a_sequence_of_this_space():
    networks = tables.nb_macro_networks()
    assert round(networks["cifar10"].max(), 2) == 93.13 and networks["key"].nunique() == 3_969
    for code, params, macs in zip(networks["arch"], networks["params"], networks["macs"], strict=True):
        costs = count(tables.nb_macro_architecture(code))
        assert (costs.params, costs.macs) == (params + tables.NB_MACRO_FIRST_NORM, macs)


@needs("nb_macro")
def test_codes_of_one_macro_network_have_equal_costs_and_close_accuracy():
    networks = tables.nb_macro_networks()
    groups = networks.groupby("key")
    assert (groups["params"].nunique() == 1).all() and (groups["macs"].nunique() == 1).all()
    assert tables.noise(networks, "cifar10") < 0.5 < networks["cifar10"].std()


@needs("tnb_macro")
def test_transnas_macro_networks():
    networks = tables.tnb_macro_networks()
    assert len(networks) == 3_256 and round(networks["class_object"].max(), 2) == 47.42
    for code in networks["arch"]:
        architecture = tables.tnb_macro_architecture(code)
        assert len(architecture.triples) in (8, 10, 12)
        assert architecture.triples[-1].channels <= 512


@needs("latency", "nats")
def test_latencies_of_27_settings():
    table = tables.latencies()
    assert table.shape == (15_625, 27) and table.loc[0, "raspi4"] == pytest.approx(10.48198)


@pytest.mark.parametrize("code", ["0123012", "012301234", "3" * 8, "", "0121x012"])
def test_wrong_macro_codes_are_refused(code):
    with pytest.raises(ValueError, match="eight digits"):
        tables.nb_macro_architecture(code)
    with pytest.raises(ValueError, match="four to six digits"):
        tables.tnb_macro_architecture(code)


@needs("nb_macro")
def test_a_damaged_or_missing_table_is_named(tmp_path, monkeypatch):
    whole, copy = tables.find("nb_macro"), tmp_path / "tables" / "nb_macro_cifar10.csv.xz"
    for name in ("GRAPHNAS_DATA", "GRAPHNAS_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    with pytest.raises(MissingDataError, match=r"tables/nb_macro_cifar10.csv.xz in \$GRAPHNAS_DATA or data/.*xiusu"):
        tables.read("nb_macro")
    copy.parent.mkdir()
    shutil.copy(whole, copy)
    assert tables.find("nb_macro") == copy and len(tables.read("nb_macro")) == 6_561
    frame = pd.read_csv(copy, dtype={"arch": str})
    frame.loc[0, "test_acc_0"] += 1
    copy.write_bytes(lzma.compress(frame.to_csv(index=False).encode()))
    with pytest.raises(CorruptArtifactError, match="MD5"):
        tables.read("nb_macro")
