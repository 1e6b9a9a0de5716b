"""Recipes, augmentation against Pillow, and the training loop: it learns, resumes bit for bit, reports divergence."""

import math
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import nn

from graphnas_lib import datasets
from graphnas_lib.datasets import DivergedError, Task
from graphnas_lib.datasets.tasks import Normaliser, Split
from graphnas_lib.store import Checkpoint, single_threaded
from graphnas_lib.training import (
    RECIPES,
    augment,
    evaluate,
    recipes,
    ridge_regression,
    sgd,
    train,
    train_each,
    train_task,
)
from graphnas_lib.training import supervised as training
from graphnas_lib.training.recipes import Recipe, learning_rate, steps_per_epoch


def small_net(classes=10, dropout=0.0):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(dropout), nn.Linear(512, classes),
    )  # fmt: skip


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits", resolution=16)


TINY = Recipe(name="tiny", epochs=2, batch_size=32, lr=0.05, schedule="cosine_step", crop_padding=4)


# ---- recipes


def test_recipes_say_what_the_protocols_say():
    nats, zen, imagenet = RECIPES["nats200"], RECIPES["zennas_cifar"], RECIPES["zennas_imagenet"]
    assert (nats.epochs, nats.batch_size, nats.lr, nats.weight_decay, nats.schedule) == (
        200,
        256,
        0.1,
        5e-4,
        "cosine_epoch",
    )
    assert (RECIPES["nats12"].epochs, RECIPES["reduced50"].epochs) == (12, 50)
    assert replace(RECIPES["reduced50"], name="", epochs=0 + 200, source="") == replace(nats, name="", source="")
    assert zen.lr == 0.1 * zen.batch_size / 256 and imagenet.lr == 0.1 * imagenet.batch_size / 256
    assert (zen.epochs, zen.warmup, zen.mixup, zen.label_smoothing, zen.erasing) == (1440, 5, 0.2, 0.1, 0.5)
    assert imagenet.weight_decay == 4e-5 and imagenet.epochs == 480 and imagenet.crop_padding == 0
    assert all(recipe.source and recipe.name == name for name, recipe in RECIPES.items())


def test_learning_rates_by_hand():
    nats, zen, nb = RECIPES["nats200"], RECIPES["zennas_cifar"], RECIPES["nb360"]
    assert learning_rate(nats, 0, 196) == learning_rate(nats, 195, 196) == 0.1  # stepped per epoch
    assert learning_rate(nats, 100 * 196, 196) == pytest.approx(0.05)
    assert learning_rate(nats, 199 * 196, 196) == pytest.approx(0.05 * (1 + math.cos(math.pi * 199 / 200)))
    assert learning_rate(zen, 0, 782) == pytest.approx(0.025 / (5 * 782))  # straight line over five epochs
    assert learning_rate(zen, 5 * 782 - 1, 782) == learning_rate(zen, 5 * 782, 782) == 0.025
    half = 5 * 782 + (1440 - 5) * 782 // 2
    assert learning_rate(zen, half, 782) == pytest.approx(0.0125, rel=1e-4)
    rates = [learning_rate(nb, epoch * 10, 10) for epoch in (0, 59, 60, 119, 120, 160, 199)]
    assert rates == pytest.approx([0.1, 0.1, 0.02, 0.02, 0.004, 0.0008, 0.0008])


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_makes_a_step_at_its_learning_rate(name, digits):
    """One step of each recipe: the weights move by exactly lr times the clipped-free SGD direction."""
    recipe = replace(RECIPES[name].sized(epochs=2, batch_size=8), momentum=0.0, nesterov=False, weight_decay=0.0)
    torch.manual_seed(0)
    model, seen = small_net(), []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    data = digits.subset(8, 4)
    if name == "zennas_imagenet":
        data = replace(data, mirror=False)
    sgd.initialise(model, recipe, seed=0)
    before = model[9].weight.detach().clone()
    draw = training.image_draw(data, recipe, torch.device("cpu"), data.mean, data.std)
    once = replace(recipe, epochs=1, warmup=0.25)
    state = sgd.fit(model, once, 8, draw, seed=0, device=torch.device("cpu"))
    assert seen[0].shape == (8, 3, 16, 16) and seen[0].dtype == torch.float32 and torch.isfinite(seen[0]).all()
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    rate = state.rows[0]["lr"]
    assert rate == learning_rate(once, 0, 1) > 0
    step = (model[9].weight - before) / rate
    torch.testing.assert_close(step, -model[9].weight.grad, rtol=1e-3, atol=1e-5)


