"""Runs one notebook headlessly through papermill's Python API, and believes only what it has checked.

papermill alone is not enough to call a notebook done: a cell that calls `sys.exit(0)` ends the run with success, a
killed kernel leaves every cell marked "completed", an unknown parameter only warns, and the output file is written
even when the run fails. So: parameters are checked first, the copy is written as `<name>.part.ipynb` and renamed only
when every code cell has completed and every declared output exists, and a receipt is written beside it.
"""

from __future__ import annotations

import ast
import json
import logging
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import psutil

from graphnas_lib import store

KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
KERNEL_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "GRAPHNAS_PROGRESS": "0",  # no bars in committed outputs
    "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive"),  # threads that wait leave the cores to others
    "CUBLAS_WORKSPACE_CONFIG": os.environ.get("CUBLAS_WORKSPACE_CONFIG", ":4096:8"),
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
}
POLL_SECONDS = 0.5  # how often the kernel's memory is sampled and Ctrl-C is noticed
KILL_SECONDS = 10  # how long an interrupted kernel is killed again and again


class NotebookError(RuntimeError):
    """A notebook did not run to its end; the message is one line: what failed, where, what to do."""


@dataclass
class Progress:
    """What the kernel has done so far, written by papermill's hooks."""

    name: str
    total: int
    tell: Callable[[str], None]
    cell: int = 0  # number of the running code cell, 1-based, as in the source notebook
    started: float = 0.0
    seconds: list[float] = field(default_factory=list)
    peak_mb: float = 0.0  # memory that the kernel held at most

    def start(self, cell: Any, cell_index: int) -> None:
        """papermill's on_cell_start: called for Markdown cells too."""
        if _counts(cell):
            self.cell += 1
            self.started = time.monotonic()

    def done(self, cell: Any, cell_index: int, execute_reply: Any) -> None:
        """papermill's on_cell_executed."""
        if _counts(cell):
            self.seconds.append(round(time.monotonic() - self.started, 2))
            if execute_reply["content"].get("status") == "ok":
                self.tell(f"{self.name}  cell {self.cell}/{self.total}  {self.seconds[-1]:.1f} s")


def run_notebook(
    source: Path,
    executed: Path,
    *,
    parameters: dict[str, Any],
    outputs: Iterable[Path] = (),
    timeout: int | None = None,
    environment: dict[str, str] | None = None,
    tell: Callable[[str], None] = print,
) -> dict:
    """Run `source` and leave the executed copy at `executed`, with `<name>.receipt.json` beside it.

    Until success the copy is `<name>.part.ipynb`, which is kept after a failure.

    Args:
        parameters: values for the cell tagged `parameters`; a name that the notebook lacks is refused.
        outputs: files that must exist afterwards.
        timeout: seconds a cell may take.
        environment: variables for the kernel beside those of this process.
        tell: receives one line a cell.

    Returns:
        The receipt: seconds per cell and in all, peak memory in MB, versions, parameters.

    Raises:
        NotebookError: the notebook did not run to its end.
    """
    notebook = read(source)
    progress = Progress(source.stem, len(code_cells(notebook)), tell)
    part = executed.with_name(f"{executed.stem}.part.ipynb")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.unlink(missing_ok=True)
    begun = time.monotonic()
    try:
        check_parameters(notebook, parameters)
        with own_kernel() as (path, manager), patch.dict(os.environ, KERNEL_ENVIRONMENT | path | (environment or {})):
            _in_thread(lambda: _papermill(source, part, parameters, timeout, progress, manager), progress)
        if missing := [path.name for path in outputs if not path.is_file() or not path.stat().st_size]:
            raise NotebookError(
                f"it did not write {', '.join(missing)}, which notebooks/manifest.toml declares. Mend one of them"
            )
    except Exception as error:  # every way papermill, nbclient and the kernel can fail ends in one line
        raise NotebookError(_explain(error, progress, part, timeout)) from error
    receipt = {
        "notebook": progress.name,
        "parameters": parameters,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - begun, 2),
        "cells": progress.seconds,
        "peak_memory_mb": round(progress.peak_mb, 1),
        "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()},
        "python": platform.python_version(),
    }
    os.replace(part, executed)
    store.write(executed.with_name(f"{executed.stem}.receipt.json"), receipt)
    return receipt


@contextmanager
def own_kernel() -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """Variables under which the kernel "python3" is this process's Python, and options of what starts the kernel.

    It is spoken to through files: of two kernels that start at once both could be given the same ports.
    """
    from ipykernel.kernelspec import write_kernel_spec

    with TemporaryDirectory(prefix="graphnas-kernel-") as folder:
        quiet = ["--log-level=CRITICAL"]  # else it warns of TCP, and says that it was interrupted when it is ended
        write_kernel_spec(Path(folder, "kernels", KERNEL["name"]), extra_arguments=quiet)
        paths = os.pathsep.join(filter(None, [folder, os.environ.get("JUPYTER_PATH")]))
        short = os.name == "posix" and len(f"{folder}/kernel-9".encode()) <= 100  # bytes: systems take 103 or 107
        yield {"JUPYTER_PATH": paths}, {"transport": "ipc", "ip": f"{folder}/kernel"} if short else {}


