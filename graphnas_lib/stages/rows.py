"""Many independent trainings as resumable rows: two single-thread workers, every finished row kept."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable

import torch
from tqdm.auto import tqdm

from graphnas_lib.store import Checkpoint


def collect(
    jobs: dict[str, Callable[[], dict]], point: Checkpoint, *, device: torch.device, progress: bool, workers: int = 2
) -> list[dict]:
    """Run every job once and return the rows in the order of `jobs`; a killed run goes on at the next job.

    Args:
        jobs: id -> picklable function without arguments that returns a JSON-ready row.
        point: where finished rows are kept; saved after each.
        device: on CUDA the jobs run one after another in this process, on the CPU in `workers` processes.
        progress: draw a bar.
    """
    done: dict[str, dict] = json.loads((point.load() or {"rows": "{}"})["rows"])
    todo = {name: job for name, job in jobs.items() if name not in done}
    with tqdm(total=len(jobs), initial=len(jobs) - len(todo), disable=not progress, desc="rows") as bar:
        for name, row in _finished(todo, device, workers):
            done[name] = row
            point.save({"rows": json.dumps(done)})
            bar.update()
    return [{"id": name, **done[name]} for name in jobs]


def _finished(todo: dict[str, Callable[[], dict]], device: torch.device, workers: int):
    if device.type == "cuda" or workers == 1 or len(todo) < 2:
        for name, job in todo.items():
            yield name, job()
        return
    from joblib import Parallel, delayed

    tasks = (delayed(_one_thread)(name, job) for name, job in todo.items())
    with warnings.catch_warnings():  # a worker that PyTorch's allocator has grown is replaced: nothing is lost
        warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given", category=UserWarning)
        yield from Parallel(n_jobs=workers, return_as="generator_unordered")(tasks)


def _one_thread(name: str, job: Callable[[], dict]) -> tuple[str, dict]:
    """Two one-thread workers beat one two-thread process on small networks."""
    torch.set_num_threads(1)
    return name, job()
