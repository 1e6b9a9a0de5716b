"""What a task of Table 4 is: splits, head, loss, metric, and the reference costs that its budget comes from.

`nasbench360` makes these from files; nothing here reads one. Losses and metrics are those of Shen et al. 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from graphnas_lib.datasets import metrics
from graphnas_lib.datasets.archives import FACTS
from graphnas_lib.datasets.proteins import ProteinSplit


class DivergedError(ArithmeticError):
    """Loss or outputs are not finite: there is nothing to score."""


@dataclass(frozen=True)
class Split:
    """One split in memory: inputs (N, C, ...) uint8 or float32, targets (N, ...), both optional extras (N, ...)."""

    inputs: Tensor
    targets: Tensor
    mask: Tensor | None = None  # True where a pixel counts
    sky: Tensor | None = None  # (N,) background level, Cosmic only
    lazy = False  # in memory

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.inputs.device

    def __len__(self) -> int:
        return len(self.inputs)

    def fetch(self, index: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """inputs float32 (B, C, ...), targets, mask at `index`; a generator adds the training noise there is."""
        inputs = self.inputs[index].float()
        if self.sky is not None and generator is not None:  # deepCR: sky x U(-0.9, 3) is added to the image
            factor = torch.rand(len(index), generator=generator).to(inputs.device) * 3.9 - 0.9
            inputs = inputs + (self.sky[index] * factor).view(-1, 1, 1, 1)
        return inputs, self.targets[index], None if self.mask is None else self.mask[index]

    def take(self, index: Tensor) -> Split:
        """The samples at `index`."""
        return self._each(lambda part: part[index])

    def to(self, device: torch.device | str) -> Split:
        """All tensors on `device`."""
        return self._each(lambda part: part.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Split:
        parts = (self.inputs, self.targets, self.mask, self.sky)
        return Split(*(None if part is None else change(part) for part in parts))


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """What is fixed about a task (see `facts.toml`): head, loss, metric, batch, learning rate, Wide-ResNet's costs."""

    files: list[str]
    kind: str  # "points": one label a sample; "multilabel": several; "dense": one value a pixel
    classes: int
    metric: str
    loss: str
    batch_size: int
    lr: float
    wrn_params: float
    wrn_macs: float
    wrn_macs_32: float | None = None


TASKS = {name: TaskFacts(**facts) for name, facts in FACTS["tasks"].items()}


@dataclass(frozen=True)
class Normaliser:
    """Point-wise Gaussian normaliser of a field, from the training set; mean and std (H, W)."""

    mean: Tensor
    std: Tensor  # eps included

    @classmethod
    def fit(cls, fields: Tensor) -> Normaliser:
        """From training fields (N, H, W)."""
        return cls(fields.mean(0), fields.std(0) + 1e-5)

    def encode(self, fields: Tensor) -> Tensor:
        """To zero mean, unit deviation."""
        return (fields - self.mean) / self.std

    def decode(self, fields: Tensor) -> Tensor:
        """Inverse of `encode`."""
        return fields * self.std.to(fields.device) + self.mean.to(fields.device)


@dataclass(frozen=True)
class Task:
    """A loaded task: three splits and how they are scored."""

    name: str
    train: Split | ProteinSplit
    valid: Split | ProteinSplit
    test: Split | ProteinSplit
    source: str
    output: Normaliser | None = None  # Darcy: the network predicts the normalised field

    @property
    def facts(self) -> TaskFacts:
        """Head, loss, metric and reference costs."""
        return TASKS[self.name]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W) or (C, L) of a training sample."""
        return tuple(self.train.fetch(torch.tensor([0]))[0].shape[1:])

    @property
    def dense(self) -> bool:
        """Whether the network must keep the resolution."""
        return self.facts.kind == "dense"

    @cached_property
    def weights(self) -> Tensor | None:
        """Of the classes in the training loss, (K,), rare ones higher, where the metric counts each class alike."""
        if self.facts.metric != "macro_f1_error":
            return None
        counts = torch.bincount(self.train.targets.cpu(), minlength=self.facts.classes)
        return len(self.train) / (self.facts.classes * counts.clamp(min=1))

    def predict(self, outputs: Tensor) -> Tensor:
        """Raw outputs of the network to what the metric takes: (N, K), or (N, H, W) de-normalised."""
        outputs = outputs.squeeze(1) if self.dense else outputs
        return outputs if self.output is None else self.output.decode(outputs)

    def loss(self, outputs: Tensor, targets: Tensor, mask: Tensor | None) -> Tensor:
        """Training loss of a batch, a scalar."""
        kind, outputs = self.facts.loss, self.predict(outputs.float())
        if kind == "cross_entropy":
            weight = None if self.weights is None else self.weights.to(outputs)
            return F.cross_entropy(outputs, targets, weight=weight)
        if kind == "bce_weight_4":
            return F.binary_cross_entropy_with_logits(outputs, targets, pos_weight=torch.full_like(targets[0], 4.0))
        if kind == "masked_bce":
            return F.binary_cross_entropy_with_logits(outputs[mask], targets[mask])
        if kind == "mse":
            return F.mse_loss(outputs, targets)
        error = (outputs - targets).flatten(1).norm(dim=1) / targets.flatten(1).norm(dim=1)
        return error.sum()  # relative L2, summed over the batch

    def score(self, outputs: Tensor, targets: Tensor, mask: Tensor | None) -> float:
        """The task's metric over a whole split, on the CPU; lower is better.

        Outputs or a metric that are not finite raise DivergedError, a split that does not define it ValueError.
        """
        if not torch.isfinite(outputs).all():
            raise DivergedError(f"Outputs on {self.name} must be finite to be scored; some are not.")
        name, masked = self.facts.metric, {"contact_mae", "half_auroc_error"}
        value = getattr(metrics, name)(outputs, targets, *([mask] if name in masked else []))
        if not math.isfinite(value):
            raise DivergedError(f"{name} on {self.name} must be finite; it is {value}.")
        return value

    def chance(self) -> float:
        """The metric on the test split of the best constant answer that ignores the input: what learning must beat."""
        if self.facts.metric in ("auroc_error", "half_auroc_error"):
            return 0.5
        _, targets, mask = self.test.fetch(torch.arange(len(self.test)))
        if self.facts.kind == "points":  # each class in turn: train and test may differ in what is common
            constant = torch.eye(self.facts.classes, device=targets.device).unsqueeze(1).expand(-1, len(targets), -1)
            return min(self.score(outputs, targets, mask) for outputs in constant)
        if self.output is not None:
            outputs = self.output.mean.expand_as(targets)
        else:
            _, near, inside = self.train.fetch(torch.arange(min(16, len(self.train))))
            outputs = torch.full_like(targets, near[inside].mean())
        return self.score(outputs, targets, mask)

    def limited(self, n: int, *, seed: int = 0) -> Task:
        """At most n samples a split, drawn at random."""

        def cut(split: Split | ProteinSplit) -> Split | ProteinSplit:
            order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:n]
            return split.take(order.sort().values)

        source = f"{self.source}; at most {n} samples a split"
        return replace(self, train=cut(self.train), valid=cut(self.valid), test=cut(self.test), source=source)
