"""What searches maximise: a proxy of a freshly built network, or its accuracy after a reduced training (App. E.1).

Scores are small picklable objects, so that two workers can share them. A proxy that fails raises `ScoreError`, which a
search counts and reports; it never becomes a number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from graphnas_lib import proxies
from graphnas_lib.evolution import ScoreError
from graphnas_lib.network import build, moved
from graphnas_lib.training import train


@dataclass(frozen=True)
class ProxyScore:
    """A proxy as a search's score; further proxies are kept beside it in the history.

    On a GPU each new shape of a convolution costs cuDNN about a millisecond on the CPU: children, which share most of
    their parent's shapes, are scored in less time than random networks.

    Attributes:
        images, labels: the batch, normalised, on the CPU where workers are to take it.
        name: the proxy to maximise, one of `proxies.NAMES`.
        extra: further proxies to record.
        make: (individual, seed=...) -> module; None builds an `Architecture`.
        seed: of the initial weights, the same for every individual.
        device: where to score; None for where the images lie.
    """

    images: Tensor
    labels: Tensor
    classes: int
    name: str = "tcet"
    extra: tuple[str, ...] = ()
    make: Callable[..., nn.Module] | None = None
    seed: int = 0
    device: torch.device | None = None

    def __call__(self, individual) -> dict[str, float]:
        """{"score": value, and the extra proxies}; ScoreError when a proxy fails."""
        place = self.device or self.images.device
        make = self.make or partial(build, input_shape=tuple(self.images.shape[1:]), classes=self.classes)
        try:
            model, images, labels = moved(make(individual, seed=self.seed), place), self.images, self.labels
            names = (self.name, *self.extra)
            found = proxies.score(model, images.to(place), labels.to(place), names, seed=self.seed)
        except (proxies.ProxyError, torch.OutOfMemoryError) as error:
            raise ScoreError(str(error)) from error
        return {"score": found[self.name], **{name: found[name] for name in self.extra}}


@dataclass(frozen=True)
class TrainedScore:
    """Validation accuracy after a short training, in percent: the reduced-training proxy of App. E.1 and E.2."""

    dataset: Any
    recipe: str = "reduced50"
    epochs: int | None = None
    batch_size: int | None = None
    seed: int = 0
    device: str | torch.device = "auto"

    def __call__(self, individual) -> dict[str, float]:
        """{"score": accuracy}; ScoreError when training diverged, or the GPU's memory ran out."""
        data = self.dataset
        model = build(individual, input_shape=data.input_shape, classes=data.classes, seed=self.seed)
        size = {"epochs": self.epochs, "batch_size": self.batch_size}
        try:
            result = train(model, data, self.recipe, seed=self.seed, device=self.device, **size)
        except torch.OutOfMemoryError as error:
            raise ScoreError(str(error)) from error
        if result.diverged or result.accuracy is None:
            raise ScoreError("Training of this individual diverged; it has no accuracy.")
        return {"score": result.accuracy}
