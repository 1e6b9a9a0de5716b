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
        facts = torch.cuda.get_device_properties(device)
        told.append(f"device: {facts.name}, {facts.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}")
    else:
        cores, threads = os.cpu_count(), torch.get_num_threads()
        told.append(f"device: CPU, {cores} cores, {threads} threads; no CUDA device is visible")
    found = [_artifacts(scale) for scale in store.SCALE_NAMES]
    told += [*_data(), *(line for lines, _ in found for line in lines)]
    return told, not any(damaged for _, damaged in found)


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
        return [f"artifacts at {scale}: none (python -m graphnas_lib reproduce --scale {scale} makes them)"], []
    told = [f"artifacts at {scale}: {', '.join(stages)}; {size / 2**20:.1f} MiB"]
    told += [f"  DAMAGED: {item}. Restore it, or run the stage again with --fresh." for item in damaged]
    return told if damaged else [f"{told[0]}, all as their SHA-256 says"], damaged
