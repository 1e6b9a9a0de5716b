"""What a caller gives to be scored: his network, his batch, and what goes wrong in his code, told in one line."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn


class ProxyError(RuntimeError):
    """A network could not be scored: it fails, is not finite, or has nothing to score."""


@dataclass(frozen=True)
class failing(AbstractContextManager):  # noqa: N801 - a context manager; a generator's would let a StopIteration through
    """Whatever the caller's code raises inside becomes one ProxyError that begins with `what`; want of memory stays."""

    what: str

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, (ProxyError, torch.OutOfMemoryError, MemoryError)):
            said = " ".join(str(error).split())[:400]
            raise ProxyError(f"{self.what}: {type(error).__name__}{': ' if said else ''}{said}") from error


def readable(model: nn.Module) -> None:
    """ProxyError unless the network's layers are there to be watched: not scripted, and with their weights made."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"A network must be a torch.nn.Module; got {type(model).__name__}.")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ProxyError(
                "A network must not be TorchScript, whose layers cannot be watched; score what it was made from."
            )
        lazy = [p for p in vars(module)["_parameters"].values() if isinstance(p, nn.parameter.UninitializedTensorMixin)]
        if lazy:
            raise ProxyError(f"A lazy layer must know its shape; '{name}' does not. Run the network on a batch first.")


def as_batch(model: nn.Module | None, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Images and labels as tensors, from arrays too; bytes and doubles in the network's own type, labels as int64.

    Raises:
        TypeError: either is neither a tensor nor an array of numbers.
        ValueError: the batch is empty, or has not as many labels as images.
    """
    first = None if model is None else next((p for p in model.parameters() if p.is_floating_point()), None)
    own, device = (torch.float32, "cpu") if first is None else (first.dtype, first.device)
    images = _tensor(images, "images", device)
    if images.dtype == torch.uint8 or (images.dtype == torch.float64 and own != torch.float64):
        images = images.to(own)
    if images.dim() == 0 or len(images) == 0:
        raise ValueError(f"images must be a batch (B, ...) of at least one; got shape {tuple(images.shape)}.")
    if labels is None:
        return images, None
    labels = _tensor(labels, "labels", images.device)
    if labels.dim() == 0 or len(labels) != len(images):
        raise ValueError(f"There must be a label for each of {len(images)} images; got shape {tuple(labels.shape)}.")
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    return images, labels.long() if whole else labels


def _tensor(values: Tensor, name: str, device: torch.device | str) -> Tensor:
    if isinstance(values, Tensor):
        return values
    try:
        array = np.asarray(values)
        return torch.from_numpy(np.array(array, array.dtype.newbyteorder("="))).to(device)
    except (TypeError, ValueError, RuntimeError) as error:
        must = f"{name} must be a tensor or an array of numbers"
        raise TypeError(f"{must}; got {type(values).__name__} ({' '.join(str(error).split())[:100]}).") from error


class Chosen(nn.Module):
    """A network that returns several things, of which `output` (an index, a key or an attribute) is the scores."""

    def __init__(self, network: nn.Module, output: int | str):
        super().__init__()
        self.network, self.output = network, output

    def forward(self, x: Tensor) -> Tensor:
        """The scores; what is one tensor already, as some networks return in eval mode, stays."""
        found = self.network(x)
        if isinstance(found, Tensor):
            return found
        try:
            if isinstance(self.output, str) and not isinstance(found, Mapping):
                return getattr(found, self.output)
            return found[self.output]
        except (LookupError, AttributeError, TypeError) as error:
            raise ProxyError(
                f"output={self.output!r} must name one of what a network returns; it returns {told(found)}."
            ) from error


def told(outputs: object) -> str:
    """What a network returned, in words."""
    kind = f"a {type(outputs).__name__}"
    if isinstance(outputs, Mapping):
        return f"{kind} with the keys {list(outputs)[:8]}"
    return f"{kind} of {len(outputs)}" if isinstance(outputs, (tuple, list)) else kind


def check_scores(outputs: Tensor) -> None:
    """ProxyError unless a network's outputs are one tensor of finite floating-point numbers."""
    if not isinstance(outputs, Tensor):
        raise ProxyError(
            f"A network must return one tensor of scores; it returns {told(outputs)}. Say which of them by output=, an "
            "index or a name."
        )
    if not outputs.is_floating_point():
        raise ProxyError(f"A network must return floating-point scores; it returns {outputs.dtype}.")
    if not torch.isfinite(outputs).all():
        raise ProxyError(
            "A network's outputs must be finite to be scored; these hold NaN or infinity. Check its inputs and weights."
        )
