"""All notebooks, headlessly: order from `notebooks/manifest.toml`, skipped when fresh, resumed after a kill.

doit orders the notebooks and keeps the state; `runner` runs one of them. A notebook is fresh when nothing that can
change its result has changed since its last success (`manifest.freshness`) and all its outputs are there. The state
is JSON, one file a scale (`data/<scale>/.doit.json`), written after every notebook, so that a killed run goes on
where it was.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

from doit.control import TaskControl
from doit.dependency import DatabaseException, Dependency, JsonDB
from doit.exceptions import TaskFailed, UnmetDependency
from doit.runner import Runner
from doit.task import Stream, dict_to_task

from graphnas_lib import store
from graphnas_lib.runner import notebook as runner
from graphnas_lib.runner.manifest import Notebook, Project, changes, freshness, select

SHARED_PARAMETERS = ("scale", "seed", "device")
INTERRUPTED = 130  # exit status of a shell command ended by Ctrl-C


class FlushedJson(JsonDB):
    """doit's JSON state, written atomically after every change; doit itself writes at the end of the run only."""

    def set(self, task_id: str, dependency: str, value: Any) -> None:
        super().set(task_id, dependency, value)
        self.dump()

    def remove(self, task_id: str) -> None:
        super().remove(task_id)
        self.dump()

    def dump(self) -> None:
        path = Path(self.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        part.write_text(self.codec.encode(self._db) + "\n")
        os.replace(part, path)


def open_state(path: Path) -> Dependency:
    """The state of one scale."""
    try:
        return Dependency(FlushedJson, str(path))
    except DatabaseException as error:
        raise ValueError(
            f"{path.name} must be readable JSON; it is not. Delete data/{path.parent.name}/{path.name}."
        ) from error


# ---- running


def reproduce(
    project: Project,
    scale: str,
    *,
    notebooks: Iterable[str] | None = None,
    force: bool = False,
    seed: int = 0,
    device: str = "auto",
    stream: TextIO | None = None,
) -> int:
    """Run the notebooks that are not fresh, in order; independent branches go on after a failure.

    Args:
        project: where everything lies.
        scale: "smoke", "lite" or "paper".
        notebooks: numbers or names; None for all. Notebooks before a chosen one are not run: a missing input is told.
        force: run fresh notebooks too.
        seed: parameter of every notebook.
        device: parameter of every notebook.
        stream: where to report; standard output by default.

    Returns:
        Exit status: 0 all is done, 1 a notebook failed or could not run, 130 interrupted.
    """
    store.check_scale(scale)
    every = project.notebooks()
    chosen = select(every, notebooks)
    parameters = dict(zip(SHARED_PARAMETERS, (scale, seed, device), strict=True))
    for notebook in chosen:
        project.cells(notebook.name)  # a missing notebook is told before anything runs
    report = Report(project, scale, chosen, stream or sys.stdout)
    state = open_state(project.state(scale))
    tasks = [_task(project, notebook, every, chosen, parameters, report) for notebook in chosen]
    control = TaskControl(tasks)
    control.process([notebook.name for notebook in chosen])
    doit = Runner(state, report, continue_=True, always_execute=force, stream=Stream(2))
    restore = _sigterm_interrupts()
    try:
        return min(doit.run_all(control.task_dispatcher()), 1)
    except KeyboardInterrupt:
        report.line("Interrupted. What was finished is kept; the same command goes on from there.")
        return INTERRUPTED
    finally:
        restore()


def _task(project: Project, notebook: Notebook, every: list, chosen: list, parameters: dict, report: Report) -> Any:
    """One notebook as a doit task."""
    scale, names = parameters["scale"], {other.name for other in chosen}
    key: dict[str, str] = {}

    def up_to_date(task: Any, values: dict) -> bool:
        key.update(freshness(project, notebook, parameters))  # taken before the run: an edit during it makes it stale
        task.value_savers.append(lambda: {"key": dict(key)})
        report.why[notebook.name] = changes(values.get("key", {}), key)
        return not report.why[notebook.name]

    def action() -> Any:
        try:
            _check_inputs(project, notebook, every, scale)
            receipt = runner.run_notebook(
                project.source(notebook.name),
                project.executed(notebook.name, scale),
                parameters=parameters,
                outputs=project.outputs(notebook, scale),
                timeout=notebook.timeout.get(scale),
                environment={
                    "GRAPHNAS_HOME": str(project.root),
                    "PYTHONPATH": runner.python_path(project.package_parent),
                    # smoke's networks gain nothing from a second thread, and lose ten times where a core is shared
                    **({"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")} if scale == "smoke" else {}),
                },
                tell=report.line,
            )
        except runner.NotebookError as error:
            return TaskFailed(str(error))
        report.receipts[notebook.name] = receipt
        return True

    makers = {stage: other.name for other in every for stage in other.makes}
    before = sorted({makers[stage] for stage in notebook.needs if makers.get(stage) in names} - {notebook.name})
    targets = [*project.outputs(notebook, scale), project.executed(notebook.name, scale)]
    return dict_to_task(
        {
            "name": notebook.name,
            "actions": [(action,)],
            "task_dep": before,
            "targets": [str(path) for path in targets],
            "uptodate": [up_to_date],
            "io": {"capture": False},
        }
    )


