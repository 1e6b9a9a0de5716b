"""How a stage is made, opened, and found to be stale."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from tqdm.auto import tqdm

from graphnas_lib import stages, store
from graphnas_lib.datasets import MissingDataError
from graphnas_lib.paper import STAGES, sizes
from graphnas_lib.stages import together
from graphnas_lib.stages.stage import Stage

MODULES = {name: vars(stages)[name] for name in STAGES}  # the room's `__init__` has imported them all before this
NOTED_SECONDS = 20.0  # of work whose time a kill may lose
# drawings decide no number, and what a stage may read of the others is in its key
NOT_HASHED = ("graphnas_lib.plots", "graphnas_lib.paper.road", "graphnas_lib.paper.scales")


def produce(stage: str, scale: str, *, seed: int = 0, device: str = "auto", progress: bool | None = None) -> dict:
    """The manifest of a stage, made first where this scale makes it from scratch.

    Args:
        stage: one of `paper.STAGES`.
        scale: "smoke" makes the stage unless exactly this one (`freshness`) is there; "lite" and "paper" open what is
            there and never start hours of work by themselves.
        device: "auto", "cpu" or "cuda".
        progress: draw progress bars; None asks `$GRAPHNAS_PROGRESS` (the headless runner sets it to 0).

    Raises:
        MissingArtifactError: a stage before it is missing, or this one is at lite or paper.
    """
    _check(stage, scale)
    if progress is None:
        progress = os.environ.get("GRAPHNAS_PROGRESS", "1") != "0"
    if scale != "smoke":
        return store.load_manifest(stage, scale)
    if store.manifest_path(stage, scale).exists():
        manifest = store.load_manifest(stage, scale)
        if manifest["key"] == freshness(stage, scale, seed, device):
            return manifest
    return run(stage, scale, seed=seed, device=device, progress=progress)


def run(
    stage: str,
    scale: str,
    *,
    seed: int = 0,
    device: str = "auto",
    fresh: bool = False,
    progress: bool = True,
    dask: str | None = None,
    digits: bool = False,
) -> dict:
    """Make a stage and save its artifact; returns the manifest.

    A killed run goes on from its checkpoint when the same command is given again; `fresh` starts over. A second run
    beside this one waits for it to end, and takes what it made. The manifest's seconds are those of all its runs, up to
    the kill.

    Args:
        stage, scale, seed, device, progress: as of `produce`.
        fresh: forget the state of earlier, unfinished runs.
        dask: address of a dask scheduler, on whose workers independent jobs run. Under torchrun (`together`) the
            processes train one network at a time, each its share of every batch.
        digits: at paper scale, go on with scikit-learn's digits where there are no CIFAR-10 files.

    Raises:
        ValueError: no such stage or scale; or paper scale on the CPU, which nobody has asked for.
        MissingArtifactError: a stage before it is missing.
        MissingDataError: paper scale without real images.
    """
    _check(stage, scale)
    if refused := hindrance(stage, scale, device, digits=digits):
        raise refused
    for earlier in STAGES[stage].needs:
        store.load_manifest(earlier, scale)
    where = store.pick_device(device)
    key = freshness(stage, scale, seed, device)
    identity = key if scale == "smoke" else freshness(stage, scale, seed, device, code=False)
    given = {"scale": sizes(stage, scale), "seed": seed, "device": where, "identity": identity}
    job = Stage(name=stage, progress=progress, dask=dask, **given)
    checkpoints = store.data_dir(scale) / "checkpoints"
    if not together.is_first(stage):  # of several processes the first alone writes
        MODULES[stage].make(job)
        return together.shared(stage, dict)
    waiting = partial(tqdm.write, f"{stage}: another run makes it at scale {scale}; this one waits for it to end.")
    with store.alone(store.data_dir(scale) / ".locks" / stage, waiting) as waited:
        if waited and store.manifest_path(stage, scale).exists():
            manifest = store.load_manifest(stage, scale)
            if manifest["key"] == key and not fresh:
                return manifest
        if fresh:
            _forget(checkpoints, stage, scores=True)
        with _stopwatch(checkpoints / f"{stage}-{identity}.json") as seconds:
            files, facts = MODULES[stage].make(job)
        name = torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu"
        about = {"seed": seed, "seconds": seconds(), "device": name, "config": facts, "key": key}
        manifest = together.shared(stage, lambda: store.save(stage, files, scale=scale, **about))
        _forget(checkpoints, stage)
        return manifest


def freshness(stage: str, scale: str, seed: int, device: str, *, code: bool = True) -> str:
    """Key of everything that decides a stage's result: its sizes, seed, data at hand, code, and the inputs' own files.

    `code=False` leaves the library's code out: hours of lite and paper work go on after an edit that does not matter,
    and a loop whose settings were edited starts over by itself (`Stage.checkpoint`).
    """
    inputs = {}
    for earlier in STAGES[stage].needs:
        if store.manifest_path(earlier, scale).exists():
            inputs[earlier] = {name: f["sha256"] for name, f in store.load_manifest(earlier, scale)["files"].items()}
    parts = [
        vars(sizes(stage, scale)),
        seed,
        store.pick_device(device).type,
        store.data_at_hand(),
        store.library_hash([f"graphnas_lib.stages.{stage}"], without=NOT_HASHED) if code else "",
        inputs,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def hindrance(stage: str, scale: str, device: str, *, digits: bool = False) -> Exception | None:
    """Why days of work should not begin here: "auto" means paper's sizes on the CPU, or on 1,797 digits."""
    if scale != "paper":
        return None
    if device == "auto" and store.pick_device(device).type == "cpu":
        return ValueError(
            f"Scale paper needs a GPU: {store.no_cuda()}. See `python -m graphnas_lib doctor`, or give --device cpu."
        )
    if not digits and set(STAGES[stage].data) - set(store.data_at_hand()):
        return MissingDataError(
            f"Stage {stage} at scale paper needs CIFAR-10; no files are in $GRAPHNAS_DATA or data/. Fetch them with "
            "`python -m graphnas_lib doctor --download`, or give --digits to go on with scikit-learn's digits."
        )
    return None


@contextmanager
def _stopwatch(path: Path) -> Iterator[Callable[[], float]]:
    """Says the seconds that a job has taken, its earlier runs included; notes them in `path` for the next run."""
    before = store.read(path)["seconds"] if path.exists() else 0.0
    began, ended = time.monotonic(), threading.Event()

    def seconds() -> float:
        return before + time.monotonic() - began

    def note() -> None:
        while not ended.wait(NOTED_SECONDS):
            store.write(path, {"seconds": seconds()})

    thread = threading.Thread(target=note, daemon=True)
    thread.start()
    try:
        yield seconds
    finally:
        ended.set()
        thread.join()
        store.write(path, {"seconds": seconds()})


def _forget(checkpoints: Path, stage: str, *, scores: bool = False) -> None:
    """Remove what unfinished runs of a stage have left; its scores (`Stage.scores_file`) outlive a success."""
    for pattern in (f"{stage}-*", f"{stage}_scores-*")[: 1 + scores]:
        for file in filter(Path.is_file, checkpoints.glob(pattern)):
            file.unlink()


def _check(stage: str, scale: str) -> None:
    if stage not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(STAGES)}; got {stage!r}.")
    store.check_scale(scale)
