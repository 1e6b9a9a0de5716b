"""`run --all`: the plan, the road from end to end after kills, and what it says where it cannot go on."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from simulated_cuda import simulated_cuda
from test_device import MICRO, home_of

from graphnas_lib import paper, stages
from graphnas_lib.cli import main
from graphnas_lib.datasets import MissingDataError
from graphnas_lib.paper import STAGES, Sizes
from graphnas_lib.stages import labels, whole
from graphnas_lib.stages.sequence import settings
from graphnas_lib.store import Checkpoint, Journal, artifacts

ROOT = Path(__file__).resolve().parents[1]
FIRST = ("cells", "labels", "families", "table1", "evidence")  # of which the last stands on no other
MEASURED: dict[tuple[str, str], dict[str, float]] = {}  # hours of sizes on a device: measuring takes seconds


def hours_once(scale: str, device: str = "auto", *, measure=stages.pace.hours) -> dict[str, float]:
    if (key := (repr(paper.SCALES[scale]), device)) not in MEASURED:
        MEASURED[key] = measure(scale, device)
    return MEASURED[key]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAPHNAS_HOME", str(tmp_path))
    monkeypatch.delenv("GRAPHNAS_DATA", raising=False)
    for scale in ("smoke", "paper"):
        monkeypatch.setitem(paper.SCALES, scale, replace(paper.SCALES["smoke"], name=scale, **MICRO))
    monkeypatch.setattr(labels, "processes", lambda device: 1)
    monkeypatch.setattr(whole, "STAGES", {name: STAGES[name] for name in FIRST})
    monkeypatch.setattr(stages.pace, "hours", hours_once)
    return tmp_path


def states(scale: str = "smoke") -> dict[str, str]:
    return stages.plan(scale, device="cpu").set_index("stage")["state"].to_dict()


def test_a_killed_run_goes_on_and_equals_one_that_was_not(home, tmp_path, monkeypatch):
    """Killed between two stages' parts, and again later; what was there is not made again."""
    monkeypatch.setitem(
        paper.SCALES, "smoke", replace(paper.SCALES["smoke"], labelled=20, label_batch=8, label_resolution=8)
    )
    monkeypatch.setattr(whole, "STAGES", {name: STAGES[name] for name in FIRST[:3]})
    told, options = [], {"device": "cpu", "progress": False}

    def killed_at(n: int) -> None:
        added = []

        def add(self, name, result):
            original(self, name, result)
            added.append(name)
            if len(added) == n:
                raise KeyboardInterrupt

        original = Journal.add
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "add", add)
            with pytest.raises(KeyboardInterrupt):
                stages.run_all("smoke", tell=told.append, **options)

    killed_at(5)
    assert states()["cells"].startswith("there") and states()["labels"].startswith("goes on, 0.00 h so far")
    assert states()["families"] == "to be made"
    first = artifacts.manifest_path("cells", "smoke").stat().st_mtime_ns
    killed_at(7)
    assert stages.run_all("smoke", tell=told.append, **options) == {"labels": "made", "families": "made"}
    assert artifacts.manifest_path("cells", "smoke").stat().st_mtime_ns == first
    assert told[-1].startswith("families  made") and all(text.startswith("there") for text in states().values())
    assert stages.run_all("smoke", tell=told.append, **options) == {}  # and measures nothing
    found = artifacts.load_manifest("families", "smoke")["files"]
    monkeypatch.setenv("GRAPHNAS_HOME", str(tmp_path / "whole"))
    stages.run_all("smoke", tell=told.append, **options)
    assert artifacts.load_manifest("families", "smoke")["files"] == found


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_road_at_papers_shape_is_killed_twice_on_a_device_and_ends(tmp_path, monkeypatch, cifar):
    """Every stage under the name of paper, tiny, on the simulated device; killed in a training and in a scoring."""
    home_of(tmp_path, monkeypatch)
    (tmp_path / "data" / "lite").mkdir(parents=True)
    for path in (ROOT / "data" / "lite").glob("benchmark_*.*"):  # evidence reads them at every scale
        shutil.copy(path, tmp_path / "data" / "lite")
    monkeypatch.setitem(paper.SCALES, "paper", replace(paper.SCALES["smoke"], name="paper"))
    monkeypatch.setattr(stages.table3, "BUDGETS", stages.table3.BUDGETS[:1])
    monkeypatch.setattr(stages.table3, "SEARCHES", 1)
    for module in (stages.sequence, whole.pace):  # paper's generator has 86M weights
        monkeypatch.setattr(
            module, "settings", lambda scale, **sizes: settings(Sizes(**{**vars(scale), "name": "smoke"}), **sizes)
        )
    told, options = [], {"progress": False}
    first = ("cells", "labels", "families")  # these score cells as later ones do
    rest = set(STAGES) - set(first)
    stages.run_all("paper", device="cpu", without=rest, tell=told.append, **options)

    def killed(owner: type, name: str, n: int, of: str) -> None:
        """A run that dies after the n-th call of a method that keeps something in a file of a stage."""
        original, calls = getattr(owner, name), []

        def dying(self, *given, **named):
            original(self, *given, **named)
            calls.extend([name] * Path(str(self.path)).name.startswith(of))
            if len(calls) == n:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Checkpoint, "due", lambda self: True)
            patch.setattr(owner, name, dying)
            stages.run_all("paper", device=str(device), tell=told.append, **options)

    with simulated_cuda(1) as device:
        killed(Checkpoint, "save", 12, of="gvae")
        assert not artifacts.manifest_path("gvae", "paper").exists()
        killed(Journal, "add", 3, of="generated")
        assert artifacts.manifest_path("ccnf", "paper").exists()
        became = stages.run_all("paper", device=str(device), tell=told.append, **options)
    assert set(became.values()) == {"made"}, [line for line in told if "failed" in line]
    assert set(became) < rest  # what was there was not made again
    assert all(artifacts.manifest_path(name, "paper").exists() for name in STAGES)


