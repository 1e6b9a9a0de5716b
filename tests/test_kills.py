"""The whole road at smoke, stages and notebooks, killed again and again at random: the results of a run that was not.

`make kills N=50` kills it fifty times, in about an hour; `pytest --slow` three times.
"""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from graphnas_lib import store

REPOSITORY = Path(__file__).resolve().parents[1]
KILLS = int(os.environ.get("GRAPHNAS_KILLS", "3"))
LONGEST = 90  # seconds before a kill; state is saved once a minute

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(0),
    pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX"),
]


def started(home: Path) -> subprocess.Popen:
    """`run --all` in a group of its own."""
    environment = {"GRAPHNAS_DATA": str(REPOSITORY / "data")} | os.environ  # a home of its own has no public tables
    environment |= {"GRAPHNAS_HOME": str(home), "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "graphnas_lib", "run", "--all", "--scale", "smoke"]
    with (home / "log").open("a", encoding="utf-8") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def of_home(home: Path) -> list[psutil.Process]:
    """Processes that work for this home."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("GRAPHNAS_HOME") == str(home):
                found.append(process)
        except psutil.Error:
            continue
    return found


def prepared(home: Path) -> Path:
    """A home of its own: the notebooks, and the scores that the evidence reads at every scale."""
    lite = (REPOSITORY / "data" / "lite").glob("benchmark_*.*")
    for path in [*(REPOSITORY / "notebooks").glob("*.*"), *lite]:
        place = home / path.relative_to(REPOSITORY)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
    return home


def without_seconds(content):
    """JSON without what a clock has said."""
    if isinstance(content, dict):
        kept = {name: value for name, value in content.items() if "second" not in name}
        return {name: without_seconds(value) for name, value in kept.items()}
    return [without_seconds(item) for item in content] if isinstance(content, list) else content


def results(home: Path) -> dict[str, object]:
    """Artifact -> what must be equal, bit for bit."""
    found = {}
    for manifest in sorted((home / "data" / "smoke").glob("*.manifest.json")):
        for name in json.loads(manifest.read_text(encoding="utf-8"))["files"]:
            path = manifest.parent / name
            if path.suffix in (".parquet", ".csv"):
                table = store.read(path)
                table = table.drop(columns=[column for column in table if "second" in column])
                found[name] = table.to_csv()
            else:
                found[name] = without_seconds(store.read(path)) if path.suffix == ".json" else path.read_bytes()
    return found


def test_the_whole_road_survives_random_kills(tmp_path):
    chance = random.Random(int(os.environ.get("GRAPHNAS_SEED", "0")))
    whole, killed = prepared(tmp_path / "whole"), prepared(tmp_path / "killed")
    assert started(whole).wait() == 0, (whole / "log").read_text(encoding="utf-8")[-2000:]
    kills = 0
    while True:
        run = started(killed)
        try:
            status = run.wait(timeout=chance.uniform(1, LONGEST) if kills < KILLS else None)
        except subprocess.TimeoutExpired:
            os.kill(run.pid, signal.SIGKILL)  # the run alone: its workers and kernels have to notice
            run.wait()
            kills += 1
            left = psutil.wait_procs(of_home(killed), timeout=30)[1]
            assert not of_home(killed), left  # one that has ended, and whose parent has not asked, has no environment
            continue
        assert status == 0, (killed / "log").read_text(encoding="utf-8")[-2000:]
        break
    print(f"{kills} kills")
    expected, found = results(whole), results(killed)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    assert not list((killed / "data").rglob("*.part")) and not list((killed / "figures").rglob("*.part*"))
