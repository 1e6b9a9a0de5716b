"""Where things lie, and how they are written: atomic files, verified by SHA-256.

A stage writes its files into `data/<scale>/` and last of all `<stage>.manifest.json`, which names each file with its
SHA-256, the sizes, the seed, the versions and the device. A stage without its manifest does not exist, so a killed run
leaves nothing that could be taken for a result. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphnas_lib.store.checkpoints import CorruptArtifactError
from graphnas_lib.store.files import replaced

if TYPE_CHECKING:
    import torch

SCALE_NAMES = ("smoke", "lite", "paper")
DESIGN_FORMATS = ("json", "py", "png", "pdf", "svg", "onnx")  # endings that a design is written with; may fail: last
NUMERIC_PACKAGES = ("torch", "numpy", "scikit-learn", "torchdiffeq", "transformers")  # numbers depend on them


class MissingArtifactError(FileNotFoundError):
    """An artifact of an earlier stage is not there; the message names the stage and the command that makes it."""


@dataclass(frozen=True)
class TrainLog:
    """What a training loop did: one dict a logged step, the number of steps, wall seconds."""

    rows: list[dict] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0


SHIPPED = Path(__file__).resolve().parents[1] / "shipped"  # the generator's artifacts, in an installed package alone


def root() -> Path:
    """Folder that holds `notebooks/`, `data/` and `figures/`.

    `$GRAPHNAS_HOME` when it is set, else the repository; of an installed package, which has none, the current folder.
    """
    if home := os.environ.get("GRAPHNAS_HOME"):
        return Path(home).expanduser()
    return Path.cwd() if SHIPPED.is_dir() else SHIPPED.parents[1]


def one_of(name: str, value: str, choices: Iterable[str]) -> str:
    """`value` itself, or ValueError naming the choices."""
    if value not in (known := tuple(choices)):
        raise ValueError(f"{name} must be one of {known}; got {value!r}.")
    return value


def check_scale(scale: str) -> str:
    """`scale` itself, or ValueError naming the three scales."""
    return one_of("scale", scale, SCALE_NAMES)


def data_dir(scale: str) -> Path:
    """Artifacts of one scale; no scale ever writes into another's folder."""
    return root() / "data" / check_scale(scale)


def figures_dir(scale: str) -> Path:
    """Figures of one scale."""
    return root() / "figures" / check_scale(scale)


def results_dir(scale: str) -> Path:
    """Result tables of one scale."""
    return data_dir(scale) / "results"


def default_scale(*stages: str) -> str:
    """'lite' when the artifacts of all these stages ship at lite, else 'smoke'; of the generator when none is named."""
    shipped = all(manifest_path(stage, "lite").exists() for stage in stages or ("sequence",))
    return "lite" if shipped else "smoke"


DATA_FOLDERS = {
    "cifar10": ("cifar-10-batches-py", "cifar-10-batches-bin"),
    "cifar100": ("cifar-100-python", "cifar-100-binary"),
    "nb360": ("nb360",),
    "imagenet": ("imagenet",),
    "nats": ("nb201_accuracy.csv.xz", "tables/nb201_accuracy.csv.xz"),
    "nb360 accuracies": ("nb201_nb360_accuracy.csv.xz", "tables/nb201_nb360_accuracy.csv.xz"),
}


def data_at_hand() -> tuple[str, ...]:
    """Data sets that lie in `$GRAPHNAS_DATA` or `data/`: part of what decides a result, cheap to ask."""
    places = [Path(p).expanduser() for p in (os.environ.get("GRAPHNAS_DATA"), root() / "data") if p]
    return tuple(
        name for name, parts in DATA_FOLDERS.items() if any((p / part).exists() for p in places for part in parts)
    )


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """The one place that decides where to compute: CUDA when there is one, else the CPU."""
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    picked = torch.device(device)
    if picked.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(device)!r} needs a GPU that PyTorch can use; {no_cuda()}. Use 'auto' or 'cpu'.")
    if picked.type == "cuda" and (picked.index or 0) >= torch.cuda.device_count():
        seen = torch.cuda.device_count()
        raise ValueError(f"device {str(device)!r} must be one of cuda:0 to cuda:{seen - 1}, the GPUs that are visible.")
    return picked


