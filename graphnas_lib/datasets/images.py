"""Image data of Sec. 4: real files in, uint8 tensors out (CIFAR-10/100, ImageNet16-120, an ImageNet folder, digits).

Files are looked for in `$GRAPHNAS_DATA`, then in `data/`, in the official python or binary layout; how many images
there are is read from the files, so a subset in the official format works and says that it is one. Without any file
there is `digits`: 1,797 real images that scikit-learn bundles.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from operator import index
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from graphnas_lib.datasets import archives
from graphnas_lib.datasets.archives import MissingDataError
from graphnas_lib.store import CorruptArtifactError, one_of
from graphnas_lib.store import root as repository_root

NAMES = ("auto", "cifar10", "cifar100", "digits", "imagenet16-120")
IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")
_OFFICIAL = archives.FACTS["images"]  # layout of each archive, as `facts.toml` explains it


@dataclass(frozen=True)
class Dataset:
    """Images and labels of one classification data set."""

    name: str
    train_images: Tensor  # uint8, (N, C, H, W)
    train_labels: Tensor  # int64, (N,), in 0 .. classes - 1
    test_images: Tensor
    test_labels: Tensor
    classes: int
    mean: tuple[float, ...]  # one number a channel, in units of 0..1
    std: tuple[float, ...]
    source: str  # which files, and how many of the official images they hold
    mirror: bool = True  # whether a mirrored image keeps its label (not so for digits)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return tuple(self.train_images.shape[1:])

    def size(self, split: str) -> int:
        """Number of images of "train" or "test"."""
        return len(self._split(split)[0])

    def _split(self, split: str) -> tuple[Tensor, Tensor]:
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test'; got {split!r}.")
        return getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")

    def fetch(self, split: str, index: Tensor, *, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) uint8 and labels (B,) at `index`; `seed` is for data sets that crop while reading."""
        images, labels = self._split(split)
        index = index.to(images.device, non_blocking=True)
        return images[index], labels[index]

    def batch(self, n: int = 64, *, split: str = "train", device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """The first n images, normalised float32 (n, C, H, W), and labels (n,): the batch that proxies are taken on."""
        images, labels = self._split(split)
        return normalise(images[:n].to(device), self.mean, self.std), labels[:n].to(device)

    def subset(self, n_train: int | None = None, n_test: int | None = None) -> Dataset:
        """At most the first n images of each split, in file order."""
        cut = {"train": n_train, "test": n_test}
        return self._with(**{split: tuple(part[:n] for part in self._split(split)) for split, n in cut.items()})

    def resized(self, resolution: int) -> Dataset:
        """Every image at resolution x resolution (antialiased bilinear)."""
        if resolution == self.train_images.shape[-1] == self.train_images.shape[-2]:
            return self
        train, test = _resize(self.train_images, resolution), _resize(self.test_images, resolution)
        source = f"{self.source}, resized to {resolution}x{resolution}"
        return replace(self, train_images=train, test_images=test, source=source)

    def split_validation(self, fraction: float = 0.1, *, seed: int = 0) -> Dataset:
        """Training images only: a class-balanced `fraction` of them becomes the test split, the rest stays.

        Selection happens on this; the real test split is read once, at the end.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction of held-out training images must lie between 0 and 1; got {fraction}.")
        held = stratified(self.train_labels, fraction, seed=seed)
        train, test = (tuple(part[chosen] for part in self._split("train")) for chosen in (~held, held))
        source = f"{self.source}; tested on {int(held.sum())} held-out training images"
        return replace(self._with(train, test), source=source)

    def to(self, device: torch.device | str) -> Dataset:
        """All tensors on `device`, so that a batch is one index operation there."""
        return self._with(*([part.to(device) for part in self._split(split)] for split in ("train", "test")))

    def _with(self, train: Sequence[Tensor], test: Sequence[Tensor]) -> Dataset:
        """The same with other images and labels."""
        return replace(self, train_images=train[0], train_labels=train[1], test_images=test[0], test_labels=test[1])


def load(
    name: str = "auto",
    *,
    resolution: int | None = None,
    n_train: int | None = None,
    n_test: int | None = None,
    download: bool = False,
    root: Path | str | None = None,
) -> Dataset:
    """A data set of `NAMES`; MissingDataError or CorruptArtifactError say what is wrong with its files.

    Args:
        name: "auto" is CIFAR-10 when its files are there, else digits.
        resolution: side of the images, in pixels; None leaves them as they are (digits: 32).
        n_train, n_test: at most so many images of a split, the first ones in file order.
        download: fetch the official archive when the files are not there (CIFAR only; SHA-256 checked).
        root: where to look, instead of `$GRAPHNAS_DATA` and `data/`.
    """
    if one_of("data set", name, NAMES) == "auto":
        found = _folder(_OFFICIAL["cifar10"], root) is not None
        name = "cifar10" if found or download else "digits"
    dataset = digits() if name == "digits" else official(name, root, download=download)
    dataset = dataset.subset(n_train, n_test)
    return dataset if resolution is None else dataset.resized(resolution)


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 (B, C, H, W) in 0..255 to float32 with the given mean and std, which are in units of 0..1."""
    shape = (1, -1, 1, 1)
    centre = torch.tensor(mean, device=images.device).view(shape) * 255
    return (images.float() - centre) / (torch.tensor(std, device=images.device).view(shape) * 255)


def stratified(labels: Tensor, fraction: float, *, seed: int) -> Tensor:
    """Random mask (N,) of about `fraction` of the positions, the same fraction of every class."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(index(seed)))
    order = order[torch.argsort(labels[order], stable=True)]
    steps = torch.floor(torch.arange(len(labels) + 1, dtype=torch.float64) * fraction)
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[order] = steps[1:] > steps[:-1]
    return held


def roots(given: Path | str | None = None) -> list[Path]:
    """Folders that data is looked for in, first one first; MissingDataError where $GRAPHNAS_DATA is none."""
    if given is not None:
        return [Path(given)]
    own, named = repository_root() / "data", os.environ.get("GRAPHNAS_DATA")
    if not named:
        return [own]
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise MissingDataError(
            f"$GRAPHNAS_DATA must be one folder that exists; it is {named!r}. Correct it, or unset it."
        )
    return [folder, own]


def located(file: str) -> Path | None:
    """Where the first of those folders, or `tables` in it, holds a file; None where none does."""
    places = (path for place in roots() for path in (place / "tables" / file, place / file))
    return next(filter(Path.is_file, places), None)


def looked_in(given: Path | str | None) -> str:
    """Those folders in words."""
    if given is not None:
        return "the given root"
    return f"$GRAPHNAS_DATA ({os.environ.get('GRAPHNAS_DATA') or 'not set'}) and data/"


def _folder(facts: dict, given: Path | str | None) -> tuple[Path, dict] | None:
    """First folder that holds the data set, and its layout."""
    places = ((place / layout["folder"], layout) for place in roots(given) for layout in facts["layouts"])
    return next((found for found in places if found[0].is_dir()), None)


def official(name: str, given: Path | str | None = None, *, download: bool = False) -> Dataset:
    """An official archive, whole or cut; see `load`."""
    facts = _OFFICIAL[name]
    title, classes, found = facts["title"], facts["classes"], _folder(facts, given)
    if found is None and download and "url" in facts:
        archives.download(facts["url"], facts["sha256"], roots(given)[0])
        found = _folder(facts, given)
    if found is None:
        wanted = " or ".join(f"'{layout['folder']}'" for layout in facts["layouts"])
        places = looked_in(given)
        remedy = "pass download=True" if "url" in facts else "see the NATS-Bench documentation for the files"
        raise MissingDataError(
            f"{title} needs the folder {wanted}; none in {places}. Put it there, {remedy}, or use 'digits', "
            "which scikit-learn bundles."
        )
    folder, layout = found
    splits = archives.read_images(folder, layout, facts["side"])
    if first := facts.get("first_label", 0):  # and more classes on file
        splits = [(x[y < first + classes], y[y < first + classes] - first) for x, y in splits]
    for _, labels in splits:
        if len(labels) == 0 or labels.min() < 0 or labels.max() >= classes:
            raise CorruptArtifactError(
                f"{title} labels must lie in 0..{classes - 1} and be at least one; {folder.name} holds "
                f"{len(labels)} from {labels.min(initial=0)} to {labels.max(initial=0)}. Fetch the archive again."
            )
    sizes = [len(labels) for _, labels in splits]
    note = "{:,} train + {:,} test images".format(*sizes)
    if sizes != facts["official_sizes"]:
        note = f"a subset: {note} of the official " + "{:,} + {:,}".format(*facts["official_sizes"])
    tensors = [torch.from_numpy(array) for split in splits for array in split]
    mean, std = (tuple(value / 255 for value in facts[key]) for key in ("mean_255", "std_255"))
    return Dataset(name, *tensors, classes, mean, std, f"{title} ({folder.name}; {note})")


def digits() -> Dataset:
    """scikit-learn's 1,797 images of 8x8, enlarged to 3x32x32; the last 360 (other writers) are the test split."""
    from sklearn.datasets import load_digits

    bundle = load_digits()
    images = torch.from_numpy(bundle.images).float().mul(255 / 16).unsqueeze(1)  # (1797, 1, 8, 8)
    images = F.interpolate(images, size=32, mode="bilinear", align_corners=False)
    images = images.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(bundle.target.astype(np.int64))
    train = images[:1437].float() / 255
    mean, std = (round(train.mean().item(), 4),) * 3, (round(train.std().item(), 4),) * 3
    return Dataset(
        "digits", images[:1437], labels[:1437], images[1437:], labels[1437:], 10, mean, std,
        "scikit-learn digits (1,437 train + 360 test images of 8x8, enlarged to 32x32)", mirror=False,
    )  # fmt: skip


def _resize(images: Tensor, resolution: int) -> Tensor:
    how = {"mode": "bilinear", "align_corners": False, "antialias": True}
    parts = (F.interpolate(part.float(), size=resolution, **how) for part in images.split(2048))
    return torch.cat([part.round_().clamp_(0, 255).to(torch.uint8) for part in parts]) if len(images) else images


class ImageFolderDataset:
    """ImageNet-1k as it unpacks: `train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`, decoded when asked for.

    Training images are random-resized crops (area 8-100%, aspect 3/4-4/3) with random flips; test images are resized
    to 256/224 of the resolution and cropped in the centre, bicubic in both cases (ZenNAS recipe).
    """

    name = "imagenet"
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    mirror = False  # the flip is part of the training crop

    def __init__(self, path: Path | str, *, resolution: int = 224, threads: int | None = None):
        folder = Path(path)
        names = sorted(entry.name for entry in folder.glob("train/*") if entry.is_dir())
        if not names or not (folder / "val").is_dir():
            raise MissingDataError(
                f"An ImageNet folder must hold train/<class>/ and val/<class>/; {folder} has {len(names)} training "
                "classes. Unpack the licensed archives so."
            )
        self.classes, self.class_names, self.input_shape = len(names), names, (3, resolution, resolution)  # C, H, W
        self._files: dict[str, list[tuple[Path, int]]] = {}  # each with its label
        for split, part in (("train", "train"), ("test", "val")):
            files = ((path, i) for i, name in enumerate(names) for path in sorted((folder / part / name).glob("*")))
            self._files[split] = [file for file in files if file[0].suffix.lower() in IMAGE_SUFFIXES]
        self._threads = threads or min(32, os.cpu_count() or 1)
        self.source = f"ImageNet folder ({self.size('train'):,} train + {self.size('test'):,} val images)"

    def size(self, split: str) -> int:
        """Number of images of "train" or "test"."""
        return len(self._files[split])

    def to(self, device: torch.device | str) -> ImageFolderDataset:
        """Itself: images are decoded batch by batch."""
        return self

    def fetch(self, split: str, index: Tensor, *, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """uint8 (B, 3, R, R) and labels (B,); a training split with a seed is cropped at random by it."""
        paths, labels = zip(*(self._files[split][i] for i in index.tolist()))
        seeds = [None if split != "train" or seed is None else (seed, i) for i in index.tolist()]
        with ThreadPoolExecutor(self._threads) as pool:  # a kept one could not be sent to another process
            return torch.stack(list(pool.map(self._decode, paths, seeds))), torch.tensor(labels)

    def _decode(self, path: Path, seed: tuple[int, int] | None) -> Tensor:
        from PIL import Image

        with archives.reading(path, "an image"), Image.open(path) as file:
            image = file.convert("RGB")
        rng = None if seed is None else np.random.default_rng(seed)
        image = image.resize(self.input_shape[1:], Image.Resampling.BICUBIC, box=crop_box(*image.size, rng))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, R, R)
        return pixels.flip(-1) if rng is not None and rng.random() < 0.5 else pixels


def crop_box(width: int, height: int, rng: np.random.Generator | None) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a random crop; of the centre without `rng`, or where ten draws do not fit."""
    for _ in range(0 if rng is None else 10):
        area = width * height * rng.uniform(0.08, 1.0)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
            return float(left), float(top), float(left + w), float(top + h)
    side = min(width, height) * 224 / 256
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side
