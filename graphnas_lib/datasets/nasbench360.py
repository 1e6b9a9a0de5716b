"""The eight tasks of Table 4 (NAS-Bench-360; metrics as Shen et al. 2022): real files in, tensors out.

`load_task(name)` reads the formats that the benchmark ships. Every task has a validation split for the choice of the
epoch; the test split is read once. Where released loaders have defects, ours does without them: no sky noise while
testing, validation never overlaps training, test series that repeat a training series are dropped and counted.
"""

from __future__ import annotations

from operator import index
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from graphnas_lib.datasets.archives import (
    FACTS,
    MissingDataError,
    load_npy,
    open_gzip,
    open_npz,
    reading,
    unpickle_restricted,
)
from graphnas_lib.datasets.images import load, looked_in, roots
from graphnas_lib.datasets.proteins import ProteinSplit, read_list
from graphnas_lib.datasets.tasks import TASKS, Normaliser, Split, Task
from graphnas_lib.store import CorruptArtifactError, one_of


def _find(name: str, root: Path | str | None) -> Path | None:
    places = [folder / sub for folder in roots(root) for sub in ("nb360", ".")]
    found = (place / file for place in places for file in TASKS[name].files)
    return next((path for path in found if path.exists()), None)


def available(root: Path | str | None = None) -> tuple[str, ...]:
    """Names of the tasks whose files are there, in Table 4's order."""
    return tuple(name for name in TASKS if _find(name, root) is not None)


def load_task(name: str, root: Path | str | None = None, *, limit: int | None = None, seed: int = 0) -> Task:
    """One task of Table 4; MissingDataError, CorruptArtifactError or UnsafePickleError say what its files lack.

    Args:
        root: folder that holds the task's files as the benchmark lays them out, or holds `nb360/` with them; None looks
            in `$GRAPHNAS_DATA` and `data/`.
        limit: at most so many samples a split, drawn at random.
        seed: of the validation split where the benchmark does not fix one, and of `limit`.
    """
    path = _find(one_of("task", name, TASKS), root)
    if path is None:
        place = looked_in(root)
        raise MissingDataError(
            f"NAS-Bench-360's task '{name}' needs {TASKS[name].files[0]}; it is neither in {place} nor in nb360/ "
            "there. Fetch it from the benchmark's authors (see README, Data)."
        )
    with reading(path, f"what NAS-Bench-360's task '{name}' is made of"):
        task = LOADERS[name](path, index(seed))
        for split in (task.train, task.valid, task.test):
            _check(task, split, path)
    return task if limit is None else task.limited(limit, seed=seed)


def _check(task: Task, split: Split | ProteinSplit, path: Path) -> None:
    """CorruptArtifactError unless a split's ranks, lengths, labels and numbers are those of its task."""
    facts, wrong = task.facts, ""
    if len(split) == 0:
        wrong = "a split has no sample"
    elif isinstance(split, Split):
        x, y = split.inputs, split.targets
        rank = 3 if facts.wrn_macs_32 is None else 4
        per_sample = {"points": (), "multilabel": (facts.classes,), "dense": x.shape[2:]}
        wanted = (len(x), *per_sample[facts.kind])
        low, high = y.min().item(), y.max().item()
        if x.dim() != rank or x.shape[1:] != task.train.inputs.shape[1:]:
            wrong = f"inputs are {tuple(x.shape)} in a split and {tuple(task.train.inputs.shape)} in training"
        elif tuple(y.shape) != wanted:
            wrong = f"there are labels {tuple(y.shape)} for inputs {tuple(x.shape)}"
        elif not all(torch.isfinite(part).all() for part in (x, y) if part.is_floating_point()):
            wrong = "some numbers are not finite"
        elif facts.kind == "points" and not 0 <= low <= high < facts.classes:
            wrong = f"labels lie in {low}..{high} and must lie in 0..{facts.classes - 1}"
        elif facts.loss in ("bce_weight_4", "masked_bce") and not 0 <= low <= high <= 1:
            wrong = f"labels lie in {low:g}..{high:g} and must lie in 0..1"
    if wrong:
        raise CorruptArtifactError(
            f"NAS-Bench-360's task '{task.name}' must have a label for each sample: {wrong}, by {path.name} and the "
            "files beside it. Fetch them again."
        )


