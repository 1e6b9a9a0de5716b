"""Public tables of fully trained networks that lie inside the paper's space: accuracies, latencies, and whose they are.

NATS-Bench's 15,625 cells are cells of this space wherever they are connected; HW-NAS-Bench-360 trained the same cells
on two tasks of NAS-Bench-360, TransNAS-Bench-101 those without pooling on seven. Networks of NAS-Bench-Macro and of
TransNAS-Bench-101's macro space are sequences of triples. Cells that compute the same function (`Cell.key`) were
trained more than once, which tells each table's noise. Every file is checked by rows and MD5 before it is believed.
"""

from __future__ import annotations

import hashlib
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from graphnas_lib.benchmarks.nats import is_connected
from graphnas_lib.datasets import MissingDataError, located
from graphnas_lib.macro import Architecture, Triple
from graphnas_lib.space import Cell
from graphnas_lib.store import CorruptArtifactError


@dataclass(frozen=True, kw_only=True)
class Table:
    """One file of a public benchmark.

    Attributes:
        file: its name, in `$GRAPHNAS_DATA/tables`, `data/tables` or one folder up.
        rows, md5: what a complete file has.
        source: repository and commit that the numbers were copied from.
        licence: of that repository; "none stated" keeps a table out of this repository.
    """

    file: str
    rows: int
    md5: str
    source: str
    licence: str


_FACTS = tomllib.loads(Path(__file__).with_name("tables.toml").read_text(encoding="utf-8"))
PUBLIC = {name: Table(**facts) for name, facts in _FACTS.items()}
NATS_TASKS = {"cifar10": "cifar10", "cifar100": "cifar100", "ImageNet16-120": "imagenet16"}  # printed -> ours
NB360_TASKS = {"ninapro_test_acc": "ninapro", "darcy_one_minus_rel_l2": "darcy"}
TNB_TASKS = (*("class_object", "class_scene", "jigsaw", "room_layout", "segmentsemantic", "normal", "autoencoder"),)
CELL_TASKS = (*NATS_TASKS.values(), *NB360_TASKS.values(), *TNB_TASKS)  # on each, larger is better
NB_MACRO_WIDTHS = (64, 64, 128, 128, 128, 256, 256, 256)
NB_MACRO_STRIDES = (2, 1, 2, 1, 1, 2, 1, 1)
NB_MACRO_BLOCKS = ("skip", "mbconv3_3", "mbconv6_5")  # digits 0, 1, 2
NB_MACRO_FIRST_NORM = 512  # parameters that `count` has and the printed figure lacks: the norm before the head, 2 x 256
TNB_MODULE = {"1": (1, 1), "2": (2, 1), "3": (1, 2), "4": (2, 2)}  # digit -> (width factor, stride)
TNB_FIRST_WIDTH = 64


def find(name: str) -> Path:
    """Where a table lies.

    Raises:
        MissingDataError: it is nowhere; the message says whose it is.
    """
    table = PUBLIC[name]
    if path := located(table.file):
        return path
    raise MissingDataError(
        f"The benchmark table '{name}' must be at hand as tables/{table.file} in $GRAPHNAS_DATA or data/; it is not. "
        f"It comes from {table.source}."
    )


def read(name: str) -> pd.DataFrame:
    """A table as its file has it, architectures as text.

    Raises:
        MissingDataError: it is not at hand.
        CorruptArtifactError: the file is not the published one, by MD5 or rows.
    """
    path = find(name)
    return _read(path, path.stat().st_mtime_ns, name).copy()


@lru_cache(maxsize=16)
def _read(path: Path, _changed: int, name: str) -> pd.DataFrame:
    table, found = PUBLIC[name], hashlib.md5(path.read_bytes()).hexdigest()
    if found != table.md5:
        raise CorruptArtifactError(
            f"{path.name} must have the MD5 {table.md5}; it has {found}. Copy it again: it comes from {table.source}."
        )
    frame = pd.read_csv(path, dtype={"arch": str})
    if len(frame) != table.rows:
        raise CorruptArtifactError(f"{path.name} must have {table.rows:,} rows; it has {len(frame):,}. Copy it again.")
    return frame


def available() -> list[str]:
    """Names of the tables at hand."""
    there = []
    for name in PUBLIC:
        with suppress(MissingDataError):  # or a $GRAPHNAS_DATA that is no folder
            find(name)
            there.append(name)
    return there


# ---- cells


def accuracies() -> pd.Series:
    """NATS-Bench's test accuracy on CIFAR-10 after 200 epochs, in percent, averaged over its seeds; raises as `read`.

    Index: architecture strings.
    """
    return read("nats").set_index("arch_str")["nats_tss_test_acc_cifar10"].dropna().rename("cifar10")


def nats_string(index: int) -> str:
    """The architecture string of an index of NATS-Bench-TSS, 0 to 15,624, by the same file."""
    found = read("nats").set_index("index")["arch_str"]
    if index not in found.index:
        raise ValueError(f"A NATS-Bench index must be one of the {len(found):,} of its table; got {index!r}.")
    return found[index]


def cells() -> pd.DataFrame:
    """Every NATS-Bench cell with what the tables at hand know of it, in the benchmark's own order.

    Returns:
        Index: the benchmark's index. Columns: arch; key, of the function that the cell computes ("" where it is
        disconnected, and so no cell of this space); epoch12, validation accuracy after 12 epochs (CIFAR-10); and those
        of `CELL_TASKS` whose tables are there, larger being better, NaN where a cell was not trained.
    """
    nats = read("nats")
    found = {"arch": nats["arch_str"], "key": nats["arch_str"].map(cell_key)}
    found["epoch12"] = nats["nb201_cifar10_hp12_val_acc"]
    found |= {task: nats[f"nats_tss_test_acc_{printed}"] for printed, task in NATS_TASKS.items()}
    there = available()
    if "nb360" in there:
        nb360 = read("nb360").set_index("index")
        found |= {task: nb360[printed] for printed, task in NB360_TASKS.items()}
    if "tnb_micro" in there:
        micro = read("tnb_micro").set_index("nb201_index")
        found |= {task: micro[f"val_{task}"] for task in TNB_TASKS}
    return pd.DataFrame(found, index=nats.index)