def test_a_cut_data_set_still_has_64_steps_an_epoch():
    assert recipes.cut_batch(256, 4_000) == 62 and steps_per_epoch(4_000, 62) >= 64
    assert recipes.cut_batch(256, 50_000) == 256 and recipes.cut_batch(64, 50_000) == 64
    assert recipes.cut_batch(256, 100) == 8 and recipes.cut_batch(4, 100) == 4


def test_sizes_follow():
    nb = RECIPES["nb360"].sized(epochs=20, batch_size=64)
    assert nb.milestones == (6, 12, 16) and nb.lr == pytest.approx(0.05)
    assert RECIPES["zennas_cifar"].sized(epochs=8).warmup == 2
    assert [steps_per_epoch(n, 4) for n in (8, 9, 10, 3, 1)] == [2, 2, 3, 1, 0]  # a last batch of one is left out
    assert steps_per_epoch(10, 4, world=2) == 2
    for change, message in (
        ({"schedule": "x"}, "schedule must be"),
        ({"init": "x"}, "init must be"),
        ({"epochs": 0}, "one epoch"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(nb, **change)
    with pytest.raises(ValueError, match="recipe must be one of"):
        recipes.get("fast")


def test_weight_decay_spares_normalisation_and_biases_when_the_recipe_says_so():
    model = small_net()
    spared = sgd.optimizer_for(model, RECIPES["zennas_cifar"]).param_groups
    assert [len(group["params"]) for group in spared] == [3, 5] and spared[1]["weight_decay"] == 0
    assert len(sgd.optimizer_for(model, RECIPES["nats200"]).param_groups) == 1
    sgd.place(model, RECIPES["zennas_cifar"], torch.device("cpu"))
    assert model[1].momentum == 0.01 and model[1].eps == 1e-3


def test_initial_weights_depend_on_the_seed_alone_and_leave_the_global_state():
    models = [small_net() for _ in range(3)]
    state = torch.get_rng_state()
    for model, seed in zip(models, (1, 1, 2)):
        sgd.initialise(model, RECIPES["zennas_cifar"], seed=seed)
    assert torch.equal(torch.get_rng_state(), state)
    a, b, c = (model[3].weight for model in models)
    assert torch.equal(a, b) and not torch.equal(a, c)
    expected = 3.26033 * math.sqrt(2 / (16 * 9 + 32 * 9))  # Xavier-normal
    assert a.std().item() == pytest.approx(expected, rel=0.05) and not models[0][9].bias.any()


# ---- augmentation


PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8))
SMOOTH = torch.nn.functional.interpolate(PIXELS[:, :, :4, :4].float(), size=32, mode="bicubic").clamp(0, 255).byte()
PILLOW = {
    "invert": lambda image, level: ImageOps.invert(image),
    "solarize": lambda image, level: ImageOps.solarize(image, 256 * (1 - level)),
    "posterize": lambda image, level: ImageOps.posterize(image, 8 - round(4 * level)),
    "autocontrast": lambda image, level: ImageOps.autocontrast(image),
    "equalize": lambda image, level: ImageOps.equalize(image),
    "brightness": lambda image, level: ImageEnhance.Brightness(image).enhance(1 + 0.9 * level),
    "color": lambda image, level: ImageEnhance.Color(image).enhance(1 + 0.9 * level),
    "contrast": lambda image, level: ImageEnhance.Contrast(image).enhance(1 + 0.9 * level),
    "sharpness": lambda image, level: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * level),
    "translate_x": lambda image, level: _affine(image, (1, 0, level * 32 * 150 / 331, 0, 1, 0)),
    "translate_y": lambda image, level: _affine(image, (1, 0, 0, 0, 1, level * 32 * 150 / 331)),
    "shear_x": lambda image, level: _affine(image, (1, 0.3 * level, 0, 0, 1, 0), Image.Resampling.BICUBIC),
    "shear_y": lambda image, level: _affine(image, (1, 0, 0, 0.3 * level, 1, 0), Image.Resampling.BICUBIC),
    "rotate": lambda image, level: image.rotate(30 * level, fillcolor=(128,) * 3),
}


