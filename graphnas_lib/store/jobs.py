"""Independent jobs in parallel, each result kept as soon as it is there: the one loop of labelling, scoring, training.

A killed run goes on with the jobs that its journal lacks. Two processes of one thread beat one of two, and on a GPU a
small network is bound by launches, so that several processes share it.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from functools import cache
from multiprocessing import current_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

if TYPE_CHECKING:
    import torch

ON_CUDA = 8
BYTES_A_PROCESS = 4 << 30  # of GPU memory: libraries, and the maps of a large network at batch 64
TRIES = 3  # of a pool whose workers die
WATCH_SECONDS = 1.0  # between a worker's looks at whether its master lives


class Journal:
    """Results of jobs in a file, one JSON line each, written the moment they come.

    Args:
        path: of the file; None keeps nothing.
        settings: JSON-ready; all that decides a result beside the job's name.

    Raises:
        ValueError: the file holds results of other settings.
    """

    def __init__(self, path: Path | str | None, settings: Mapping[str, Any] | None = None):
        self.path, self.results = Path(path) if path is not None else None, {}
        if self.path is None:
            return
        settings = json.loads(json.dumps(settings or {}))
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        if lines and not lines[-1].endswith(b"\n"):  # a killed run was writing it
            lines.pop()
            os.truncate(self.path, sum(map(len, lines)))
        if not lines:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(settings) + "\n", encoding="utf-8", newline="\n")
            return
        before = json.loads(lines[0])
        names = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
        if names:
            changed = ", ".join(f"{name}: {before.get(name)} -> {settings.get(name)}" for name in names)
            raise ValueError(
                f"Results of a file must share settings; {self.path.name} differs: {changed}. Name another."
            )
        self.results = dict(json.loads(line) for line in lines[1:])

    def add(self, name: str, result: Any) -> None:
        """Keep one result."""
        self.results[name] = result
        if self.path is not None:
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps([name, result]) + "\n")


def collect(
    jobs: Mapping[str, Callable[[], Any]],
    journal: Journal | None = None,
    *,
    workers: int | None = None,
    progress: bool = False,
    desc: str = "jobs",
    unit: str = "job",
    dask: str | None = None,
    kept: Callable[[str], None] = lambda name: None,
) -> list[Any]:
    """Results of all jobs, in their order; those that the journal has are not run again.

    A worker that dies is replaced, and what it was at is done again. Ctrl-C leaves nothing running.

    Args:
        jobs: name -> picklable function without arguments; what it returns is JSON-ready where there is a journal.
        journal: results of an earlier run, killed perhaps; each new one is added at once.
        workers: processes of one thread each, default `on_cpu`; 1 runs the jobs in this process, with its threads.
        progress, desc, unit: whether a bar with the time left is drawn, its name, and what it counts.
        dask: address of a dask scheduler ("tcp://host:port"); its workers replace `workers`.
        kept: called with the name of a job whose result the journal has just got.

    Raises:
        RuntimeError: workers died `TRIES` times; finished jobs are kept, and the same call goes on from there.
    """
    journal, workers = journal or Journal(None), workers or on_cpu()
    known = sum(name in journal.results for name in jobs)
    with tqdm(total=len(jobs), initial=known, smoothing=0, disable=not progress, desc=desc, unit=unit) as bar:
        for left in reversed(range(TRIES)):
            todo = {name: job for name, job in jobs.items() if name not in journal.results}
            try:
                with closing(_finished(todo, workers, dask)) as finished:
                    for name, result in finished:
                        journal.add(name, result)
                        kept(name)
                        bar.update()
                return [journal.results[name] for name in jobs]
            except died() as error:
                if not left:
                    done = sum(name in journal.results for name in jobs)
                    raise RuntimeError(
                        f"A worker process was killed, from outside or for want of memory, {TRIES} times; {done} of "
                        f"{len(jobs)} {unit}s are kept. Run the same command again to go on."
                    ) from error


def died() -> tuple[type[Exception], ...]:
    """What says that workers have died: those of this machine, or more of a cluster's than it allows for one task."""
    cluster = sys.modules.get("distributed")
    return (BrokenProcessPool, cluster.KilledWorker) if cluster else (BrokenProcessPool,)


