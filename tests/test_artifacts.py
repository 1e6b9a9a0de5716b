"""Files, manifests and checkpoints: written whole or not at all, verified when read."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch

from graphnas_lib.runner import Project
from graphnas_lib.store import (
    Checkpoint,
    CorruptArtifactError,
    Journal,
    MissingArtifactError,
    artifacts,
    collect,
    library,
)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAPHNAS_HOME", str(tmp_path))
    return tmp_path


CONTENTS = {
    "a.safetensors": {"x": torch.arange(6.0).reshape(2, 3)},
    "a.json": {"k": [1, 2.5, "text"]},
    "a.parquet": pd.DataFrame({"n": [1, 2], "s": ["a", "b"]}),
    "a.csv": pd.DataFrame({"n": [1, 2]}),
    "a.md": "# text\n",
}


@pytest.mark.parametrize("name", CONTENTS)
def test_every_format_comes_back(tmp_path, name):
    found = artifacts.read(artifacts.write(tmp_path / "deep" / name, CONTENTS[name]))
    if isinstance(found, pd.DataFrame):
        pd.testing.assert_frame_equal(found, CONTENTS[name])
    elif name.endswith("safetensors"):
        assert torch.equal(found["x"], CONTENTS[name]["x"])
    else:
        assert found == CONTENTS[name]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == [name]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = artifacts.write(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError):
        artifacts.write(path, {"new": object()})
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_stage_is_saved_with_a_manifest_and_verified(home):
    artifacts.save("demo", {"demo.json": {"a": 1}}, scale="smoke", seed=3, seconds=1.25, config={"n": 7}, key="k")
    manifest = artifacts.load_manifest("demo", "smoke")
    assert (manifest["seed"], manifest["seconds"], manifest["config"], manifest["key"]) == (3, 1.25, {"n": 7}, "k")
    assert artifacts.load("demo", "demo.json", "smoke") == {"a": 1}
    (home / "data/smoke/demo.json").write_text('{"a": 2}')
    with pytest.raises(CorruptArtifactError, match=r"data/smoke/demo\.json must match .*--fresh"):
        artifacts.load("demo", "demo.json", "smoke")
    (home / "data/smoke/demo.json").unlink()
    with pytest.raises(CorruptArtifactError, match="must be there"):
        artifacts.load("demo", "demo.json", "smoke")
    artifacts.manifest_path("demo", "smoke").write_text("{")
    with pytest.raises(CorruptArtifactError, match=r"demo\.manifest\.json must be JSON: .*--fresh"):
        artifacts.load("demo", "demo.json", "smoke")


def test_an_interrupted_save_does_not_leave_the_old_manifest(home):
    artifacts.save("demo", {"demo.json": {"a": 1}}, scale="smoke", seed=0, seconds=0)
    with pytest.raises(TypeError):
        artifacts.save("demo", {"demo.json": {"a": 2}, "other.json": object()}, scale="smoke", seed=0, seconds=0)
    with pytest.raises(MissingArtifactError):
        artifacts.load_manifest("demo", "smoke")


def test_a_missing_stage_names_itself_and_the_command(home):
    with pytest.raises(MissingArtifactError, match=r"stage 'gvae' at scale 'lite' .*run gvae --scale lite"):
        artifacts.load("gvae", "gvae.json", "lite")


def test_scales_have_folders_of_their_own(home):
    folders = {artifacts.data_dir(s) for s in artifacts.SCALE_NAMES} | {
        artifacts.figures_dir(s) for s in artifacts.SCALE_NAMES
    }
    assert len(folders) == 6
    with pytest.raises(ValueError, match=r"scale must be one of .*'big'"):
        artifacts.data_dir("big")


def test_default_scale_is_smoke_until_lite_has_what_is_asked_for(home):
    assert artifacts.default_scale() == artifacts.default_scale("gvae", "sequence") == "smoke"
    artifacts.save("sequence", {}, scale="lite", seed=0, seconds=0)
    assert artifacts.default_scale() == "lite" and artifacts.default_scale("gvae", "sequence") == "smoke"
    artifacts.save("gvae", {}, scale="lite", seed=0, seconds=0)
    assert artifacts.default_scale("gvae", "sequence") == "lite"


def test_data_at_hand(home, tmp_path, monkeypatch):
    monkeypatch.delenv("GRAPHNAS_DATA", raising=False)
    assert artifacts.data_at_hand() == ()
    (tmp_path / "elsewhere" / "cifar-10-batches-bin").mkdir(parents=True)
    monkeypatch.setenv("GRAPHNAS_DATA", str(tmp_path / "elsewhere"))
    (home / "data" / "nb360").mkdir(parents=True)
    assert artifacts.data_at_hand() == ("cifar10", "nb360")


def test_library_files_are_those_that_define_what_is_used():
    def told(*names, **options):
        return {f"{path.parent.name}/{path.name}" for path in library.library_files(names, **options)}

    assert told("graphnas_lib.macro") == {
        "graphnas_lib/macro.py",
        "space/cell.py",
        "space/canonical.py",
        "space/compiled.py",
    }
    assert told("graphnas_lib.store.sha256") == {
        "store/artifacts.py",
        "store/checkpoints.py",
        "store/files.py",
    }  # and no other of store
    assert "store/jobs.py" in told("graphnas_lib.store")  # a room is all of it
    assert told("graphnas_lib.macro", without=["graphnas_lib.space"]) == {"graphnas_lib/macro.py"}
    assert told("graphnas_lib.paper.STAGES") == {
        *("paper/road.py", "paper/stages.toml", "paper/scales.py", "paper/scales.toml"),
    }
    before = library.library_hash(["graphnas_lib.macro"])
    assert before == library.library_hash(["graphnas_lib.macro.Triple"]) != library.library_hash(["graphnas_lib.space"])


def test_a_function_named_like_its_module_is_found():
    assert "costs.py" in {path.name for path in library.library_files(["graphnas_lib.stages.costs"])}


def test_names_used_are_seen_across_pieces_of_code():
    pieces = [
        "from graphnas_lib import plots, space as s, stages",
        "import graphnas_lib.gvae as g, torch",
        "%bad syntax",
        "stages.table1.load('lite'); s.Cell.from_nats; torch.nn",
    ]
    assert library.names_used(pieces) == {
        *("graphnas_lib.plots", "graphnas_lib.space.Cell", "graphnas_lib.stages.table1", "graphnas_lib.gvae"),
    }


def test_checkpoint_round_trip_and_refusal(tmp_path):
    point = Checkpoint(tmp_path / "c.safetensors", every=0)
    assert point.load() is None and point.due()
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}, 1: {}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]}
    state = {"step": 4, "rows": [{"loss": 0.5}], "none": None, "optimizer": optimizer}
    point.save(state)
    found = point.load()
    assert found["step"] == 4 and found["rows"] == [{"loss": 0.5}] and found["none"] is None
    assert found["optimizer"]["param_groups"][0] == {"lr": 0.1, "betas": [0.9, 0.99]}
    assert list(found["optimizer"]["state"]) == [0, 1] and found["optimizer"]["state"][0]["step"] == 3
    (tmp_path / "c.safetensors").write_bytes(b"truncated")
    with pytest.raises(CorruptArtifactError, match=r"c\.safetensors must be a readable checkpoint.*Delete it"):
        point.load()
    point.clear()
    assert point.load() is None


def test_a_checkpoint_is_due_at_most_once_a_period(tmp_path):
    point = Checkpoint(tmp_path / "c.safetensors", every=3600)
    assert not point.due()
    assert not Checkpoint().due()
    Checkpoint().save({"a": 1})
    assert list(tmp_path.iterdir()) == []


# ---- independent jobs


def _value(i: int) -> dict:
    return {"value": i, "nan": float("nan"), "third": 1 / 3}


def _fail() -> dict:
    raise RuntimeError("killed here")


def test_finished_jobs_are_kept_at_once_and_not_run_again(tmp_path):
    path, settings = tmp_path / "deep" / "rows.jsonl", {"seed": 0, "sizes": (1, 2)}
    jobs = {"a": partial(_value, 1), "b": _fail, "c": partial(_value, 3)}
    with pytest.raises(RuntimeError, match="killed here"):
        collect(jobs, Journal(path, settings), workers=1)
    kept = path.read_text()
    assert len(kept.splitlines()) == 2  # the settings, and "a"
    jobs = {"a": _fail, "c": partial(_value, 3), "b": partial(_value, 2)}
    found = collect(jobs, Journal(path, settings), workers=1)
    assert [row["value"] for row in found] == [1, 3, 2] and found[0]["third"] == 1 / 3
    assert path.read_text().startswith(kept)
    assert collect({"c": _fail}, Journal(path, settings), workers=1)[0]["value"] == 3


def test_a_line_that_a_kill_cut_off_is_done_again(tmp_path):
    path = tmp_path / "rows.jsonl"
    collect({"a": partial(_value, 1), "b": partial(_value, 2)}, Journal(path), workers=1)
    path.write_text(path.read_text()[:-3])
    assert list(Journal(path).results) == ["a"]
    path.write_text('{"seed"')  # killed in its first line
    assert Journal(path, {"seed": 1}).results == {} and Journal(path, {"seed": 1}).results == {}


def test_results_of_other_settings_are_refused(tmp_path):
    collect({"a": partial(_value, 1)}, Journal(tmp_path / "rows.jsonl", {"seed": 0, "n": 1}), workers=1)
    with pytest.raises(ValueError, match=r"rows.jsonl differs: seed: 0 -> 1. Name another"):
        Journal(tmp_path / "rows.jsonl", {"seed": 1, "n": 1})


INTERRUPTED = """
import os, sys, time
from functools import partial
from pathlib import Path
from graphnas_lib.store import collect

