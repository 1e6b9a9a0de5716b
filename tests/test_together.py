"""Stage "table3" under torchrun: two processes train one network at a time, are killed and go on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_resume import write_images

from graphnas_lib import store
from graphnas_lib.cli import main
from graphnas_lib.paper import STAGES
from graphnas_lib.stages import together

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPT = """
import json, os, sys
from dataclasses import replace
from pathlib import Path
import torch
from graphnas_lib import datasets, paper, stages, store
from graphnas_lib.stages import table3, together

torch.set_num_threads(1)
home, dies_at = Path(os.environ["GRAPHNAS_HOME"]), int(sys.argv[1])
sizes = {"table3_budgets": (5e6,), "table3_resolution": 16, "table3_classes": 2}
paper.SCALES["lite"] = replace(paper.SCALES["lite"], **sizes)
table3.BUDGETS, table3.SEARCHES, table3.RECIPE = ("450M",), 2, "nats12"
table3.imagenet = lambda scale: datasets.ImageFolderDataset(home / "imagenet", resolution=16, threads=1)
store.Checkpoint.due = lambda self: True
save = store.Checkpoint.save

def counted(self, state, lines=()):
    save(self, state, lines)
    if state.get("step") == dies_at:
        os.kill(os.getpid(), 9)

store.Checkpoint.save = counted
found = stages.run("table3", "lite", progress=False, device="cpu")
print("DONE", together.accelerator("table3").process_index, json.dumps(found["files"], sort_keys=True), flush=True)
"""


def torchrun(home: Path, dies_at: int) -> subprocess.CompletedProcess:
    """Two processes of the script; the first dies by kill -9 after the step `dies_at` of any training."""
    (home / "script.py").write_text(SCRIPT, encoding="utf-8")
    if not (home / "imagenet").exists():
        write_images(home / "imagenet")
        (home / "data" / "lite").mkdir(parents=True)
        for stage in ("labels", *STAGES["table3"].needs):
            for name in (f"{stage}.manifest.json", *store.load_manifest(stage, "lite")["files"]):
                (home / "data" / "lite" / name).symlink_to(REPOSITORY / "data" / "lite" / name)
    environment = os.environ | {
        "GRAPHNAS_HOME": str(home),
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
    }
    environment |= {"GRAPHNAS_TEACHER": "none", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29633"]
    command += [str(home / "script.py"), str(dies_at)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)


def rows(home: Path) -> list[dict]:
    return store.read(home / "data" / "lite" / "table3_rows.csv").to_dict("records")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_are_killed_and_go_on(tmp_path):
    pytest.importorskip("accelerate", reason="several processes need the optional package accelerate")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for home in (whole, killed):
        home.mkdir()
    done = torchrun(whole, dies_at=-1)
    told = [line.split(" ", 2) for line in done.stdout.splitlines() if line.startswith("DONE")]
    assert {line[1] for line in told} == {"0", "1"} and told[0][2] == told[1][2], done.stderr[-2000:]
    died = torchrun(killed, dies_at=5)
    assert died.returncode != 0 and not (killed / "data" / "lite" / "table3.manifest.json").exists()
    kept = list((killed / "data" / "lite" / "checkpoints").glob("table3-*.safetensors"))
    assert len(kept) == 1, died.stderr[-2000:]
    assert torchrun(killed, dies_at=-1).returncode == 0
    assert rows(killed) == rows(whole) and len(rows(whole)) == 2
    assert all(0 <= row["accuracy"] <= 100 for row in rows(whole))
    assert not list((killed / "data" / "lite" / "checkpoints").glob("table3-*"))


def test_stages_of_independent_jobs_are_not_for_torchrun(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    together.accelerator.cache_clear()
    assert main(["run", "cells", "--scale", "smoke"]) == 1
    assert "Under torchrun runs table3 alone; got cells" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert together.is_first("cells") and together.shared("cells", lambda: 3) == 3
