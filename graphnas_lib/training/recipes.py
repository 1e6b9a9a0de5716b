"""Training recipes by name: every protocol behind Tables 1-4 and Appendix E.1, as data with its source.

The numbers are in `recipes.toml`. A recipe says how to train; `supervised` trains. A learning rate belongs to its batch
size: another batch size scales it in proportion, another number of epochs stretches warm-up and milestones.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

from graphnas_lib import store
from graphnas_lib.datasets import Task

MIN_STEPS_PER_EPOCH = 64  # where a data set is cut


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one network is trained with SGD."""

    name: str
    epochs: int
    batch_size: int
    lr: float  # peak, at `batch_size`
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    no_decay_norm: bool = False  # no weight decay on batch normalisation and biases
    schedule: str = "cosine_epoch"  # stepped per epoch; or "cosine_step", or "step" (times `factor` at each milestone)
    warmup: float = 0.0  # epochs over which the learning rate rises in a straight line
    milestones: tuple[float, ...] = ()  # epochs
    factor: float = 0.2
    crop_padding: int = 4  # pixels at 32x32, in proportion at other sizes (NATS-Bench pads 16x16 images by 2); 0: none
    flip: bool = True  # random mirror images, for data sets whose labels bear it
    autoaugment: str | None = None  # policy of `augment.auto_augment`
    lighting: float = 0.0  # strength of the colour noise of `augment.lighting`
    erasing: float = 0.0  # probability of random erasing
    mixup: float = 0.0  # alpha of Beta(alpha, alpha), one draw a batch
    label_smoothing: float = 0.0
    clip: float | None = None  # largest norm of a step's gradient; None for any
    bn_momentum: float | None = None  # set on every batch normalisation; None leaves theirs
    bn_eps: float | None = None  # likewise
    init: str = "default"  # PyTorch's; or "xavier" (ZenNAS: Xavier-normal, gain 3.26033, residual units closed)
    bfloat16: bool = True  # autocast on CUDA; not for regression, where eight bits of mantissa cap the metric
    mean: tuple[float, ...] | None = None  # normalisation; None is the data set's own
    std: tuple[float, ...] | None = None
    source: str = ""  # of these numbers

    def __post_init__(self) -> None:
        store.one_of("schedule", self.schedule, ("cosine_epoch", "cosine_step", "step"))
        store.one_of("init", self.init, ("default", "xavier"))
        if self.epochs < 1 or self.batch_size < 2:
            raise ValueError(
                f"A recipe needs at least one epoch and batches of two; got {self.epochs} and {self.batch_size}."
            )

    def sized(self, epochs: int | None = None, batch_size: int | None = None) -> Recipe:
        """The same recipe at another length or batch size; learning rate, warm-up and milestones follow."""
        epochs = self.epochs if epochs is None else epochs
        batch_size = self.batch_size if batch_size is None else batch_size
        stretch, lr = epochs / self.epochs, self.lr * batch_size / self.batch_size
        milestones = tuple(milestone * stretch for milestone in self.milestones)
        sizes = {"epochs": epochs, "batch_size": batch_size, "lr": lr}
        return replace(self, **sizes, warmup=min(self.warmup, epochs / 4), milestones=milestones)


RECIPES = {
    name: Recipe(name=name, **{field: tuple(v) if isinstance(v, list) else v for field, v in table.items()})
    for name, table in tomllib.loads(Path(__file__).with_name("recipes.toml").read_text(encoding="utf-8")).items()
}


def get(recipe: Recipe | str) -> Recipe:
    """A recipe by name, or the recipe itself."""
    return recipe if isinstance(recipe, Recipe) else RECIPES[store.one_of("recipe", recipe, RECIPES)]


def for_task(recipe: Recipe, task: Task) -> Recipe:
    """A recipe with the batch size and the learning rate of a task of Table 4.

    One-dimensional tasks have two more milestones (DASH); regression is trained in float32.
    """
    milestones = (30, 60, 90, 120, 160) if len(task.input_shape) == 2 and recipe.milestones else recipe.milestones
    facts = {"batch_size": task.facts.batch_size, "lr": task.facts.lr}
    return replace(recipe, **facts, milestones=milestones, bfloat16=not task.dense)


def cut_batch(batch_size: int, n: int) -> int:
    """Batch size for n samples: the full protocol's, or a smaller one where an epoch had fewer than 64 steps."""
    return min(batch_size, max(8, n // MIN_STEPS_PER_EPOCH))


def steps_per_epoch(n: int, batch_size: int, world: int = 1) -> int:
    """Batches an epoch: a last, smaller one counts unless a process would get less than two samples of it."""
    return n // batch_size + (n % batch_size >= 2 * world)


def learning_rate(recipe: Recipe, step: int, per_epoch: int) -> float:
    """Learning rate of a step (from 0), given the number of steps an epoch."""
    warm = round(recipe.warmup * per_epoch)
    if step < warm:
        return recipe.lr * (step + 1) / warm
    epoch = step // per_epoch
    if recipe.schedule == "step":
        return recipe.lr * recipe.factor ** sum(epoch >= milestone for milestone in recipe.milestones)
    if recipe.schedule == "cosine_epoch":
        progress = (epoch - recipe.warmup) / (recipe.epochs - recipe.warmup)
    else:
        progress = (step - warm) / (recipe.epochs * per_epoch - warm)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * progress))
