"""Training recipes by name: every protocol behind Tables 1-4 and Appendix E.1, as data with its source.

A recipe says how to train; it does not train (`training` does). Its learning rate belongs to its batch size: another
batch size scales it in proportion, another number of epochs stretches warm-up and milestones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

ZENNAS_MEAN, ZENNAS_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # both CIFARs in ZenNAS's recipe


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one network is trained with SGD.

    Attributes:
        lr: peak learning rate at `batch_size`.
        no_decay_norm: no weight decay on batch normalisation and biases.
        schedule: "cosine_epoch" (stepped per epoch), "cosine_step" or "step" (times `factor` at each milestone).
        warmup: epochs over which the learning rate rises in a straight line.
        crop_padding: padding of the random crop in pixels at 32x32, in proportion at other sizes (NATS-Bench pads 16x16
            images by 2); 0 for none.
        flip: random mirror images, for data sets whose labels bear it.
        autoaugment: policy of `augment.auto_augment`, or None.
        lighting: strength of the colour noise of `augment.lighting`; 0 for none.
        erasing: probability of random erasing.
        mixup: alpha of Beta(alpha, alpha), one draw a batch; 0 for none.
        bn_momentum, bn_eps: set on every batch normalisation, or None to leave them.
        init: "default" (PyTorch's) or "xavier" (ZenNAS: Xavier-normal with gain 3.26033, residual units closed).
        bfloat16: autocast on CUDA; not for regression, where eight bits of mantissa cap the metric.
        mean, std: normalisation, or None for the data set's own.
        source: where these numbers come from.
    """

    name: str
    epochs: int
    batch_size: int
    lr: float
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    no_decay_norm: bool = False
    schedule: str = "cosine_epoch"
    warmup: float = 0.0
    milestones: tuple[float, ...] = ()
    factor: float = 0.2
    crop_padding: int = 4
    flip: bool = True
    autoaugment: str | None = None
    lighting: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.0
    label_smoothing: float = 0.0
    bn_momentum: float | None = None
    bn_eps: float | None = None
    init: str = "default"
    bfloat16: bool = True
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if self.schedule not in ("cosine_epoch", "cosine_step", "step"):
            raise ValueError(f"schedule must be one of ('cosine_epoch', 'cosine_step', 'step'); got {self.schedule!r}.")
        if self.init not in ("default", "xavier"):
            raise ValueError(f"init must be one of ('default', 'xavier'); got {self.init!r}.")
        if self.epochs < 1 or self.batch_size < 2:
            raise ValueError(
                f"A recipe needs at least one epoch and batches of two; got {self.epochs} and {self.batch_size}."
            )

    def sized(self, epochs: int | None = None, batch_size: int | None = None) -> Recipe:
        """The same recipe at another length or batch size; learning rate, warm-up and milestones follow."""
        epochs = self.epochs if epochs is None else epochs
        batch_size = self.batch_size if batch_size is None else batch_size
        stretch = epochs / self.epochs
        return replace(
            self,
            epochs=epochs,
            batch_size=batch_size,
            lr=self.lr * batch_size / self.batch_size,
            warmup=min(self.warmup, epochs / 4),
            milestones=tuple(milestone * stretch for milestone in self.milestones),
        )


_NATS = Recipe(name="nats200", epochs=200, batch_size=256, lr=0.1, source="NATS-Bench, hp=200: flip, crop, no cutout")
_ZENNAS = Recipe(
    name="zennas_cifar",
    epochs=1440,
    batch_size=64,
    lr=0.025,
    no_decay_norm=True,
    schedule="cosine_step",
    warmup=5,
    autoaugment="cifar",
    erasing=0.5,
    mixup=0.2,
    label_smoothing=0.1,
    bn_momentum=0.01,
    bn_eps=1e-3,
    init="xavier",
    mean=ZENNAS_MEAN,
    std=ZENNAS_STD,
    source="ZenNAS release, CIFAR (Table 2): no distillation",
)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        _NATS,
        replace(_NATS, name="nats12", epochs=12, source="NATS-Bench, hp=12"),
        replace(_NATS, name="reduced50", epochs=50, source="App. E.1: the NATS-Bench recipe, 50 epochs, batch 256"),
        _ZENNAS,
        replace(
            _ZENNAS,
            name="zennas_imagenet",
            epochs=480,
            batch_size=512,
            lr=0.2,
            weight_decay=4e-5,
            autoaugment="imagenet",
            lighting=0.1,
            crop_padding=0,  # the data set crops while it decodes
            mean=None,
            std=None,
            source="ZenNAS release, ImageNet (Table 3), 8 GPUs; its EfficientNet-B3 teacher: `distillation`",
        ),
        Recipe(
            name="nb360",
            epochs=200,
            batch_size=128,
            lr=0.1,
            schedule="step",
            milestones=(60, 120, 160),
            crop_padding=0,
            flip=False,
            source="DASH without its hyper-parameter search; batch and learning rate from the task (Table 4)",
        ),
        Recipe(
            name="quick",
            epochs=6,
            batch_size=128,
            lr=0.1,
            schedule="cosine_step",
            warmup=0.5,
            source="ours: NATS-Bench's augmentation with a short warm-up, for reduced-scale comparisons",
        ),
    )
}


def get(recipe: Recipe | str) -> Recipe:
    """A recipe by name, or the recipe itself."""
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        raise ValueError(f"recipe must be one of {tuple(RECIPES)}; got {recipe!r}.")
    return RECIPES[recipe]


def cut_batch(batch_size: int, n: int) -> int:
    """Batch size for n samples: the full protocol's, or a smaller one where an epoch had fewer than 64 steps."""
    return min(batch_size, max(8, n // 64))


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
