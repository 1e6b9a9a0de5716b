"""Files that others made, read without running anything in them: official archives, pickles, .npy objects.

`unpickle_restricted` admits NumPy arrays and plain values alone; every reader says what it expected and what came.
Arrays come back as NumPy, labels as int64 from 0.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import re
import shutil
import tarfile
import tempfile
import tomllib
import urllib.request
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from graphnas_lib.store import CorruptArtifactError

Arrays = tuple[np.ndarray, np.ndarray]
FACTS = tomllib.loads(Path(__file__).with_name("facts.toml").read_text(encoding="utf-8"))


class MissingDataError(FileNotFoundError):
    """A data set's files are not there; the message says where they were looked for and how to get them."""


class UnsafePickleError(ValueError):
    """A data file asks for more than NumPy arrays while being unpickled; nothing of it was run."""


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """`_codecs.encode` as Python 2 style pickles of byte strings need it, and nothing else."""
    if encoding not in ("latin1", "latin-1", "iso-8859-1"):
        raise UnsafePickleError(f"A data pickle may encode text as latin1 alone; it asks for {encoding!r}.")
    return text.encode("latin1")


_ADMITTED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): np.zeros(1).__reduce__()[0] for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): np.float64(0).__reduce__()[0] for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): np.zeros(1).__reduce_ex__(5)[0] for core in ("core", "_core")},
}

_LOOKS = {b"<": "a web page", b"version https://git-lfs": "a Git LFS pointer", b"": "empty"}


@dataclass(frozen=True)
class reading(AbstractContextManager):  # noqa: N801 - a context manager; a generator's would let a StopIteration through
    """Whatever a reader raises inside about `path` is CorruptArtifactError, or MissingDataError where it is absent.

    `what` is what the file must be. No file can be told from a whole one by the kind of exception that it causes, so
    that every kind is taken.
    """

    path: Path
    what: str

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        known = (CorruptArtifactError, MissingDataError, UnsafePickleError, ImportError, PermissionError)
        if not isinstance(error, Exception) or isinstance(error, known):
            return
        name, remedy = self.path.name, "Fetch it again from its source."
        if isinstance(error, FileNotFoundError) and not self.path.exists():
            raise MissingDataError(f"{name} must lie in {self.path.parent.name}; it is not there. {remedy}") from error
        found = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if self.path.is_file():
            with open(self.path, "rb") as file:
                head = file.read(64).lstrip()
            found = next((told for mark, told in _LOOKS.items() if head.startswith(mark) and (mark or not head)), found)
        raise CorruptArtifactError(
            f"{name} must be {self.what}, whole and unaltered; it is not ({found}). {remedy}"
        ) from error


class _Restricted(pickle.Unpickler):
    name = "the file"

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise UnsafePickleError(
                f"A data pickle may hold NumPy arrays and plain values alone; {self.name} asks for {module}.{name}. "
                "Nothing of it was run: do not trust this file, fetch it again from its source."
            )
        return _ADMITTED[module, name]


def unpickle_restricted(source: bytes | Path | BinaryIO, *, name: str = "") -> Any:
    """Read a pickle that may hold NumPy arrays, dicts, lists, tuples, numbers, strings and bytes, nothing else.

    `name` is what to call bytes or an open file in messages. A pickle that asks for any other class or function raises
    UnsafePickleError, and nothing was called; one that is truncated raises CorruptArtifactError.
    """
    path = source if isinstance(source, Path) else Path(name or "the file")
    with reading(path, "a pickle of NumPy arrays"), ExitStack() as opened:
        if isinstance(source, Path):
            source = opened.enter_context(open(source, "rb"))
        reader = _Restricted(BytesIO(source) if isinstance(source, bytes) else source, encoding="latin1")
        reader.name = name or path.name
        return reader.load()


def open_gzip(path: Path) -> Any:
    """The restricted pickle inside a .gz file."""
    with reading(path, "a gzip file of a pickle"), gzip.open(path) as file:
        content = unpickle_restricted(file, name=path.name)
        file.read()  # to the checksum at its end
        return content


def open_npz(path: Path, names: Sequence[str]) -> list[np.ndarray]:
    """Arrays of an .npz file by name."""
    with reading(path, f"an .npz file with {', '.join(names)}"), np.load(path, allow_pickle=False) as data:
        return [data[name] for name in names]


