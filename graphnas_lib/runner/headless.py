"""All notebooks, headlessly: order from `notebooks/manifest.toml`, skipped when fresh, resumed after a kill.

A notebook is skipped when it is fresh (`manifest`) and all its outputs are there. The state is JSON, one file a scale
(`data/<scale>/.notebooks.json`), written after every notebook, so that a killed run goes on where it was.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import connection, get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

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
    jobs: int = 1,
) -> int:
    """Run the notebooks that are not fresh, in order; independent branches go on after a failure.

    Args:
        project: where everything lies; picklable where `jobs` is more than one.
        scale, seed, device: parameters of every notebook.
        notebooks: numbers or names; None for all. Notebooks before a chosen one are not run: a missing input is told.
        force: run fresh notebooks too.
        jobs: notebooks at a time; each then runs in a process of its own, as soon as what it reads is made.

    Returns:
        Exit status: 0 all is done, 1 a notebook failed or could not run, 130 interrupted.
    """
    if jobs < 1:
        raise ValueError(f"At least one notebook must run at a time; got {jobs}.")
    chosen = {notebook.name: notebook for notebook in select(project.notebooks(), notebooks)}
    for name in chosen:
        project.cells(name)  # a missing notebook is told before anything runs
    parameters = {"scale": store.check_scale(scale), "seed": seed, "device": device}
    run = _Run(project, parameters, chosen, force, min(jobs, len(chosen)), partial(print, flush=True))
    run.tell(f"{len(chosen)} notebooks at scale {scale}")
    try:
        with ExitStack() as stack:
            # SIGTERM (a cancelled job) ends the run as Ctrl-C does
            stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, signal.default_int_handler))
            if run.jobs > 1:
                side_by_side(run)
            else:
                for name in chosen:
                    run.results[name] = run.refused(name) or run.one(name)
    except KeyboardInterrupt:
        run.tell("Interrupted. What was finished is kept; the same command goes on from there.")
        return INTERRUPTED
    found = list(run.results.values())
    run.tell(", ".join(f"{found.count(kind)} {kind}" for kind in (DONE, FRESH, FAILED, NOT_RUN) if kind in found))
    return int(FAILED in found or NOT_RUN in found)


def status(project: Project, scale: str, *, seed: int = 0, device: str = "auto") -> dict[str, list[str]]:
    """For each notebook the reasons why it would run now; an empty list means fresh."""
    notebooks = {notebook.name: notebook for notebook in project.notebooks()}
    run = _Run(project, {"scale": scale, "seed": seed, "device": device}, notebooks)
    return {name: run.reasons(name) for name in notebooks}


def side_by_side(run: _Run) -> None:
    """Run the chosen notebooks, each as soon as all that it reads is made, in a process that ends with this one."""
    context, left = get_context("spawn"), list(run.chosen)
    running: dict[connection.Connection, tuple[str, BaseProcess]] = {}
    try:
        while left or running:
            for name in left.copy():
                if len(running) == run.jobs or not run.makers(name) <= run.results.keys():
                    continue
                left.remove(name)
                if known := run.refused(name) or run.fresh(name, run.force):
                    run.results[name] = known
                    continue
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_in_a_process, args=(replace(run, tell=print), name, theirs))
                process.daemon = True
                process.start()
                theirs.close()
                running[ours] = name, process
            for pipe in connection.wait(list(running)) if running else ():
                name, process = running[pipe]
                try:
                    line, result = pipe.recv()
                except (EOFError, OSError):  # it has ended, perhaps in the middle of a line
                    process.join()
                    del running[pipe]
                    why = f"FAILED  {name}: its process was killed, from outside or for want of memory."
                    line, result = ("", None) if name in run.results else (why, FAILED)
                if line:
                    run.tell(line)
                if result:
                    run.results[name] = result
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join(runner.KILL_SECONDS + 5)
            process.kill()


def _in_a_process(run: _Run, name: str, pipe: connection.Connection) -> None:
    """One notebook beside others: (line, None) for each line that it has to tell, at last ("", result)."""
    store.end_with(parent_process().pid)
    signal.signal(signal.SIGINT, lambda *_: None)  # of a terminal: the first process passes it on
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run.tell = lambda line: pipe.send((line, None))
    with suppress(KeyboardInterrupt):
        try:
            result = run.one(name)
        except Exception as error:  # one line here too
            run.tell(f"FAILED  {name}: {' '.join(str(error).split())} {store.remedy(str(error))}".rstrip())
            result = FAILED
        pipe.send(("", result))


@dataclass
class _Run:
    """The state of one scale, and what is done with one of the chosen notebooks.

    The state maps a notebook to the freshness key of its last success. It is read before every question and written
    after every change, so that two runs share it.
    """

    project: Project
    parameters: dict[str, Any]
    chosen: dict[str, Notebook]
    force: bool = False
    jobs: int = 1
    tell: Callable[[str], None] = print
    results: dict[str, str] = field(default_factory=dict)  # notebook -> what became of it

    scale = property(lambda self: self.parameters["scale"])
    path = property(lambda self: self.project.state(self.scale))

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

    def reasons(self, name: str) -> list[str]:
        """Why a notebook would run now."""
        key = freshness(self.project, self.chosen[name], self.parameters)
        targets = [*self.project.outputs(self.chosen[name], self.scale), self.project.executed(name, self.scale)]
        missing = [f"output {path.name} is missing" for path in targets if not path.exists()]
        return changes(self.state().get(name, {}), key) + missing

    def makers(self, name: str) -> set[str]:
        """Those of the chosen notebooks that make what this one reads."""
        read = self.chosen[name].required(self.scale) - set(self.chosen[name].makes)
        return {other.name for other in self.chosen.values() if set(other.makes) & read}

    def refused(self, name: str) -> str | None:
        """What becomes of a notebook whose makers did not get to their end; None where they did."""
        if lost := sorted(maker for maker in self.makers(name) if self.results[maker] in (FAILED, NOT_RUN)):
            self.tell(f"{name}  NOT RUN: it reads what {', '.join(lost)} makes")
        return NOT_RUN if lost else None

    def fresh(self, name: str, forced: bool) -> str | None:
        """What becomes of a notebook that need not run; None where it must."""
        if not (stale := forced or self.reasons(name)):
            self.tell(f"{name}  fresh, skipped")
        return None if stale else FRESH

    def one(self, name: str) -> str:
        """Run a notebook unless it is fresh, after a second run that is at it; returns what became of it."""
        waiting = partial(self.tell, f"{name}  another run is at it; this one waits for it to end")
        with store.alone(self.project.executed(name, self.scale).with_name(f".{name}.lock"), waiting) as waited:
            if found := self.fresh(name, self.force and not waited):
                return found
            self.tell(self.announced(name))
            return self.execute(self.chosen[name])

    def announced(self, name: str) -> str:
        """The line before a notebook: which, how long it took last time, and how much is left at most."""
        known, left = past_seconds(self.project, self.scale), self.chosen.keys() - self.results.keys()
        text = f"[{list(self.chosen).index(name) + 1}/{len(self.chosen)}] {name}"
        text += f"  about {duration(known[name])}" if name in known else ""
        return text + (f", at most {duration(sum(map(known.get, left)))} left in all" if known.keys() >= left else "")

    def execute(self, notebook: Notebook) -> str:
        """Run one notebook; it is stale until it has run to its end."""
        project, scale = self.project, self.scale
        key = freshness(project, notebook, self.parameters)  # before the run: an edit during it makes it stale
        self.note(notebook.name, None)
        # a kernel imports the package from any working directory, installed or not
        paths = [str(Path(item).resolve()) for item in os.environ.get("PYTHONPATH", "").split(os.pathsep) if item]
        path = os.pathsep.join([str(project.package_parent), *paths])
        environment = {"GRAPHNAS_HOME": str(project.root), "PYTHONPATH": path}
        if scale == "smoke" or self.jobs > 1:  # a second thread gains smoke nothing, and costs much where others run
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
    absent = [stage for stage in project.road if not project.stage(stage, scale).is_file()]
    if not (missing := [stage for stage in absent if stage in notebook.required(scale)]):
        return
    todo, numbers, others = set(missing), {notebook.number}, project.notebooks()
    for other in reversed(others):  # what is missing may itself need what is missing
        if todo & set(other.makes):
            todo |= other.required(scale).intersection(absent)
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
