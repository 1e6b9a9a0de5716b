"""What searches cost beside their scores: two workers against one, and 20,000 iterations on a cached score (a script).

    python tests/benchmarks/bench_evolution.py --evaluations 120

Both parts run anywhere: cells are random ones, images noise. The first needs two idle cores.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial

import torch

from graphnas_lib import evolution
from graphnas_lib.macro import Architecture
from graphnas_lib.network import count
from graphnas_lib.space import sample_cells
from graphnas_lib.stages.scores import ProxyScore
from graphnas_lib.store import single_threaded

FAMILIES, POOL = 32, 64


def generate_cell(cells: list, family: int, index: int):
    """GenCell from a pool: the family's index-th cell."""
    return cells[(POOL * family + index) % len(cells)]


def seconds(evaluations: int, workers: int, score: ProxyScore, cells: list) -> float:
    """Wall time of random search below a million parameters (the same networks however many workers), all started."""
    options = {"score": score, "feasible": evolution.budget(count, params=1e6), "seed": 0, "workers": workers}
    options |= {"generate_cell": partial(generate_cell, cells), "n_families": FAMILIES}
    with single_threaded():
        evolution.random_evo(iterations=2 * workers, **options)
        began = time.perf_counter()
        evolution.random_evo(iterations=evaluations, **options)
    return time.perf_counter() - began


def cached(architecture: Architecture) -> float:
    """A score at no cost."""
    return float(architecture.triples[0].channels % 97 + len(architecture.triples))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=120, help="of each search of the first part (default 120)")
    parser.add_argument("--iterations", type=int, default=20_000, help="of the second part (default 20,000)")
    parser.add_argument("--batch", type=int, default=16, help="images of T-CET (default 16)")
    options = parser.parse_args()
    report: dict[str, float] = {}
    cells = sample_cells(FAMILIES * POOL, seed=0)
    if options.evaluations:
        source = torch.Generator().manual_seed(0)
        images = torch.randn(options.batch, 3, 32, 32, generator=source)
        score = ProxyScore(images, torch.randint(10, (options.batch,), generator=source), 10)
        one, two = (seconds(options.evaluations, workers, score, cells) for workers in (1, 2))
        report |= {
            "one_worker_per_second": options.evaluations / one,
            "two_workers_per_second": options.evaluations / two,
        }
        report["ratio"] = one / two
    if options.iterations:
        began = time.perf_counter()
        result = evolution.hl_evo(
            score=cached,
            costs=count,
            feasible=evolution.budget(count, params=1e6),
            generate_cell=partial(generate_cell, cells),
            n_families=FAMILIES,
            iterations=options.iterations,
            population=512,
            seed=0,
            initial=evolution.hl_start(partial(generate_cell, cells), FAMILIES),
        )
        report |= {"cached_iterations": len(result.history) - 1, "cached_seconds": time.perf_counter() - began}
        report |= {name: float(n) for name, n in result.counts.items()}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
