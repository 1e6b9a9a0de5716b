"""Stages: made once, made again when anything that decides them changes, refused without their inputs."""

import json
import pickle
import threading
from dataclasses import fields, replace
from functools import partial

import pytest
import torch

from graphnas_lib import paper, stages
from graphnas_lib.datasets import MissingDataError
from graphnas_lib.paper import CLAIMS, STAGES, Scale, Sizes
from graphnas_lib.space import sample_cells
from graphnas_lib.stages import cells, gvae, labels, ledger, road
from graphnas_lib.store import Checkpoint, MissingArtifactError, artifacts, library


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAPHNAS_HOME", str(tmp_path))
    monkeypatch.delenv("GRAPHNAS_DATA", raising=False)
    monkeypatch.setitem(paper.SCALES, "smoke", replace(paper.SCALES["smoke"], unlabelled=120, labelled=16))
    return tmp_path


def tree(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_fresh_stage_is_not_made_again(home):
    first = stages.produce("cells", "smoke", device="cpu", progress=False)
    written = (home / "data/smoke/cells.manifest.json").stat().st_mtime_ns
    assert stages.produce("cells", "smoke", device="cpu", progress=False) == first
    assert (home / "data/smoke/cells.manifest.json").stat().st_mtime_ns == written
    other = stages.produce("cells", "smoke", seed=1, device="cpu", progress=False)
    assert other["files"] != first["files"]
    again = stages.run("cells", "smoke", device="cpu", progress=False)
    assert again["files"] == first["files"]  # same seed, same bytes


def test_smoke_writes_into_its_own_folder_alone(home):
    stages.produce("cells", "smoke", device="cpu", progress=False)
    made = {"data/smoke/cells.manifest.json", "data/smoke/cells.safetensors"}
    assert tree(home) == made | {"data/smoke/.locks/cells"}


def test_the_key_follows_sizes_seed_data_and_inputs(home, monkeypatch, tmp_path):
    def key(seed=0):
        return stages.freshness("labels", "smoke", seed, "cpu")

    empty = key()
    stages.produce("cells", "smoke", device="cpu", progress=False)
    keys = [empty, key(), key(seed=1)]
    monkeypatch.setitem(paper.SCALES, "smoke", replace(paper.SCALES["smoke"], labelled=17))
    keys.append(key())
    (home / "data" / "cifar-10-batches-bin").mkdir()
    keys.append(key())
    assert len(set(keys)) == 5
    monkeypatch.setitem(paper.SCALES, "smoke", replace(paper.SCALES["smoke"], labelled=17, table4_epochs=9))
    assert key() == keys[-1]  # labels do not read that size


def job(name: str, **options) -> stages.Stage:
    """A run of a stage at smoke, on one thread."""
    given = {"seed": 0, "device": torch.device("cpu"), "identity": "test", "progress": False} | options
    return stages.Stage(name=name, scale=paper.sizes(name, "smoke"), **given)


class Watched(Sizes):
    """Sizes that remember which were asked for."""

    def __getattribute__(self, name):
        if not name.startswith("_"):
            object.__getattribute__(self, "__dict__").setdefault("_asked", set()).add(name)
        return object.__getattribute__(self, name)


def test_a_stage_declares_the_sizes_it_reads_and_no_other(home):
    for name in ("cells", "labels", "families"):
        scale = Watched(**vars(paper.sizes(name, "smoke")))
        files, facts = road.MODULES[name].make(replace(job(name), scale=scale))
        artifacts.save(name, files, scale="smoke", seed=0, seconds=0, config=facts, key="")
        assert scale._asked - {"name"} == set(STAGES[name].sizes)


def test_a_stage_can_read_no_size_that_it_does_not_declare():
    scale = pickle.loads(pickle.dumps(paper.sizes("cells", "smoke")))  # as worker processes get it
    assert scale.name == "smoke" and scale.unlabelled == paper.SCALES["smoke"].unlabelled
    with pytest.raises(AttributeError, match=r"declare .* in graphnas_lib/paper/stages.toml.*asks for 'labelled'"):
        scale.labelled  # noqa: B018


def test_stages_declare_stages_before_them_and_sizes_that_there_are():
    before = set()
    for name, stage in STAGES.items():
        assert set(stage.needs) <= before, name
        assert set(stage.sizes) < {field.name for field in fields(Scale)}, name
        before.add(name)
    assert set(STAGES) == set(road.MODULES)


def test_an_edit_of_a_drawing_makes_no_stage_stale_and_of_what_it_stands_on_does(monkeypatch):
    files = artifacts_of("labels")
    assert {"stages/labels.py", "proxies/measures.py", "store/jobs.py"} <= files
    assert not {name for name in files if name.startswith("plots/")} | {"paper/scales.py", "stages/road.py"} & files
    assert "stages/table4.py" not in files and "stages/gvae.py" in artifacts_of("ccnf")


def artifacts_of(stage: str) -> set[str]:
    """Files that a stage's key covers, as "room/module.py"."""
    paths = library.library_files([f"graphnas_lib.stages.{stage}"], without=road.NOT_HASHED)
    return {f"{path.parent.name}/{path.name}" for path in paths}


def test_missing_inputs_are_named_with_the_command(home):
    with pytest.raises(MissingArtifactError, match=r"'gvae' at scale 'smoke'|'cells' at scale 'smoke'"):
        stages.produce("ccnf", "smoke", device="cpu", progress=False)
    assert tree(home) == set()


@pytest.mark.parametrize("scale", ["lite", "paper"])
def test_lite_and_paper_are_opened_and_never_made_by_a_notebook(home, scale):
    with pytest.raises(MissingArtifactError, match=rf"run cells --scale {scale}"):
        stages.produce("cells", scale, device="cpu", progress=False)
    assert tree(home) == set()


def test_unknown_names_are_refused(home):
    with pytest.raises(ValueError, match=r"stage must be one of cells, labels.*got 'cell'"):
        stages.run("cell", "smoke")
    with pytest.raises(ValueError, match="scale must be one of"):
        stages.run("cells", "tiny")


def _row(value):
    return {"value": value}


def _fail():
    raise RuntimeError("killed here")


def test_rows_go_on_at_the_next_job(home):
    jobs = {"a": partial(_row, 1), "b": _fail, "c": partial(_row, 3)}
    with pytest.raises(RuntimeError, match="killed here"):
        job("cells").collect(jobs, workers=1)
    calls = {"a": _fail, "b": partial(_row, 2), "c": partial(_row, 3)}  # "a" must not run again
    found = job("cells").collect(calls, workers=1)
    assert [(row["id"], row["value"]) for row in found] == [("a", 1), ("b", 2), ("c", 3)]


# ---- settings that stand in the code


def test_state_is_kept_under_its_settings(home, capsys):
    """The same settings go on, others start over, which one line tells; the old state waits for the old settings."""
    run = job("cells")
    config = gvae.planned(job("gvae"))[0][0].config
    run.checkpoint("loop", config, 3).save({"step": 7})
    assert run.checkpoint("loop", config, 3).load() == {"step": 7} and capsys.readouterr().out == ""
    assert run.checkpoint("loop", replace(config, kl_weight=0.5), 3).load() is None
    told = capsys.readouterr().out
    assert told.count("\n") == 1 and "cells: settings of loop were edited since its checkpoint; it starts over" in told
    assert run.checkpoint("other", config, 3).load() is None and capsys.readouterr().out == ""
    assert run.checkpoint("loop", config, 3).load() == {"step": 7}
    with pytest.raises(TypeError, match="must be dataclasses or JSON-ready; got object"):
        run.checkpoint("loop", object())


def test_a_run_resumed_after_an_edit_of_the_weights_equals_one_that_only_knew_the_new(home, monkeypatch):
    """Killed at step 3 of 6 under one KL weight, gone on under another: nothing of the old training is left in it."""
    sizes = {"gvae_steps": 6, "gvae_batch": 16, "gvae_hidden": 16, "latent_dim": 16, "labels_held_out": 4}
    monkeypatch.setitem(
        paper.SCALES, "smoke", replace(paper.SCALES["smoke"], **sizes, n_clusters=2, cluster_grid=(1, 2))
    )
    for name in ("cells", "labels", "families"):
        stages.produce(name, "smoke", device="cpu", progress=False)
    run, data = job("gvae"), gvae.Data(job("gvae"))

    def killed_at_step_3() -> None:
        saves = []

        def save(self, state):
            saves.append(state["step"])
            original(self, state)
            if len(saves) == 3:
                raise KeyboardInterrupt

        original = Checkpoint.save
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoint, "due", lambda self: True)
            patch.setattr(Checkpoint, "save", save)
            with pytest.raises(KeyboardInterrupt):
                gvae.planned(run)[0][0].train(run, data)
        assert saves == [1, 2, 3]

    def weights(stage) -> dict:
        return gvae.planned(stage)[0][0].train(stage, data)[0].state_dict()

    killed_at_step_3()
    old = weights(run)  # gone on without an edit
    assert all(torch.equal(value, weights(replace(run, identity="whole"))[name]) for name, value in old.items())
    for point in (home / "data/smoke/checkpoints").glob("gvae-test*"):
        point.unlink()
    killed_at_step_3()
    monkeypatch.setitem(gvae.WEIGHTS, "kl_weight", 0.5)
    edited, whole = weights(run), weights(replace(run, identity="new"))
    assert all(torch.equal(value, whole[name]) for name, value in edited.items())
    assert any(not torch.equal(value, old[name]) for name, value in edited.items())


