"""Zero-cost proxies against a plain implementation, in one run on the same networks (`make bench`, or as a script).

Plain: a pass for each proxy on a copy of the network, hooks and masks, contiguous float32, layer by layer, one process
with a thread a core. Ours: `proxies`, channels_last, one single-threaded process a core. Compare ratios only.

    python tests/benchmarks/bench_proxies.py --cells 40 --tcet 4
"""

from __future__ import annotations

import argparse
import copy
import time

import joblib
import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional as F

from graphnas_lib import datasets, proxies
from graphnas_lib.clusters import ZC_NAMES
from graphnas_lib.macro import Architecture, Triple, stack_cell
from graphnas_lib.network import build, count
from graphnas_lib.space import sample_cells

TURN = 10  # networks one way scores before the other; few would leave a process idle at the end of each turn
SCORED = (nn.Conv2d, nn.Linear)
COUNTED = (*SCORED, nn.BatchNorm2d, nn.ReLU, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


# ---- the plain implementation


def plain_kernels(model: nn.Module, images) -> dict:
    model, kernels = copy.deepcopy(model).eval(), {}

    def see(name, output):
        codes = (output.flatten(1) > 0).float()
        kernels[name] = (codes @ codes.T + (1 - codes) @ (1 - codes).T).double()

    for name, module in model.named_modules():
        if isinstance(module, SCORED):
            module.register_forward_hook(lambda _m, _i, o, name=name: see(name, o))
    with torch.no_grad():
        model(images)
    return kernels


def plain_saliency(model: nn.Module, images, labels, mode: str) -> dict:
    model = copy.deepcopy(model).train(mode == "train")
    layers = {name: m for name, m in model.named_modules() if isinstance(m, SCORED)}
    for layer in layers.values():
        layer.mask = nn.Parameter(torch.ones_like(layer.weight))
        layer.weight.requires_grad_(False)
        if isinstance(layer, nn.Conv2d):
            layer.forward = lambda x, m=layer: F.conv2d(
                x, m.weight * m.mask, m.bias, m.stride, m.padding, m.dilation, m.groups
            )
        else:
            layer.forward = lambda x, m=layer: F.linear(x, m.weight * m.mask, m.bias)
    F.cross_entropy(model(images), labels).backward()
    return {n: m.mask.grad.abs() if m.mask.grad is not None else torch.zeros_like(m.mask) for n, m in layers.items()}


def plain_ratios(saliency: dict) -> dict:
    return {
        n: float(s.sum() / s.std()) if s.numel() > 1 and s.std() > 0 else float(s.sum()) for n, s in saliency.items()
    }


def plain_flops(model: nn.Module, shape) -> float:
    model, total = copy.deepcopy(model).eval(), []

    def see(m, i, o):
        if isinstance(m, SCORED):
            total.append(o.numel() * m.weight[0].numel() + (o.numel() if m.bias is not None else 0))
        elif isinstance(m, nn.BatchNorm2d):
            total.append(i[0].numel() * (2 if m.affine else 1))
        else:
            total.append(o.numel() if isinstance(m, nn.ReLU) else i[0].numel())

    for module in model.modules():
        if isinstance(module, COUNTED):
            module.register_forward_hook(see)
    with torch.no_grad():
        model(torch.zeros(1, *shape))
    return 2.0 * sum(total)


def plain_zc_vector(model: nn.Module, images, labels) -> list[float]:
    naswot = float(torch.linalg.slogdet(sum(plain_kernels(model, images).values()))[1])
    ssnr = sum(plain_ratios(plain_saliency(model, images, labels, "train")).values())
    return [naswot, ssnr, float(sum(p.numel() for p in model.parameters())), plain_flops(model, images.shape[1:])]


def plain_tcet(model: nn.Module, images, labels) -> float:
    ratios = plain_ratios(plain_saliency(model, images, labels, "eval"))
    kernels = {n: k.numpy() for n, k in plain_kernels(model, images).items()}
    regular = {n: k for n, k in kernels.items() if np.linalg.matrix_rank(k, hermitian=True) == len(k)}
    return sum(np.log1p(ratios[n]) * np.linalg.slogdet(k)[1] for n, k in regular.items())  # a singular one counts 0


# ---- the comparison


def macro_networks(n: int, seed: int) -> list[Architecture]:
    """Networks of nine cells at 16 to 64 channels, as evolution scores them."""
    cells = sample_cells(3 * n, seed=seed)
    widths = [(16, 1)] * 3 + [(32, 2), (32, 1), (32, 1), (64, 2), (64, 1), (64, 1)]
    return [
        Architecture(tuple(Triple(cells[3 * i + j // 3], c, s) for j, (c, s) in enumerate(widths))) for i in range(n)
    ]


def ours(kind: str, architecture: Architecture, images, labels) -> list[float]:
    torch.set_num_threads(1)
    if kind == "ZC vector":
        return proxies.zc_vector(architecture.triples[0].cell, images, labels, seed=0).tolist()
    model = build(architecture, seed=0).to(memory_format=torch.channels_last)
    return [proxies.tcet(model, images, labels)]


def plain(kind: str, architecture: Architecture, images, labels) -> list[float]:
    model = build(architecture, seed=0)
    return plain_zc_vector(model, images, labels) if kind == "ZC vector" else [plain_tcet(model, images, labels)]


def compare(kind: str, architectures: list[Architecture], images, labels, cores: int = 2) -> dict:
    """Seconds of both ways over the same networks, taken in turns of a few, and how well their numbers agree."""
    seconds, values = {"plain": 0.0, "ours": 0.0}, {"plain": [], "ours": []}
    with joblib.Parallel(n_jobs=cores) as pool:
        pool(joblib.delayed(ours)(kind, architectures[0], images, labels) for _ in range(cores))  # compiled, warm
        for start in range(0, len(architectures), TURN):
            some = architectures[start : start + TURN]
            began = time.perf_counter()
            values["ours"] += pool(joblib.delayed(ours)(kind, a, images, labels) for a in some)
            seconds["ours"] += time.perf_counter() - began
            torch.set_num_threads(cores)
            began = time.perf_counter()
            values["plain"] += [plain(kind, a, images, labels) for a in some]
            seconds["plain"] += time.perf_counter() - began
    a, b = (np.array(values[way]) for way in ("plain", "ours"))
    return {
        "networks": len(architectures),
        "plain s": seconds["plain"] / len(architectures),
        "ours s": seconds["ours"] / len(architectures),
        "ratio": seconds["plain"] / seconds["ours"],
        "relative difference": np.abs(b / a - 1).mean(0),
        "spearman": [spearmanr(a[:, i], b[:, i]).statistic for i in range(a.shape[1])],
    }


def peak_gflops() -> float:
    """GFLOP/s of a dense 3x3 convolution, 64 images of 64 channels at 32x32, one thread, channels_last."""
    torch.set_num_threads(1)
    x = torch.randn(64, 64, 32, 32).to(memory_format=torch.channels_last)
    w = torch.randn(64, 64, 3, 3)
    with torch.no_grad():
        F.conv2d(x, w, padding=1)
        best = min(_seconds(lambda: F.conv2d(x, w, padding=1)) for _ in range(3))
    return 2 * x.numel() * 64 * 9 / best / 1e9


def _seconds(call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def where_time_goes(architectures: list[Architecture], images, labels) -> dict[str, float]:
    """Share of one thread's time by kind of operation in ours, over a few ZC vectors."""
    kinds = {
        "convolutions": ("mkldnn_convolution", "convolution_backward", "aten::mm", "aten::addmm"),
        "batch norm and ReLU by themselves": ("native_batch_norm", "clamp_min", "threshold_backward", "batch_norm"),
        "sums of a cell's inputs": ("aten::add",),
        "code kernels": ("_int_mm",),
        "pooling": ("avg_pool",),
    }
    ours("ZC vector", architectures[0], images, labels)
    with torch.profiler.profile() as profile:
        began = time.perf_counter()
        for architecture in architectures:
            ours("ZC vector", architecture, images, labels)
        total = time.perf_counter() - began
    spent = dict.fromkeys(kinds, 0.0)
    for event in profile.key_averages():
        for kind, names in kinds.items():
            if any(name in event.key for name in names):
                spent[kind] += event.self_cpu_time_total / 1e6
                break
    return {kind: seconds / total for kind, seconds in spent.items()} | {
        "the rest (fused loops, comparisons, Python)": 1 - sum(spent.values()) / total
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=40, help="networks for ZC vectors (default 40)")
    parser.add_argument("--tcet", type=int, default=8, help="networks for T-CET (default 8)")
    parser.add_argument("--batch", type=int, default=64, help="images (default 64)")
    options = parser.parse_args()
    data = datasets.load("auto")
    images, labels = data.batch(options.batch)
    print(f"{data.source}, batch {options.batch}, {images.shape[-1]} px")
    peak = peak_gflops()
    print(f"measured convolution peak of one thread: {peak:.0f} GFLOP/s")
    stacked = [stack_cell(cell) for cell in sample_cells(options.cells, seed=1)]
    for kind, architectures in (("ZC vector", stacked), ("T-CET", macro_networks(options.tcet, seed=2))):
        found = compare(kind, architectures, images, labels)
        work = np.mean([4 * 2 * count(a).macs * options.batch for a in architectures]) / 1e9  # two forwards, a backward
        print(
            f"\n{kind}: {found['networks']} networks; plain {found['plain s']:.2f} s, ours {found['ours s']:.2f} s a "
            f"network on two cores: {found['ratio']:.2f} times; {work:.0f} GFLOP a network, "
            f"{work / found['ours s'] / (2 * peak):.0%} of two threads' peak (plain "
            f"{work / found['plain s'] / (2 * peak):.0%})"
        )
        names = ZC_NAMES if kind == "ZC vector" else ("tcet",)
        for i, name in enumerate(names):
            print(
                f"  {name}: mean relative difference {found['relative difference'][i]:.1e}, "
                f"Spearman {found['spearman'][i]:.5f}"
            )
    print("\nwhere one thread's time goes in a ZC vector of ours:")
    for kind, share in where_time_goes(stacked[:6], images, labels).items():
        print(f"  {share:4.0%} {kind}")


if __name__ == "__main__":
    main()


def test_zc_vector_ours(benchmark):
    """One of our ZC vectors, one thread, 16 images of 16x16."""
    architecture = stack_cell(sample_cells(1, seed=1)[0])
    images, labels = torch.randn(16, 3, 16, 16), torch.arange(16) % 10
    benchmark(lambda: ours("ZC vector", architecture, images, labels))


def test_zc_vector_plain(benchmark):
    """The same, plain."""
    architecture = stack_cell(sample_cells(1, seed=1)[0])
    images, labels = torch.randn(16, 3, 16, 16), torch.arange(16) % 10
    benchmark(lambda: plain("ZC vector", architecture, images, labels))