def _divide(split: Split, held: int, seed: int) -> tuple[Split, Split]:
    """Kept and held-out samples at random, in the order of the file."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    return split.take(order[held:].sort().values), split.take(order[:held].sort().values)


def _task(name: str, train: Split, valid: Split, test: Split, note: str, output: Normaliser | None = None) -> Task:
    counts = f"{len(train):,} train, {len(valid):,} validation, {len(test):,} test"
    return Task(name, train, valid, test, f"NAS-Bench-360 {name} ({note}; {counts})", output)


def _tensors(x: np.ndarray, y: np.ndarray) -> Split:
    if np.shape(y) != x.shape[:1]:
        raise ValueError(f"there are labels {np.shape(y)} for inputs {x.shape}")
    return Split(torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(_whole(np.asarray(y), "a task's file")))


def spherical(path: Path, seed: int) -> Task:
    """CIFAR-100 projected on the sphere, here where only its images are; a fifth of those to train on validates."""
    if path.is_dir():
        plain, note = load("cifar100", root=path.parent), "projected here, "
        parts = ((plain.train_images, plain.train_labels), (plain.test_images, plain.test_labels))
        train, test = (Split(turned(images, seed=seed + i), labels) for i, (images, labels) in enumerate(parts))
    else:
        data, note = open_gzip(path), ""
        train, test = (_tensors(data[split]["images"], data[split]["labels"]) for split in ("train", "test"))
    splits = _divide(train, len(train) // 5, seed)
    return _task("spherical", *splits, test, f"CIFAR-100 on the sphere, {note}0..255 as they are")


BANDWIDTH, TURNED_ALIKE = 30, 500  # rows and columns are twice the first; images that share a rotation
POLE, REACH = 2.001, 1.5  # height of the centre of projection over the plane; what the image covers to each side


def turned(images: Tensor, *, seed: int) -> Tensor:
    """`on_sphere` with a random rotation for each `TURNED_ALIKE` images, as NAS-Bench-360 has it."""
    generator, parts = torch.Generator().manual_seed(seed), []
    for part in images.split(TURNED_ALIKE):
        drawn, triangle = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
        turn = drawn * triangle.diagonal().sign()  # uniform over orthogonal matrices
        parts.append(on_sphere(part, turn * turn.det()))
    return torch.cat(parts)


def on_sphere(images: Tensor, turn: Tensor) -> Tensor:
    """Images (N, C, H, W) on a sphere turned by a rotation (3, 3), as S2CNN projects them: uint8 (N, C, 2b, 2b).

    The plane of the image touches the unit sphere at its south pole and is seen from just above its north pole. The
    grid is Driscoll and Healy's: polar angles pi k / 2b, azimuths pi k / b. The upper half is black, and each channel
    of an image is stretched to 0..255 (Cohen et al. 2018).
    """
    place = torch.arange(2 * BANDWIDTH, dtype=torch.float64) * torch.pi / BANDWIDTH
    polar, azimuth = torch.meshgrid(place / 2, place, indexing="ij")
    grid = torch.stack([polar.sin() * azimuth.cos(), polar.sin() * azimuth.sin(), polar.cos()])  # (3, 2b, 2b)
    x, y, z = torch.einsum("ij,jab->iab", turn, grid)
    spread = POLE / (POLE - 1 - z) / REACH  # from the sphere to the plane, as a share of the image's half side
    at = torch.stack([y * spread, x * spread], dim=-1).float().expand(len(images), -1, -1, -1)
    seen = F.grid_sample(images.float(), at, align_corners=False) * (z <= 0)
    low, high = seen.amin((2, 3), keepdim=True), seen.amax((2, 3), keepdim=True)
    return ((seen - low) / (high - low).clamp(min=1) * 255).to(torch.uint8)


def darcy(path: Path, seed: int) -> Task:
    """Darcy flow: coefficients with the coordinates of each pixel in, the normalised solution out."""
    if path.suffix == ".npz":
        names = [f"darcy_{split}_16_{variable}" for split in ("train", "test") for variable in "xy"]
        x, y, x_test, y_test = (torch.from_numpy(array.astype(np.float32)) for array in open_npz(path, names))
        note = "Darcy flow at 16x16, not the task's 85x85"
    else:
        x, y = (torch.from_numpy(_mat_field(path, field, 1000)) for field in ("coeff", "sol"))
        other = path.with_name(path.name.replace("smooth1", "smooth2"))
        if not other.exists():
            raise MissingDataError(f"Darcy flow's test fields need {other.name} beside {path.name}; it is not there.")
        x_test, y_test = (torch.from_numpy(_mat_field(other, field, 100)) for field in ("coeff", "sol"))
        note = f"every 5th point, {x.shape[-1]}x{x.shape[-1]}"
    held = max(1, len(x) // 10)
    inputs, output = Normaliser.fit(x[:-held]), Normaliser.fit(y[:-held])
    line = torch.linspace(0, 1, x.shape[-1])
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"))  # (2, S, S): each pixel's x and y on [0, 1]
    splits = [
        Split(torch.cat([inputs.encode(a)[:, None], grid.expand(len(a), -1, -1, -1)], 1), b)  # (N, 3, S, S)
        for a, b in ((x[:-held], y[:-held]), (x[-held:], y[-held:]), (x_test, y_test))
    ]
    return _task("darcy", *splits, note, output)


def _mat_field(path: Path, field: str, n: int, every: int = 5) -> np.ndarray:
    """First n samples of `field` (N, H, W), every 5th point; MATLAB v5 by SciPy, v7.3 by h5py (axes reversed there)."""
    with open(path, "rb") as file:
        head = file.read(520)
    if b"\x89HDF\r\n\x1a\n" in (head[:8], head[512:520]):
        try:
            import h5py
        except ImportError as error:
            raise ImportError(
                f"{path.name} is a MATLAB v7.3 file, which needs the package h5py; it is not installed. "
                "Run `pip install h5py` (or `pip install graphnas-lib[nb360]`)."
            ) from error
        with reading(path, f"a MATLAB file with '{field}'"), h5py.File(path, "r") as file:
            return np.ascontiguousarray(file[field][::every, ::every, :n].transpose(2, 1, 0), dtype=np.float32)
    from scipy.io import loadmat

    with reading(path, f"a MATLAB file with '{field}'"):
        data = loadmat(path, variable_names=[field])[field]
        return np.ascontiguousarray(data[:n, ::every, ::every], dtype=np.float32)


def psicov(path: Path, seed: int) -> Task:
    """Distances between residues of proteins; the first 100 of the training list are the validation split."""
    folder = path.parent
    train, test = read_list(path), read_list(folder / "psicov.lst")
    for names, file in ((train, path.name), (test, "psicov.lst")):
        if len(names) < 2:
            raise CorruptArtifactError(f"{file} must name two proteins or more; it names {len(names)}. Fetch it again.")
    held = min(100, max(1, len(train) // 10))
    sets = ((train[held:], 128), (train[:held], 512), (test, 512))
    splits = [ProteinSplit(folder, names, side) for names, side in sets]
    for split in splits:
        split.check_files()
    return _task("psicov", *splits, "crops of 128 for training, canvas of 512 for testing")


def cosmic(path: Path, seed: int) -> Task:
    """Cosmic rays in Hubble images (deepCR); a tenth of the training images is the validation split."""
    test = path.parent / "npy_test"
    if not test.is_dir():
        test = path.parent.parent / "deepCR.ACS-WFC.test" / "npy_test"
    train, test = _cosmic_split(path), _cosmic_split(test)
    splits = _divide(train, max(1, len(train) // 10), seed)
    return _task("cosmic", *splits, test, "F435W, resolved galaxies, fixed crop of 128")


def _cosmic_split(folder: Path) -> Split:
    files = sorted(f for f in folder.glob("f435w/*/*/*.npy") if f.name != "sky.npy")
    files = [f for f in files if f"{f.parts[-3]}_{f.parts[-2]}" in FACTS["cosmic"]["visits"]]
    if not files:
        raise MissingDataError(f"Cosmic needs f435w/<proposal>/<visit>/*.npy under {folder.name}; none is there.")
    crops, sky = [], []
    for file in files:
        with reading(file, "an .npy file of an image and its masks (2 or 3, 192 or more, 192 or more)"):
            data = load_npy(file)[:, 64:192, 64:192]  # image, cosmic-ray mask, pixels to ignore
            if data.shape not in ((2, 128, 128), (3, 128, 128)) or data.dtype.kind not in "fiu":
                raise ValueError(f"it gives {data.shape} of {data.dtype}")
            crops.append(data if len(data) == 3 else np.concatenate([data, np.zeros_like(data[:1])]))
        levels = file.with_name("sky.npy")
        with reading(levels, "an .npy file with a level for each image"):
            sky.append(float(load_npy(levels)[int(file.name.split("_")[0]) - 1]) if levels.exists() else 0.0)
    stack = torch.from_numpy(np.stack(crops).astype(np.float32))  # (N, 3, 128, 128)
    return Split(stack[:, :1], stack[:, 1], stack[:, 2] < 0.5, torch.tensor(np.array(sky, dtype=np.float32)))


def ninapro(path: Path, seed: int) -> Task:
    """Electromyography of 18 gestures, in the benchmark's own three splits."""
    splits = []
    for split in ("train", "val", "test"):
        series = path.with_name(f"ninapro_{split}.npy")
        with reading(series, "an .npy file (N, 52, 16)"):
            x = load_npy(series).astype(np.float32).transpose(0, 2, 1)[:, None]  # (N, 52, 16) -> (N, 1, 16, 52)
        splits.append(_tensors(x, _whole(load_npy(path.with_name(f"label_{split}.npy")), f"label_{split}.npy")))
    return _task("ninapro", *splits, "electromyography of 18 gestures")


