"""Training to a test accuracy (Sec. 4, App. E.1) or to a task's metric (Table 4): one loop, named recipes.

All randomness of a step (order, augmentation, dropout) is a function of the seed and the step alone, so a killed run
that resumes from its checkpoint equals the uninterrupted one. Data sets that fit live on the device as uint8. Training
that diverges is reported as such and has no accuracy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphnas_lib.datasets import Dataset, DivergedError, ImageFolderDataset, Task, normalise
from graphnas_lib.network import accelerated
from graphnas_lib.store import Checkpoint, pick_device
from graphnas_lib.training.augment import auto_augment, crop_and_flip, lighting, random_erasing
from graphnas_lib.training.distillation import TEACHER_SIDE, Distilled
from graphnas_lib.training.recipes import RECIPES, Recipe, get
from graphnas_lib.training.sgd import Draw, Fit, fit, forward, initialise

__all__ = ["RECIPES", "Recipe", "TaskResult", "TrainResult", "evaluate", "initialise", "train", "train_task"]


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What one training gave.

    Attributes:
        accuracy: test accuracy in percent; None when the training diverged or no test was asked for.
        train_loss: mean loss of the last whole epoch, None when there is none.
        history: one dict an epoch: epoch, step, loss, lr.
        source: which data.
    """

    accuracy: float | None
    train_loss: float | None
    history: list[dict]
    seconds: float
    n_train: int
    n_test: int
    diverged: bool
    recipe: str
    epochs: int
    seed: int
    device: str
    source: str


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """What training on a task of Table 4 gave; all metrics are lower is better.

    Attributes:
        value: the metric on the test split, with the weights of the best validation epoch; None when it diverged.
        validation: the metric on the validation split in that epoch.
        chance: the metric of the best constant answer.
        at_chance: whether `value` is not clearly better than that: a failure of training, not a result.
        extra: further metrics by name.
    """

    task: str
    metric: str
    value: float | None
    validation: float | None
    best_epoch: int | None
    chance: float
    at_chance: bool
    extra: dict[str, float] = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)
    seconds: float
    n_train: int
    n_test: int
    diverged: bool
    recipe: str
    epochs: int
    seed: int
    device: str
    source: str


def train(
    model: nn.Module,
    dataset: Dataset | ImageFolderDataset,
    recipe: Recipe | str = "quick",
    *,
    seed: int,
    device: str | torch.device = "auto",
    epochs: int | None = None,
    batch_size: int | None = None,
    checkpoint: Checkpoint | None = None,
    progress: bool = False,
    test: bool = True,
    reset: bool = True,
    teacher: nn.Module | None = None,
    teacher_side: int = TEACHER_SIDE,
    accelerator=None,
) -> TrainResult:
    """Train a classifier from scratch and read its test accuracy once, at the end.

    Args:
        model: maps (B, C, H, W) to (B, classes); it is left trained, on `device`.
        dataset: images and labels.
        recipe: a `Recipe` or one of `RECIPES`.
        seed: of the weights, the order and the augmentation.
        device: "auto", "cpu" or "cuda".
        epochs, batch_size: instead of the recipe's; the learning rate follows the batch size.
        checkpoint: where to save the state about once a minute, and to resume from.
        progress: show a bar.
        test: whether to read the test split.
        reset: draw all weights anew from `seed`; False keeps the weights that the model has.
        teacher: a trained network of the same classes to learn from beside the labels (see `distillation`).
        teacher_side: of its input.
        accelerator: `accelerate.Accelerator` under torchrun: each process takes its share of every batch.

    Returns:
        The result; `diverged` when loss or outputs stopped being finite.
    """
    recipe = get(recipe).sized(epochs, batch_size)
    device = pick_device(device) if accelerator is None else accelerator.device
    data = dataset.to(device)
    mean, std = recipe.mean or dataset.mean, recipe.std or dataset.std
    if reset:
        initialise(model, recipe, seed=seed)
    student, draw = model, _image_draw(data, recipe, device, mean, std)
    if teacher is not None:
        teacher = teacher.to(device)
        student = Distilled(model.to(device), teacher, input_shape=data.input_shape, side=teacher_side, seed=seed)
        draw = _with_teacher(draw, student)
    run = fit(
        student, recipe, data.size("train"), draw, seed=seed, device=device, checkpoint=checkpoint, progress=progress,
        ahead=2 * isinstance(dataset, ImageFolderDataset), accelerator=accelerator,
    )  # fmt: skip
    if teacher is not None:
        student.release()
    accuracy, diverged = None, run.diverged
    if test and not diverged:
        try:
            accuracy = _test(model, data, mean, std, device, max(256, recipe.batch_size), accelerator)
        except DivergedError:
            diverged = True
    return TrainResult(
        accuracy=accuracy, train_loss=run.loss, history=run.rows, seconds=run.seconds, n_train=data.size("train"),
        n_test=data.size("test"), diverged=diverged, recipe=recipe.name, epochs=recipe.epochs, seed=seed,
        device=_device_name(device), source=dataset.source,
    )  # fmt: skip


