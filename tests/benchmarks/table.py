"""What each fast path is worth: ours beside plain, in one table, and that beside the committed one (`make bench`).

Each way runs in a process of one thread of its own, the two in turns. Seconds are medians over rounds; memory is what
the process held at most, less what it held before. Ratios are compared with `table.json`; seconds are the machine's.

    python tests/benchmarks/table.py --save

What was tried beside these and does not pay (T-CET of 25 networks, 16 images, one thread of a processor that has
bfloat16 instructions; ours takes 1 / 2.26 of plain's time): bfloat16 weights and images through plain 1 / 1.18,
channels_last alone 1 / 1.28. `torch.compile` of one network of random cells compiles for 339 s, and its forward and
backward then take 1.3 times as long as without it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

sys.path.insert(0, str(Path(__file__).parent))
import bench_gvae
import bench_proxies

from graphnas_lib import proxies
from graphnas_lib.ccnf import CCNF, CCNFConfig
from graphnas_lib.design import dense_cell
from graphnas_lib.gvae import GVAE
from graphnas_lib.macro import Architecture, Triple, stack_cell
from graphnas_lib.network import build, count
from graphnas_lib.space import REFERENCE_CELL, CellCodes, sample_cells

COMMITTED = Path(__file__).with_name("table.json")
WAYS = ("ours", "plain")
ROUNDS, SECONDS = 5, 10  # in each process; fewer rounds where they take longer than that
FALLEN = 0.8  # of the committed ratio: told
# ours, plain, GFLOP of a call (0: not a matter of them)
Case = tuple[Callable[[], object], Callable[[], object], float]


def of_network(kind: str, architecture: Architecture, images: int) -> Case:
    """A proxy of a network: two forwards and a backward."""
    batch = torch.randn(images, 3, 32, 32), torch.arange(images) % 10
    ways = (
        lambda: bench_proxies.ours(kind, architecture, *batch),
        lambda: bench_proxies.plain(kind, architecture, *batch),
    )
    return *ways, 4 * 2 * count(architecture).macs * images / 1e9


def deep(cells: int) -> Architecture:
    """A cell of six inverted bottlenecks, again and again: what T-CET asks for."""
    return Architecture(tuple(Triple(dense_cell("mbconv6_5"), 16, 1) for _ in range(cells)))


def of_flow() -> Case:
    """Per sample; plain solves adaptively, one condition at a time."""
    flow = CCNF(CCNFConfig(latent_dim=64, hidden=128, layers=5)).eval()

    def one_at_a_time() -> None:
        for seed in range(8):
            flow.sample(torch.zeros(1, 4), seed=seed, method="dopri5")

    return lambda: flow.sample(torch.zeros(8, 4), seed=0), one_at_a_time, 0.0


def of_gvae() -> Case:
    cells, zc = CellCodes.of(sample_cells(64, seed=0), canonical=True), torch.randn(16, 4)
    ours, plain = (way(GVAE(bench_gvae.SMALL)) for way in (bench_gvae.Ours, bench_gvae.Plain))
    return lambda: ours.step(cells, zc, seed=0), lambda: plain.step(cells, zc, seed=0), 0.0


def of_costs() -> Case:
    networks = [stack_cell(cell) for cell in sample_cells(4, seed=0)]

    def by_building() -> None:
        for network in networks:
            proxies.module_costs(build(network), (3, 32, 32))

    return lambda: [count(network) for network in networks], by_building, 0.0


CASES: dict[str, Callable[[], Case]] = {
    "ZC vector, 64 images": lambda: of_network("ZC vector", stack_cell(REFERENCE_CELL), 64),
    "T-CET of nine cells, 64 images": lambda: of_network("T-CET", bench_proxies.macro_networks(1, seed=2)[0], 64),
    "T-CET of 0.7M parameters, deep, 16 images": lambda: of_network("T-CET", deep(20), 16),
    "eight samples of the flow": of_flow,
    "training step of the G-VAE": of_gvae,
    "costs of four networks": of_costs,
}


def measured(name: str, way: str) -> dict[str, float]:
    """One way in this process: seconds, megabytes, GFLOP/s as a share of a dense convolution's."""
    torch.set_num_threads(1)
    *ways, gflop = CASES[name]()
    call, before, seconds = ways[WAYS.index(way)], psutil.Process().memory_info().rss, []
    call()  # compiled and warm
    while len(seconds) < ROUNDS and sum(seconds) < SECONDS:
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    found = {"seconds": statistics.median(seconds), "mb": max(0.0, most - before) / 2**20}
    return found | {"share": gflop / found["seconds"] / bench_proxies.peak_gflops() if gflop else 0.0}


def row(name: str, turns: int) -> dict[str, float]:
    """Both ways in turns."""
    runs: dict[str, list[dict]] = {way: [] for way in WAYS}
    for _ in range(turns):
        for way in WAYS:
            command = [sys.executable, __file__, "--one", name, way]
            told = subprocess.run(
                command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )
            runs[way].append(json.loads(told.stdout.splitlines()[-1]))
    found = {f"{way} {what}": min(run[what] for run in runs[way]) for way in WAYS for what in ("seconds", "mb")}
    found["share of peak"] = max(run["share"] for run in runs["ours"])
    return found | {"ratio": found["plain seconds"] / found["ours seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="write the table that later runs are compared with")
    parser.add_argument("--turns", type=int, default=2, help="processes of each way (default 2)")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "WAY"), help="measure one way in this process, print JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(*options.one)))
        return
    before = json.loads(COMMITTED.read_text(encoding="utf-8")) if COMMITTED.is_file() else {}
    table = {}
    print("| what | ours | plain | ratio | committed | peak memory, ours | plain | share of a thread's peak |")
    print("| --- | --: | --: | --: | --: | --: | --: | --: |")
    for name in CASES:
        found = table[name] = row(name, options.turns)
        known = before.get(name, {}).get("ratio")
        fallen = known is not None and found["ratio"] < FALLEN * known
        share = f"{found['share of peak']:.0%}" if found["share of peak"] else "-"
        cells = [name, *(f"{1e3 * found[f'{way} seconds']:,.1f} ms" for way in WAYS), f"{found['ratio']:.2f}"]
        cells += [("-" if known is None else f"{known:.2f}") + " **fallen**" * fallen]
        print("| " + " | ".join([*cells, *(f"{found[f'{way} mb']:,.0f} MB" for way in WAYS), share]) + " |", flush=True)
    if options.save:
        COMMITTED.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
