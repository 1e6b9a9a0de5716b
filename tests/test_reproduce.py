"""The runner against every way a notebook run was seen to go wrong, on toy notebooks that take a second each."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from graphnas_lib.runner import Project, manifest
from graphnas_lib.runner import headless as reproduce
from graphnas_lib.runner import notebook as runner
from graphnas_lib.runner.manifest import ManifestError, Notebook

pytestmark = pytest.mark.timeout(120)

PARAMETERS = 'scale = "lite"  # which\nseed = 0\ndevice = "auto"'
TOYLIB = """
import json, os
from pathlib import Path

def make(stage, scale, seed=0):
    folder = Path(os.environ["GRAPHNAS_HOME"]) / "data" / scale
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stage}.manifest.json").write_text(json.dumps({"files": {"x": seed}, "seconds": os.times().elapsed}))
"""
CHAIN = """
[[notebook]]
name = "01_first"
title = "makes one"
makes = ["one"]

[[notebook]]
name = "02_second"
title = "reads one, makes two"
makes = ["two"]

[[notebook]]
name = "03_apart"
title = "stands alone"
makes = ["three"]

[[notebook]]
name = "00_last"
title = "reads all"
makes = ["four"]
"""
ROAD = {"one": (), "two": ("one",), "three": (), "four": ("two", "three")}  # stage -> stages that it reads
MAKES = {"01_first": ("alpha", "one"), "02_second": ("beta", "two"), "03_apart": ("alpha", "three")}
MAKES["00_last"] = ("beta", "four")


def notebook(*sources: str, parameters: str | None = PARAMETERS) -> dict:
    """A notebook as JSON: Markdown, the parameters cell, then the sources."""
    cells = [{"cell_type": "markdown", "id": "m", "metadata": {}, "source": "# Toy"}]
    code = ([parameters] if parameters is not None else []) + list(sources)
    for number, source in enumerate(code):
        tags = {"tags": ["parameters"]} if number == 0 and parameters is not None else {}
        cell = {"cell_type": "code", "id": f"c{number}", "metadata": tags, "source": source}
        cells.append(cell | {"outputs": [], "execution_count": None})
    return {"cells": cells, "metadata": {"kernelspec": runner.KERNEL}, "nbformat": 4, "nbformat_minor": 5}


def save(path: Path, content: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def toy_library(root: Path, names: set[str]) -> list[Path]:
    """Stands in for `store.library_files`: toylib.x.make is defined in root/toylib/x.py, which imports nothing."""
    named = {root / "toylib" / f"{name.split('.')[1]}.py" for name in names}
    return sorted(path for path in named if path.is_file())


def toy_project(root: Path) -> Project:
    return Project(root, package="toylib", library_files=partial(toy_library, root), package_parent=root, road=ROAD)


@pytest.fixture
def chain(tmp_path: Path) -> Project:
    """Four notebooks: 01 -> 02 -> 00 and 03 -> 00, on a library of two modules."""
    (tmp_path / "toylib").mkdir()
    for module in ("alpha", "beta"):
        (tmp_path / "toylib" / f"{module}.py").write_text(TOYLIB)
    project = toy_project(tmp_path)
    for name, (module, stage) in MAKES.items():
        save(project.source(name), notebook(f"from toylib.{module} import make", f'make("{stage}", scale, seed)'))
    (tmp_path / "notebooks" / "manifest.toml").write_text(CHAIN)
    return project


def run(project: Project, scale: str = "smoke", **options) -> tuple[int, str]:
    with contextlib.redirect_stdout(io.StringIO()) as stream:
        code = reproduce.reproduce(project, scale, **options)
    return code, stream.getvalue()


def ran(text: str) -> list[str]:
    """Names of the notebooks that a run executed to their end, in order."""
    return [line.split()[0] for line in text.splitlines() if "  done in " in line]


def refusal(tmp_path: Path, content: dict, **options) -> str:
    """Run one notebook that must fail; returns the one line that says why."""
    source, executed = save(tmp_path / "notebooks" / "01_x.ipynb", content), tmp_path / "executed" / "01_x.ipynb"
    parameters = options.pop("parameters", {"scale": "smoke", "seed": 0, "device": "cpu"})
    with pytest.raises(runner.NotebookError) as caught:
        runner.run_notebook(source, executed, parameters=parameters, tell=lambda line: None, **options)
    assert not executed.exists() and not executed.with_name("01_x.receipt.json").exists()
    message = str(caught.value)
    assert "\n" not in message and "01_x" in message
    return message


# ---- one notebook, and the ways it fails


def test_raising_cell_names_cell_and_keeps_the_partial_copy(tmp_path):
    message = refusal(tmp_path, notebook("a = 1", "raise ValueError('too wide\\nby far')", "b = 2"))
    assert "cell 3/4" in message and "ValueError: too wide by far" in message and "01_x.part.ipynb" in message
    partial = json.loads((tmp_path / "executed" / "01_x.part.ipynb").read_text())
    assert any("too wide" in json.dumps(cell.get("outputs", "")) for cell in partial["cells"])


def test_kernel_death_is_no_success(tmp_path):
    message = refusal(tmp_path, notebook("import os", "os._exit(1)", "print('never')"))
    assert "cell 3/4" in message and "kernel died" in message and "memory" in message


def test_cell_timeout(tmp_path):
    message = refusal(tmp_path, notebook("import time; time.sleep(60)"), timeout=2)
    assert "cell 2/2" in message and "longer than its 2 s" in message and "manifest.toml" in message


def test_sys_exit_zero_is_no_success(tmp_path):
    message = refusal(tmp_path, notebook("import sys", "sys.exit(0)", "print('never')"))
    assert "cell 3/4" in message and "must not exit" in message


@pytest.mark.parametrize("cell", [PARAMETERS, None], ids=["misspelt", "no parameters cell"])
def test_unknown_parameter_is_refused_before_running(tmp_path, cell):
    marker = tmp_path / "ran"
    content = notebook(f"open({str(marker)!r}, 'w')", parameters=cell)
    message = refusal(tmp_path, content, parameters={"scale": "smoke", "sed": 7})
    assert "sed" in message and "parameters" in message and not marker.exists()


def test_declared_output_that_was_not_written(tmp_path):
    assert "fig2a.pdf" in refusal(tmp_path, notebook("a = 1"), outputs=[tmp_path / "fig2a.pdf"])


def test_success_injects_parameters_and_leaves_a_receipt(tmp_path):
    source = save(tmp_path / "notebooks" / "01_x.ipynb", notebook("import os", "print(scale, seed, os.getcwd())"))
    executed, lines = tmp_path / "executed" / "01_x.ipynb", []
    receipt = runner.run_notebook(
        source, executed, parameters={"scale": "smoke", "seed": 7, "device": "cpu"}, tell=lines.append
    )
    cells = json.loads(executed.read_text())["cells"]
    text = "".join(cells[-1]["outputs"][0]["text"])
    assert text.startswith("smoke 7 ") and text.strip().endswith("notebooks")
    assert [line.split("  ")[1] for line in lines] == ["cell 1/3", "cell 2/3", "cell 3/3"]
    assert receipt["peak_memory_mb"] > 10 and len(receipt["cells"]) == 3
    assert json.loads(executed.with_name("01_x.receipt.json").read_text()) == receipt
    assert list(executed.parent.glob("*.part*")) == []
    assert not any(output.get("name") == "stderr" for cell in cells for output in cell.get("outputs", []))


# ---- the graph


def test_life_of_a_project(chain):
    """One project from first run through every kind of edit; each step says which notebooks may run again."""
    code, text = run(chain)
    assert (code, ran(text)) == (0, ["01_first", "02_second", "03_apart", "00_last"])
    folders = {path.name for path in (chain.root / "data").iterdir()}
    assert folders == {"smoke"}, "a smoke run writes into no other scale's folder"
    assert {path.name for path in (chain.root / "notebooks" / "executed").iterdir()} == {"smoke"}
    state = json.loads(chain.state("smoke").read_text())
    assert set(state) == set(MAKES)

    begun = time.monotonic()
    code, text = run(chain)
    assert (code, ran(text)) == (0, []) and "4 fresh" in text and time.monotonic() - begun < 2

    # prose, outputs and metadata are no part of the result
    content = json.loads(chain.source("01_first").read_text())
    content["cells"][0]["source"] = "# Other prose"
    content["cells"][1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "saved in Lab"}]
    content["metadata"]["note"] = 1
    save(chain.source("01_first"), content)
    assert ran(run(chain)[1]) == []

    # code: the notebook itself; its artifact comes out the same, so that nothing after it runs
    content["cells"][-1]["source"] += "\nprint('more')"
    save(chain.source("01_first"), content)
    assert reproduce.status(chain, "smoke")["01_first"] == ["code changed"]
    assert ran(run(chain)[1]) == ["01_first"]

    # library: its users alone
    with open(chain.root / "toylib" / "beta.py", "a") as file:
        file.write("# edited\n")
    assert ran(run(chain)[1]) == ["02_second", "00_last"]

    # a lost artifact: its maker alone; a lost executed copy likewise
    chain.stage("three", "smoke").unlink()
    chain.executed("02_second", "smoke").unlink()
    assert ran(run(chain)[1]) == ["02_second", "03_apart"]

    # an input that changed, not made by a notebook that runs
    chain.stage("one", "smoke").write_text('{"files": {"x": "other"}}')
    assert reproduce.status(chain, "smoke")["02_second"] == ["input one changed"]
    assert ran(run(chain, notebooks=["02"])[1]) == ["02_second"]

    # another seed
    assert reproduce.status(chain, "smoke", seed=1)["03_apart"] == ["parameter seed changed"]


def test_failing_branch_leaves_the_independent_one(chain):
    save(chain.source("02_second"), notebook("1 / 0"))
    code, text = run(chain)
    assert code == 1 and ran(text) == ["01_first", "03_apart"]
    assert "FAILED  02_second failed at cell 2/2: ZeroDivisionError" in text
    assert "00_last  NOT RUN: it reads what 02_second makes" in text
    assert "2 done, 1 failed, 1 not run" in text
    # mended, only what had not run runs; the partial copy was never taken for a result
    assert chain.executed("02_second", "smoke").with_name("02_second.part.ipynb").exists()
    save(chain.source("02_second"), notebook("from toylib.beta import make", 'make("two", scale)'))
    assert ran(run(chain)[1]) == ["02_second", "00_last"]
    assert not chain.executed("02_second", "smoke").with_name("02_second.part.ipynb").exists()


def test_forced_failure_is_not_fresh_afterwards(chain):
    """A notebook that ran once and failed when forced must run again, though all its old outputs are there."""
    flag = chain.root / "fail"
    save(chain.source("03_apart"), notebook(f"import os; assert not os.path.exists({str(flag)!r})", *_make("three")))
    assert run(chain, notebooks=["03"])[0] == 0 and reproduce.status(chain, "smoke")["03_apart"] == []
    flag.touch()
    assert run(chain, notebooks=["03"], force=True)[0] == 1
    assert reproduce.status(chain, "smoke")["03_apart"] != []


def _make(stage: str) -> list[str]:
    return ["from toylib.alpha import make", f'make("{stage}", scale)']


def test_missing_input_names_what_to_run_first(chain):
    code, text = run(chain, notebooks=["00"])
    assert code == 1 and ran(text) == []
    assert "00_last reads the stages two, three, which data/smoke lacks" in text
    assert "Run 02_second, 03_apart first" in text and "--notebooks 00 01 02 03" in text


@pytest.mark.parametrize("scale", ["lite", "paper"])
def test_where_notebooks_only_open_stages_the_remedy_makes_them(chain, scale):
    code, text = run(chain, scale=scale, notebooks=["00"])
    assert code == 1 and ran(text) == []
    assert f"Make them first: python -m graphnas_lib run --all --scale {scale}" in text


# ---- two at a time


def waits_for(path: Path, makes: str | None = None) -> str:
    """A cell that leaves a file and goes on when another is there."""
    cell = f"import time; from pathlib import Path\nPath({makes!r}).touch()\n" if makes else ""
    cell = cell or "import time; from pathlib import Path\n"
    return cell + f"while not Path({str(path)!r}).exists():\n    time.sleep(0.1)"


def test_two_at_a_time_run_side_by_side_and_wait_for_what_they_read(chain):
    """01 and 03 wait for each other, so that one by one they would not end; 00 reads what both lead to."""
    for name, other in (("01_first", "03_apart"), ("03_apart", "01_first")):
        module, stage = MAKES[name]
        cells = waits_for(chain.root / other, str(chain.root / name)), f"from toylib.{module} import make"
        save(chain.source(name), notebook(*cells, f'make("{stage}", scale, seed)'))
    code, text = run(chain, jobs=2)
    told = ran(text)
    assert code == 0 and set(told) == set(MAKES) and told[-1] == "00_last", text
    assert told.index("01_first") < told.index("02_second") and "4 done" in text
    assert set(json.loads(chain.state("smoke").read_text())) == set(MAKES)
    receipts = [json.loads(path.read_text()) for path in chain.executed("x", "smoke").parent.glob("*.receipt.json")]
    assert len(receipts) == 4 and all(10 < receipt["peak_memory_mb"] < 400 for receipt in receipts)
    assert ran(run(chain, jobs=2)[1]) == [] and len(ran(run(chain, jobs=2, force=True, notebooks=["03"])[1])) == 1


def test_a_killed_process_fails_its_notebook_alone(chain):
    dies = "import os, signal; os.kill(os.getppid(), signal.SIGKILL)"
    save(chain.source("02_second"), notebook(dies))
    code, text = run(chain, jobs=2)
    assert code == 1 and set(ran(text)) == {"01_first", "03_apart"}, text
    assert "FAILED  02_second: its process was killed" in text and "00_last  NOT RUN" in text


def test_less_than_one_at_a_time_is_refused(chain):
    with pytest.raises(ValueError, match="At least one notebook must run at a time; got 0"):
        run(chain, jobs=0)


KILLED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background ignores it
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_reproduce import toy_project
from graphnas_lib.runner import reproduce
if __name__ == "__main__":
    sys.exit(reproduce(toy_project(Path({root!r})), "smoke", jobs={jobs}))
"""