def train_task(
    model: nn.Module,
    task: Task,
    *,
    seed: int,
    device: str | torch.device = "auto",
    recipe: Recipe | str = "nb360",
    epochs: int | None = None,
    batch_size: int | None = None,
    checkpoint: Checkpoint | None = None,
    progress: bool = False,
    reset: bool = True,
) -> TaskResult:
    """Train on a task of Table 4; the epoch is chosen on the validation split, the test split is read once.

    Args:
        model: built for `task.input_shape`, `task.facts.classes` outputs, `dense=task.dense`.
        task: see `nasbench360.load_task`.
        recipe: batch size and learning rate are the task's; one-dimensional tasks have two more milestones (DASH).
        seed, device, epochs, batch_size, checkpoint, progress, reset: as in `train`.
    """
    recipe = replace(get(recipe), batch_size=task.facts.batch_size, lr=task.facts.lr, bfloat16=not task.dense)
    if len(task.input_shape) == 2 and recipe.milestones:
        recipe = replace(recipe, milestones=(30, 60, 90, 120, 160))
    recipe = recipe.sized(epochs, batch_size)
    device = pick_device(device)
    if reset:
        initialise(model, recipe, seed=seed)
    splits = {name: getattr(task, name).to(device) for name in ("train", "valid", "test")}
    size = max(1, recipe.batch_size // 4) if task.dense else recipe.batch_size

    def draw(index: Tensor, step_seed: int):
        generator = torch.Generator().manual_seed(step_seed)
        inputs, targets, mask = _moved(splits["train"].fetch(index.to(splits["train"].device), generator), device)
        return inputs, lambda outputs: task.loss(outputs, targets, mask)

    def choose(state: Fit) -> None:
        value = task.score(*_predictions(model, task, splits["valid"], device, size))
        state.rows[-1]["validation"] = value
        if value < state.extra.get("value", math.inf):
            weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
            state.extra.update(value=value, epoch=state.rows[-1]["epoch"], weights=weights)

    run = fit(
        model, recipe, len(task.train), draw, seed=seed, device=device, checkpoint=checkpoint, progress=progress,
        ahead=2 * task.train.lazy, after_epoch=choose,
    )  # fmt: skip
    value, extra, diverged, chance = None, {}, run.diverged, task.chance()
    if not diverged:
        model.load_state_dict(run.extra["weights"])
        try:
            predicted = _predictions(model, task, splits["test"], device, size)
            value = task.score(*predicted)
            if task.name == "cosmic":
                extra["false_negative_rate"] = task.score(*predicted, metric="false_negative_rate")
        except DivergedError:
            value, diverged = None, True
    return TaskResult(
        task=task.name, metric=task.facts.metric, value=value, validation=run.extra.get("value"),
        best_epoch=run.extra.get("epoch"), chance=chance, at_chance=value is not None and value >= 0.98 * chance,
        extra=extra, history=run.rows, seconds=run.seconds, n_train=len(task.train), n_test=len(task.test),
        diverged=diverged, recipe=recipe.name, epochs=recipe.epochs, seed=seed, device=_device_name(device),
        source=task.source,
    )  # fmt: skip


@torch.no_grad()
def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    batch_size: int = 512,
    device: str | torch.device = "auto",
) -> float:
    """Accuracy in percent; the model's mode is put back.

    Args:
        model: maps (B, C, H, W) to (B, classes).
        images: (N, C, H, W), uint8 with `mean` and `std` (in units of 0..1), or float32 as the model takes them.
        labels: (N,).

    Raises:
        DivergedError: an output is not finite.
        ValueError: uint8 images without mean and std, or no images.
    """
    if images.dtype == torch.uint8 and (mean is None or std is None):
        raise ValueError(
            "uint8 images need the mean and std to normalise them with; got none. Pass dataset.mean, .std."
        )
    if not len(images):
        raise ValueError("An accuracy needs at least one image; got none.")
    device = pick_device(device)
    model.to(device)

    def batch(start: int) -> tuple[Tensor, Tensor]:
        part = images[start : start + batch_size].to(device, non_blocking=True)
        part = normalise(part, mean, std) if part.dtype == torch.uint8 else part
        return part, labels[start : start + batch_size].to(device, non_blocking=True)

    return 100.0 * _correct(model, (batch(i) for i in range(0, len(images), batch_size)), device).item() / len(images)