ECG_LABELS, ECG_WINDOW, ECG_STRIDES = ("N", "A", "O", "~"), 1000, (500, 83, 250, 25)


def ecg(path: Path, seed: int) -> Task:
    """Recordings split 80/10/10 by scikit-learn with random_state 0, as the benchmark does, then cut into windows."""
    from sklearn.model_selection import train_test_split

    data = unpickle_restricted(path)
    unknown = sorted(set(data["label"]) - set(ECG_LABELS))
    if unknown:
        raise CorruptArtifactError(f"ECG labels must be among {ECG_LABELS}; {path.name} holds {unknown}.")
    if len(data["label"]) != len(data["data"]) or len(data["label"]) < 10:
        found = f"{len(data['data'])} with {len(data['label'])} labels"
        raise CorruptArtifactError(f"{path.name} must hold 10 or more recordings, with a label each; it holds {found}.")
    records = np.arange(len(data["label"]))
    train, rest = train_test_split(records, test_size=0.2, random_state=0)
    valid, test = train_test_split(rest, test_size=0.5, random_state=0)
    splits = (_ecg_windows([(data["data"][i], data["label"][i]) for i in part]) for part in (train, valid, test))
    return _task("ecg", *splits, f"{len(records):,} recordings in windows of {ECG_WINDOW}")


