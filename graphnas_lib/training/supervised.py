"""Training to a test accuracy (Sec. 4, App. E.1) or to a task's metric (Table 4): one loop (`sgd`), named recipes.

Data sets that fit live on the device as uint8. Training that diverges is reported as such and has no accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphnas_lib.datasets import Dataset, DivergedError, ImageFolderDataset, Task, normalise
from graphnas_lib.network import accelerated
from graphnas_lib.store import Checkpoint, collect, pick_device, processes
from graphnas_lib.training.augment import auto_augment, crop_and_flip, lighting, random_erasing
from graphnas_lib.training.distillation import TEACHER_SIDE, Distilled
from graphnas_lib.training.recipes import Recipe, for_task, get
from graphnas_lib.training.sgd import ONE_PROCESS, Draw, LoopState, fit, forward, initialise

MIN_CHANCE_SHARE = 0.98  # a metric of at least this share of the best constant answer's shows no learning


@dataclass(frozen=True, kw_only=True)
class Run:
    """What every training says of itself."""

    history: list[dict]  # one an epoch: epoch, step, loss, lr
    seconds: float
    n_train: int
    n_test: int
    diverged: bool
    recipe: str
    epochs: int
    seed: int
    device: str
    source: str  # which data


@dataclass(frozen=True, kw_only=True)
class TrainResult(Run):
    """What one training of a classifier gave."""

    accuracy: float | None  # on the test split, in percent; None when it diverged or no test was asked for
    train_loss: float | None  # mean of the last whole epoch, None when there is none


@dataclass(frozen=True, kw_only=True)
class TaskResult(Run):
    """What training on a task of Table 4 gave; all metrics are lower is better."""

    task: str
    metric: str
    value: float | None  # on the test split, with the weights of the best validation epoch; None when it diverged
    validation: float | None  # on the validation split in that epoch
    best_epoch: int | None
    chance: float  # of the best constant answer
    at_chance: bool  # whether `value` is not clearly better than that: a failure of training, not a result


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
        recipe: a `Recipe` or one of `RECIPES`.
        seed: of the weights, the order and the augmentation.
        epochs, batch_size: instead of the recipe's; the learning rate follows the batch size.
        checkpoint: where to save the state about once a minute, and to resume from; for the caller to clear at the end.
        reset: draw all weights anew from `seed`; False keeps the weights that the model has.
        teacher: a trained network of the same classes to learn from beside the labels (see `distillation`), which reads
            images of side `teacher_side`.
        accelerator: `accelerate.Accelerator` under torchrun: each process takes its share of every batch.
    """
    recipe = get(recipe).sized(epochs, batch_size)
    device = pick_device(device) if accelerator is None else accelerator.device
    data = dataset.to(device)
    mean, std = recipe.mean or dataset.mean, recipe.std or dataset.std
    if reset:
        initialise(model, recipe, seed=seed)
    student, draw = model, image_draw(data, recipe, device, mean, std)
    if teacher is not None:
        teacher = teacher.to(device)
        student = Distilled(model.to(device), teacher, input_shape=data.input_shape, side=teacher_side, seed=seed)
        draw = student.beside(draw)
    run = fit(
        student, recipe, data.size("train"), draw, seed=seed, device=device, checkpoint=checkpoint, progress=progress,
        ahead=2 * isinstance(dataset, ImageFolderDataset), accelerator=accelerator,
    )  # fmt: skip
    if teacher is not None:
        student.release()
    read = partial(_test, model, data, mean, std, device, max(256, recipe.batch_size), accelerator or ONE_PROCESS)
    accuracy = _finite(run, read) if test else None
    facts = _facts(run, recipe, seed, device, dataset.source, data.size("train"), data.size("test"))
    return TrainResult(accuracy=accuracy, train_loss=run.rows[-1]["loss"] if run.rows else None, **facts)


def train_each(models: Mapping[str, nn.Module], dataset: Dataset, **options) -> dict[str, TrainResult]:
    """`train` for each of several networks, side by side where there are cores or GPUs for it.

    Each is trained in a process of its own, so that it stays as it is here; with room for one worker it is trained
    here. `options` are those of `train`.
    """
    jobs = {name: partial(train, model, dataset, **options) for name, model in models.items()}
    workers = min(len(jobs), processes(pick_device(options.get("device", "auto"))))
    found = collect(jobs, workers=workers, progress=True, desc="trainings", unit="network")
    return dict(zip(models, found, strict=True))


