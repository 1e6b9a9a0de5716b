"""Machines that are otherwise than most: read-only, full, another locale, another kernel, two runs at once, a wheel."""

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from test_reproduce import chain, notebook, ran, save  # noqa: F401  (chain is a fixture)

from graphnas_lib import store
from graphnas_lib.cli import doctor, main
from graphnas_lib.runner import notebook as runner

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "graphnas_lib"
ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def python(*arguments: str, home: Path | None = None, **options) -> subprocess.CompletedProcess:
    """This Python on this checkout in a process of its own, with `home` for its results."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)} | options.pop("environment", {})
    if home is not None:
        environment["GRAPHNAS_HOME"] = str(home)
    given = {"capture_output": True, "text": True, "encoding": "utf-8", "errors": "replace", "timeout": 240}
    return subprocess.run([sys.executable, *arguments], env=environment, **given | options)


def verbs(*commands: list[str], **options) -> subprocess.CompletedProcess:
    """Commands of the command line, one after another in one such process, each of which has to succeed."""
    return python(
        "-c", f"from graphnas_lib.cli import main\nfor one in {commands!r}:\n    assert main(one) == 0, one", **options
    )


# ---- what cannot be written


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 256 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    if not ROOT or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place]).returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def remount(place: Path, *options: str) -> None:
    subprocess.run(["mount", "-o", ",".join(("remount", *options)), place], check=True)


@pytest.mark.parametrize("suffix", [".safetensors", ".json", ".parquet", ".csv", ".md"])
def test_a_full_disk_loses_nothing(small_disk, suffix):
    import pandas as pd
    import torch

    table = pd.DataFrame({"x": torch.rand(100_000).tolist()})
    small, large = {
        ".safetensors": ({"x": torch.zeros(3)}, {"x": torch.rand(100_000)}),
        ".json": ([1], table["x"].tolist()),
        ".md": ("short", "long" * 100_000),
    }.get(suffix, (table[:3], table))
    path = store.write(small_disk / f"kept{suffix}", small)
    before = path.read_bytes()
    with pytest.raises(OSError, match="No space left") as caught:
        store.write(path, large)
    assert "free some space" in store.remedy(str(caught.value))
    assert path.read_bytes() == before and [p.name for p in small_disk.iterdir()] == [path.name]


def test_a_checkpoint_on_a_full_disk_leaves_the_one_before(small_disk):
    import torch

    point = store.Checkpoint(small_disk / "loop.safetensors")
    point.save({"step": 1, "x": torch.zeros(3)}, ["first"])
    with pytest.raises(OSError, match="No space left"):
        point.save({"step": 2, "x": torch.rand(100_000)}, ["second"])
    again = store.Checkpoint(point.path)
    assert again.load()["step"] == 1 and list(again.lines()) == ["first\n"]
    assert {path.name for path in small_disk.iterdir()} == {"loop.safetensors", "loop.log"}


def test_a_journal_on_a_full_disk_goes_on_once_there_is_room(small_disk):
    path = small_disk / "rows.jsonl"
    with pytest.raises(OSError, match="No space left"):
        journal = store.Journal(path, {"seed": 0})
        for number in range(1000):
            journal.add(str(number), "x" * 1000)
    kept = store.Journal(path, {"seed": 0}).results
    assert 100 < len(kept) < 300 and all(value == "x" * 1000 for value in kept.values())
    remount(small_disk, "size=4m")
    found = store.collect({str(n): partial(str, n) for n in range(300)}, store.Journal(path, {"seed": 0}), workers=1)
    assert found[: len(kept)] == list(kept.values()) and found[-1] == "299"
    assert len(store.Journal(path, {"seed": 0}).results) == 300


def test_a_stage_on_a_full_disk_ends_in_one_line_and_leaves_no_artifact(small_disk, monkeypatch, capsys):
    monkeypatch.setenv("GRAPHNAS_HOME", str(small_disk))
    remount(small_disk, "size=20k")
    assert main(["run", "cells", "--scale", "smoke"]) == 1
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("error: ") and "No space left" in told and "The disk is full: free some space" in told
    assert not store.manifest_path("cells", "smoke").exists() and not list(small_disk.rglob("*.part"))
    remount(small_disk, "size=8m")
    assert main(["run", "cells", "--scale", "smoke"]) == 0


def test_a_read_only_folder_is_told_with_what_to_do(small_disk, monkeypatch, capsys):
    monkeypatch.setenv("GRAPHNAS_HOME", str(small_disk))
    remount(small_disk, "ro")
    assert main(["run", "cells", "--scale", "smoke"]) == 1
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "Read-only file system" in told and "$GRAPHNAS_HOME" in told
    assert any("GRAPHNAS_HOME" in line for line in doctor.lines()[0] if line.startswith("note:"))


def test_a_notebook_on_a_full_disk_says_so(tmp_path, small_disk):
    source = save(
        tmp_path / "notebooks" / "01_x.ipynb", notebook(f"open({str(small_disk / 'x')!r}, 'w').write('x' * 10**6)")
    )
    with pytest.raises(runner.NotebookError, match="No space left on device.*free some space"):
        runner.run_notebook(source, tmp_path / "01_x.ipynb", parameters={"seed": 0}, tell=lambda line: None)


def test_where_numba_can_keep_nothing_it_compiles_anew():
    """The error is Numba's own, as under a read-only checkout and home."""
    found = python(
        "-c",
        "from numba.core import caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "from graphnas_lib.cli import doctor\n"
        "from graphnas_lib.space import NATS_REFERENCE, Cell\n"
        "print(Cell.from_nats(NATS_REFERENCE).key())\n"
        "print([line for line in doctor.lines()[0] if 'NUMBA_CACHE_DIR' in line])",
    )
    from graphnas_lib.space import NATS_REFERENCE, Cell

    key, told = found.stdout.splitlines()
    assert key == Cell.from_nats(NATS_REFERENCE).key() and "Numba finds no folder" in told


