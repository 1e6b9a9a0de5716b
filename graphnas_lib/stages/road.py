"""The road of the paper as stages: each reads the artifacts of those before it and writes its own.

`produce` is what notebooks call. At smoke it makes the stage from scratch unless exactly this one is there already
(same sizes, seed, data, library code and inputs); at lite and paper it opens what is there and never starts hours of
work by itself. `run` always makes it, continuing from a checkpoint when there is one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from graphnas_lib import datasets, store
from graphnas_lib.paper import SCALES, Scale
from graphnas_lib.store import Checkpoint

NEEDS = {  # stage -> stages whose artifacts it reads
    "cells": (),
    "labels": ("cells",),
    "families": ("cells", "labels"),
    "gvae": ("cells", "labels", "families"),
    "ccnf": ("cells", "labels", "families", "gvae"),
    "generated": ("cells", "labels", "families", "gvae", "ccnf"),
    "table1": ("families", "gvae", "ccnf"),
    "evolution": ("families", "gvae", "ccnf"),
    "comparison": ("families", "gvae", "ccnf"),
    "variants": ("families", "gvae", "ccnf"),
    "sequence": ("families", "gvae", "ccnf", "evolution"),
    "designed": ("families", "gvae", "ccnf", "evolution", "sequence"),
    "table2": ("cells", "labels", "families", "gvae", "ccnf", "evolution", "sequence"),
    "table3": ("families", "gvae", "ccnf", "sequence"),
    "table4": ("families", "gvae", "ccnf", "sequence"),
    "validation": (),
}
STAGES = tuple(NEEDS)
NOTED = 20.0  # seconds of work whose time a kill may lose


@dataclass(frozen=True)
class Stage:
    """One run of a stage: what a stage's function is given.

    Attributes:
        name: of the stage.
        scale: every size.
        seed: of the run.
        device: where to compute.
        identity: hash of what a checkpoint must agree with to be gone on from; part of its name.
        fresh: forget checkpoints of an earlier, unfinished run.
        config: facts to keep beside the result; the stage's function adds to it.
    """

    name: str
    scale: Scale
    seed: int
    device: torch.device
    identity: str
    fresh: bool = False
    progress: bool = True
    config: dict = field(default_factory=dict)

    def load(self, stage: str, filename: str):
        """One file of an earlier stage at this scale."""
        return store.load(stage, filename, self.scale.name)

    def checkpoint(self, name: str = "") -> Checkpoint:
        """Where a long loop of this stage keeps its state."""
        return store.checkpoint(f"{self.name}-{self.identity}", self.scale.name, fresh=self.fresh, name=name)

    def dataset(self, name: str = "auto", **options) -> datasets.Dataset:
        """Images, with their source noted in `config`."""
        data = datasets.load(name, **options)
        self.config["data"] = data.source
        return data


def produce(stage: str, scale: str, *, seed: int = 0, device: str = "auto", progress: bool | None = None) -> dict:
    """The manifest of a stage, made first where this scale makes it from scratch.

    Args:
        stage: one of `STAGES`.
        scale: "smoke" makes a stale or missing stage; "lite" and "paper" open what is there.
        seed: of a run that has to be made.
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
    stage: str, scale: str, *, seed: int = 0, device: str = "auto", fresh: bool = False, progress: bool = True
) -> dict:
    """Make a stage and save its artifact; returns the manifest.

    A killed run goes on from its checkpoint when the same command is given again; `fresh` starts over. The manifest's
    seconds are those of all its runs, up to the kill.

    Raises:
        ValueError: no such stage or scale.
        MissingArtifactError: a stage before it is missing.
    """
    _check(stage, scale)
    for earlier in NEEDS[stage]:
        store.load_manifest(earlier, scale)
    where = store.pick_device(device)
    key = freshness(stage, scale, seed, device)
    identity = key if scale == "smoke" else freshness(stage, scale, seed, device, code=False)
    job = Stage(stage, SCALES[scale], seed, where, identity, fresh, progress)
    checkpoints = store.data_dir(scale) / "checkpoints"
    with _stopwatch(checkpoints / f"{stage}-{identity}.json", fresh=fresh) as seconds:
        files = _function(stage)(job)
    manifest = store.save(
        stage,
        files,
        scale=scale,
        seed=seed,
        seconds=seconds(),
        device=_device_name(where),
        config=job.config,
        key=key,
    )
    for leftover in checkpoints.glob(f"{stage}-*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    return manifest


def freshness(stage: str, scale: str, seed: int, device: str, *, code: bool = True) -> str:
    """Key of everything that decides a stage's result: its sizes, seed, data at hand, code, and the inputs' own files.

    `code=False` leaves the library's code out: hours of lite and paper work go on after an edit that does not matter.
    """
    module = f"graphnas_lib.stages.{stage}"
    inputs = {}
    for earlier in NEEDS[stage]:
        if store.manifest_path(earlier, scale).exists():
            inputs[earlier] = {name: f["sha256"] for name, f in store.load_manifest(earlier, scale)["files"].items()}
    parts = [
        sizes_read(module, SCALES[scale]),
        seed,
        store.pick_device(device).type,
        store.data_at_hand(),
        store.library_hash([module]) if code else "",
        inputs,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def sizes_read(module: str, scale: Scale) -> dict[str, object]:
    """The sizes that a stage's module, or a stage's it imports, reads as `scale.<name>`; stages read them no other way.

    So a size that another stage alone reads makes nothing stale.
    """
    files = [path for path in store.library_files([module]) if path.parent == Path(__file__).parent]
    read = {name for path in files for name in re.findall(r"\bscale\.(\w+)", path.read_text())}
    return {name: value for name, value in asdict(scale).items() if name in read}


@contextmanager
def _stopwatch(path: Path, *, fresh: bool) -> Iterator[Callable[[], float]]:
    """Says the seconds that a job has taken, its earlier runs included; notes them in `path` for the next run."""
    if fresh:
        path.unlink(missing_ok=True)
    before = store.read(path)["seconds"] if path.exists() else 0.0
    began, ended = time.monotonic(), threading.Event()

    def seconds() -> float:
        return before + time.monotonic() - began

    def note() -> None:
        while not ended.wait(NOTED):
            store.write(path, {"seconds": seconds()})

    thread = threading.Thread(target=note, daemon=True)
    thread.start()
    try:
        yield seconds
    finally:
        ended.set()
        thread.join()
        store.write(path, {"seconds": seconds()})


def _function(stage: str) -> Callable[[Stage], dict]:
    """The function `make` of `stages/<stage>.py`."""
    from graphnas_lib import stages

    return getattr(stages, stage).make


def _check(stage: str, scale: str) -> None:
    if stage not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(STAGES)}; got {stage!r}.")
    store.check_scale(scale)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
