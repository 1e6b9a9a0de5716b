"""All notebooks, headlessly: order from `notebooks/manifest.toml`, skipped when fresh, resumed after a kill.

A notebook is skipped when it is fresh (`manifest`) and all its outputs are there. The state is JSON, one file a scale
(`data/<scale>/.notebooks.json`), written after every notebook, so that a killed run goes on where it was.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from graphnas_lib import store
from graphnas_lib.runner import notebook as runner
from graphnas_lib.runner.manifest import Notebook, Project, changes, freshness, select

INTERRUPTED = 130  # exit status of a shell command ended by Ctrl-C
DONE, FRESH, FAILED, NOT_RUN = "done", "fresh", "failed", "not run"


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
        scale, seed, device: parameters of every notebook.
        notebooks: numbers or names; None for all. Notebooks before a chosen one are not run: a missing input is told.
        force: run fresh notebooks too.
        stream: where to report; standard output by default.

    Returns:
        Exit status: 0 all is done, 1 a notebook failed or could not run, 130 interrupted.
    """
    chosen = select(project.notebooks(), notebooks)
    for notebook in chosen:
        project.cells(notebook.name)  # a missing notebook is told before anything runs
    tell = partial(print, file=stream or sys.stdout, flush=True)
    run = _Run(project, {"scale": store.check_scale(scale), "seed": seed, "device": device}, tell)
    results: dict[str, str] = {}
    tell(f"{len(chosen)} notebooks at scale {scale}")
    try:
        with ExitStack() as stack:
            # SIGTERM (a cancelled job) ends the run as Ctrl-C does
            stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, signal.default_int_handler))
            for number, notebook in enumerate(chosen):
                read = notebook.required(scale) - set(notebook.makes)
                makers = {other.name for other in chosen if set(other.makes) & read}
                lost = sorted(name for name in makers if results.get(name) in (FAILED, NOT_RUN))
                if lost:
                    tell(f"{notebook.name}  NOT RUN: it reads what {', '.join(lost)} makes")
                    results[notebook.name] = NOT_RUN
                else:
                    with run.alone(notebook) as waited:
                        if not run.reasons(notebook) and (waited or not force):
                            tell(f"{notebook.name}  fresh, skipped")
                            results[notebook.name] = FRESH
                        else:
                            tell(run.announced(chosen, number))
                            results[notebook.name] = run.execute(notebook)
    except KeyboardInterrupt:
        tell("Interrupted. What was finished is kept; the same command goes on from there.")
        return INTERRUPTED
    found = list(results.values())
    tell(", ".join(f"{found.count(kind)} {kind}" for kind in (DONE, FRESH, FAILED, NOT_RUN) if kind in found))
    return int(FAILED in found or NOT_RUN in found)


def status(project: Project, scale: str, *, seed: int = 0, device: str = "auto") -> dict[str, list[str]]:
    """For each notebook the reasons why it would run now; an empty list means fresh."""
    run = _Run(project, {"scale": scale, "seed": seed, "device": device}, print)
    return {notebook.name: run.reasons(notebook) for notebook in project.notebooks()}


