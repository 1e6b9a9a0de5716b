"""State of long loops on disk, so that a killed run goes on where it was.

A checkpoint is one safetensors file, replaced atomically: tensors in its body, all else as JSON in its header, so that
one file is one consistent state.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any


class CorruptArtifactError(ValueError):
    """A file differs from what its manifest or its format promises."""


class Checkpoint:
    """State of a long loop on disk, written atomically at most once per `every` seconds.

    State is a nested dict of tensors, numbers, strings, None and lists.
    """

    def __init__(self, path: Path | str | None, every: float = 60.0):
        self.path = Path(path) if path is not None else None
        self.every = every
        self._last: float | None = None  # the clock starts where the loop does, in another process perhaps

    @classmethod
    def none(cls) -> Checkpoint:
        """A checkpoint that never saves."""
        return cls(None)

    def due(self) -> bool:
        """True when `every` seconds have passed since the last save or the first question."""
        if self._last is None:
            self._last = time.monotonic()
        return self.path is not None and time.monotonic() - self._last >= self.every

    def save(self, state: dict) -> None:
        """Replace the stored state."""
        if self.path is None:
            return
        from safetensors.torch import save_file

        tensors = {}
        skeleton = json.dumps(_split(state, tensors))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f".{self.path.name}.part")
        save_file(tensors, str(part), metadata={"state": skeleton})
        os.replace(part, self.path)
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
                return json.loads(file.metadata()["state"], object_hook=joined)
        except (SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise CorruptArtifactError(
                f"{self.path.name} must be a readable checkpoint; it is not ({error}). Delete it and run again."
            ) from error

    def clear(self) -> None:
        """Forget the stored state; called when the loop has ended well."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


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
