"""Stages: made once, made again when anything that decides them changes, refused without their inputs."""

import threading
from dataclasses import asdict, replace

import pytest
import torch

from graphnas_lib import paper, stages
from graphnas_lib.datasets import MissingDataError
from graphnas_lib.paper import CLAIMS
from graphnas_lib.space import sample_cells
from graphnas_lib.stages import STAGES, labels, ledger, road, rows
from graphnas_lib.store import MissingArtifactError, artifacts


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
    assert tree(home) == {"data/smoke/cells.manifest.json", "data/smoke/cells.safetensors"}


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


class Watched:
    """A scale that remembers which sizes were asked of it."""

    def __init__(self, scale):
        self._scale, self.asked = scale, set()

    def __getattr__(self, name):
        self.asked.add(name)
        return getattr(self._scale, name)


def test_a_stage_reads_no_size_that_its_key_leaves_out(home):
    for name in ("cells", "labels", "families"):
        scale = Watched(paper.SCALES["smoke"])
        job = stages.Stage(name, scale, 0, torch.device("cpu"), "test", progress=False)
        files = road._function(name)(job)
        artifacts.save(name, files, scale="smoke", seed=0, seconds=0, config=job.config, key="")
        known = set(road.sizes_read(f"graphnas_lib.stages.{name}", paper.SCALES["smoke"]))
        assert scale.asked - {"name"} <= known < set(asdict(paper.SCALES["smoke"]))


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


def test_every_stage_needs_stages_before_it():
    for i, stage in enumerate(STAGES):
        assert set(stages.NEEDS[stage]) <= set(STAGES[:i])


def _row(value):
    return {"value": value}


def _fail():
    raise RuntimeError("killed here")


def test_rows_go_on_at_the_next_job(tmp_path):
    from functools import partial

    point = artifacts.Checkpoint(tmp_path / "rows.safetensors")
    options = {"device": torch.device("cpu"), "progress": False, "workers": 1}
    jobs = {"a": partial(_row, 1), "b": _fail, "c": partial(_row, 3)}
    with pytest.raises(RuntimeError, match="killed here"):
        rows.collect(jobs, point, **options)
    calls = {"a": _fail, "b": partial(_row, 2), "c": partial(_row, 3)}  # "a" must not run again
    found = rows.collect(calls, point, **options)
    assert [(row["id"], row["value"]) for row in found] == [("a", 1), ("b", 2), ("c", 3)]


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
    assert ledger.status_counts(ledger.claims("smoke")).sum() == len(CLAIMS)


@pytest.mark.parametrize(
    ("finding", "scale", "expected"),
    [
        (ledger.Finding("x", holds=True), "smoke", "not decided"),
        (ledger.Finding("x", holds=False), "smoke", "not decided"),
        (ledger.Finding("x", holds=True), "lite", "reduced scale"),
        (ledger.Finding("x", holds=True), "paper", "reproduced"),
        (ledger.Finding("x", holds=True, exact=True), "smoke", "reproduced"),
        (ledger.Finding("x", holds=False), "paper", "differs"),
        (ledger.Finding("x"), "paper", "not decided"),
        (ledger.Finding("not run (why)"), "paper", "not run (why)"),
    ],
)
def test_status(finding, scale, expected):
    assert ledger.status(finding, scale) == expected


def test_cells_are_scored_on_the_images_of_the_labels_alone(home):
    stages.produce("cells", "smoke", device="cpu", progress=False)
    facts = {"data": "other images", "resolution": 16, "classes": 10}
    artifacts.save("labels", {"labels_card.md": ""}, scale="smoke", seed=0, seconds=0, config=facts)
    job = stages.Stage("gvae", paper.SCALES["smoke"], 0, torch.device("cpu"), "test", progress=False)
    with pytest.raises(MissingDataError, match="images .* labels, other images; found are .*igits"):
        labels.score(job, sample_cells(1, seed=0), "gvae")
    assert not list((home / "data/smoke/checkpoints").iterdir())


def test_the_seconds_of_a_killed_run_count(home, monkeypatch):
    whole = stages.run("cells", "smoke", device="cpu", progress=False)
    noted = home / "data/smoke/checkpoints" / f"cells-{whole['key']}.json"
    assert 0 < whole["seconds"] < 1000 and not noted.exists()
    make, waited = road._function("cells"), threading.Event()

    def killed(stage):
        waited.wait(0.2)
        assert artifacts.read(noted)["seconds"] > 1000  # noted while it runs
        raise RuntimeError("killed here")

    artifacts.write(noted, {"seconds": 1000.0})
    monkeypatch.setattr(road, "NOTED", 0.02)
    monkeypatch.setattr(road, "_function", lambda _: killed)
    with pytest.raises(RuntimeError, match="killed here"):
        stages.run("cells", "smoke", device="cpu", progress=False)
    monkeypatch.setattr(road, "_function", lambda _: make)
    after_kill = artifacts.read(noted)["seconds"]
    assert stages.run("cells", "smoke", device="cpu", progress=False)["seconds"] > after_kill - 0.01 > 1000
    assert not noted.exists()
    artifacts.write(noted, {"seconds": 1000.0})
    assert stages.run("cells", "smoke", device="cpu", fresh=True, progress=False)["seconds"] < 1000


def test_a_killed_stage_goes_on_and_leaves_no_checkpoint(home, monkeypatch):
    """Labels of a killed run are kept as shards; a run under other sizes does not take them."""
    stages.produce("cells", "smoke", device="cpu", progress=False)
    whole = stages.run("labels", "smoke", device="cpu", progress=False)
    assert not list((home / "data/smoke/checkpoints").glob("*"))
    folder = home / "data/smoke/checkpoints" / f"labels-{whole['key']}"
    table = artifacts.load("labels", "labels.parquet", "smoke")
    artifacts.write(folder / "shard-0000000.parquet", table.assign(naswot=1.0))  # as a killed run leaves it
    resumed = stages.run("labels", "smoke", device="cpu", progress=False)
    assert (artifacts.load("labels", "labels.parquet", "smoke")["naswot"] == 1.0).all()
    assert resumed["config"]["n"] == 16 and not folder.exists()
    monkeypatch.setitem(paper.SCALES, "smoke", replace(paper.SCALES["smoke"], labelled=15))
    artifacts.write(folder / "shard-0000000.parquet", table.assign(naswot=1.0))
    stages.run("labels", "smoke", device="cpu", progress=False)
    assert not (artifacts.load("labels", "labels.parquet", "smoke")["naswot"] == 1.0).any()
