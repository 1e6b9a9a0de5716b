"""Cells from the flow, many at once, against one at a time with the adaptive solver, in one run (`make bench`).

Fast: `CellSampler.sample`, a fixed-step solver in float32 over all conditions, and one decode. Slow: the same flow and
decoder in float64, dopri5 at 1e-5, a condition at a time. Both start from the same noise at the centres of the
families. Compare ratios only.

    python tests/benchmarks/bench_flow.py --cells 1024 --slow 64
"""

from __future__ import annotations

import argparse
import copy
import time

import torch

from graphnas_lib.store import artifacts
from graphnas_lib.synonyms import CellSampler


def drawn(sampler: CellSampler, zc: torch.Tensor, noise: torch.Tensor, **solver) -> tuple[list, float]:
    """Cells of the conditions (n, 4) from the noise (n, m), and seconds a cell."""
    began = time.perf_counter()
    cells = sampler.gvae.decode(sampler.ccnf.sample(zc, noise=noise, **solver))
    return cells, (time.perf_counter() - began) / len(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", help="whose artifacts (default: the one that ships)")
    parser.add_argument("--cells", type=int, default=1024, help="cells drawn at once (default 1024)")
    parser.add_argument("--slow", type=int, default=64, help="cells drawn one at a time (default 64)")
    options = parser.parse_args()
    scale = options.scale or artifacts.default_scale("families", "gvae", "ccnf")
    sampler = CellSampler.load(scale)
    n, m = options.cells, sampler.ccnf.config.latent_dim
    zc = sampler.centres([i % sampler.families.n_clusters for i in range(n)])
    noise = torch.randn(n, m, generator=torch.Generator().manual_seed(0))
    drawn(sampler, zc[:32], noise[:32])  # first calls are slower
    fast, seconds = drawn(sampler, zc, noise)
    valid = sum(cell is not None for cell in fast) / n
    print(f"scale {scale}, {torch.get_num_threads()} threads: {n} cells in {n * seconds:.2f} s, {valid:.1%} valid")
    exact, _ = drawn(sampler, zc, noise, method="dopri5")
    pairs = zip(fast, exact, strict=True)
    same = sum((a.key() if a else None) == (b.key() if b else None) for a, b in pairs) / n
    print(f"equal to those of dopri5 at {sampler.ccnf.config.tolerance:.0e}: {same:.1%} of {n}")
    plain = copy.copy(sampler)
    plain.gvae, plain.ccnf = copy.deepcopy(sampler.gvae).double(), copy.deepcopy(sampler.ccnf).double()
    slow = [
        drawn(plain, zc[i : i + 1].double(), noise[i : i + 1].double(), method="dopri5")[1] for i in range(options.slow)
    ]
    each = sum(slow) / len(slow)
    print(f"one at a time, float64, dopri5: {each:.3f} s a cell over {len(slow)}; {each / seconds:.0f} times ours")


if __name__ == "__main__":
    main()