@pytest.mark.skipif(not (ROOT and shutil.which("setpriv")), reason="giving up root's rights needs root and setpriv")
def test_read_only_checkout_and_home(tmp_path):
    """As in a container that runs as an arbitrary user."""
    checkout, home = tmp_path / "checkout", tmp_path / "home"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, checkout / "graphnas_lib", ignore=ignored)
    (checkout / "data").symlink_to(REPOSITORY / "data")
    home.mkdir()
    for path in (*checkout.rglob("*"), checkout, home, tmp_path):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
    script = "import os; from graphnas_lib import proxies; assert not os.access('graphnas_lib', os.W_OK); print('read')"
    for path in (*checkout.rglob("*"), checkout, home):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o222)
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner", "--inh-caps=-all"]
    environment = os.environ | {"HOME": str(home), "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    environment = {
        name: value for name, value in environment.items() if name not in ("NUMBA_CACHE_DIR", "GRAPHNAS_HOME")
    }
    command = [*drop, sys.executable, "-c", script]
    found = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True, timeout=240)
    for path in (*checkout.rglob("*"), checkout, home):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | 0o200)
    assert found.stdout.strip().endswith("read"), found.stderr


# ---- locales and line endings


def test_every_text_file_is_opened_as_utf8():
    for path in PACKAGE.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(call.func, "attr", "") if isinstance(call, ast.Call) else ""
            if name in ("read_text", "write_text"):
                said = [k.arg for k in call.keywords] + [a.value for a in call.args if isinstance(a, ast.Constant)]
                assert {"encoding", "utf-8"} & set(said), f"{path.name}:{call.lineno}"


def locales(folder: Path) -> dict[str, dict[str, str]]:
    """Variables of locales that are not UTF-8; those that this machine can make."""
    off = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    found = {"C": {"LC_ALL": "C", **off}}
    for name, charmap in {"zh_CN": "GBK"}.items():
        place = folder / f"{name}.{charmap}"
        if shutil.which("localedef"):
            subprocess.run(["localedef", "-i", name, "-f", charmap, place], capture_output=True)
        if place.is_dir():
            found[charmap] = {"LOCPATH": str(folder), "LC_ALL": place.name, **off}
    return found


def test_other_locales(tmp_path):
    for name, environment in locales(tmp_path).items():
        found = verbs(["run", "cells"], ["doctor"], home=tmp_path / f"home {name} ü", environment=environment)
        assert found.returncode == 0 and "note: this locale prints in" in found.stdout, (name, found.stderr)
        listed = python("-m", "graphnas_lib", "reproduce", "--list", environment=environment)
        assert listed.returncode == 0 and "12_report" in listed.stdout, (name, listed.stderr)


def test_git_converts_no_line_ending(tmp_path):
    """Checksums are over bytes, and Git for Windows converts by default."""
    repository = tmp_path / "r"
    (repository / "data").mkdir(parents=True)
    shutil.copy(REPOSITORY / ".gitattributes", repository)
    (repository / "data" / "x.json").write_bytes(b"{\n}\n")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@y", "-c", "core.autocrlf=true"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], cwd=repository, check=True, capture_output=True)
    subprocess.run([*git, "clone", "-q", repository, tmp_path / "c"], check=True, capture_output=True)
    assert (tmp_path / "c" / "data" / "x.json").read_bytes() == b"{\n}\n"