class _Run:
    """The state of one scale, and what is done with one notebook.

    The state maps a notebook to the freshness key of its last success. It is read before every question and written
    after every change, so that two runs share it.
    """

    def __init__(self, project: Project, parameters: dict[str, Any], tell: Callable[[str], None]):
        self.project, self.parameters, self.scale, self.tell = project, parameters, parameters["scale"], tell
        self.path = project.state(self.scale)

    def state(self) -> dict[str, dict]:
        """Notebook -> the freshness key of its last success."""
        try:
            return store.read(self.path) if self.path.exists() else {}
        except ValueError as error:
            raise ValueError(
                f"{self.path.name} must be readable JSON; it is not. Delete data/{self.scale}/{self.path.name}."
            ) from error

    def note(self, name: str, key: dict | None) -> None:
        """Write one notebook's key into the state, or take it out."""
        with store.alone(self.path.with_name(f"{self.path.name}.lock")):
            state = self.state()
            if key is not None:
                store.write(self.path, state | {name: key})
            elif state.pop(name, None):
                store.write(self.path, state)

    def alone(self, notebook: Notebook) -> AbstractContextManager[bool]:
        """A second run beside this one waits for it to end with a notebook."""
        executed = self.project.executed(notebook.name, self.scale)
        waiting = partial(self.tell, f"{notebook.name}  another run is at it; this one waits for it to end")
        return store.alone(executed.with_name(f".{notebook.name}.lock"), waiting)

    def reasons(self, notebook: Notebook) -> list[str]:
        """Why a notebook would run now."""
        key = freshness(self.project, notebook, self.parameters)
        targets = [*self.project.outputs(notebook, self.scale), self.project.executed(notebook.name, self.scale)]
        missing = [f"output {path.name} is missing" for path in targets if not path.exists()]
        return changes(self.state().get(notebook.name, {}), key) + missing

    def announced(self, chosen: list[Notebook], number: int) -> str:
        """The line before a notebook: which, how long it took last time, and how much is left at most."""
        known = past_seconds(self.project, self.scale)
        took = [known.get(notebook.name) for notebook in chosen[number:]]
        text = f"[{number + 1}/{len(chosen)}] {chosen[number].name}"
        if took[0] is not None:
            text += f"  about {duration(took[0])}"
        return text + (f", at most {duration(sum(took))} left in all" if None not in took else "")

    def execute(self, notebook: Notebook) -> str:
        """Run one notebook; it is stale until it has run to its end."""
        project, scale = self.project, self.scale
        key = freshness(project, notebook, self.parameters)  # before the run: an edit during it makes it stale
        self.note(notebook.name, None)
        # a kernel imports the package from any working directory, installed or not
        paths = [str(Path(item).resolve()) for item in os.environ.get("PYTHONPATH", "").split(os.pathsep) if item]
        path = os.pathsep.join([str(project.package_parent), *paths])
        environment = {"GRAPHNAS_HOME": str(project.root), "PYTHONPATH": path}
        if scale == "smoke":  # its networks gain nothing from a second thread, and lose much where a core is shared
            environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
        try:
            _check_inputs(project, notebook, scale)
            receipt = runner.run_notebook(
                project.source(notebook.name),
                project.executed(notebook.name, scale),
                parameters=self.parameters,
                outputs=project.outputs(notebook, scale),
                timeout=notebook.timeout.get(scale),
                environment=environment,
                tell=self.tell,
            )
        except runner.NotebookError as error:
            self.tell(f"FAILED  {error}")
            return FAILED
        self.note(notebook.name, key)
        memory = f"peak memory {receipt['peak_memory_mb']:.0f} MB"
        self.tell(f"{notebook.name}  done in {duration(receipt['seconds'])}, {memory}")
        return DONE


def _check_inputs(project: Project, notebook: Notebook, scale: str) -> None:
    """Refuse a notebook whose input artifacts are not there, naming the notebooks that make them."""

    def lacking(one: Notebook) -> list[str]:
        return [
            stage
            for stage in project.road
            if stage in one.required(scale) and not project.stage(stage, scale).is_file()
        ]

    if not (missing := lacking(notebook)):
        return
    todo, numbers, others = set(missing), {notebook.number}, project.notebooks()
    for other in reversed(others):  # what is missing may itself need what is missing
        if todo & set(other.makes):
            todo |= set(lacking(other))
            numbers.add(other.number)
    first = ", ".join(sorted(other.name for other in others if set(missing) & set(other.makes)))
    remedy = f"Run {first or 'what makes them'} first: python -m graphnas_lib reproduce --scale {scale} "
    remedy += f"--notebooks {' '.join(sorted(numbers))}"
    if scale != "smoke":  # a notebook only opens what is there
        remedy = f"Make them first: python -m graphnas_lib run --all --scale {scale}"
    raise runner.NotebookError(
        f"{notebook.name} reads the stages {', '.join(missing)}, which data/{scale} lacks. {remedy}"
    )


def duration(seconds: float) -> str:
    """Seconds in words, as coarse as they deserve."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def past_seconds(project: Project, scale: str) -> dict[str, float]:
    """Run times by notebook: of this checkout's receipts, else those committed in notebooks/runtimes.json."""
    committed = project.root / "notebooks" / "runtimes.json"
    known = store.read(committed).get(scale, {}) if committed.is_file() else {}
    receipts = map(store.read, project.executed("x", scale).parent.glob("*.receipt.json"))
    return known | {receipt["notebook"]: receipt["seconds"] for receipt in receipts}
