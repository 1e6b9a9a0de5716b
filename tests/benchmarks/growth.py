"""How work grows with workers: ZC vectors, searches and evidence with 1 and 2 processes and on a dask cluster of two.

    python tests/benchmarks/growth.py --most 64

Each way does a few items twice, of which the first time has the workers to start, and then more: this tells what it
costs to begin from what an item costs. What so many workers as `--most` would do is told from these parts on paper:
seconds of an item as two workers had them, and what the master itself does for each result, which no worker can take
from it. Needs two idle cores for five minutes, and for the cluster `pip install -e .[cluster]`. A search with more
workers looks further ahead and meets other networks, so that its efficiency may be above 100%.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import bench_evolution
import torch

from graphnas_lib import benchmarks, evolution, proxies, store
from graphnas_lib.network import count
from graphnas_lib.space import sample_cells
from graphnas_lib.stages import evidence
from graphnas_lib.stages.scores import ProxyScore

WAYS = {"1 process": {"workers": 1}, "2 processes": {"workers": 2}, "dask, 2 workers": {"workers": 2}}
EMPTY = 2_000  # results that cost nothing, which tell what the master does for each


def noise(images: int) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    return torch.randn(images, 3, 32, 32, generator=source), torch.randint(10, (images,), generator=source)


def vectors(n: int, **how) -> None:
    """ZC vectors of n cells, as stage "labels" takes them."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "labels.jsonl"
        proxies.label(sample_cells(n, seed=n), *noise(16), seed=0, out=out, **how | {"progress": False})


def search(n: int, **how) -> None:
    """Algorithm 1 over families below 0.3M parameters: n T-CETs of 16 images."""
    cells = sample_cells(bench_evolution.FAMILIES * bench_evolution.POOL, seed=0)
    generate = partial(bench_evolution.generate_cell, cells)
    evolution.hl_evo(
        score=ProxyScore(*noise(16), 10), costs=count, feasible=evolution.budget(count, params=3e5), seed=0,
        generate_cell=generate, n_families=bench_evolution.FAMILIES, population=32, iterations=n,
        initial=evolution.hl_start(generate, bench_evolution.FAMILIES), **how,
    )  # fmt: skip


def _rules(seed: int) -> int:
    frame = benchmarks.networks("nb_macro", evidence.load_scores(300))
    return len(benchmarks.budget_selection(frame, "nb_macro", ["cifar10"], seed=seed, resamples=10))


def protocols(n: int, **how) -> None:
    """Choices by every rule among 300 networks of NAS-Bench-Macro (P4), n times."""
    store.collect({str(i): partial(_rules, i) for i in range(n)}, **how)


KINDS: dict[str, tuple[Callable[..., None], int, int]] = {  # what is done, how often at first, and then
    "ZC vectors": (vectors, 8, 48),
    "HL-Evo": (search, 20, 200),
    "evidence, P4": (protocols, 2, 8),
}


def nothing() -> float:
    return 0.0


def on_paper(begin: float, item: float, master: float, workers: int, items: int) -> float:
    """Seconds of so many items: the workers share them, and the master cannot be faster than its own part of each."""
    return begin + items * max(item / workers, master)


@contextmanager
def scheduler() -> Iterator[str | None]:
    """Address of a local cluster of two workers of one thread; None without dask."""
    try:
        import distributed
    except ImportError:
        yield None
        return
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        yield cluster.scheduler_address


def seconds(work: Callable[..., None], n: int, how: dict) -> float:
    began = time.perf_counter()
    work(n, **how)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=64, help="workers that are told of on paper (default 64)")
    parser.add_argument("--items", type=int, default=10_000, help="items that these would do (default 10,000)")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="which to measure")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        jobs = {str(i): nothing for i in range(EMPTY)}
        began = time.perf_counter()
        store.collect(jobs, store.Journal(Path(folder) / "journal.jsonl"), workers=2)
        master = (time.perf_counter() - began) / EMPTY
    print(f"The master takes at most {1e3 * master:.2f} ms a result.\n")
    head = f"{options.most} workers, {options.items:,} items"
    print(f"| what | way | to begin | an item | items a second | efficiency | {head} |")
    print("| --- | --- | --: | --: | --: | --: | --: |")
    with scheduler() as address:
        for kind in options.kinds:
            (work, few, more), alone = KINDS[kind], None
            for way, how in WAYS.items():
                if "dask" in way and address is None:
                    print(f"| {kind} | {way} | not run (dask.distributed is not installed) | | | | |")
                    continue
                workers, how = how["workers"], how | ({"dask": address} if "dask" in way else {})
                cold, warm, long = (seconds(work, n, how) for n in (few, few, more))
                item = max(1e-9, long - warm) / (more - few)
                begin, alone = max(0.0, cold - few * item), alone or item
                efficiency = alone / item / workers
                hours = on_paper(begin, item * workers, master, options.most, options.items) / 3600
                cells = [kind, way, f"{begin:.1f} s", f"{item:.2f} s", f"{1 / item:.2f}", f"{efficiency:.0%}"]
                print("| " + " | ".join([*cells, "-" if workers == 1 else f"{hours:.2f} h"]) + " |", flush=True)
                found[f"{kind}, {way}"] = {"begin": begin, "item": item, "efficiency": efficiency}
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main()
