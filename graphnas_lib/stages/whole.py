"""All stages in the order of the road: what is there and what is left as one table, and the run through them.

A stage that is there is not made again, a killed one goes on, and one that cannot be made (its data or a stage before
it is missing, or it failed) leaves those that stand on it out and lets the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import pandas as pd

from graphnas_lib import store
from graphnas_lib.paper import STAGES, sizes
from graphnas_lib.stages import pace
from graphnas_lib.stages.road import freshness, hindrance, run

MADE, FAILED, NOT_MADE = "made", "failed", "not made"


def plan(scale: str, *, seed: int = 0, device: str = "auto", without: Collection[str] = ()) -> pd.DataFrame:
    """One row a stage: what it makes, the data it finds or misses, device, hours from the start, and what is left.

    Hours are estimates from a few items; a CPU is not asked for those of paper's sizes, which take minutes each.
    """
    if unknown := set(without) - set(STAGES):
        raise ValueError(f"Stages to leave out are among {', '.join(STAGES)}; got {', '.join(sorted(unknown))}.")
    here, place = store.data_at_hand(), store.pick_device(device)
    left = [name for name in STAGES if not is_there(name, scale, seed)]
    estimates = pace.hours(scale, device) if left and (scale, place.type) != ("paper", "cpu") else {}
    rows = []
    for name, stage in STAGES.items():
        data = [data_set if data_set in here else f"no {data_set}" for data_set in (*stage.data, *stage.also)]
        row = {"stage": name, "makes": stage.items.format(**vars(sizes(name, scale))), "data": ", ".join(data)}
        row["device"] = "cpu" if stage.on_cpu else str(place)
        row["hours"] = f"{estimates[name]:.2g}" if name in left and name in estimates else ""
        rows.append(row | {"state": "left out" if name in without else _state(name, scale, seed, device)})
    return pd.DataFrame(rows)


def told(table: pd.DataFrame) -> str:
    """A plan as text, aligned on the left."""
    wide = {name: max(len(name), *map(len, table[name])) for name in table}
    lines = [list(table.columns), *table.to_numpy().tolist()]
    return "\n".join("  ".join(f"{text:{wide[name]}}" for name, text in zip(table, line)).rstrip() for line in lines)


def is_there(stage: str, scale: str, seed: int) -> bool:
    """Whether an artifact of this seed is there."""
    return store.manifest_path(stage, scale).exists() and store.load_manifest(stage, scale)["seed"] == seed


def _state(stage: str, scale: str, seed: int, device: str) -> str:
    """What a plan says is left of a stage."""
    if is_there(stage, scale, seed):
        manifest = store.load_manifest(stage, scale)
        return f"there, took {manifest['seconds'] / 3600:.2f} h"
    identity = freshness(stage, scale, seed, device, code=scale == "smoke")
    kept = list((store.data_dir(scale) / "checkpoints").glob(f"{stage}-*"))
    known = [path for path in kept if path.stem == f"{stage}-{identity}"]
    spent = f", {store.read(known[0])['seconds'] / 3600:.2f} h so far" if known else ""
    return f"goes on{spent}" if kept else "to be made"


def run_all(
    scale: str,
    *,
    seed: int = 0,
    device: str = "auto",
    dask: str | None = None,
    digits: bool = False,
    without: Collection[str] = (),
    progress: bool = True,
    tell: Callable[[str], None] = print,
) -> dict[str, str]:
    """Tell the plan, then make every stage that is not there; what became of each: "made", "failed" or "not made".

    Args:
        scale, seed, device, dask, digits, progress: as of `run`.
        without: stages to leave out; those that read them are then not made either.
        tell: receives one line at a time.

    Raises:
        ValueError: `without` names no stage.
        ValueError, MissingDataError: nothing begins at paper scale without a GPU or real images (`run`).
    """
    left = [name for name in STAGES if name not in without and not is_there(name, scale, seed)]
    for name in left:
        if refused := hindrance(name, scale, device, digits=digits):
            raise refused
    tell(told(plan(scale, seed=seed, device=device, without=without)))
    became: dict[str, str] = {}
    for number, name in enumerate(left, start=1):
        lost = [earlier for earlier in STAGES[name].needs if not is_there(earlier, scale, seed)]
        if lost:
            tell(f"{name}  not made: it reads {', '.join(lost)}")
            became[name] = NOT_MADE
            continue
        tell(f"[{number}/{len(left)}] {name}")
        try:
            found = run(name, scale, seed=seed, device=device, dask=dask, digits=digits, progress=progress)
        except (ValueError, RuntimeError, OSError, ImportError) as error:
            tell(f"{name}  FAILED: {' '.join(str(error).split())}")
            became[name] = FAILED
        else:
            tell(f"{name}  made, {found['seconds'] / 3600:.2f} h on {found['device']}")
            became[name] = MADE
    return became