def _affine(image, matrix, resample=Image.Resampling.NEAREST):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=(128,) * 3)


@pytest.mark.parametrize("name", list(PILLOW))
def test_each_operation_is_pillows(name):
    """Pointwise operations agree to one grey level, geometric ones on nearly all pixels.

    Shears interpolate: Pillow's bicubic kernel is another one, so they are compared on smooth images, borders apart.
    """
    level = torch.tensor([1 / 9, 4 / 9, 7 / 9, 1.0, 2 / 9, 5 / 9])
    level = level * torch.tensor([1, -1, 1, -1, 1, -1]) if name in augment.SIGNED else level
    for images in (SMOOTH,) if name.startswith("shear") else (PIXELS, SMOOTH):
        found = augment.apply(name, images, level)
        for image, value, ours in zip(images, level.tolist(), found):
            theirs = np.array(PILLOW[name](Image.fromarray(image.permute(1, 2, 0).numpy()), value))
            gap = np.abs(theirs.astype(int) - ours.permute(1, 2, 0).numpy().astype(int))
            if name.startswith(("shear", "rotate", "translate")):
                assert (gap <= 2).mean() > 0.9, (name, value, (gap <= 2).mean())
            else:
                assert gap.max() <= 1, (name, value, gap.max())


def test_policies_name_known_operations_and_draw_as_often_as_they_say():
    for policy in augment.POLICIES.values():
        assert len(policy) == 25 and all(
            name in PILLOW and 0 <= p <= 1 and 0 <= m <= 9 for pair in policy for name, p, m in pair
        )
    images = PIXELS[:1].expand(4000, -1, -1, -1)
    out = augment.auto_augment(images, "cifar", generator=torch.Generator().manual_seed(0))
    untouched = (out == images).flatten(1).all(1).float().mean().item()
    table = augment.POLICIES["cifar"]
    still = lambda name, m: name == "autocontrast" or (name, m) == ("color", 0)  # noqa: E731  the image has full range
    expected = np.mean([np.prod([1.0 if still(n, m) else 1 - p for n, p, m in pair]) for pair in table])
    assert untouched == pytest.approx(expected, abs=0.03) and torch.equal(images[0], PIXELS[0])
    with pytest.raises(ValueError, match="policy must be one of"):
        augment.auto_augment(images, "mnist", generator=torch.Generator())


def test_crop_and_flip_show_shifted_or_mirrored_pixels_and_zero_padding():
    images = torch.arange(1, 17, dtype=torch.uint8).view(1, 1, 4, 4).expand(200, 3, 4, 4)
    out = augment.crop_and_flip(images, padding=1, flip=True, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images[0], (1,) * 4)
    allowed = {tuple(padded[0, r : r + 4, c : c + 4].flatten().tolist()) for r in range(3) for c in range(3)}
    allowed |= {tuple(padded[0, r : r + 4, c : c + 4].flip(1).flatten().tolist()) for r in range(3) for c in range(3)}
    found = {tuple(image[0].flatten().tolist()) for image in out}
    assert found == allowed and out.is_contiguous(memory_format=torch.channels_last)  # all 18 occur in 200 draws
    still = augment.crop_and_flip(images, padding=0, flip=False, generator=torch.Generator())
    assert torch.equal(still, images)