def train_task(
    model: nn.Module,
    task: Task,
    *,
    recipe: Recipe | str = "nb360",
    seed: int,
    device: str | torch.device = "auto",
    epochs: int | None = None,
    batch_size: int | None = None,
    checkpoint: Checkpoint | None = None,
) -> TaskResult:
    """Train on a task of Table 4; the epoch is chosen on the validation split, the test split is read once.

    The model is built for `task.input_shape`, `task.facts.classes` outputs and `dense=task.dense`; see `train` for the
    other arguments, and `recipes.for_task` for what the task changes in the recipe.
    """
    recipe, device = for_task(get(recipe), task).sized(epochs, batch_size), pick_device(device)
    initialise(model, recipe, seed=seed)
    train, valid, held_out = (split.to(device) for split in (task.train, task.valid, task.test))
    size = max(1, recipe.batch_size // 4) if task.dense else recipe.batch_size

    def draw(index: Tensor, step_seed: int):
        generator = torch.Generator().manual_seed(step_seed)
        inputs, targets, mask = _moved(train.fetch(index.to(train.device), generator), device)
        return inputs, lambda outputs: task.loss(outputs, targets, mask)

    def choose(state: LoopState) -> None:
        value = task.score(*_predictions(model, task, valid, device, size))
        state.rows[-1]["validation"] = value
        if value < state.extra.get("value", math.inf):
            weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
            state.extra.update(value=value, epoch=state.rows[-1]["epoch"], weights=weights)

    run = fit(
        model, recipe, len(task.train), draw, seed=seed, device=device, checkpoint=checkpoint,
        ahead=2 * task.train.lazy, after_epoch=choose,
    )  # fmt: skip

    def test() -> float:
        model.load_state_dict(run.extra["weights"])
        return task.score(*_predictions(model, task, held_out, device, size))

    value, chance = _finite(run, test), task.chance()
    return TaskResult(
        task=task.name, metric=task.facts.metric, value=value, validation=run.extra.get("value"),
        best_epoch=run.extra.get("epoch"), chance=chance,
        at_chance=value is not None and value >= MIN_CHANCE_SHARE * chance,
        **_facts(run, recipe, seed, device, task.source, len(task.train), len(task.test)),
    )  # fmt: skip


def _finite(run: LoopState, test: Callable[[], Any]) -> Any:
    """What `test` gives; None where training diverged, or the outputs that it reads are not finite."""
    try:
        return None if run.diverged else test()
    except DivergedError:
        run.diverged = True
        return None


def _facts(run, recipe: Recipe, seed: int, device: torch.device, source: str, n_train: int, n_test: int) -> dict:
    """Fields of a `Run`."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return dict(
        history=run.rows, seconds=run.seconds, diverged=run.diverged, recipe=recipe.name, epochs=recipe.epochs,
        seed=seed, device=name, source=source, n_train=n_train, n_test=n_test,
    )  # fmt: skip


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

    Images (N, C, H, W) are uint8 with `mean` and `std` in units of 0..1, or float32 as the model takes them. Outputs
    that are not finite raise DivergedError.
    """
    if images.dtype == torch.uint8 and (mean is None or std is None):
        raise ValueError(
            "uint8 images need the mean and std to normalise them with; got none. Pass dataset.mean, .std."
        )
    if not len(images):
        raise ValueError("An accuracy needs at least one image; got none.")
    device = pick_device(device)
    batches = zip(images.split(batch_size), labels.split(batch_size))
    norm = (mean, std) if images.dtype == torch.uint8 else None
    return 100.0 * _correct(model.to(device), batches, device, norm).item() / len(images)


def image_draw(data, recipe: Recipe, device: torch.device, mean, std) -> Draw:
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
        loss = partial(F.cross_entropy, label_smoothing=recipe.label_smoothing)
        if not recipe.mixup:
            return images, lambda outputs: loss(outputs, labels)
        share = float(np.random.default_rng(step_seed).beta(recipe.mixup, recipe.mixup))
        other = torch.randperm(len(labels), generator=generator).to(device, non_blocking=True)
        mixed = torch.lerp(images[other], images, share)
        return mixed, lambda outputs: share * loss(outputs, labels) + (1 - share) * loss(outputs, labels[other])

    return draw


def _test(model: nn.Module, data, mean, std, device: torch.device, size: int, accelerator) -> float:
    """Accuracy on the test split in percent, each process taking its share of it."""
    n = data.size("test")
    if not n:
        raise ValueError("A test accuracy needs test images; this data set has none. Pass test=False.")
    share = torch.arange(n)[accelerator.process_index :: accelerator.num_processes]
    correct = _correct(model, (data.fetch("test", index) for index in share.split(size)), device, (mean, std))
    return 100.0 * accelerator.reduce(correct, "sum").item() / n


def _correct(model: nn.Module, batches, device: torch.device, norm) -> Tensor:
    """Number of right answers, a float64 scalar; `norm` is mean and std of uint8 images. NaN raises DivergedError."""
    right = torch.zeros((), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    finite = torch.ones((), dtype=torch.bool, device=device)
    moved = (_moved(batch, device) for batch in batches)
    for outputs, labels in _outputs(model, ((normalise(x, *norm) if norm else x, y) for x, y in moved)):
        right += (outputs.argmax(1) == labels).sum()
        finite &= torch.isfinite(outputs).all()
    if not finite:
        raise DivergedError("Outputs must be finite to count right answers; some are not.")
    return right


def _predictions(model: nn.Module, task: Task, split, device: torch.device, size: int):
    """What the metric takes, on the CPU: outputs, targets and mask of the whole split."""
    positions = torch.arange(len(split), device=split.device).split(size)
    batches = (_moved(split.fetch(index), device) for index in positions)
    found = _outputs(model, batches, bfloat16=not task.dense)
    parts = [
        [None if part is None else part.cpu() for part in (task.predict(outputs), *others)]
        for outputs, *others in found
    ]
    return [None if column[0] is None else torch.cat(column) for column in zip(*parts)]


@torch.no_grad()
def _outputs(model: nn.Module, batches, bfloat16: bool = True) -> Iterator[tuple]:
    """Outputs in place of each batch's inputs, in eval mode; the model's mode is put back."""
    training = model.training
    model.eval()
    with accelerated(model):
        for inputs, *others in batches:
            yield forward(model, inputs, bfloat16), *others
    model.train(training)


def _moved(parts, device: torch.device):
    return [None if part is None else part.to(device, non_blocking=True) for part in parts]