def _ecg_windows(records: list[tuple[np.ndarray, str]]) -> Split:
    """z-scored recordings to windows (N, 1, 1000), rarer classes with a shorter stride; starts below length - 1000."""
    windows, labels = [torch.empty(0, ECG_WINDOW)], [torch.empty(0, dtype=torch.long)]
    for series, label in records:
        kind, series = ECG_LABELS.index(label), np.asarray(series, dtype=np.float64)
        if len(series) > ECG_WINDOW:
            series = torch.from_numpy((series - series.mean()) / max(series.std(), 1e-12)).float()
            windows.append(series[:-1].unfold(0, ECG_WINDOW, ECG_STRIDES[kind]))
            labels.append(torch.full((len(windows[-1]),), kind))
    return Split(torch.cat(windows)[:, None], torch.cat(labels))


def satellite(path: Path, seed: int) -> Task:
    """Series of 46 observations, z-scored one by one; labels 1..24 on file."""
    (x, y), (x_test, y_test) = (_series(path.with_name(f"satellite_{split}.npy")) for split in ("train", "test"))
    known = {row.tobytes() for row in x}
    fresh = np.array([row.tobytes() not in known for row in x_test], dtype=bool)
    train, test = _tensors(_zscore(x), y), _tensors(_zscore(x_test[fresh]), y_test[fresh])
    note = f"{int((~fresh).sum()):,} test series that repeat a training series dropped"
    return _task("satellite", *_divide(train, len(train) // 10, seed), test, note)


def _series(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with reading(path, "an .npy file of 'data' (N, 46) and 'label' (N,)"):
        box = load_npy(path)
        data = box.item() if box.dtype == object and box.shape == () else None
        if not isinstance(data, dict) or not {"data", "label"} <= set(data):
            found = type(data).__name__
            raise CorruptArtifactError(f"{path.name} must hold a dict with 'data' and 'label'; it holds {found}.")
        x, labels = np.ascontiguousarray(data["data"], dtype=np.float32), _whole(np.asarray(data["label"]), path.name)
        if x.ndim != 2 or labels.shape != x.shape[:1]:
            raise ValueError(f"it gives {x.shape} and {labels.shape}")
        return x, labels - 1


def _whole(labels: np.ndarray, name: str) -> np.ndarray:
    """Labels as int64; CorruptArtifactError where they are no whole numbers."""
    if labels.dtype.kind not in "iuf" or (labels != np.floor(labels)).any():
        raise CorruptArtifactError(
            f"{name} must hold whole numbers as labels; it holds {labels.dtype}. Fetch it again."
        )
    return labels.astype(np.int64)


def _zscore(x: np.ndarray) -> np.ndarray:
    scale = np.maximum(x.std(axis=1, keepdims=True), 1e-8)
    return ((x - x.mean(axis=1, keepdims=True)) / scale)[:, None]


def deepsea(path: Path, seed: int) -> Task:
    """Chromatin labels of 1,000 base pairs, in the benchmark's own three splits."""
    splits = []
    for split in ("train", "val", "test"):
        x, y = open_npz(path, (f"x_{split}", f"y_{split}"))
        x = np.ascontiguousarray(x.transpose(0, 2, 1).astype(np.uint8))  # one-hot (N, 4, 1000)
        splits.append(Split(torch.from_numpy(x), torch.from_numpy(y.astype(np.float32))))
    return _task("deepsea", *splits, "36 chromatin labels of 1,000 base pairs")


LOADERS = {loader.__name__: loader for loader in (spherical, darcy, psicov, cosmic, ninapro, ecg, satellite, deepsea)}
