"""What notebooks show that is not of one stage: the banner, whole tables, files written, answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from graphnas_lib import benchmarks, network, store
from graphnas_lib.datasets import MissingDataError
from graphnas_lib.design import Design
from graphnas_lib.network import ExportError
from graphnas_lib.plots import show
from graphnas_lib.space import OPERATIONS
from graphnas_lib.stages.absent import tolerate
from graphnas_lib.stages.road import produce
from graphnas_lib.store import MissingArtifactError


def banner(scale: str, device: str) -> str:
    """First line of every notebook: scale and device, and what the scale's numbers are worth.

    At paper scale, cells below it that stand on missing stages read "not run (why)".
    """
    worth = {
        "smoke": "everything from scratch in minutes; numbers are NOT comparable with the paper",
        "lite": "what two CPU cores make in hours; sizes stand in every table",
        "paper": "the paper's sizes",
    }
    if scale == "paper":  # weeks of work, of which a reader may have a part
        tolerate()
    return f"scale {store.check_scale(scale)}: {worth[scale]} | device {store.pick_device(device).type}"


full = show  # a table as a notebook draws it


def written(scale: str, *, figures: Sequence[str] = (), tables: Sequence[str] = ()) -> str:
    """The files of figures and tables that are there and not empty, one line each; the check cells print this."""
    files = [("figure", store.figures_dir(scale), name, ("csv", "json", "pdf", "png")) for name in figures]
    files += [("table", store.results_dir(scale), name, ("csv", "md")) for name in tables]
    lines = []
    for kind, folder, name, suffixes in files:
        paths = [folder / f"{name}.{suffix}" for suffix in suffixes]
        there = " ".join(path.suffix[1:] for path in paths if path.exists() and path.stat().st_size)
        lines.append(f"{kind} {name}: {there}")
    return "\n".join(lines)


def refusal(function: Callable, **arguments) -> str:
    """The one-line answer to a request that cannot be met."""
    try:
        function(**arguments)
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("This request was expected to be refused; it was met.")


def exported(design: Design, path: Path, formats: Sequence[str]) -> pd.DataFrame:
    """Writes a design in each format beside `path`; which file came, or why none did."""
    rows = []
    for suffix in formats:
        try:
            rows.append((suffix, design.save(path.with_suffix(f".{suffix}")).name, ""))
        except ExportError as error:
            rows.append((suffix, "-", f"not run ({error})"))
    return pd.DataFrame(rows, columns=["format", "file", "why not"])


def operation_costs(*, channels: int, side: int) -> pd.DataFrame:
    """Layers, parameters, multiply-accumulates and FLOPs of each operation inside a cell."""
    rows = []
    for name in OPERATIONS:
        layers = network.layers(name, channels, channels)
        macs, counted = (sum(part) for part in zip((0, 0), *(layer.macs((side, side)) for layer in layers)))
        facts = {"operation": name, "layers": " ".join(layer.kind for layer in layers) or "-"}
        rows.append({**facts, "params": sum(layer.params(2) for layer in layers), "macs": macs, "flops": 2 * counted})
    return pd.DataFrame(rows)


def validation_table(scale: str, *, seed: int, device: str) -> pd.DataFrame:
    """Kendall's tau of each proxy with trained accuracy, for a reader: "-" where nothing is published.

    Every tau reads `not run (why)` where the benchmark's accuracies or the scale's artifact are missing.
    """
    try:
        produce("validation", scale, seed=seed, device=device)
        table = store.load("validation", "validation.csv", scale)
    except (MissingArtifactError, MissingDataError) as error:
        table = benchmarks.not_run(str(error))
    return table.astype(object).where(table.notna(), "-")