def gpus(device: torch.device) -> list[int]:
    """The GPUs that a device stands for: "cuda" for all that are visible, "cuda:1" for the second, "cpu" for none."""
    import torch

    if device.type != "cuda":
        return []
    return list(range(torch.cuda.device_count())) if device.index is None else [device.index]


def on_cpu() -> int:
    """Worker processes on CPUs: two, or as many as `$GRAPHNAS_WORKERS` says."""
    said = os.environ.get("GRAPHNAS_WORKERS") or "2"
    if not said.isdecimal() or int(said) < 1:
        raise ValueError(f"GRAPHNAS_WORKERS must be a whole number from 1, or not be set; got {said!r}.")
    return int(said)


def processes(device: torch.device) -> int:
    """How many worker processes serve a device: on GPUs as many as free memory and the CPU's cores admit."""
    import torch

    if not (indices := gpus(device)):
        return on_cpu()
    admitted = (min(ON_CUDA, torch.cuda.mem_get_info(index)[0] // BYTES_A_PROCESS) for index in indices)
    return max(1, min(sum(admitted), os.cpu_count() or 1))


@cache
def take_gpu(worker: str) -> int:
    """Make one GPU what "cuda" means in this worker: they take them in turn, by the number that their name ends in."""
    import torch

    mine = int("0" + re.sub(r"\D", "", worker)) % max(1, torch.cuda.device_count())
    if mine:
        torch.cuda.set_device(mine)
    return mine


@contextmanager
def single_threaded(master: int | None = None) -> Iterator[None]:
    """One task of a worker: one thread, so that results are equal wherever they are made; memory is given back after.

    joblib restarts a worker whose memory seems to grow, which costs more than the pages that are touched again.

    Args:
        master: identifier of the process that this one works for, and with which it ends, killed or not.
    """
    import torch

    if master is not None:
        end_with(master)
        take_gpu(current_process().name)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc alone
            libc.malloc_trim(0)


def _finished(jobs: Mapping[str, Callable], workers: int, dask: str | None) -> Iterator[tuple[str, Any]]:
    """Names and results as they come; an error of `died` when a worker did."""
    from joblib import Parallel, delayed, parallel_config

    if dask is not None:
        from distributed import Client, as_completed

        with Client(dask) as client:
            futures = [client.submit(_alone, name, job, pure=False) for name, job in jobs.items()]
            try:
                yield from (result for _, result in as_completed(futures, with_results=True))
            finally:
                client.cancel(futures)
    elif workers == 1 or len(jobs) == 1:
        yield from ((name, job()) if workers == 1 else _alone(name, job) for name, job in jobs.items())
    else:
        with parallel_config(backend="loky"):
            pool = Parallel(n_jobs=workers, return_as="generator_unordered")
        tasks = (delayed(_alone)(name, job, os.getpid()) for name, job in jobs.items())
        with warnings.catch_warnings():  # a worker that PyTorch's allocator has grown is replaced: nothing is lost
            warnings.filterwarnings("ignore", message="A worker stopped while some jobs", category=UserWarning)
            yield from pool(tasks)


def _alone(name: str, job: Callable[[], Any], master: int | None = None) -> tuple[str, Any]:
    with single_threaded(master):
        return name, job()


@cache
def end_with(master: int) -> None:
    """End this worker soon after its master: joblib's go on with the tasks that they have, and wait for more."""

    def watch() -> None:
        while os.getppid() == master:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    if os.name == "posix":  # elsewhere a process keeps the identifier of a parent that has ended
        threading.Thread(target=watch, daemon=True).start()