def test_each_ablation_has_state_of_its_own_whatever_its_place(home, monkeypatch):
    run = job("gvae")
    before = {short.change: run.checkpoint(short.change, short).path for short in gvae.planned(run)[1]}
    monkeypatch.setattr(gvae, "ABLATION", dict(reversed(gvae.ABLATION.items())))
    after = {short.change: run.checkpoint(short.change, short).path for short in gvae.planned(run)[1]}
    assert before == after and len(set(before.values())) == len(gvae.ABLATION)


# ---- the ledger


def test_every_claim_has_a_finding():
    assert set(ledger.FINDINGS) == {claim.id for claim in CLAIMS}


def test_without_artifacts_measured_claims_read_not_run_and_exact_ones_hold(home):
    table = ledger.claims("smoke").set_index("id")
    assert table.loc["micro-space", "status"] == "reproduced"
    assert table.loc["superset", "status"] == "differs"
    assert table.loc["mean-accuracy", "status"].startswith("not run (No artifact of stage 'table1'")
    measured = table[table["scale"] != "-"]
    assert not (measured["status"] == "reproduced").any()
    assert ledger.claims("smoke")["status"].str.startswith(ledger.STATUSES).sum() == len(CLAIMS)


@pytest.mark.parametrize(
    ("finding", "scale", "expected"),
    [
        (ledger.Finding(holds=True), "smoke", "not decided"),
        (ledger.Finding(holds=False), "smoke", "not decided"),
        (ledger.Finding(holds=True), "lite", "reduced scale"),
        (ledger.Finding(holds=True), "paper", "reproduced"),
        (ledger.Finding(holds=True, exact=True), "smoke", "reproduced"),
        (ledger.Finding(holds=False), "paper", "differs"),
        (ledger.Finding(), "paper", "not decided"),
        (ledger.Finding(why="why"), "paper", "not run (why)"),
    ],
)
def test_status(finding, scale, expected):
    assert ledger.status(finding, scale) == expected


