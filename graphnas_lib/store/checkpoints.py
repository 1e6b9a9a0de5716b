"""State of long loops on disk, so that a killed run goes on where it was.

A checkpoint is one safetensors file, replaced atomically: tensors in its body, all else as JSON in its header, so that
one file is one consistent state. What only grows, such as a history, may stand in a log beside it, of which the state
says how many bytes count: saving then costs what is new.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from graphnas_lib.store.files import replaced


class CorruptArtifactError(ValueError):
    """A file differs from what its manifest or its format promises."""


class Checkpoint:
    """State of a long loop on disk, written atomically at most once per `every` seconds.

    State is a nested dict of tensors, numbers, strings, None and lists. Without a path it never saves.
    """

    def __init__(self, path: Path | str | None = None, every: float = 60.0):
        self.path = Path(path) if path is not None else None
        self.every = every
        self._last: float | None = None  # the clock starts where the loop does, in another process perhaps
        self._logged = 0

    def due(self) -> bool:
        """True when `every` seconds have passed since the last save or the first question."""
        if self._last is None:
            self._last = time.monotonic()
        return self.path is not None and time.monotonic() - self._last >= self.every

    @property
    def log(self) -> Path:
        """The file of the lines that only grow."""
        return self.path.with_suffix(".log")

    def save(self, state: dict, lines: Iterable[str] = ()) -> None:
        """Replace the stored state; `lines`, without line breaks, are added to those that were saved before."""
        if self.path is None:
            return
        from safetensors.torch import save_file

        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._append(lines)
        tensors = {}
        skeleton = json.dumps(_split(state, tensors))
        with replaced(self.path) as part:
            save_file(tensors, str(part), metadata={"state": skeleton, "log": str(self._logged)})
        self._last = time.monotonic()

    def load(self) -> dict | None:
        """Stored state, or None when there is none."""
        if self.path is None or not self.path.exists():
            return None
        from safetensors import SafetensorError, safe_open

        def joined(node: dict) -> Any:
            return file.get_tensor(node["__tensor__"]) if "__tensor__" in node else dict(node["__dict__"])

        try:
            with safe_open(str(self.path), framework="pt") as file:
                self._logged = int(file.metadata().get("log", 0))
                return json.loads(file.metadata()["state"], object_hook=joined)
        except (SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise CorruptArtifactError(
                f"{self.path.name} must be a readable checkpoint; it is not ({error}). Delete it and run again."
            ) from error

    def lines(self) -> Iterator[str]:
        """The lines that belong to the state that `load` gave.

        Raises:
            CorruptArtifactError: the log is shorter than the state says.
        """
        if not self._logged:
            return
        if not self.log.exists() or self.log.stat().st_size < self._logged:
            raise CorruptArtifactError(
                f"{self.log.name} must hold the {self._logged:,} bytes that {self.path.name} counts on; it does not. "
                "Delete both and run again."
            )
        with self.log.open("rb") as file:
            while file.tell() < self._logged:
                yield file.readline().decode()

    def clear(self) -> None:
        """Forget the stored state; called when the loop has ended well."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
            self.log.unlink(missing_ok=True)
            self._logged = 0

    def _append(self, lines: Iterable[str]) -> None:
        """Write lines behind those that count; what a killed run left behind these is dropped."""
        if not self._logged and self.log.exists():
            self.log.unlink()
        if new := "".join(f"{line}\n" for line in lines).encode():
            with self.log.open("r+b" if self._logged else "wb") as file:
                file.truncate(self._logged)
                file.seek(self._logged)
                self._logged += file.write(new)


def states(**parts: Any) -> dict:
    """What models, optimisers and generators must remember, under their names in a checkpoint."""
    return {name: p.state_dict() if hasattr(p, "state_dict") else p.get_state() for name, p in parts.items()}


def put_back(state: dict | None, **parts: Any) -> dict:
    """Inverse of `states`; returns what else a stored state holds, and nothing where there is none."""
    rest = dict(state or {})
    for name, part in parts.items() if rest else ():
        restore = part.load_state_dict if hasattr(part, "load_state_dict") else part.set_state
        restore(rest.pop(name))
    return rest


def _split(value: Any, tensors: dict) -> Any:
    """Nested state to JSON, tensors moved to `tensors` under numbered names."""
    import torch

    if isinstance(value, torch.Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {"__tensor__": name}
    if isinstance(value, dict):
        return {"__dict__": [[key, _split(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_split(item, tensors) for item in value]
    return value