def test_a_converted_artifact_is_told_as_one(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAPHNAS_HOME", str(tmp_path))
    store.save("cells", {"x.json": [1, 2]}, scale="smoke", seed=0, seconds=0.0)
    path = store.data_dir("smoke") / "x.json"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    with pytest.raises(store.CorruptArtifactError, match="line endings.*core.autocrlf"):
        store.load("cells", "x.json", "smoke")
    assert any("core.autocrlf" in line for line in doctor.lines()[0])


# ---- kernels, two runs at once, names with blanks


def foreign_kernel(folder: Path) -> dict[str, str]:
    """Variables under which Jupyter finds another "python3" first, as on a hub."""
    spec = {"argv": ["/no/such/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"], "display_name": "x"}
    save(folder / "kernels" / "python3" / "kernel.json", spec | {"language": "python"})
    return {"JUPYTER_PATH": str(folder)}


def test_the_kernel_is_this_python(tmp_path, monkeypatch):
    for name, value in foreign_kernel(tmp_path / "hub").items():
        monkeypatch.setenv(name, value)
    source = save(tmp_path / "notebooks" / "01_x.ipynb", notebook("import sys; print(sys.executable)"))
    executed = tmp_path / "01_x.ipynb"
    runner.run_notebook(source, executed, parameters={"seed": 0}, tell=lambda line: None)
    cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    assert "".join(cells[-1]["outputs"][0]["text"]).strip() == sys.executable
    assert any("/no/such/python" in line for line in doctor.lines()[0])


def other_run(project, number: str) -> subprocess.Popen:
    """A run of one notebook of a toy project, in a process of its own."""
    code = f"import sys; from pathlib import Path; sys.path.insert(0, {str(REPOSITORY / 'tests')!r})\n"
    code += "from test_reproduce import toy_project; from graphnas_lib.runner import reproduce\n"
    code += f"sys.exit(reproduce(toy_project(Path({str(project.root)!r})), 'smoke', notebooks=[{number!r}]))"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, **given)


def test_two_runs_keep_each_others_state(chain):  # noqa: F811
    runs = [other_run(chain, number) for number in ("01", "03")]
    told = [ran(one.communicate(timeout=100)[0]) for one in runs]
    assert told == [["01_first"], ["03_apart"]]
    assert set(json.loads(chain.state("smoke").read_text(encoding="utf-8"))) == {"01_first", "03_apart"}


def test_a_second_run_of_a_notebook_waits_and_finds_it_fresh(chain):  # noqa: F811
    go, at_work = chain.root / "go", chain.root / "at work"
    waits = f"import time; from pathlib import Path\nPath({str(at_work)!r}).touch()\n"
    waits += f"while not Path({str(go)!r}).exists():\n    time.sleep(0.1)"
    save(chain.source("01_first"), notebook("from toylib.alpha import make", 'make("one", scale, seed)', waits))
    first = other_run(chain, "01")
    while not at_work.exists():
        assert first.poll() is None
        time.sleep(0.05)
    second = other_run(chain, "01")
    lines = [second.stdout.readline(), second.stdout.readline()]
    assert "another run is at it" in lines[1] and second.poll() is None
    go.touch()
    assert "01_first  done in" in first.communicate(timeout=60)[0]
    assert "01_first  fresh, skipped" in second.communicate(timeout=60)[0]


def test_a_second_run_of_a_stage_takes_what_the_first_has_made(tmp_path):
    lock = tmp_path / "data" / "smoke" / ".locks" / "cells"
    environment = {"PYTHONPATH": str(REPOSITORY), "GRAPHNAS_HOME": str(tmp_path), "PYTHONUNBUFFERED": ""}
    given = {"env": os.environ | environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, "-m", "graphnas_lib", "run", "cells", "--scale", "smoke"]
    first = subprocess.Popen(command, **given)
    while not lock.exists():
        assert first.poll() is None
        time.sleep(0.005)
    first.send_signal(signal.SIGSTOP)
    second = subprocess.Popen(command, **given)
    while "waits for it to end" not in (line := second.stdout.readline()):
        assert line and second.poll() is None
    first.send_signal(signal.SIGCONT)
    told = [one.communicate(timeout=60)[0].strip().splitlines()[-1] for one in (first, second)]
    assert told[0] == told[1] and told[0].startswith("cells at scale smoke: "), told