def test_cells_are_scored_on_the_images_of_the_labels_alone(home):
    stages.produce("cells", "smoke", device="cpu", progress=False)
    facts = {"data": "other images", "resolution": 16, "classes": 10}
    artifacts.save("labels", {"labels_card.md": ""}, scale="smoke", seed=0, seconds=0, config=facts)
    with pytest.raises(MissingDataError, match="images .* labels, other images; found are .*igits"):
        labels.score(job("gvae"), sample_cells(1, seed=0), "gvae")
    assert not list((home / "data/smoke/checkpoints").iterdir())


def test_the_seconds_of_a_killed_run_count(home, monkeypatch):
    whole = stages.run("cells", "smoke", device="cpu", progress=False)
    noted = home / "data/smoke/checkpoints" / f"cells-{whole['key']}.json"
    assert 0 < whole["seconds"] < 1000 and not noted.exists()
    make, waited = cells.make, threading.Event()

    def killed(stage):
        waited.wait(0.2)
        assert artifacts.read(noted)["seconds"] > 1000  # noted while it runs
        raise RuntimeError("killed here")

    artifacts.write(noted, {"seconds": 1000.0})
    monkeypatch.setattr(road, "NOTED_SECONDS", 0.02)
    monkeypatch.setattr(cells, "make", killed)
    with pytest.raises(RuntimeError, match="killed here"):
        stages.run("cells", "smoke", device="cpu", progress=False)
    monkeypatch.setattr(cells, "make", make)
    after_kill = artifacts.read(noted)["seconds"]
    assert stages.run("cells", "smoke", device="cpu", progress=False)["seconds"] > after_kill - 0.01 > 1000
    assert not noted.exists()
    artifacts.write(noted, {"seconds": 1000.0})
    assert stages.run("cells", "smoke", device="cpu", fresh=True, progress=False)["seconds"] < 1000


def test_a_killed_stage_goes_on_and_leaves_no_checkpoint(home, monkeypatch):
    """Labels of a killed run are kept, cell by cell; a run under other sizes does not take them at smoke."""
    stages.produce("cells", "smoke", device="cpu", progress=False)
    forget, kept = road._forget, {}

    def keep(checkpoints, stage):
        kept.update({path.name: path.read_text() for path in checkpoints.glob(f"{stage}-*_scores-*")})
        forget(checkpoints, stage)

    monkeypatch.setattr(road, "_forget", keep)
    whole = stages.run("labels", "smoke", device="cpu", progress=False)
    checkpoints = home / "data/smoke/checkpoints"
    assert not list(checkpoints.glob("*"))
    ((name, text),) = kept.items()
    header, *lines = text.splitlines(keepends=True)
    marked = [json.dumps([cell, label | {"naswot": 1.0}]) + "\n" for cell, label in map(json.loads, lines[:10])]
    left = header + "".join(marked) + lines[10][:20]  # as a killed run leaves it, in the middle of a line
    (checkpoints / name).write_text(left)
    resumed = stages.run("labels", "smoke", device="cpu", progress=False)
    table = artifacts.load("labels", "labels.parquet", "smoke")
    assert (table["naswot"] == 1.0).sum() == 10 and resumed["config"]["n"] == 16
    assert resumed["config"]["reference"] == whole["config"]["reference"] and not list(checkpoints.glob("*"))
    monkeypatch.setitem(paper.SCALES, "smoke", replace(paper.SCALES["smoke"], labelled=15))
    (checkpoints / name).write_text(left)
    stages.run("labels", "smoke", device="cpu", progress=False)
    assert not (artifacts.load("labels", "labels.parquet", "smoke")["naswot"] == 1.0).any()
