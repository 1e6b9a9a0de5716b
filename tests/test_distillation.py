"""A teacher beside the labels: both terms by hand, what is trained and what is not, refusals."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from graphnas_lib import datasets, training, zennet
from graphnas_lib.training import RECIPES, augment, load_teacher, recipes, sgd
from graphnas_lib.training.distillation import PROJECTION_STD, Distilled
from graphnas_lib.training.recipes import Recipe
from graphnas_lib.zennet import ZenNet

RATIOS = (2, 4)


def net(width: int, classes: int = 10, seed: int = 0) -> nn.Sequential:
    """Maps at 1/2 and 1/4 of the input, the last of each after a ReLU."""
    torch.manual_seed(seed)
    body = [nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1)]
    return nn.Sequential(*body, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, classes))


def deep(width: int = 4, seed: int = 0) -> nn.Sequential:
    """Maps at 1/2 to 1/32 of the input."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, width, 3, 2, 1)]
    for _ in range(4):
        layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, 10))


def distilled(**options) -> Distilled:
    return Distilled(net(4), net(6, seed=1), **{"input_shape": (3, 8, 8), "side": 16, "ratios": RATIOS, **options})


def test_terms_by_hand():
    both, images = distilled(), torch.randn(5, 3, 8, 8)
    outputs = both.train()(images)
    larger = F.interpolate(images, size=(16, 16), mode="bilinear")
    teacher, student = both.teacher, both.student
    with torch.no_grad():
        said = teacher(larger)
        theirs = [
            F.interpolate(teacher[:n](larger), size=(side, side), mode="bilinear") for n, side in ((3, 4), (5, 2))
        ]
    mine = student[:3](images), student[:5](images)
    expected = -(said.softmax(1) * outputs.log_softmax(1)).sum(1).mean()
    for projection, a, b in zip(both.projections, mine, theirs):
        difference = (F.conv2d(a, projection.weight) - b).abs()
        expected = expected + torch.where(difference < 1, 0.5 * difference**2, difference - 0.5).mean()
    torch.testing.assert_close(both.extra, expected)
    assert both.projections[0].weight.shape == (6, 4, 1, 1) and both.projections[1].weight.shape == (12, 8, 1, 1)
    assert both.projections[1].weight.std().item() == pytest.approx(PROJECTION_STD, rel=0.3)


def test_teacher_is_frozen_in_eval_mode_and_no_part_of_the_state():
    both = distilled()
    before = {name: value.clone() for name, value in both.teacher.state_dict().items()}
    optimizer = torch.optim.SGD(both.parameters(), lr=0.1)
    both.train()
    both(torch.randn(5, 3, 8, 8))
    both.extra.backward()
    optimizer.step()
    assert not both.teacher.training and all(not p.requires_grad for p in both.teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in both.teacher.state_dict().items())
    assert {name.split(".")[0] for name in both.state_dict()} == {"student", "projections"}
    assert all(p.grad is not None and p.grad.any() for p in both.projections.parameters())


def test_nothing_is_noted_in_eval_mode_and_release_leaves_the_student_as_it_was():
    student, images = net(4).eval(), torch.randn(2, 3, 8, 8)
    expected = student(images)
    both = Distilled(student, net(6, seed=1), input_shape=(3, 8, 8), side=16, ratios=RATIOS).eval()
    assert torch.equal(both(images), expected) and both.extra is None
    assert any(module._forward_hooks for module in student.modules())
    assert both.release() is student and not any(module._forward_hooks for module in student.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"ratios": (2, 8)},
            "The student must have feature maps at 1/2 and 1/8 of an input of 9 pixels; it has none at 1/8",
        ),
        ({"teacher": net(6, classes=7)}, "A teacher must have the student's outputs; got 7 and 10"),
    ],
)
def test_networks_that_do_not_fit_are_refused(options, message):
    teacher = options.pop("teacher", net(6))
    with pytest.raises(ValueError, match=message):
        Distilled(net(4), teacher, **{"input_shape": (3, 9, 9), "side": 9, "ratios": RATIOS, **options})


def test_training_learns_from_its_teacher():
    """Labels are shuffled: only the teacher can tell the student which of two confident answers to give."""
    digits = datasets.load("digits", resolution=32).subset(256, 64)
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    digits = replace(digits, train_labels=digits.train_labels[order])
    recipe = Recipe(name="tiny", epochs=6, batch_size=32, lr=0.05, crop_padding=0, flip=False)
    teacher = deep(seed=1)
    images = datasets.normalise(digits.test_images, digits.mean, digits.std)
    with torch.no_grad():
        teacher.eval()[-1].weight *= 300.0
        said = teacher(images).softmax(1)

    def distance(**options) -> float:
        model = deep()
        result = training.train(model, digits, recipe, seed=0, device="cpu", **options)
        assert not result.diverged and set(model.state_dict()) == set(deep().state_dict())
        with torch.no_grad():
            return -(said * model.eval()(images).log_softmax(1)).sum(1).mean().item()

    assert distance(teacher=teacher, teacher_side=32) < 0.7 * distance()


# ---- the rest of ZenNAS's recipes


def test_imagenet_recipe_lights_its_images():
    assert RECIPES["zennas_imagenet"].lighting == 0.1 and RECIPES["zennas_cifar"].lighting == 0.0
    images, std = torch.zeros(4000, 3, 2, 2), (0.5, 0.25, 0.2)
    lit = augment.lighting(images, 0.1, std, generator=torch.Generator().manual_seed(0))
    assert torch.equal(lit, lit[:, :, :1, :1].expand_as(lit))  # one colour an image
    vectors, values = torch.tensor(augment._COLOUR_VECTORS), torch.tensor(augment._COLOUR_VALUES)
    noise = lit[:, :, 0, 0] * torch.tensor(std)
    expected = (vectors * (0.1 * values).square()) @ vectors.T
    torch.testing.assert_close(noise.T.cov(), expected, rtol=0.1, atol=1e-5)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(3), rtol=0, atol=1e-3)


def test_zennas_training_starts_with_closed_residual_units():
    net_ = zennet.build(ZenNet.parse("SuperConvK3BNRELU(3,8,1,1)SuperResK3K3(8,8,1,8,2)"), classes=10, seed=0)
    sgd.initialise(net_, RECIPES["zennas_cifar"], seed=0)
    closed = [unit for unit in net_.units if unit.shortcut is not None]
    assert len(closed) == 2 and not any(unit.body[-1].weight.any() for unit in closed)
    x = torch.rand(2, 8, 4, 4)
    torch.testing.assert_close(closed[1].eval()(x), x)  # the second has an identity beside it
    sgd.initialise(net_, recipes.get("nats12"), seed=0)
    assert all(unit.body[-1].weight.all() for unit in closed)


def test_missing_timm_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ImportError, match="needs the package timm"):
        load_teacher()