def load_npy(path: Path) -> np.ndarray:
    """An .npy file; object arrays (pickles inside) go through `unpickle_restricted`."""
    headers = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    with reading(path, "an .npy file"), open(path, "rb") as file:
        shape, _, dtype = headers[np.lib.format.read_magic(file)[0]](file)
        if not dtype.hasobject:
            return np.load(path, allow_pickle=False)
        return np.asarray(unpickle_restricted(file, name=path.name), dtype=object).reshape(shape)


def read_images(folder: Path, layout: dict[str, Any], side: int) -> list[Arrays]:
    """Train and test split of an archive in a layout of `facts.toml`: images uint8 (N, 3, side, side) and labels."""
    splits, pixels = [], 3 * side**2
    for pattern in layout["files"]:
        named = re.compile(re.escape(pattern).replace(r"\*", r"\d+"))  # a backup is no batch: a number stands for *
        files = sorted(path for path in folder.iterdir() if path.is_file() and named.fullmatch(path.name))
        if not files:
            missing = "all training files" if "*" in pattern else pattern
            raise MissingDataError(
                f"{folder.name} must hold the official files; {missing} are not there. Unpack the archive again."
            )
        if "labels" in layout:
            parts = [_pickled(path, layout["labels"], pixels) for path in files]
        else:
            parts = [_records(path, layout["label_bytes"], pixels) for path in files]
        data, labels = (np.concatenate(column) for column in zip(*parts))
        splits.append((data.reshape(-1, 3, side, side), labels))
    return splits


def _records(path: Path, label_bytes: int, pixels: int) -> Arrays:
    """Binary CIFAR: records of label bytes, of which the last one counts, and pixel bytes, channels first."""
    data, size = np.fromfile(path, dtype=np.uint8), label_bytes + pixels
    if len(data) == 0 or len(data) % size:
        raise CorruptArtifactError(
            f"{path.name} must hold whole records of {size} bytes; it has {len(data)} bytes. Fetch it again."
        )
    records = data.reshape(-1, size)
    return records[:, label_bytes:], records[:, label_bytes - 1].astype(np.int64)


def _pickled(path: Path, key: str, pixels: int) -> Arrays:
    """Pickled CIFAR or ImageNet16: a dict with `data` (N, pixels) uint8, channels first, and labels under `key`."""
    with reading(path, f"a pickle with 'data' (N, {pixels}) and '{key}' (N,)"):
        part = unpickle_restricted(path)
        part = {name.decode() if isinstance(name, bytes) else name: value for name, value in part.items()}
        data, labels = np.asarray(part["data"]), np.asarray(part[key])
        for found, must in ((data, (len(data), pixels)), (labels, (len(data),))):
            if found.shape != must or found.dtype.kind not in "iu":
                raise ValueError(f"an array of {found.dtype}, shape {found.shape}, where integers {must} must be")
        if data.dtype != np.uint8 and not 0 <= data.min(initial=0) <= data.max(initial=0) <= 255:
            raise ValueError(f"pixels from {data.min()} to {data.max()}, where 0 to 255 must be")
        return data.astype(np.uint8, copy=False), labels.astype(np.int64)


def download(url: str, sha256: str, folder: Path) -> None:
    """Fetch a .tar.gz, check its SHA-256, unpack it into `folder`; nothing is left behind when that fails."""
    from tqdm.auto import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        with urllib.request.urlopen(url, timeout=60) as response, open(Path(place, "archive"), "w+b") as file:
            total = int(response.headers.get("Content-Length") or 0) or None
            with tqdm.wrapattr(response, "read", total=total, desc=url.rsplit("/", 1)[-1]) as counted:
                shutil.copyfileobj(counted, file, 1 << 20)
            file.seek(0)
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise CorruptArtifactError(
                f"{url} must have the SHA-256 {sha256}; what came has {found}. Try again, or fetch it by hand."
            )
        with tarfile.open(Path(place, "archive")) as tar:
            checked = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.3 has none yet
            tar.extractall(Path(place, "unpacked"), **checked)
        for entry in Path(place, "unpacked").iterdir():
            os.replace(entry, folder / entry.name)