def stopped(chain: Project, number: int, jobs: int) -> tuple[int, str]:
    """Run in a process of its own, and send it a signal while 02_second runs; what it has started ends with it."""
    reached = chain.root / "reached"
    waits = f"import time\nif not open({str(reached)!r}, 'a').tell(): time.sleep(60)"
    save(chain.source("02_second"), notebook("from toylib.beta import make", waits, 'make("two", scale)'))
    script = chain.root / "script.py"
    script.write_text(KILLED.format(tests=str(Path(__file__).parent), root=str(chain.root), jobs=jobs))
    environment = os.environ | {"PYTHONPATH": str(Path(reproduce.__file__).parents[2])}
    given = {"env": environment, "stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen([sys.executable, script], **given)
    until = time.monotonic() + 60
    while not reached.exists() and time.monotonic() < until:
        time.sleep(0.1)
    started = psutil.Process(process.pid).children(recursive=True)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    output = process.communicate(timeout=30)[0]
    assert started and not psutil.wait_procs(started, timeout=30)[1]
    reached.write_text("go on")
    return process.returncode, output


@pytest.mark.parametrize(
    ("number", "jobs"),
    [(signal.SIGKILL, 1), (signal.SIGTERM, 1), (signal.SIGKILL, 2), (signal.SIGINT, 2)],
    ids=lambda value: getattr(value, "name", value),
)
def test_killed_run_goes_on_where_it_was(chain, number, jobs):
    save(chain.source("03_apart"), notebook(waits_for(chain.root / "reached"), *_make("three")))
    code, output = stopped(chain, number, jobs)
    before = {"01_first"} if jobs == 1 else {"01_first", "03_apart"}
    assert {"01_first"} <= set(ran(output)) <= before
    if number != signal.SIGKILL:
        assert code == reproduce.INTERRUPTED and "Interrupted" in output and "FAILED" not in output
    assert {"01_first"} <= set(json.loads(chain.state("smoke").read_text())) <= before
    if number == signal.SIGKILL:
        assert ran(run(chain, notebooks=["01", "02"])[1]) == ["02_second"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_unreadable_state_is_told(chain, jobs):
    chain.state("smoke").parent.mkdir(parents=True)
    chain.state("smoke").write_text("{half")
    with pytest.raises(ValueError, match="Delete data/smoke/.notebooks.json"):
        run(chain, jobs=jobs)


def test_what_else_goes_wrong_beside_others_is_one_line(chain):
    (chain.root / "notebooks" / "executed").write_text("a file where a folder should be")
    code, text = run(chain, jobs=2)
    assert code == 1 and "FAILED  01_first: " in text and "Traceback" not in text and "was killed" not in text


def test_kernels_are_spoken_to_where_paths_are_too_long_for_files(tmp_path, monkeypatch, capfd):
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    source = save(tmp_path / "notebooks" / "01_x.ipynb", notebook("a = 1"))
    executed = tmp_path / "executed" / "01_x.ipynb"
    assert runner.run_notebook(source, executed, parameters={"seed": 0}, tell=lambda line: None)["cells"]
    assert capfd.readouterr().err == ""


# ---- the manifest


def test_order_is_topological_then_by_number():
    def entry(name, needs=(), makes=()):
        return Notebook(name=name, title=name, needs=needs, makes=makes)

    entries = [entry("00_a", ("c",)), entry("01_b", (), ("b",)), entry("02_c", ("b",), ("c",)), entry("03_d", ("b",))]
    assert [n.name for n in manifest.in_order(entries)] == ["01_b", "02_c", "00_a", "03_d"]
    with pytest.raises(ManifestError, match="circle; these do: 01_x, 02_y"):
        manifest.in_order([entry("01_x", ("y",), ("x",)), entry("02_y", ("x",), ("y",))])


def test_manifest_refusals(tmp_path):
    path = tmp_path / "manifest.toml"
    path.write_text('[[notebook]]\nname = "01_a"\ntitle = "A"\nfigurs = ["x"]\n')
    with pytest.raises(ManifestError, match="figurs"):
        manifest.read_manifest(path, ROAD)
    entry = '[[notebook]]\nname = "{}"\ntitle = "A"\nfigures = ["fig2a"]\n'
    path.write_text(entry.format("01_a") + entry.format("02_b"))
    with pytest.raises(ManifestError, match="fig2a has several"):
        manifest.read_manifest(path, ROAD)
    with pytest.raises(FileNotFoundError, match="manifest.toml"):
        manifest.read_manifest(tmp_path / "none.toml", ROAD)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('needs = ["one"]', "some of .*reads.*; got .*needs"),  # derived, never declared
        ('makes = ["five"]', "01_a names no stages: five"),
        ('makes = ["two"]\nreads = ["one"]', "01_a makes or needs one anyway"),
        ('makes = ["two"]\nreads = ["two"]', "01_a makes or needs two anyway"),
    ],
)
def test_manifest_says_nothing_twice(tmp_path, lines, said):
    path = tmp_path / "manifest.toml"
    path.write_text(f'[[notebook]]\nname = "01_a"\ntitle = "A"\n{lines}\n')
    with pytest.raises(ManifestError, match=said):
        manifest.read_manifest(path, ROAD)


def test_inputs_follow_from_what_is_made_and_shown(chain):
    path = chain.root / "notebooks" / "manifest.toml"
    path.write_text(CHAIN + '[[notebook]]\nname = "04_shows"\ntitle = "shows"\nreads = ["four", "one"]\n')
    needs = {notebook.name: notebook.needs for notebook in chain.notebooks()}
    assert needs == {
        "01_first": (),
        "02_second": ("one",),
        "03_apart": (),
        "00_last": ("two", "three"),  # in the order of the road
        "04_shows": ("one", "four"),
    }


def test_unknown_notebook_and_scale_are_refused(chain):
    with pytest.raises(ValueError, match="01_first.*got '07'"):
        run(chain, notebooks=["07"])
    with pytest.raises(ValueError, match="scale must be one of"):
        run(chain, scale="huge")


def test_missing_notebook_is_told_before_anything_runs(chain):
    chain.source("03_apart").unlink()
    with pytest.raises(FileNotFoundError, match="notebooks/03_apart.ipynb must be there"):
        run(chain)
    assert not chain.stage("one", "smoke").exists()
