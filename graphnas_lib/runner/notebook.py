"""Runs one notebook headlessly through papermill's Python API, and believes only what it has checked.

papermill alone is not enough to call a notebook done: a cell that calls `sys.exit(0)` ends the run with success, a
killed kernel leaves every cell marked "completed", an unknown parameter only warns, and the output file is written
even when the run fails. So: parameters are checked first, the copy is written as `<name>.part.ipynb` and renamed only
when every code cell has completed and every declared output exists, and a receipt is written beside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
KERNEL_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "GRAPHNAS_PROGRESS": "0",  # no bars in committed outputs
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

    @property
    def where(self) -> str:
        """The running cell, in words."""
        return f"cell {self.cell}/{self.total}" if self.cell else "start-up"


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

    Args:
        source: the notebook; it is not written to.
        executed: the executed copy. Until success it is `<name>.part.ipynb`, which is kept after a failure.
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
    cells = json.loads(source.read_text(encoding="utf-8"))["cells"]
    progress = Progress(source.stem, sum(_counts(cell) for cell in cells), tell)
    part = executed.with_name(f"{executed.stem}.part.ipynb")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.unlink(missing_ok=True)
    check_parameters(source, parameters)
    begun = time.monotonic()
    try:
        with patch.dict(os.environ, KERNEL_ENVIRONMENT | (environment or {})):  # which the kernel inherits
            _in_thread(lambda: _papermill(source, part, parameters, timeout, progress), progress)
    except NotebookError:
        raise
    except Exception as error:  # every way papermill, nbclient and the kernel can fail ends in one line
        raise NotebookError(_explain(error, progress, part, timeout)) from error
    missing = [path for path in outputs if not path.is_file() or not path.stat().st_size]
    if missing:
        raise NotebookError(
            f"{progress.name} ran to its end without writing {', '.join(path.name for path in missing)}, which "
            f"notebooks/manifest.toml declares. Mend the notebook or the manifest."
        )
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
    receipt_path(executed).write_text(json.dumps(receipt, indent=1) + "\n")
    return receipt


def receipt_path(executed: Path) -> Path:
    """Where the receipt of an executed copy lies."""
    return executed.with_name(f"{executed.stem}.receipt.json")


def check_parameters(source: Path, parameters: dict[str, Any]) -> None:
    """Refuse parameters that the notebook's cell tagged `parameters` does not assign (papermill only warns)."""
    from papermill.inspection import inspect_notebook

    with _quiet():
        known = sorted(inspect_notebook(str(source)))
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise NotebookError(
            f"{source.stem} must assign each parameter it is given in its cell tagged 'parameters'; it has "
            f"{', '.join(known) or 'none'} and was given {', '.join(unknown)}. Mend the name or the cell."
        )


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
    is_code = cell["cell_type"] == "code" and bool("".join(cell["source"]).strip())
    return is_code and "injected-parameters" not in cell.get("metadata", {}).get("tags", [])


def _papermill(source: Path, part: Path, parameters: dict, timeout: int | None, progress: Progress) -> None:
    """Execute; papermill itself reports success after sys.exit(0), with cells left pending."""
    from papermill.execute import execute_notebook
    from traitlets.config import Config

    with _quiet():
        execute_notebook(
            str(source),
            str(part),
            parameters=parameters,
            kernel_name=KERNEL["name"],
            cwd=str(source.parent),
            progress_bar=False,
            execution_timeout=timeout,
            # ipykernel >= 7.3 else prints a warning about unencrypted TCP at every start
            config=Config({"KernelManager": {"transport_encryption": "auto"}}),
            on_cell_start=progress.start,
            on_cell_executed=progress.done,
        )
    cells = code_cells(json.loads(part.read_text(encoding="utf-8")))
    left = [i for i, cell in enumerate(cells, 1) if cell["metadata"].get("papermill", {}).get("status") != "completed"]
    if left:
        raise NotebookError(
            f"{progress.name} failed at cell {left[0]}/{progress.total}: it ended early, by sys.exit() or the like; "
            f"{len(left)} cells did not complete. A notebook must not exit; remove the call. The partial copy is "
            f"{_shown(part)}."
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
    import psutil

    found = []
    for child in psutil.Process().children(recursive=True):
        if child.pid not in but:
            with contextlib.suppress(psutil.Error):
                found.append(what(child))
    return found


def _explain(error: BaseException, progress: Progress, part: Path, timeout: int | None) -> str:
    """One line on a failure: notebook, cell, reason, remedy."""
    kind, name = type(error).__name__, progress.name
    copy = f" The partial copy is {_shown(part)}." if part.exists() else ""
    told = {
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
    return f"{name} failed at {progress.where}: {what}.{copy}"


@contextlib.contextmanager
def _quiet():
    """Keep papermill's log off the terminal: what matters is raised, and told in one line."""
    import logging

    logger = logging.getLogger("papermill")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _shown(path: Path) -> str:
    """The last parts of a path that name it inside the repository."""
    return "/".join(path.parts[-4:]) if "executed" in path.parts[-4:] else path.name


def python_path(package_parent: Path) -> str:
    """PYTHONPATH that lets a kernel import the package from any working directory, installed or not."""
    rest = [str(Path(item).resolve()) for item in os.environ.get("PYTHONPATH", "").split(os.pathsep) if item]
    return os.pathsep.join(dict.fromkeys([str(package_parent), *rest]))