def test_stages_that_fail_stop_only_those_that_read_them(home, monkeypatch):
    """Two labels make no families, so that table 1 is left out; what stands on neither has its turn."""
    told = []
    monkeypatch.setitem(paper.SCALES, "smoke", replace(paper.SCALES["smoke"], labelled=2))
    became = stages.run_all("smoke", device="cpu", progress=False, tell=told.append)
    failed = {"families": "failed", "table1": "not made", "evidence": "not made"}
    assert became == {"cells": "made", "labels": "made", **failed}
    assert "table1  not made: it reads families, gvae, ccnf" in told
    assert told[-1] == "evidence  not made: it reads benchmark_scores"


def test_paper_begins_on_no_cpu_and_no_digits_that_nobody_asked_for(home):
    for begin in (lambda **o: stages.run_all("paper", **o), lambda **o: stages.run("labels", "paper", **o)):
        with pytest.raises(ValueError, match=r"paper needs a GPU: torch .* is a build .*give --device cpu"):
            begin()
        with pytest.raises(MissingDataError, match=r"needs CIFAR-10; .*doctor --download.*--digits"):
            begin(device="cpu")
    assert not list(home.rglob("*.*"))
    with pytest.raises(artifacts.MissingArtifactError, match="or `run --all`"):  # that is past both
        stages.run("labels", "paper", device="cpu", digits=True)


def test_the_plan_is_printed_and_makes_nothing(home, capsys):
    assert main(["run", "--all", "--plan", "--scale", "paper", "--device", "cpu"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["stage", "makes", "data", "device", "hours", "state"] and len(lines) == len(FIRST)
    assert [line.split()[0] for line in lines] == list(FIRST)
    assert "60 zero-cost vectors on 16 images" in lines[1] and "no cifar10" in lines[1] and "to be made" in lines[1]
    assert not list(home.rglob("*.*"))
    assert main(["run", "--all", "--scale", "paper"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: Scale paper needs a GPU") and "\n" not in captured.err[:-1]
    assert main(["run", "cells", "--plan"]) == 1


@pytest.mark.parametrize("scale", paper.SCALES)
def test_every_stage_says_what_it_makes_and_on_which_data(scale):
    for name, stage in STAGES.items():
        assert stage.items.format(**vars(paper.sizes(name, scale)))
        assert {*stage.data, *stage.also} <= set(artifacts.DATA_FOLDERS), name
        takes_images = {"label_resolution", "tcet_resolution", "train_resolution"} & set(stage.sizes)
        assert bool(takes_images) == ("cifar10" in stage.data), name


def test_hours_follow_the_sizes(home, monkeypatch):
    monkeypatch.setattr(stages.pace, "ITEMS", 1)  # the ratio asked for below is far beyond what one item is off
    found = stages.pace.hours("smoke", "cpu")
    assert set(found) < set(STAGES) and all(0 < value < 10 for value in found.values())
    monkeypatch.setitem(paper.SCALES, "smoke", replace(paper.SCALES["smoke"], labelled=6_000_000))
    assert stages.pace.hours("smoke", "cpu")["labels"] > 1_000 * found["labels"]


def test_what_is_left_out_is_not_made_and_neither_is_what_reads_it(home):
    told = []
    options = {"device": "cpu", "progress": False, "tell": told.append}
    assert stages.run_all("smoke", without=["labels", "evidence"], **options) == {
        **{"cells": "made", "families": "not made", "table1": "not made"},
    }
    assert "families  not made: it reads labels" in told and "[1/3] cells" in told
    shown = stages.plan("smoke", device="cpu", without=["labels", "evidence"]).set_index("stage")["state"]
    assert shown["labels"] == shown["evidence"] == "left out" and shown["families"] == "to be made"
    with pytest.raises(ValueError, match="Stages to leave out are among cells, .*; got tabel2"):
        stages.run_all("smoke", without=["tabel2"], **options)