def test_the_crop_keeps_its_share_of_the_image_at_any_resolution(digits):
    """Padding is 4 pixels at 32x32 and 2 at 16x16: a white image shows how far a crop reaches into the padding."""
    recipe = replace(TINY, flip=False)
    for side, reach in ((32, 4), (16, 2), (8, 1)):
        white = torch.full((300, 3, side, side), 255, dtype=torch.uint8)
        data = replace(digits, train_images=white, train_labels=torch.zeros(300, dtype=torch.long), mean=(0.0,) * 3)
        images, _ = training.image_draw(data, recipe, torch.device("cpu"), (0.0,) * 3, (1.0,) * 3)(torch.arange(300), 0)
        assert (images[:, 0].amax(2) == 0).sum(1).max() == reach


def test_random_erasing_zeroes_one_rectangle_of_the_right_size():
    images = torch.ones(2000, 3, 32, 32)
    out = augment.random_erasing(images, 0.5, generator=torch.Generator().manual_seed(0))
    hole = out[:, 0] == 0
    assert torch.equal(hole, out[:, 2] == 0)
    area = hole.flatten(1).float().mean(1)
    assert (area > 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert area[area > 0].min() > 0.01 and area.max() < 0.36
    for k in (area > 0).nonzero()[:50, 0].tolist():
        rows, columns = hole[k].any(1), hole[k].any(0)
        assert rows.sum() * columns.sum() == hole[k].sum()  # a rectangle


def test_mixup_mixes_images_and_loss_by_the_same_share(digits):
    recipe = replace(TINY, mixup=0.5, crop_padding=0, label_smoothing=0.1)
    data = digits.subset(16, 4)
    draw = training.image_draw(data, recipe, torch.device("cpu"), data.mean, data.std)
    index, step_seed = torch.arange(16), 3
    images, loss_of = draw(index, step_seed)
    share = np.random.default_rng(step_seed).beta(0.5, 0.5)
    other = torch.randperm(16, generator=torch.Generator().manual_seed(step_seed))
    plain, labels = data.batch(16)
    torch.testing.assert_close(images, share * plain + (1 - share) * plain[other], rtol=1e-4, atol=1e-4)
    outputs = torch.randn(16, 10, generator=torch.Generator().manual_seed(0))
    hot = nn.functional.one_hot(labels, 10).double() * 0.9 + 0.01
    target = share * hot + (1 - share) * hot[other]
    by_hand = -(target * outputs.double().log_softmax(1)).sum(1).mean()
    assert loss_of(outputs).item() == pytest.approx(by_hand.item(), rel=1e-5)


# ---- the loop


def test_a_small_network_learns_digits(digits):
    """Clearly above chance (10%), and so because of the labels: shuffled ones teach nothing."""
    recipe = RECIPES["quick"]
    result = train(small_net(), digits, recipe, seed=0, device="cpu", epochs=3, batch_size=64)
    assert result.accuracy > 75 and not result.diverged and result.n_test == 360
    assert result.history[-1]["loss"] < result.history[0]["loss"] and len(result.history) == 3
    order = torch.randperm(1437, generator=torch.Generator().manual_seed(0))
    shuffled = replace(digits, train_labels=digits.train_labels[order])
    assert train(small_net(), shuffled, recipe, seed=0, device="cpu", epochs=1, batch_size=64).accuracy < 30


@pytest.mark.parametrize("progress", [True, False])
def test_a_bar_is_drawn_where_it_is_asked_for(digits, capfd, progress):
    data = digits.subset(64, 32)
    train(small_net(), data, TINY, seed=0, device="cpu", epochs=1, batch_size=32, progress=progress)
    assert ("%|" in capfd.readouterr().err) == progress


def test_same_seed_same_result_and_the_global_state_untouched(digits):
    data, state, runs = digits.subset(96, 40), torch.get_rng_state(), []
    for seed in (0, 0, 1):
        model = small_net(dropout=0.3)
        runs.append((train(model, data, TINY, seed=seed, device="cpu"), model.state_dict()))
        assert runs[-1][0].source == data.source
    assert not torch.equal(state, torch.get_rng_state())  # building the models drew from it, training did not
    torch.set_rng_state(state)
    train(models := small_net(), data, TINY, seed=0, device="cpu", reset=False)
    after_building = torch.get_rng_state()
    torch.set_rng_state(state)
    small_net()
    assert torch.equal(after_building, torch.get_rng_state()) and models.training
    (a, wa), (b, wb), (c, wc) = runs
    assert a.accuracy == b.accuracy and [r["loss"] for r in a.history] == [r["loss"] for r in b.history]
    assert all(torch.equal(wa[name], wb[name]) for name in wa) and not torch.equal(wa["0.weight"], wc["0.weight"])


def test_networks_trained_side_by_side_are_those_trained_alone(digits):
    data, options = digits.subset(96, 40), {"recipe": TINY, "seed": 3, "device": "cpu"}
    models = {"one": small_net(), "other": nn.Sequential(nn.Flatten(), nn.Linear(math.prod(digits.input_shape), 10))}
    before = {name: value.clone() for name, value in models["one"].state_dict().items()}
    found = train_each(models, data, **options)
    assert all(torch.equal(value, models["one"].state_dict()[name]) for name, value in before.items())
    with single_threaded():
        alone = {name: train(model, data, **options) for name, model in models.items()}
    assert list(found) == ["one", "other"] and found["one"].history != found["other"].history
    assert {name: (run.history, run.accuracy) for name, run in found.items()} == {
        name: (run.history, run.accuracy) for name, run in alone.items()
    }


class Killed(RuntimeError):
    pass


class KillingCheckpoint(Checkpoint):
    """Saves at every step and ends the process's work after a few of them, as a kill would."""

    def __init__(self, path, after):
        super().__init__(path, every=0.0)
        self.after = after

    def save(self, state):
        super().save(state)
        if state["step"] >= self.after:
            raise Killed


@pytest.mark.parametrize("after", [1, 3, 4, 7])  # within an epoch, at its end (three steps), in the second one
def test_killed_and_resumed_equals_uninterrupted(tmp_path, digits, after):
    data = digits.subset(96, 40)
    recipe = replace(TINY, epochs=3, mixup=0.2, erasing=0.5, autoaugment="cifar")
    whole = small_net(dropout=0.3)
    expected = train(whole, data, recipe, seed=5, device="cpu")
    path = tmp_path / "run.safetensors"
    with pytest.raises(Killed):
        train(small_net(dropout=0.3), data, recipe, seed=5, device="cpu", checkpoint=KillingCheckpoint(path, after))
    torch.rand(7)  # whatever else happened in between
    resumed = small_net(dropout=0.3)
    result = train(resumed, data, recipe, seed=5, device="cpu", checkpoint=Checkpoint(path))
    assert result.history == expected.history and result.accuracy == expected.accuracy
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert Checkpoint(path).load()["step"] == 9  # whole, for the caller to clear once the result is kept


RUN = """
import time, torch
from torch import nn
from graphnas_lib.store import Checkpoint
from graphnas_lib.datasets import Dataset
from graphnas_lib.training import Recipe
from graphnas_lib.training import train

def run(path, slow=False):
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)
    images = torch.randint(256, (256, 3, 8, 8), generator=g, dtype=torch.uint8)
    labels = torch.randint(10, (256,), generator=g)
    data = Dataset("noise", images, labels, images, labels, 10, (0.5,) * 3, (0.3,) * 3, "noise")
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    if slow:
        model.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    recipe = Recipe(name="t", epochs=4, batch_size=16, lr=0.05)
    return model, train(model, data, recipe, seed=0, device="cpu", checkpoint=Checkpoint(path, every=0.05))
"""


def test_kill_minus_nine_and_resume(tmp_path):
    """A real process, killed by a real signal."""
    path, threads = tmp_path / "a.safetensors", torch.get_num_threads()
    victim = subprocess.Popen([sys.executable, "-c", RUN + f"run({str(path)!r}, slow=True)"])
    deadline = time.monotonic() + 90
    while not path.exists() and time.monotonic() < deadline and victim.poll() is None:
        time.sleep(0.01)
    victim.kill()
    assert victim.wait() == -9 and path.exists()
    space: dict = {}
    exec(RUN, space)
    try:
        (resumed, result), (whole, expected) = space["run"](path), space["run"](tmp_path / "b.safetensors")
    finally:
        torch.set_num_threads(threads)
    assert result.history == expected.history and result.accuracy == expected.accuracy
    assert all(torch.equal(a, b) for a, b in zip(resumed.state_dict().values(), whole.state_dict().values()))


def test_divergence_is_reported_and_never_scored(digits):
    data = digits.subset(128, 40)
    result = train(
        small_net(), data, replace(TINY, lr=1e25, nesterov=False, momentum=0.0), seed=0, device="cpu", epochs=4
    )
    assert result.diverged and result.accuracy is None
    late = small_net()  # finite loss, but the outputs of the test are not

    class Explodes(nn.Module):
        def forward(self, x):
            return x if self.training else x / 0.0

    result = train(nn.Sequential(late, Explodes()), data, TINY, seed=0, device="cpu", epochs=1)
    assert result.diverged and result.accuracy is None and result.train_loss is not None
    with pytest.raises(DivergedError, match="must be finite"):
        evaluate(nn.Sequential(late, Explodes()), *data.batch(8), device="cpu")


def test_evaluate_counts_by_hand_and_puts_the_mode_back(digits):
    images, labels = digits.test_images[:100], digits.test_labels[:100]
    model = small_net().train()
    accuracy = evaluate(model, images, labels, mean=digits.mean, std=digits.std, batch_size=33, device="cpu")
    assert model.training
    model.eval()
    with torch.no_grad():
        right = (model(datasets.normalise(images, digits.mean, digits.std)).argmax(1) == labels).sum().item()
    assert accuracy == pytest.approx(right)
    assert evaluate(model, datasets.normalise(images, digits.mean, digits.std), labels, device="cpu") == pytest.approx(
        right
    )
    with pytest.raises(ValueError, match="need the mean and std"):
        evaluate(model, images, labels)
    with pytest.raises(ValueError, match="at least one image"):
        evaluate(model, images[:0], labels[:0], mean=digits.mean, std=digits.std)


def test_too_few_images_are_refused_and_the_test_split_can_be_left_unread(digits):
    with pytest.raises(ValueError, match="at least 2 samples a batch; got 1"):
        train(small_net(), digits.subset(1, 1), TINY, seed=0, device="cpu")
    result = train(small_net(), digits.subset(32, 0), TINY, seed=0, device="cpu", epochs=1, test=False)
    assert result.accuracy is None and not result.diverged
    with pytest.raises(ValueError, match="needs test images"):
        train(small_net(), digits.subset(32, 0), TINY, seed=0, device="cpu", epochs=1)


def test_an_image_folder_trains_like_a_data_set(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for k in range(2):
            (tmp_path / split / f"n{k}").mkdir(parents=True)
            for i in range(8):
                noise = rng.integers(0, 100, (24, 24, 3), dtype=np.uint8) + np.uint8(140 * k)
                Image.fromarray(noise).save(tmp_path / split / f"n{k}" / f"{i}.png")
    folder = datasets.ImageFolderDataset(tmp_path, resolution=16, threads=2)
    recipe = replace(RECIPES["zennas_imagenet"], autoaugment=None, lr=0.02 * 64, mixup=0.0)
    results = [train(small_net(2), folder, recipe, seed=0, device="cpu", epochs=8, batch_size=8) for _ in range(2)]
    assert results[0].accuracy == results[1].accuracy == 100.0 and results[0].history == results[1].history


# ---- tasks


def dense_task(n=24):
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = 3 * x[:, 0] + 5
    output = Normaliser.fit(y[:16])
    splits = [Split(x[part], y[part]) for part in (slice(0, 16), slice(16, 20), slice(20, n))]
    return Task("darcy", *splits, source="a linear field", output=output)


def test_a_dense_task_is_learned_and_the_best_validation_epoch_is_kept():
    task = dense_task()
    model = nn.Conv2d(1, 1, 1)
    result = train_task(model, task, seed=0, device="cpu", epochs=60)
    assert result.value < result.chance / 2 and not result.at_chance and result.metric == "relative_l2"
    validations = [row["validation"] for row in result.history]
    assert result.validation == min(validations) == validations[result.best_epoch - 1] and len(validations) == 60
    x, y, _ = task.test.fetch(torch.arange(4))
    with torch.no_grad():
        assert task.score(task.predict(model(x)), y, None) == pytest.approx(
            result.value
        )  # the kept weights are in the model


def test_the_test_split_is_read_with_the_weights_of_the_best_validation_epoch():
    task = dense_task()
    x, y, _ = task.valid.fetch(torch.arange(4))
    task = replace(
        task, valid=Split(x, 2 * y.mean() - y)
    )  # the opposite of what training teaches: validation gets worse
    model = nn.Conv2d(1, 1, 1)
    result = train_task(model, task, seed=0, device="cpu", epochs=10)
    validations = [row["validation"] for row in result.history]
    assert result.best_epoch == 1 + int(np.argmin(validations)) < 10 and validations[-1] > 1.02 * min(validations)
    for split, expected in ((task.valid, min(validations)), (task.test, result.value)):
        x, y, _ = split.fetch(torch.arange(4))
        with torch.no_grad():
            assert task.score(task.predict(model(x)), y, None) == pytest.approx(expected)


def test_a_task_resumes_with_its_best_epoch(tmp_path):
    expected = train_task(nn.Conv2d(1, 1, 1), dense_task(), seed=0, device="cpu", epochs=12)
    with pytest.raises(Killed):
        point = KillingCheckpoint(tmp_path / "x.safetensors", 9)
        train_task(nn.Conv2d(1, 1, 1), dense_task(), seed=0, device="cpu", epochs=12, checkpoint=point)
    point = Checkpoint(tmp_path / "x.safetensors")
    result = train_task(nn.Conv2d(1, 1, 1), dense_task(), seed=0, device="cpu", epochs=12, checkpoint=point)
    assert (result.value, result.best_epoch, result.history) == (expected.value, expected.best_epoch, expected.history)


def test_a_one_dimensional_task_and_the_chance_sentinel():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (180,), generator=generator)
    x = torch.randn(180, 1, 50, generator=generator)
    signal = x + labels[:, None, None]

    def model():
        return nn.Sequential(nn.Conv1d(1, 8, 9), nn.ReLU(), nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(32, 4))

    cuts = (slice(0, 80), slice(80, 100), slice(100, 180))
    learnable = Task("ecg", *(Split(signal[c], labels[c]) for c in cuts), source="level")
    hopeless = Task("ecg", *(Split(torch.zeros_like(x[c]), labels[c]) for c in cuts), source="nothing in it")
    result = train_task(model(), learnable, seed=0, device="cpu", epochs=200)
    assert result.value < 0.3 and not result.at_chance
    assert [row["lr"] for row in result.history] == sorted((row["lr"] for row in result.history), reverse=True)
    assert result.history[0]["lr"] / result.history[-1]["lr"] == pytest.approx(5**5)  # five milestones in one dimension
    result = train_task(model(), hopeless, seed=0, device="cpu", epochs=2, batch_size=32)
    constants = [
        hopeless.score(nn.functional.one_hot(torch.full((80,), i), 4).float(), labels[cuts[2]], None) for i in range(4)
    ]
    assert result.at_chance and result.value in [pytest.approx(value) for value in constants]
    assert result.chance == pytest.approx(min(constants))


def test_rare_classes_weigh_more_where_the_metric_counts_classes_alike():
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    task = Task("ecg", *[Split(torch.randn(10, 1, 8), labels)] * 3, source="three of four classes")
    outputs = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    weights = [10 / (4 * n) for n in (6, 3, 1, 1)]  # scikit-learn's "balanced"; a class that is not there stays finite
    each = nn.functional.cross_entropy(outputs, labels, reduction="none")
    shares = torch.tensor([weights[label] for label in labels])
    assert task.loss(outputs, labels, None) == pytest.approx(((each * shares).sum() / shares.sum()).item())
    plain = replace(task, name="satellite")
    assert plain.weights is None and plain.loss(outputs, labels, None) == pytest.approx(each.mean().item())


def test_ridge_regression_finds_what_is_linear_and_a_rhythm_in_any_phase():
    generator = torch.Generator().manual_seed(0)
    labels, x = torch.randint(4, (400,), generator=generator), torch.randn(400, 1, 64, generator=generator)
    phase, time = 6.3 * torch.rand(400, 1, 1, generator=generator), torch.arange(64)
    waves = torch.sin(0.2 * (1 + labels[:, None, None]) * time + phase) + 0.1 * x
    cuts = (slice(0, 300), slice(300, 320), slice(320, 400))
    series = Task("ecg", *(Split(waves[c], labels[c]) for c in cuts), source="waves")
    few = replace(series, train=series.train.take(torch.arange(4)))
    assert ridge_regression(series) < 0.1 < 0.5 < ridge_regression(few)
    fields = torch.randn(400, 3, 6, 6, generator=generator)
    cuts = (slice(0, 340), slice(340, 350), slice(350, 400))
    linear = Task("darcy", *(Split(fields[c], 3 * fields[c, 0] + 1) for c in cuts), source="linear")
    assert ridge_regression(linear) < 0.1 * linear.chance()


def test_a_task_that_diverges_has_no_value():
    task = dense_task()
    task = replace(task, train=Split(task.train.inputs * 1e30, task.train.targets))
    result = train_task(nn.Conv2d(1, 1, 1), task, seed=0, device="cpu", epochs=3)
    assert result.diverged and result.value is None and not result.at_chance


# ---- other devices and several processes


@pytest.mark.cuda
def test_cuda_trains_the_same_batches_and_learns(digits):
    recipe = RECIPES["quick"]
    draws = [
        training.image_draw(
            digits.to(d), replace(recipe, autoaugment="cifar"), torch.device(d), digits.mean, digits.std
        )
        for d in ("cpu", "cuda")
    ]
    images = [draw(torch.arange(32), 7)[0].cpu() for draw in draws]
    assert ((images[0] - images[1]).abs() < 0.05).float().mean() > 0.98  # bilinear rounding apart
    model = small_net()
    result = train(model, digits, recipe, seed=0, device="cuda", epochs=4, batch_size=64)
    assert result.accuracy > 75 and next(model.parameters()).is_cuda and "cuda" not in result.device.lower().split()


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path):
    pytest.importorskip("accelerate", reason="several processes need the optional package accelerate")
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(
            """
            import torch
            from accelerate import Accelerator
            from torch import nn
            from graphnas_lib import datasets, training
            torch.set_num_threads(1)
            accelerator = Accelerator(cpu=True)
            data = datasets.load("digits", resolution=8)
            model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10))
            result = training.train(model, data, "quick", seed=0, epochs=3, batch_size=64, accelerator=accelerator)
            total = float(sum(p.double().abs().sum() for p in model.parameters())).hex()
            print("RESULT", accelerator.num_processes, result.accuracy, total, flush=True)
            """
        )
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29631", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert len(lines) == 2 and lines[0] == lines[1] and lines[0][1] == "2" and float(lines[0][2]) > 75