def no_cuda() -> str:
    """Why PyTorch uses no GPU here, in words."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    return (
        f"torch {torch.__version__} is a build for CUDA {torch.version.cuda} and finds no GPU with a driver for it "
        "(`nvidia-smi` tells the driver's CUDA version; an older one needs another build, see README)"
    )


def write(path: Path | str, content: Any) -> Path:
    """Write atomically by suffix: .safetensors, .json, .parquet, .csv, or text. Returns the path."""
    path = Path(path)
    with replaced(path) as part:
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in content.items()}, str(part))
        elif path.suffix == ".json":
            part.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8", newline="\n")
        elif path.suffix == ".parquet":
            content.to_parquet(part, index=False)
        elif path.suffix == ".csv":
            content.to_csv(part, index=False, lineterminator="\n")
        else:
            part.write_text(content, encoding="utf-8", newline="\n")
    return path


def read(path: Path | str) -> Any:
    """Inverse of `write`."""
    path = Path(path)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(str(path))
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    if path.suffix in (".parquet", ".csv"):
        import pandas as pd

        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    return path.read_text(encoding="utf-8")


def sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest_path(stage: str, scale: str) -> Path:
    """The file whose presence says that a stage is done: in `data/`, or where that lacks it in the package."""
    own, shipped = (folder / f"{stage}.manifest.json" for folder in (data_dir(scale), SHIPPED / scale))
    return shipped if shipped.exists() and not own.exists() else own


def save(
    stage: str,
    files: dict[str, Any],
    *,
    scale: str,
    seed: int,
    seconds: float,
    device: str = "cpu",
    config: dict | None = None,
    key: str = "",
) -> dict:
    """Write a stage's files, then its manifest; returns the manifest.

    Args:
        files: file name (suffix decides the format, see `write`) to content.
        seconds: wall-clock seconds the stage took.
        device: device the stage ran on, in words.
        config: sizes and options worth knowing beside the result.
        key: freshness key of the stage (see `stages`).
    """
    folder = data_dir(scale)
    told = folder / f"{stage}.manifest.json"
    told.unlink(missing_ok=True)  # half-written files must not pass for the old artifact
    for name, content in files.items():
        write(folder / name, content)
    manifest = {
        **{"stage": stage, "scale": scale, "seed": seed, "seconds": round(seconds, 2), "device": device},
        **{"config": config or {}, "key": key, "commit": _commit()},
        "versions": versions(),
        "files": {name: {"sha256": sha256(folder / name), "bytes": (folder / name).stat().st_size} for name in files},
    }
    write(told, manifest)
    return manifest


def load_manifest(stage: str, scale: str) -> dict:
    """Manifest of a stage; MissingArtifactError says how to make it."""
    path = manifest_path(stage, scale)
    if not path.exists():
        raise MissingArtifactError(
            f"No artifact of stage '{stage}' at scale '{scale}' ({_shown(path)}). "
            f"Run `python -m graphnas_lib run {stage} --scale {scale}` first, or `run --all` for every stage."
        )
    try:
        return read(path)
    except ValueError as error:
        raise CorruptArtifactError(f"{_shown(path)} must be JSON: {error}. {_remedy(stage, scale)}") from error


def load(stage: str, filename: str, scale: str) -> Any:
    """One file of a stage, verified against its manifest.

    Raises:
        MissingArtifactError: the stage has not been run.
        CorruptArtifactError: the file is missing, truncated or altered.
    """
    manifest = load_manifest(stage, scale)
    path = manifest_path(stage, scale).parent / filename
    if not (wrong := damage(path, manifest["files"].get(filename))):
        return read(path)
    raise CorruptArtifactError(f"{_shown(path)} {wrong}. {_remedy(stage, scale)}")


def _remedy(stage: str, scale: str) -> str:
    return f"Restore it from the repository, or run `python -m graphnas_lib run {stage} --scale {scale} --fresh`."


def damage(path: Path, entry: dict | None) -> str:
    """What is wrong with a stage's file by its entry in the manifest, as the rest of a sentence; "" for nothing."""
    if entry is None or not path.exists():
        return "must be there with its stage but is not"
    if sha256(path) == entry["sha256"]:
        return ""
    if hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest() == entry["sha256"]:
        return "must have the line endings that it was written with; a tool has converted them (git: core.autocrlf)"
    return "must match the SHA-256 in its manifest; it was truncated or altered"


def _shown(path: Path) -> str:
    """Path relative to the repository, so that no machine's folders enter an output."""
    return str(path.relative_to(root())) if path.is_relative_to(root()) else path.name


@lru_cache
def versions(packages: tuple[str, ...] = NUMERIC_PACKAGES) -> dict[str, str]:
    """Versions of Python and of those of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@lru_cache
def _commit() -> str:
    """Current commit, with '+' when the tree differs; '' outside a git checkout."""
    if SHIPPED.is_dir():  # what git knows there is somebody else's
        return ""
    command = ["git", "status", "--porcelain=v2", "--branch", "--", "graphnas_lib"]
    try:
        told = subprocess.run(command, cwd=root(), capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    head, *_ = [line.split()[-1] for line in told.splitlines() if line.startswith("# branch.oid")]
    return head[:12] + "+" * any(not line.startswith("#") for line in told.splitlines())