@lru_cache(maxsize=1 << 15)
def cell_key(text: str) -> str:
    """Key of the function that a NATS-Bench cell computes; "" where it is disconnected."""
    return Cell.from_nats(text).key() if is_connected(text) else ""


def distinct(table: pd.DataFrame) -> pd.DataFrame:
    """One row a function: means over the cells that compute it, `copies` of them, arch of the first.

    Args:
        table: from `cells` or `macro_networks`, or rows of it.
    """
    kept = table[table["key"] != ""]
    grouped = kept.groupby("key", sort=False)
    values = grouped[list(kept.select_dtypes("number").columns)].mean()
    return pd.concat([grouped["arch"].first(), values, grouped.size().rename("copies")], axis=1)


def noise(table: pd.DataFrame, task: str) -> float:
    """Standard deviation of training anew: pooled within the cells that compute one function, in the task's unit."""
    known = table[(table["key"] != "") & table[task].notna()]
    groups = known.groupby("key")[task]
    sizes = groups.size()
    return float(np.sqrt((groups.var(ddof=1).fillna(0) * (sizes - 1)).sum() / (sizes - 1).sum()))


# ---- networks


def _block(operation: str, *, residual: bool) -> Cell:
    """One operation, with an edge past it where the block is residual."""
    return Cell.from_edges([(0, 1), (1, 7), *([(0, 7)] if residual else [])], [operation] + [None] * 5)


def nb_macro_architecture(code: str) -> Architecture:
    """A network of NAS-Bench-Macro as a sequence of triples: stem, eight blocks in three stages, head of 1,280.

    Its `count()` parameters exceed the printed ones by `NB_MACRO_FIRST_NORM`; MACs agree exactly. A block that enters a
    stage has no residual edge.

    Args:
        code: eight digits: 0 identity (a projection where it enters a stage), 1 inverted bottleneck of expansion 3 and
            kernel 3, 2 of expansion 6 and kernel 5.
    """
    if len(code) != len(NB_MACRO_WIDTHS) or set(code) - set("012"):
        raise ValueError(f"A NAS-Bench-Macro code must be eight digits of 0, 1 and 2; got {code!r}.")
    triples = [Triple(_block("skip", residual=False), 32, 1)]
    for digit, width, stride in zip(code, NB_MACRO_WIDTHS, NB_MACRO_STRIDES, strict=True):
        residual = digit != "0" and triples[-1].channels == width
        triples.append(Triple(_block(NB_MACRO_BLOCKS[int(digit)], residual=residual), width, stride))
    return Architecture(tuple(triples), head_channels=1280)


def nb_macro_key(code: str) -> str:
    """Equal for codes of one network: identities inside a stage stand anywhere after the stage's entry."""
    stages = (code[:2], code[2:5], code[5:])
    return "".join(stage[0] + stage[1:].replace("0", "").ljust(len(stage) - 1, "0") for stage in stages)


def tnb_macro_architecture(code: str) -> Architecture:
    """A macro network of TransNAS-Bench-101: four to six modules of two residual blocks of two 3x3 convolutions.

    Args:
        code: a digit a module: 1 keeps width and side, 2 doubles the width, 3 halves the side, 4 does both; trailing
            zeros pad. The benchmark's stem halves the side once more.
    """
    digits = code.rstrip("0")
    if not 4 <= len(digits) <= 6 or set(digits) - set(TNB_MODULE):
        raise ValueError(f"A TransNAS macro code must be four to six digits of 1 to 4; got {code!r}.")
    plain = Cell.from_edges([(0, 1), (1, 2), (2, 7), (0, 7)], ["conv_3", "conv_3", *[None] * 4])
    width, triples = TNB_FIRST_WIDTH, []
    for digit in digits:
        factor, stride = TNB_MODULE[digit]
        width *= factor
        triples += [Triple(plain, width, stride), Triple(plain, width, 1)]
    return Architecture(tuple(triples), stem_stride=2)


def nb_macro_networks() -> pd.DataFrame:
    """NAS-Bench-Macro: arch, key, cifar10 (mean of three seeds, percent), sd over them, params and macs as printed."""
    table = read("nb_macro")
    runs = table[[f"test_acc_{i}" for i in range(3)]]
    known = {"cifar10": runs.mean(axis=1), "sd": runs.std(axis=1, ddof=1)}
    keys = table["arch"].map(nb_macro_key)
    return pd.DataFrame({"arch": table["arch"], "key": keys, **known, "params": table["params"], "macs": table["macs"]})


def tnb_macro_networks() -> pd.DataFrame:
    """TransNAS-Bench-101 macro: arch, key, and `TNB_TASKS`, larger being better."""
    table = read("tnb_macro")
    tasks = {task: table[f"val_{task}"] for task in TNB_TASKS}
    return pd.DataFrame({"arch": table["arch"], "key": table["arch"], **tasks})


def latencies() -> pd.DataFrame:
    """Measured milliseconds of each NATS-Bench cell's CIFAR-10 network; index as in `cells`, one column a setting."""
    table = read("latency").set_index("index")
    return table.rename(columns=lambda name: name.removesuffix("_ms"))