BUSY = """
import os, sys, time
from functools import partial
from graphnas_lib.evolution.evaluation import Evaluator
from graphnas_lib.store import collect

def work(path):
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(60)

if sys.argv[1] == "collect":
    collect({str(i): partial(work, sys.argv[2]) for i in range(4)}, workers=2)
else:
    Evaluator(work, 2).begin([("a", sys.argv[2]), ("b", sys.argv[2])])
    time.sleep(60)
"""


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
@pytest.mark.parametrize("pool", ["collect", "evaluator"])
def test_workers_end_with_a_run_that_is_killed(tmp_path, pool):
    (tmp_path / "busy.py").write_text(BUSY, encoding="utf-8")
    pids = tmp_path / "pids"
    command = [sys.executable, str(tmp_path / "busy.py"), pool, str(pids)]
    run = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{tmp_path}"})
    while not pids.exists() or len(pids.read_text().split()) < 2:
        assert run.poll() is None
        time.sleep(0.1)
    workers = [psutil.Process(int(pid)) for pid in pids.read_text().split()]
    run.kill()
    run.wait()
    gone, alive = psutil.wait_procs(workers, timeout=20)
    assert len(gone) == 2 and not alive


def test_an_environment_with_a_blank_in_its_path(tmp_path):
    place = tmp_path / "my env" / "bin"
    place.mkdir(parents=True)
    (place / "python").symlink_to(sys.executable)
    environment = os.environ | {"VIRTUAL_ENV": str(place.parent)}
    told = subprocess.run(
        ["make", "-n", "reproduce"], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert f'touch "{place.parent}/graphnas-lib-' in told and f'"{place}/python" -m graphnas_lib reproduce' in told


# ---- a wheel


def test_an_installed_package_designs_scores_and_exports(tmp_path):
    """`pip install .` brings the generator; results go to the current folder."""
    source, wheels, place, work = (tmp_path / name for name in ("source", "wheels", "site", "work"))
    work.mkdir()
    for name in ("graphnas_lib", "data/lite"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "checkpoints"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    build = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    built = python(*build, "-w", str(wheels), str(source))
    assert built.returncode == 0, built.stderr
    (wheel,) = wheels.iterdir()
    assert wheel.stat().st_size < 40e6
    zipfile.ZipFile(wheel).extractall(place)
    installed = {"environment": {"PYTHONPATH": str(place), "GRAPHNAS_HOME": ""}, "cwd": work}
    made = verbs(
        ["design", "--params", "40K", "-n", "1", "-o", "out", "--formats", "json", "py"],
        ["score", "out/design_00.json", "--proxies", "naswot"],
        ["export", "out/design_00.json", "--formats", "svg"],
        ["doctor"],
        ["run", "cells"],
        **installed,
    )
    assert made.returncode == 0, made.stderr
    assert {path.name for path in (work / "out").iterdir()} >= {"design_00.json", "design_00.py", "design_00.svg"}
    assert "naswot" in made.stdout and "artifacts at lite: labels, families, gvae, ccnf, sequence" in made.stdout
    assert (work / "data" / "smoke" / "cells.manifest.json").is_file() and not (place / "data").exists()
    told = python("-m", "graphnas_lib", "reproduce", **installed)
    assert told.returncode == 1 and "the notebooks come with the repository" in told.stderr


def test_as_many_processes_work_as_are_asked_for(monkeypatch):
    jobs = {str(i): os.getpid for i in range(4)}
    for said, n in (("", 2), ("1", 1), ("3", 3)):
        monkeypatch.setenv("GRAPHNAS_WORKERS", said)
        assert store.on_cpu() == store.processes(torch.device("cpu")) == n
        assert (set(store.collect(jobs)) == {os.getpid()}) == (n == 1)
    assert any("3 worker processes" in line for line in doctor._machine())
    for said in ("0", "-1", "1.5", "many"):
        monkeypatch.setenv("GRAPHNAS_WORKERS", said)
        with pytest.raises(ValueError, match=f"GRAPHNAS_WORKERS must be a whole number from 1.*'{said}'"):
            store.collect(jobs)


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_threads_wait_briefly_unless_somebody_has_said_how(given, expected, monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    done = python("-c", "import os, graphnas_lib; print(os.environ.get('GOMP_SPINCOUNT'))", environment=given)
    assert done.stdout.strip() == expected