def _check_inputs(project: Project, notebook: Notebook, every: list[Notebook], scale: str) -> None:
    """Refuse a notebook whose input artifacts are not there, naming the notebooks that make them."""
    missing = [stage for stage in notebook.needs if not project.stage(stage, scale).is_file()]
    if not missing:
        return
    makers = {stage: other for other in every for stage in other.makes}
    first = sorted({makers[stage].name for stage in missing if stage in makers})
    todo, numbers = list(missing), {notebook.number}
    while todo:  # what is missing may itself need what is missing
        maker = makers.get(todo.pop())
        if maker is not None and maker.number not in numbers:
            numbers.add(maker.number)
            todo += [stage for stage in maker.needs if not project.stage(stage, scale).is_file()]
    command = f"python -m graphnas_lib reproduce --scale {scale} --notebooks {' '.join(sorted(numbers))}"
    raise runner.NotebookError(
        f"{notebook.name} reads the stages {', '.join(missing)}, which data/{scale} lacks. "
        f"Run {', '.join(first) or 'what makes them'} first: {command}"
    )


def _sigterm_interrupts() -> Callable[[], None]:
    """Make SIGTERM (a cancelled job) end a run as Ctrl-C does; returns how to undo it."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    return lambda: signal.signal(signal.SIGTERM, before)


class Report:
    """doit's reporter: a line a notebook and, from the runner, a line a cell."""

    def __init__(self, project: Project, scale: str, chosen: list[Notebook], stream: TextIO):
        self.project, self.scale, self.stream = project, scale, stream
        self.left = [notebook.name for notebook in chosen]
        self.total = len(chosen)
        self.why: dict[str, list[str]] = {}
        self.receipts: dict[str, dict] = {}
        self.results: dict[str, str] = {}  # name -> done, fresh, failed, not run
        self.known = past_seconds(project, scale)

    def line(self, text: str) -> None:
        """Write one line at once."""
        print(text, file=self.stream, flush=True)

    def initialize(self, tasks: dict, selected: list) -> None:
        self.line(f"{self.total} notebooks at scale {self.scale}")

    def get_status(self, task: Any) -> None:
        """Part of doit's reporter interface."""

    def execute_task(self, task: Any) -> None:
        known = [self.known.get(name) for name in self.left]
        text = f"[{self.total - len(self.left) + 1}/{self.total}] {task.name}"
        if known and known[0] is not None:
            text += f"  about {duration(known[0])}"
        if None not in known:
            text += f", at most {duration(sum(known))} left in all"
        self.line(text)

    def _finish(self, task: Any, result: str, text: str = "") -> None:
        self.results[task.name] = result
        self.left.remove(task.name)
        if text:
            self.line(text)

    def add_success(self, task: Any) -> None:
        receipt = self.receipts[task.name]
        memory = f"peak memory {receipt['peak_memory_mb']:.0f} MB"
        self._finish(task, "done", f"{task.name}  done in {duration(receipt['seconds'])}, {memory}")

    def skip_uptodate(self, task: Any) -> None:
        self._finish(task, "fresh", f"{task.name}  fresh, skipped")

    def add_failure(self, task: Any, failure: Any) -> None:
        message = failure.message.strip()
        if isinstance(failure, UnmetDependency):
            self._finish(task, "not run", f"{task.name}  NOT RUN: it reads what {', '.join(message.split())} makes")
        else:
            trace = "".join(getattr(failure, "traceback", None) or [])
            self._finish(task, "failed", f"FAILED  {message}{trace}")

    def skip_ignore(self, task: Any) -> None:
        self._finish(task, "not run", f"{task.name}  ignored")

    def cleanup_error(self, exception: Any) -> None:
        self.line(str(exception))

    def runtime_error(self, message: str) -> None:
        self.line(message)

    def teardown_task(self, task: Any) -> None:
        """Part of doit's reporter interface."""

    def complete_run(self) -> None:
        counts = [f"{list(self.results.values()).count(k)} {k}" for k in ("done", "fresh", "failed", "not run")]
        self.line(", ".join(count for count in counts if not count.startswith("0 ")) or "nothing to do")


def duration(seconds: float) -> str:
    """Seconds in words, as coarse as they deserve."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def past_seconds(project: Project, scale: str) -> dict[str, float]:
    """Run times by notebook: of this checkout's receipts, else those committed in notebooks/runtimes.json."""
    committed = project.root / "notebooks" / "runtimes.json"
    known = json.loads(committed.read_text()).get(scale, {}) if committed.is_file() else {}
    for path in project.executed("x", scale).parent.glob("*.receipt.json"):
        receipt = json.loads(path.read_text())
        known[receipt["notebook"]] = receipt["seconds"]
    return known


# ---- looking without running


def status(project: Project, scale: str, *, seed: int = 0, device: str = "auto") -> dict[str, list[str]]:
    """For each notebook the reasons why it would run now; an empty list means fresh."""
    state = open_state(project.state(scale))
    parameters = dict(zip(SHARED_PARAMETERS, (scale, seed, device), strict=True))
    reasons = {}
    for notebook in project.notebooks():
        saved = (state.get_values(notebook.name) or {}).get("key", {})
        reasons[notebook.name] = changes(saved, freshness(project, notebook, parameters))
        targets = [*project.outputs(notebook, scale), project.executed(notebook.name, scale)]
        reasons[notebook.name] += [f"output {path.name} is missing" for path in targets if not path.exists()]
    return reasons
