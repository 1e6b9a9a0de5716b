"""PSICOV's protein maps (Table 4, task of NAS-Bench-360): 57 input channels and a distance map, read one by one.

A protein of L residues is a pickle of features and an .npy object of distances. It is framed by 5 zero pixels (distance
100), then cropped at random to 128 for training or set into the corner of a 512 canvas for testing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from graphnas_lib.datasets.archives import MissingDataError, load_npy, reading, unpickle_restricted
from graphnas_lib.store import CorruptArtifactError

FRAME_PIXELS = 5
FAR_ANGSTROM = 100.0  # distance of the frame, and of what lies outside
MAX_TRAIN_ANGSTROM = 16.0  # longer distances are clipped in training, as the benchmark does
_FOLDERS = ("deepcov", "psicov", "cameo")


def read_list(path: Path) -> list[str]:
    """First token of each line."""
    if not path.exists():
        raise MissingDataError(
            f"PSICOV needs {path.name} in its folder 'protein'; it is not there. Unpack the archive."
        )
    with reading(path, "a list of proteins"):
        return [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


@dataclass
class ProteinSplit:
    """Proteins of one split by their ids, read when asked for, on a canvas of `side` residues."""

    folder: Path  # it holds <set>/features/<id>.pkl and <set>/distance/<id>-cb.npy
    names: list[str]
    side: int
    lazy = True
    device = torch.device("cpu")

    def __len__(self) -> int:
        return len(self.names)

    def take(self, index: Tensor) -> ProteinSplit:
        """The proteins at `index`."""
        return replace(self, names=[self.names[i] for i in index.tolist()])

    def to(self, device: torch.device | str) -> ProteinSplit:
        """Itself: proteins are read batch by batch."""
        return self

    def fetch(self, index: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """inputs (B, 57, S, S), distances (B, S, S) in Angstrom, True inside the protein (B, S, S).

        A generator (training) crops at random and clips the distances; without one the corner is taken.
        """
        canvases = [self._canvas(self.names[i], generator) for i in index.tolist()]
        inputs, targets, mask = (torch.from_numpy(np.stack(part)) for part in zip(*canvases))
        return inputs, targets if generator is None else targets.clamp_max(MAX_TRAIN_ANGSTROM), mask

    def _canvas(self, name: str, generator: torch.Generator | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        features, distances = self.features(name), self.distances(name)
        size = features.shape[-1]
        if len(distances) != size:
            raise CorruptArtifactError(
                f"Features and distances of protein {name} must have the same length; got {size} and {len(distances)}."
            )
        spare, corner = size + 2 * FRAME_PIXELS - self.side, (0, 0)
        if spare > 0 and generator is not None:
            corner = torch.randint(spare + 1, (2,), generator=generator).tolist()
        rows, columns = (slice(start, start + self.side) for start in corner)

        def framed(maps: np.ndarray, outside: float) -> np.ndarray:
            width = [(0, 0)] * (maps.ndim - 2) + [(FRAME_PIXELS, FRAME_PIXELS + max(0, -spare))] * 2
            return np.pad(maps, width, constant_values=outside)[..., rows, columns]

        known = ~np.isnan(distances)
        return framed(features, 0.0), framed(np.where(known, distances, 0.0), FAR_ANGSTROM), framed(known, False)

    def _file(self, kind: str, file: str) -> Path:
        places = (self.folder / source / kind / file for source in _FOLDERS)
        if path := next(filter(Path.exists, places), None):
            return path
        raise MissingDataError(f"PSICOV needs <set>/{kind}/{file} for a set among {_FOLDERS}; none is there.")

    def features(self, name: str) -> np.ndarray:
        """57 channels (57, L, L): each of 27 one-dimensional features along columns and along rows, then 3 maps."""
        path = self._file("features", f"{name}.pkl")
        with reading(path, "a pickle of a protein's features"):
            data = unpickle_restricted(path)
            size = len(data["seq"])
            lines = np.concatenate([data["ss"], data["pssm"].T, data["sa"][None], data["entropy"][None]])  # (27, L)
            if lines.shape != (27, size):
                raise CorruptArtifactError(f"{path.name} must hold 27 features of {size} residues; got {lines.shape}.")
            along = np.broadcast_to(lines[:, None, :], (27, size, size))
            tiled = np.stack([along, along.transpose(0, 2, 1)], 1).reshape(54, size, size)
            maps = np.stack([data["ccmpred"], data["freecon"], data["potential"]])
            return np.nan_to_num(np.concatenate([tiled, maps]).astype(np.float32))

    def check_files(self) -> None:
        """MissingDataError unless every protein has its files."""
        for name in self.names:
            self._file("features", f"{name}.pkl"), self._file("distance", f"{name}-cb.npy")

    def distances(self, name: str) -> np.ndarray:
        """Distance map (L, L) in Angstrom, at least 1; the diagonal is the mean of its neighbours; NaN: unknown."""
        path = self._file("distance", f"{name}-cb.npy")
        with reading(path, "an .npy file of a length, a sequence and a map of distances"):
            length, _, stored = load_npy(path)
            if np.ndim(stored) != 2 or not 2 <= length <= min(np.shape(stored)):
                raise ValueError(f"a map {np.shape(stored)} for {length} residues")
            y = np.maximum(np.array(stored, dtype=np.float32), 1.0)[:length, :length]  # NaN stays NaN
            i = np.arange(1, length - 1)
            sides = np.stack([y[i, i - 1], y[i, i + 1]])
            unknown = np.isnan(sides)
            mean = np.where(unknown, 0, sides).sum(0) / np.maximum((~unknown).sum(0), 1)
            y[i, i] = np.where(np.isnan(y[i, i]), np.nan, np.where(unknown.all(0), 1.0, mean))
            y[0, 0], y[-1, -1] = y[0, 1], y[-1, -2]
            return y