def _image_draw(data, recipe: Recipe, device: torch.device, mean, std) -> Draw:
    """Batches of augmented images: crop, flip, AutoAugment, normalise, erase, mix (ZenNAS's order)."""

    def draw(index: Tensor, step_seed: int):
        generator = torch.Generator().manual_seed(step_seed)
        images, labels = data.fetch("train", index, seed=step_seed)
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        flip = recipe.flip and data.mirror
        padding = round(recipe.crop_padding * images.shape[-1] / 32)
        if padding or flip:
            images = crop_and_flip(images, padding=padding, flip=flip, generator=generator)
        if recipe.autoaugment:
            images = auto_augment(images, recipe.autoaugment, generator=generator)
        images = normalise(images, mean, std)
        if recipe.lighting:
            images = lighting(images, recipe.lighting, std, generator=generator)
        if recipe.erasing:
            images = random_erasing(images, recipe.erasing, generator=generator)
        if not recipe.mixup:
            return images, lambda outputs: F.cross_entropy(outputs, labels, label_smoothing=recipe.label_smoothing)
        share = float(np.random.default_rng(step_seed).beta(recipe.mixup, recipe.mixup))
        other = torch.randperm(len(labels), generator=generator).to(device, non_blocking=True)
        return torch.lerp(images[other], images, share), _mixed_loss(labels, labels[other], share, recipe)

    return draw


def _with_teacher(draw: Draw, student: Distilled) -> Draw:
    """The same batches; to their loss comes what the student noted of its teacher."""

    def both(index: Tensor, step_seed: int):
        images, loss = draw(index, step_seed)
        return images, lambda outputs: loss(outputs) + student.extra

    return both


def _mixed_loss(labels: Tensor, others: Tensor, share: float, recipe: Recipe):
    def loss(outputs: Tensor) -> Tensor:
        parts = [F.cross_entropy(outputs, y, label_smoothing=recipe.label_smoothing) for y in (labels, others)]
        return share * parts[0] + (1 - share) * parts[1]

    return loss


def _test(model: nn.Module, data, mean, std, device: torch.device, size: int, accelerator=None) -> float:
    """Accuracy on the test split in percent, each process taking its share of it."""
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    n = data.size("test")
    if not n:
        raise ValueError("A test accuracy needs test images; this data set has none. Pass test=False.")

    def batch(index: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = data.fetch("test", index)
        return normalise(images.to(device), mean, std), labels.to(device)

    share = torch.arange(n)[rank::world]
    correct = _correct(model, (batch(index) for index in share.split(size)), device)
    return 100.0 * (accelerator.reduce(correct, "sum") if accelerator else correct).item() / n


@torch.no_grad()
def _correct(model: nn.Module, batches, device: torch.device) -> Tensor:
    """Number of right answers, a float64 scalar; NaN outputs raise DivergedError."""
    training = model.training
    model.eval()
    right = torch.zeros((), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    finite = torch.ones((), dtype=torch.bool, device=device)
    with accelerated(model):
        for images, labels in batches:
            outputs = forward(model, images)
            right += (outputs.argmax(1) == labels).sum()
            finite &= torch.isfinite(outputs).all()
    model.train(training)
    if not finite:
        raise DivergedError("Outputs must be finite to count right answers; some are not.")
    return right


@torch.no_grad()
def _predictions(model: nn.Module, task: Task, split, device: torch.device, size: int):
    """What the metric takes, on the CPU: outputs, targets and mask of the whole split."""
    training = model.training
    model.eval()
    parts = []
    with accelerated(model):
        for index in torch.arange(len(split), device=split.device).split(size):
            inputs, targets, mask = _moved(split.fetch(index), device)
            outputs = task.predict(forward(model, inputs, not task.dense))
            parts.append([part if part is None else part.cpu() for part in (outputs, targets, mask)])
    model.train(training)
    return [None if column[0] is None else torch.cat(column) for column in zip(*parts)]


def _moved(parts, device: torch.device):
    return [None if part is None else part.to(device, non_blocking=True) for part in parts]


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
