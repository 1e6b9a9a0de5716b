"""What this installation has: versions, device, data sets, trained artifacts (each checked against its SHA-256)."""

from __future__ import annotations

import json
import os
import platform

import torch

from graphnas_lib import datasets, store

PACKAGES = ("graphnas-lib", "torch", "numpy", "scikit-learn", "torchdiffeq", "transformers", "papermill")


def lines() -> tuple[list[str], bool]:
    """Lines to print, and whether nothing is damaged."""
    version = store.versions(PACKAGES)
    told = [f"Python {version['python']}, {platform.platform()}"]
    told += [", ".join(f"{name} {version.get(name, 'not installed')}" for name in PACKAGES)]
    device = store.pick_device("auto")
    if device.type == "cuda":
        told += [_gpu(index) for index in range(torch.cuda.device_count())]
    else:
        cores, threads = os.cpu_count(), torch.get_num_threads()
        told.append(f"device: CPU, {cores} cores, {threads} threads; {store.no_cuda()}")
    found = [_artifacts(scale) for scale in store.SCALE_NAMES]
    told += [*_data(), *(line for lines, _ in found for line in lines)]
    return told, not any(damaged for _, damaged in found)


def _gpu(index: int) -> str:
    """Name, memory and generation of a GPU, and whether this build of PyTorch has kernels for it."""
    facts, (free, total) = torch.cuda.get_device_properties(index), torch.cuda.mem_get_info(index)
    text = f"device: cuda:{index} {facts.name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
    text += f", compute capability {facts.major}.{facts.minor}, CUDA {torch.version.cuda}"
    oldest = min(int(arch.removeprefix("sm_").rstrip("af")) for arch in torch.cuda.get_arch_list() if "sm_" in arch)
    if 10 * facts.major + facts.minor < oldest:
        text += f". This build has no kernels for it (they begin at {oldest / 10}): install one for an older CUDA"
    return text


def download() -> list[str]:
    """Fetch the official archives of CIFAR-10 and CIFAR-100 where they are not there; says where they came to lie."""
    found = [datasets.load(name, download=True) for name in ("cifar10", "cifar100")]
    return [f"{dataset.name}: {dataset.source}" for dataset in found]


def _data() -> list[str]:
    try:
        told = [f"data sets, looked for in {', '.join(map(str, datasets.roots()))}:"]
    except datasets.MissingDataError as error:
        return [f"data sets: {error}"]
    for name in datasets.NAMES[1:]:
        try:
            dataset = datasets.load(name)
        except store.CorruptArtifactError as error:
            told.append(f"  {name}: DAMAGED. {error}")
        except FileNotFoundError:
            told.append(f"  {name}: not found")
        else:
            told.append(f"  {name}: {dataset.size('train'):,} + {dataset.size('test'):,} images")
    return told


def _artifacts(scale: str) -> tuple[list[str], list[str]]:
    """Lines about a scale's artifacts, and the damaged files among them."""
    stages, damaged, size = [], [], 0
    for path in sorted(store.data_dir(scale).glob("*.manifest.json")):
        manifest = json.loads(path.read_text())
        stages.append(manifest["stage"])
        for name, entry in manifest["files"].items():
            file = store.data_dir(scale) / name
            if not file.is_file() or store.sha256(file) != entry["sha256"]:
                damaged.append(f"{name} of stage {manifest['stage']}")
            size += entry["bytes"]
    if not stages:
        verb = "reproduce" if scale == "smoke" else "run --all"
        return [f"artifacts at {scale}: none (python -m graphnas_lib {verb} --scale {scale} makes them)"], []
    told = [f"artifacts at {scale}: {', '.join(stages)}; {size / 2**20:.1f} MiB"]
    told += [f"  DAMAGED: {item}. Restore it, or run the stage again with --fresh." for item in damaged]
    return told if damaged else [f"{told[0]}, all as their SHA-256 says"], damaged
