"""What a stage's function is given: sizes, seed and device of one run, and where its loops keep their state."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from graphnas_lib import store
from graphnas_lib.paper import Sizes
from graphnas_lib.stages import together


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One run of a stage.

    Attributes:
        scale: the sizes that the stage declares in `paper/stages.toml`, and the scale's name.
        identity: hash of what the state of a loop must agree with to be gone on from; part of its file's name.
        dask: address of a dask scheduler, whose workers replace processes of this machine.
    """

    name: str
    scale: Sizes
    seed: int
    device: torch.device
    identity: str
    progress: bool = True
    dask: str | None = None

    @property
    def workers(self) -> int:
        """Processes that train and search: one a GPU, which a single training fills."""
        return len(store.gpus(self.device)) or store.on_cpu()

    def checkpoint(self, loop: str, *settings: Any) -> store.Checkpoint:
        """Where a long loop keeps its state; `loop` says in words what it makes.

        `settings` are all else that decides its result and may be edited between a kill and the next run: dataclasses
        and JSON-ready values. A loop of other settings starts over.
        """
        return store.Checkpoint(self._kept(f"{self.name}-{self.identity}", loop, settings, "safetensors"))

    def collect(
        self, jobs: dict, loop: str = "rows", *settings: Any, workers: int | None = None, **options: Any
    ) -> list[dict]:
        """Rows of independent jobs, each with its "id"; `loop` and `settings` as of `checkpoint`.

        With `workers=1` the jobs run in this process, one after another, on no cluster either. `options` are `file`,
        another place for the rows (`scores_file`), and further ones of `store.collect`.
        """
        path = options.pop("file", None) or self._kept(f"{self.name}-{self.identity}", loop, settings, "jsonl")
        journal = store.Journal(path if together.is_first(self.name) else None)
        journal.results = together.shared(self.name, lambda: journal.results)
        shown = self.progress and together.is_first(self.name)
        options |= {"progress": shown, "desc": loop, "unit": "row", "dask": None if workers == 1 else self.dask}
        rows = store.collect(jobs, journal, workers=workers or self.workers, **options)
        return [{"id": name, **row} for name, row in zip(jobs, rows, strict=True)]

    def trainings(self, jobs: dict, loop: str, *settings: Any, **options: Any) -> list[dict]:
        """`collect` for jobs that train: each is called with a checkpoint, so that a killed training goes on.

        A checkpoint is cleared once its row is kept.
        """
        points = {name: self.checkpoint(f"{loop} {name}", *settings) for name in jobs}
        jobs = {name: partial(job, checkpoint=points[name]) for name, job in jobs.items()}

        def clear(name: str) -> None:
            if together.is_first(self.name):
                points[name].clear()

        return self.collect(jobs, loop, *settings, kept=clear, **options)

    def scores_file(self, prefix: str, settings: dict) -> Path:
        """Where scores are kept under all that decides them; a `prefix` that is the stage's name outlives success.

        Beyond smoke that is `settings` alone, so that hours of work go on when another size of the stage changes.
        """
        identity = f"-{self.identity}" if self.scale.name == "smoke" else ""
        return self._kept(f"{prefix}{identity}", "scores", (settings,), "jsonl")

    def _kept(self, owner: str, loop: str, settings: tuple, suffix: str) -> Path:
        """A file that is named after its settings; one line tells when there is only a file of other settings."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=_plain).encode()).hexdigest()[:8]
        folder, start = store.data_dir(self.scale.name) / "checkpoints", f"{owner}_{loop.translate(_FILE_NAME)}"
        path = folder / f"{start}-{digest}.{suffix}"
        if not path.exists() and any(folder.glob(f"{start}-????????.{suffix}")):
            tqdm.write(f"{self.name}: settings of {loop} were edited since its checkpoint; it starts over.")
        return path


def measured(values: pd.Series) -> dict:
    """A quantity that was measured on several networks, in the form that `plots.compare` takes."""
    return {"value": values.mean(), "spread": values.std(), "n": len(values)}


_FILE_NAME = str.maketrans({" ": "_", "<": "", "=": "", ",": "", "(": "", ")": "", ".": "_", ":": "", "|": ""})


def _plain(value: Any) -> Any:
    """A dataclass or a device as JSON takes it."""
    if is_dataclass(value):
        return asdict(value)
    if isinstance(value, torch.device):
        return value.type
    raise TypeError(f"Settings of a checkpoint must be dataclasses or JSON-ready; got {type(value).__name__}.")
