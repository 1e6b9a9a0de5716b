"""The first 15 minutes on a GPU that nobody has run this on: what only it can decide, measured, and the decisions.

    python tests/benchmarks/first_gpu.py                      # first `python -m pytest -m cuda tests`
    nvidia-cuda-mps-control -d; python tests/benchmarks/first_gpu.py    # again: kernels of several processes overlap

It changes no file: each decision says which constant, variable or option to set. `--device cpu --tiny` runs all of it
in a minute, to see that it runs.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from graphnas_lib import datasets, proxies
from graphnas_lib.macro import stack_cell
from graphnas_lib.network import build, moved
from graphnas_lib.network.modules import MEMORY_FORMATS
from graphnas_lib.space import REFERENCE_CELL, sample_cells
from graphnas_lib.store import pick_device
from graphnas_lib.training import train
from graphnas_lib.training.sgd import GRAPHED

FORMATS = {"channels_last": torch.channels_last, "NCHW": torch.contiguous_format}
RECIPES = {"nats12": 256, "zennas_cifar": 64}  # recipe -> batch size, of Tables 1 and 2
CLEAR = 1.05  # a choice must be quicker by this factor to be taken


def seconds(work: Callable[[], object], place: torch.device, tries: int) -> tuple[float, float]:
    """Seconds of one of several calls after a first one, the device's work included, and its peak GPU memory in GiB."""
    work()
    if place.type == "cuda":
        torch.cuda.synchronize(place)
        torch.cuda.reset_peak_memory_stats(place)
    began = time.perf_counter()
    for _ in range(tries):
        work()
    peak = 0.0
    if place.type == "cuda":
        torch.cuda.synchronize(place)
        peak = torch.cuda.max_memory_allocated(place) / 2**30
    return (time.perf_counter() - began) / tries, peak


def labels(place: torch.device, batch: tuple, n: int, workers: list[int]) -> dict[int, float]:
    """Labelled cells a second with each number of processes; each labels twice, so that its start does not count."""
    cells, found = sample_cells(2 * n, seed=0), {}
    for count in workers:
        with TemporaryDirectory() as folder:
            options = {"seed": 0, "workers": count, "progress": False}
            proxies.label(cells[:n], *batch, out=Path(folder) / "first.jsonl", **options)
            began = time.perf_counter()
            proxies.label(cells[n:], *batch, out=Path(folder) / "second.jsonl", **options)
            found[count] = n / (time.perf_counter() - began)
        print(f"  {count:2d} processes: {found[count]:.2f} cells a second", flush=True)
    return found


def in_formats(place: torch.device, batch: tuple, tries: int) -> dict[str, float]:
    """Seconds of a label and a T-CET together in each memory format; both are told with their memory."""
    before, found = MEMORY_FORMATS.get(place.type), {}
    cells = sample_cells(8, seed=1)
    try:
        for name, layout in FORMATS.items():
            MEMORY_FORMATS[place.type] = layout
            kinds = {
                "label": lambda: [proxies.zc_vector(cell, *batch, seed=0) for cell in cells[:tries]],
                "T-CET": lambda: [
                    proxies.tcet(moved(build(stack_cell(cell), seed=0), place), *batch) for cell in cells[:tries]
                ],
            }
            taken = {kind: seconds(work, place, 1) for kind, work in kinds.items()}
            for kind, (spent, peak) in taken.items():
                print(f"  {name}, {kind}: {1e3 * spent / len(cells[:tries]):.1f} ms, {peak:.2f} GiB", flush=True)
            found[name] = sum(spent for spent, _ in taken.values())
    finally:
        MEMORY_FORMATS[place.type] = before
    return found


def step_seconds(place: torch.device, data: datasets.Dataset, recipe: str, batch: int, epochs: int) -> float:
    """Seconds of one training step: what further epochs take, so that the start and a capture do not count."""
    network, spent = stack_cell(REFERENCE_CELL), []
    options = {"seed": 0, "device": place, "batch_size": batch, "test": False}
    for n in (epochs, 3 * epochs):
        model = build(network, input_shape=data.input_shape, classes=data.classes, seed=0)
        spent.append(train(model, data, recipe, epochs=n, **options).seconds)
    return (spent[1] - spent[0]) / (2 * epochs * (data.size("train") // batch))


def in_steps(place: torch.device, data: datasets.Dataset, recipe: str, batch: int, epochs: int) -> dict[str, float]:
    """Seconds of a step, eager and as a CUDA graph."""
    found, before = {}, os.environ.get(GRAPHED)
    for name, value in (("eager", "0"), ("graphed", "1")):
        os.environ[GRAPHED] = value
        try:
            found[name] = step_seconds(place, data, recipe, batch, epochs)
            print(f"  {recipe} at batch {batch}, {name}: {1e3 * found[name]:.1f} ms a step", flush=True)
        except RuntimeError as error:  # a capture may be refused
            print(f"  {recipe} at batch {batch}, {name}: FAILED, {' '.join(str(error).split())[:300]}", flush=True)
    os.environ.pop(GRAPHED)
    os.environ |= {GRAPHED: before} if before is not None else {}
    return found


def main() -> None:
    """Measure, then print the decisions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a few items of a few pixels, to see that it runs")
    options = parser.parse_args()
    place, tiny, began = pick_device(options.device), options.tiny, time.perf_counter()
    data = datasets.load("auto", resolution=8 if tiny else 32)
    images, targets = data.batch(4 if tiny else 64)
    batch = images.to(place), targets.to(place)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {os.cpu_count()} cores, {data.source}, batch {len(images)}")
    if place.type == "cuda":
        free, total = torch.cuda.mem_get_info(place)
        print(f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB free")
    print("labels, and processes that share the device:")
    rates = labels(place, batch, 2 if tiny else 256, [1, 2] if tiny else [1, 8, 16])
    print("memory formats, one process:")
    formats = in_formats(place, batch, 1 if tiny else 8)
    print("training steps:")
    steps = {}
    for recipe, size in RECIPES.items():
        shown = data.subset(2 * 8, 8) if tiny else data.subset(min(data.size("train"), 20 * size), 8)
        steps[recipe] = in_steps(place, shown, recipe, 8 if tiny else size, 1 if tiny else 2)
    print(f"\nDecisions, after {(time.perf_counter() - began) / 60:.1f} minutes:")
    best = max(rates, key=rates.get)
    print(f"- processes: {best} label quickest; 50,000 labels take {50_000 / rates[best] / 60:.0f} minutes.")
    print(f"  Set ON_CUDA = {best} in graphnas_lib/store/jobs.py.")
    last, first = formats["channels_last"], formats["NCHW"]
    layout = "contiguous_format" if last > CLEAR * first else "channels_last"
    print(f"- memory format: NCHW takes {first / last:.2f} of the time of channels_last.")
    print(f'  Set "{place.type}": torch.{layout} in MEMORY_FORMATS of graphnas_lib/network/modules.py.')
    for recipe, found in steps.items():
        if {"eager", "graphed"} <= set(found):
            pays = found["eager"] > CLEAR * found["graphed"]
            told = "export GRAPHNAS_GRAPHED=1 before `run table2`" if pays else "leave GRAPHNAS_GRAPHED unset"
            print(f"- steps of {recipe}: a graph is {found['eager'] / found['graphed']:.2f} times as quick; {told}.")


if __name__ == "__main__":
    main()
