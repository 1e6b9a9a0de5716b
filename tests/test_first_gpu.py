"""What is for GPU machines and clusters, as far as it runs here: the measuring script on a CPU, the array by stubs."""

import os
import re
import subprocess
import sys

import pytest

from graphnas_lib.cli.commands import parser

STUB = """#!/bin/bash
echo "$(basename "$0") $*" >> "$CALLS"
if [ "$1" = scheduler ]; then
  echo '{{"type": "Scheduler", "address": "tcp://node0:8786", "workers": {{}}}}' > "$3"
  exec sleep 60
fi
"""


@pytest.mark.slow
def test_the_first_minutes_on_a_gpu_end_in_decisions(repository):
    command = [sys.executable, "tests/benchmarks/first_gpu.py", "--device", "cpu", "--tiny"]
    environment = os.environ | {"PYTHONPATH": str(repository)}
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, timeout=290)
    assert done.returncode == 0, done.stderr[-2000:]
    decided = done.stdout.split("Decisions")[1]
    assert re.search(r"Set ON_CUDA = [12] in", decided) and 'Set "cpu": torch.' in decided
    assert decided.count("a graph is") == 2 and "FAILED" not in done.stdout


def test_the_slurm_array_makes_all_stages_and_gives_them_workers(repository, tmp_path):
    (tmp_path / "bin").mkdir()
    for name in ("dask", "python"):
        (tmp_path / "bin" / name).write_text(STUB.format())
        (tmp_path / "bin" / name).chmod(0o755)
    calls = tmp_path / "calls"
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "CALLS": str(calls), "SLURM_ARRAY_JOB_ID": "7"}

    def task(number: int) -> subprocess.Popen:
        script = repository / "tests" / "benchmarks" / "slurm_array.sh"
        return subprocess.Popen([script], cwd=tmp_path, env=environment | {"SLURM_ARRAY_TASK_ID": str(number)})

    file = "data/paper/.dask-7.json"
    (tmp_path / "data" / "paper").mkdir(parents=True)
    (tmp_path / file).write_text("{}")
    assert task(3).wait(timeout=30) == 0  # the address is there
    (tmp_path / file).unlink()
    assert task(0).wait(timeout=30) == 0
    worker, scheduler, run = calls.read_text().splitlines()
    assert worker.startswith(f"dask worker --scheduler-file {file} --nworkers 1 --nthreads 1 ")
    assert scheduler.startswith(f"dask scheduler --scheduler-file {file} ")
    assert run == "python -m graphnas_lib run --all --scale paper --dask tcp://node0:8786"
    assert parser().parse_args(run.split()[3:]).dask == "tcp://node0:8786"
    assert not (tmp_path / file).exists()
    refused = subprocess.run([repository / "tests" / "benchmarks" / "slurm_array.sh"], capture_output=True, text=True)
    assert refused.returncode and "start this by sbatch" in refused.stderr