def check_parameters(notebook: dict, parameters: dict[str, Any]) -> None:
    """Refuse parameters that the notebook's cell tagged `parameters` does not assign (papermill only warns)."""
    known = parameters_of(notebook)
    if unknown := sorted(parameters.keys() - known.keys()):
        raise NotebookError(
            f"its cell tagged 'parameters' must assign each parameter that it is given; it has "
            f"{', '.join(known) or 'none'} and was given {', '.join(unknown)}. Mend the name or the cell"
        )


def parameters_of(notebook: dict) -> dict[str, Any]:
    """Literals that the cell tagged `parameters` assigns; ValueError where something else is assigned."""
    cells = [source_of(cell) for cell in code_cells(notebook) if "parameters" in tags_of(cell)]
    nodes = [node for cell in cells for node in ast.parse(cell).body if isinstance(node, ast.Assign)]
    return {node.targets[0].id: ast.literal_eval(node.value) for node in nodes}


def read(path: Path) -> dict:
    """A notebook as JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(notebook: dict) -> list[dict]:
    """Code cells of a notebook read as JSON, without papermill's injected one."""
    return [cell for cell in notebook["cells"] if _counts(cell)]


def source_of(cell: dict) -> str:
    """Source of a cell as one string."""
    return "".join(cell["source"])


def tags_of(cell: dict) -> list[str]:
    """Tags of a cell."""
    return list(cell.get("metadata", {}).get("tags", []))


def _counts(cell: Any) -> bool:
    """Whether a cell is run and is one of the source's own."""
    filled = cell["cell_type"] == "code" and source_of(cell).strip() != ""
    return filled and "injected-parameters" not in tags_of(cell)


def _papermill(
    source: Path, part: Path, parameters: dict, timeout: int | None, progress: Progress, manager: dict
) -> None:
    """Execute; papermill itself reports success after sys.exit(0), with cells left pending."""
    from papermill.execute import execute_notebook
    from traitlets.config import Config

    # what papermill would log is raised, and told in one line
    with patch.object(logging.getLogger("papermill"), "disabled", True):
        execute_notebook(
            str(source),
            str(part),
            parameters=parameters,
            kernel_name=KERNEL["name"],
            cwd=str(source.parent),
            progress_bar=False,
            execution_timeout=timeout,
            config=Config({"KernelManager": manager}),
            on_cell_start=progress.start,
            on_cell_executed=progress.done,
        )
    ends = [cell["metadata"].get("papermill", {}).get("status") for cell in code_cells(read(part))]
    if left := [number for number, end in enumerate(ends, 1) if end != "completed"]:
        progress.cell = left[0]
        raise NotebookError(
            f"it ended early, by sys.exit() or the like; {len(left)} cells did not complete. "
            "A notebook must not exit; remove the call"
        )


def _in_thread(work: Callable[[], None], progress: Progress) -> None:
    """Run `work` in a thread; this one samples the kernel's memory and takes Ctrl-C.

    In the main thread nbclient would install its own handlers for SIGINT and SIGTERM, which kill the kernel and then
    report its death, so that an interrupted run would go on with the next notebook.
    """
    before = set(_of_children(lambda child: child.pid))
    future: Future = Future()

    def target() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # handed to the waiting thread, where it is raised
            future.set_exception(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            held = _of_children(lambda child: child.memory_info().rss / 2**20, before)
            progress.peak_mb = max(progress.peak_mb, sum(held))
    except KeyboardInterrupt:
        until = time.monotonic() + KILL_SECONDS
        while thread.is_alive() and time.monotonic() < until:
            _of_children(lambda child: child.kill(), before)
            thread.join(POLL_SECONDS)
        raise
    future.result()


def _of_children(what: Callable[[Any], Any], but: Collection[int] = ()) -> list:
    """`what` of every process below this one, those `but` aside, as far as they still live."""
    found = []
    for child in psutil.Process().children(recursive=True):
        if child.pid not in but:
            with suppress(psutil.Error):
                found.append(what(child))
    return found


def _explain(error: BaseException, progress: Progress, part: Path, timeout: int | None) -> str:
    """One line on a failure: notebook, cell, reason, remedy."""
    kind = type(error).__name__
    copy = f" The partial copy is {'/'.join(part.parts[-4:])}." if part.exists() else ""
    told = {
        "NotebookError": str(error),
        "DeadKernelError": f"the kernel died (out of memory? it held {progress.peak_mb:.0f} MB at its peak). Free "
        "memory or take a smaller scale",
        "CellTimeoutError": f"the cell ran longer than its {timeout} s. Raise `timeout` in notebooks/manifest.toml or "
        "find what hangs",
        "NoSuchKernel": "no Jupyter kernel 'python3' in this environment. Install the package again: pip install -e .",
    }
    what = told.get(kind, f"{kind}: {error}")
    if kind == "PapermillExecutionError":
        what = f"{error.ename}: {error.evalue}"
        what += ". A notebook must not exit; remove the call" * (error.ename == "SystemExit")
    what = re.sub(r"\s+", " ", what).strip().rstrip(".")[:600]
    what = f"{what}. {store.remedy(what)}".rstrip(" .")
    where = f"cell {progress.cell}/{progress.total}" if progress.cell else "start-up"
    return f"{progress.name} failed at {where}: {what}.{copy}"
