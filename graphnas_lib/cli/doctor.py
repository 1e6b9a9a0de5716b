"""What this installation has: versions, device, disk, data sets, trained artifacts (each checked by its SHA-256).

What a machine has otherwise than most, and what to do where that matters, is a line that begins with "note:".
"""

from __future__ import annotations

import locale
import os
import platform
import shutil
import sys

import torch

from graphnas_lib import datasets, store
from graphnas_lib.paper import STAGES

PACKAGES = ("graphnas-lib", "torch", "numpy", "scikit-learn", "torchdiffeq", "transformers", "papermill")
ROOM = 2  # GiB


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
    told += [*_machine(), *_data(), *(line for lines, _ in found for line in lines)]
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


def _machine() -> list[str]:
    """Room on the disk, and notes on what is otherwise than most machines have it."""
    place = store.root()
    there = next(folder for folder in (place.resolve(), *place.resolve().parents) if folder.exists())
    free = shutil.disk_usage(there).free / 2**30
    told = [f"results go to {place}; {free:.1f} GiB free there"]
    told.append(f"{store.on_cpu()} worker processes on {os.cpu_count()} cores ($GRAPHNAS_WORKERS says how many)")
    if free < ROOM:
        told.append(f"note: less than {ROOM} GiB are free; notebooks and stages need about that much.")
    if not all(os.access(folder, os.W_OK) for folder in (there, place / "data") if folder.exists()):
        told.append(f"note: {place} cannot be written; {store.remedy('Read-only file system')}")
    if cannot := _cache():
        told.append(f"note: {cannot}; each process compiles anew, some ten seconds. Name one in $NUMBA_CACHE_DIR.")
    if (encoding := locale.getpreferredencoding(False)).lower().replace("-", "") != "utf8":
        told.append(f"note: this locale prints in {encoding}; files are UTF-8 all the same. What it lacks prints as ?.")
    if other := _other_kernel():
        told.append(
            f"note: Jupyter's kernel python3 is {other}, not this Python. `reproduce` starts this one; in JupyterLab "
            "choose it, or `python -m ipykernel install --sys-prefix`."
        )
    return told


def _cache() -> str:
    """Why Numba keeps no compiled code, "" when it does."""
    import numba

    def nothing() -> None: ...

    try:
        numba.njit(cache=True)(nothing)
    except RuntimeError as error:
        return "Numba finds no folder to keep compiled code in" if "no locator" in str(error) else str(error)
    return ""


def _other_kernel() -> str:
    """What Jupyter starts as "python3", where that is another interpreter than this one."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        return ""
    found = shutil.which(command) or command
    same = os.path.basename(command) == command or os.path.realpath(found) == os.path.realpath(sys.executable)
    return "" if same else command


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
    for stage in STAGES:
        if not (path := store.manifest_path(stage, scale)).is_file():
            continue
        stages.append(stage)
        try:
            files = store.load_manifest(stage, scale)["files"]
        except store.CorruptArtifactError:
            damaged.append(f"manifest of stage {stage} must be JSON")
            continue
        for name, entry in files.items():
            if wrong := store.damage(path.parent / name, entry):
                damaged.append(f"{name} of stage {stage} {wrong}")
            size += entry["bytes"]
    if not stages:
        verb = "reproduce" if scale == "smoke" else "run --all"
        return [f"artifacts at {scale}: none (python -m graphnas_lib {verb} --scale {scale} makes them)"], []
    told = [f"artifacts at {scale}: {', '.join(stages)}; {size / 2**20:.1f} MiB"]
    told += [f"  DAMAGED: {item}. Restore it, or run the stage again with --fresh." for item in damaged]
    return told if damaged else [f"{told[0]}, all as their SHA-256 says"], damaged