def job(folder):
    Path(folder, str(os.getpid())).touch()
    time.sleep(600)

if __name__ == "__main__":
    collect({str(i): partial(job, sys.argv[1]) for i in range(4)}, workers=2)
"""


@pytest.mark.timeout(600)  # two workers start, which takes a while where cores are shared
@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_ctrl_c_leaves_no_worker_running(tmp_path):
    script, folder = tmp_path / "script.py", tmp_path / "pids"
    script.write_text(INTERRUPTED)
    folder.mkdir()
    environment = os.environ | {"PYTHONPATH": str(Path(artifacts.__file__).parents[2])}
    run = subprocess.Popen(
        [sys.executable, script, folder],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore Ctrl-C
    )
    until = time.monotonic() + 300
    while len(list(folder.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in run.communicate(timeout=250)[1]
    workers = [int(path.name) for path in folder.iterdir()]
    while any(psutil.pid_exists(pid) for pid in workers) and time.monotonic() < until:
        time.sleep(0.1)
    assert len(workers) == 2 and not any(psutil.pid_exists(pid) for pid in workers)


def test_pick_device():
    assert artifacts.pick_device("cpu").type == "cpu"
    assert artifacts.pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="needs a GPU that PyTorch can use; torch .* is a build"):
            artifacts.pick_device("cuda")


def test_notebooks_open_at_lite_once_all_that_they_need_ships(home, tmp_path):
    (tmp_path / "notebooks").mkdir()
    entries = ({"name": "01_a", "makes": ["one"]}, {"name": "02_b", "makes": ["two"]})
    (tmp_path / "notebooks" / "manifest.toml").write_text(
        "\n".join("[[notebook]]\n" + "\n".join(f"{k} = {v!r}" for k, v in {**e, "title": "t"}.items()) for e in entries)
    )
    project = Project(tmp_path, road={"one": (), "two": ("one",)})
    artifacts.save("one", {}, scale="lite", seed=0, seconds=0)
    assert [project.default_scale(chosen) for chosen in (["01"], ["02"], None)] == ["lite", "smoke", "smoke"]
    artifacts.save("two", {}, scale="lite", seed=0, seconds=0)
    assert project.default_scale() == "lite"
