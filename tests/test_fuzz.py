"""Generated networks, design files and cell strings: a right value or a named error, and everything as it was before.

A few seconds by default, and the same examples each time; `make fuzz N=20000` draws N others.
"""

import json
import os
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

st = pytest.importorskip("hypothesis.strategies", reason="fuzzing needs hypothesis, of the extra 'dev'")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from test_foreign_networks import Answer, scored  # noqa: E402

from graphnas_lib.design import Design  # noqa: E402
from graphnas_lib.macro import stack_cell  # noqa: E402
from graphnas_lib.network import count  # noqa: E402
from graphnas_lib.proxies import ProxyError  # noqa: E402
from graphnas_lib.space import NATS_REFERENCE, Cell, InvalidCellError, nats_operations  # noqa: E402

ASKED = os.environ.get("GRAPHNAS_FUZZ")


def fuzzed(examples):
    """So many examples in a test, or as many as are asked for."""
    return settings(
        max_examples=int(ASKED or examples),
        derandomize=not ASKED,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


# ---- networks

WIDTH, CLASSES = 4, 5
NAMES = ("naswot", "lnwot", "tcet", "snip", "snip_ssnr", "grad_norm", "synflow", "params", "macs", "flops")
WRAPS = {
    "plain": (lambda y, x: y, None),
    "dict": (lambda y, x: {"x": x, "scores": y}, "scores"),
    "ordered": (lambda y, x: OrderedDict(scores=y), "scores"),
    "pair": (lambda y, x: (x, y), 1),
    "dataclass": (Answer, "scores"),
}


class Step(nn.Module):
    """A layer in a module of its own, called by position or by keyword, its ReLU in place or not."""

    def __init__(self, layer, recipe):
        super().__init__()
        self.layer, self.keyword = layer, recipe["keyword"]
        if recipe["in_place"] and isinstance(layer, nn.ReLU):
            self.layer = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.layer(input=x) if self.keyword else self.layer(x)


class Tree(nn.Module):
    """A network of a recipe; `odd` with the recipe's ties, aliases, in-place operations and outputs, else plainly."""

    def __init__(self, recipe, odd):
        super().__init__()
        plain = {"keyword": False, "in_place": False, "wrap": "plain", "train_only": False, "keeps": False}
        self.recipe = recipe if odd else recipe | plain
        layers, steps = [], []
        for kind, place, tie in recipe["steps"]:
            layer = self.made(kind, layers, place, odd and tie)
            second = bool(layers) and isinstance(layers[-1], nn.ReLU)  # PyTorch refuses two in place in a row
            layers.append(layer)
            steps.append(Step(layer, self.recipe | {"in_place": self.recipe["in_place"] and not second}))
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        half = len(steps) // 2
        self.body = nn.Sequential(nn.Sequential(*steps[:half]), nn.Sequential(*steps[half:]))
        self.head = nn.Linear(WIDTH, CLASSES)
        if odd and recipe["alias"]:
            self.again, self.inner = self.stem, self.body[0]
        if self.recipe["keeps"]:
            self.held, self.last = list(self.parameters()), None

    def made(self, kind, layers, place, tie):
        same = [layer for layer in layers if not isinstance(layer, nn.ReLU)]
        if kind == "repeat" and same:
            layer = same[place % len(same)]
            if not tie:
                return layer
            twin = new(layer)
            for name, parameter in layer.named_parameters():
                setattr(twin, name, parameter)
            return twin
        return layers_of_kind(kind)

    def forward(self, x):
        if self.recipe["input"]:
            x = x.sub_(0.5).mul_(2) if self.recipe["in_place"] else (x - 0.5) * 2
        y = self.head(self.body(self.stem(x)).mean((2, 3)))
        if self.recipe["keeps"]:
            self.last = y
        wrapped = not self.recipe["train_only"] or self.training
        return WRAPS[self.recipe["wrap"]][0](y, x) if wrapped else y


def layers_of_kind(kind):
    return {
        "conv": lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
        "pointwise": lambda: nn.Conv2d(WIDTH, WIDTH, 1, bias=False),
        "depthwise": lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH),
        "norm": lambda: nn.BatchNorm2d(WIDTH),
        "pool": lambda: nn.AvgPool2d(3, 1, 1),
        "relu": nn.ReLU,
    }.get(kind, nn.ReLU)()


def new(layer):
    """Another layer of the same sizes."""
    if isinstance(layer, nn.Conv2d):
        options = {"padding": layer.padding, "groups": layer.groups, "bias": layer.bias is not None}
        return nn.Conv2d(WIDTH, WIDTH, layer.kernel_size, **options)
    return nn.BatchNorm2d(WIDTH) if isinstance(layer, nn.BatchNorm2d) else nn.AvgPool2d(3, 1, 1)


def breakage(kind, model):
    """The network with something that may keep it from being scored."""
    if kind == "raises":
        model.head.register_forward_pre_hook(lambda *_: {}["nothing"])
    elif kind == "raises in training":
        model.head.register_forward_hook(lambda m, *_: next(iter(())) if m.training else None)
    elif kind == "lazy":
        model.head = nn.LazyLinear(CLASSES)
    elif kind == "scripted":
        model.body = torch.jit.script(nn.Sequential(nn.ReLU()))
    elif kind == "weight norm":
        parametrizations.weight_norm(model.stem)
    elif kind == "not a number":
        model.stem.weight.data.fill_(float("nan"))
    elif kind == "integers":
        model.register_forward_hook(lambda m, i, o: torch.zeros(len(i[0]), dtype=torch.long))
    elif kind == "half of it":
        model.head.bfloat16()
    elif kind == "frozen":
        model.requires_grad_(False)
    elif kind == "few classes":
        model.head = nn.Linear(WIDTH, 2)
    elif kind == "grows":
        model.register_forward_hook(lambda m, i, o: m.add_module("more", nn.Linear(1, 1)))
    elif kind == "bfloat16":
        model.bfloat16()
    return model


BREAKAGES = (
    *("raises", "raises in training", "lazy", "scripted", "weight norm", "not a number", "integers", "half of it"),
    *("frozen", "few classes", "grows", "bfloat16"),
)
STEP = st.tuples(
    st.sampled_from(("conv", "pointwise", "depthwise", "norm", "pool", "relu", "relu", "repeat", "repeat")),
    st.integers(0, 7),
    st.booleans(),
)
RECIPES = st.fixed_dictionaries(
    {"steps": st.lists(STEP, max_size=7), "wrap": st.sampled_from(tuple(WRAPS)), "seed": st.integers(0, 999)}
    | {"batch": st.integers(2, 9), "sides": st.tuples(st.integers(3, 8), st.integers(3, 8))}
    | {name: st.booleans() for name in ("keyword", "in_place", "train_only", "keeps", "input", "alias")}
)


def given_batch(recipe):
    g = torch.Generator().manual_seed(recipe["seed"])
    images = torch.randn(recipe["batch"], 3, *recipe["sides"], generator=g, dtype=torch.float64)
    return images, torch.randint(CLASSES, (recipe["batch"],), generator=g)


def networks(recipe):
    """The odd network and its plain twin, of the same weights, in double precision."""
    made = []
    for odd in (True, False):
        with torch.random.fork_rng():
            torch.manual_seed(recipe["seed"])
            made.append(Tree(recipe, odd).double())
    known = made[0].state_dict()
    made[1].load_state_dict({name: known[name] for name in made[1].state_dict()})
    return made


@fuzzed(15)
@given(RECIPES)
def test_an_odd_network_scores_as_its_plain_twin(recipe):
    odd, plain = networks(recipe)
    images, labels = given_batch(recipe)
    found = scored(odd, images, labels, NAMES, output=WRAPS[recipe["wrap"]][1])
    assert found == pytest.approx(scored(plain, images, labels, NAMES), rel=1e-6, abs=1e-9)
    pixels = recipe["sides"][0] * recipe["sides"][1]
    macs = sum(m.weight[0].numel() * pixels * WIDTH for step in plain.body.modules() if isinstance(step, Step)
               for m in [step.layer] if isinstance(m, nn.Conv2d))  # fmt: skip
    repeated = len(recipe["steps"]) - len({id(s.layer) for s in plain.body.modules() if isinstance(s, Step)})
    if not repeated:  # `modules` names a module once
        assert found["macs"] == macs + 27 * WIDTH * pixels + WIDTH * CLASSES


@fuzzed(30)
@given(RECIPES, st.sampled_from(BREAKAGES), st.permutations([*NAMES, "zico", "zen", "naswot_relu"]))
def test_a_broken_network_ends_in_a_value_or_in_one_line_and_stays_as_it_was(recipe, kind, names):
    model = breakage(kind, networks(recipe)[0])
    images, labels = given_batch(recipe)
    for name in names[:3]:
        try:
            found = scored(model, images, labels, [name], output=WRAPS[recipe["wrap"]][1])
        except ProxyError as error:
            assert str(error) and "\n" not in str(error)
        else:
            assert isinstance(found[name], float) and abs(found[name]) < float("inf")


# ---- design files and cell strings

CELL = Cell.from_nats(NATS_REFERENCE)
SMALL = stack_cell(CELL, width=8, repeats=1)
DESIGN = Design(architecture=SMALL, **vars(count(SMALL)), tcet=1.0, batch="noise")
JUNK = st.one_of(st.none(), st.booleans(), st.integers(-3, 10**20), st.floats(), st.text(max_size=4))
JSON = st.recursive(
    JUNK, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner), max_leaves=4
)


def places(value, at=()):
    """Every place in a nest of lists and dicts."""
    yield at
    rows = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in rows:
        yield from places(inner, (*at, key))


PLACES = [place for place in places(DESIGN.to_dict()) if place]
OPTIONAL = {"head_channels": None, "stem_stride": 1}  # what a file may leave out


@fuzzed(100)
@given(st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from(("set", "drop", "double")), JSON), max_size=3))
def test_a_design_file_is_read_whole_or_refused(changes):
    data = json.loads(DESIGN.to_json())
    for place, how, value in changes:
        *above, last = place
        holder = data
        try:
            for key in above:
                holder = holder[key]
            if how == "drop":
                del holder[last]
            else:
                holder[last] = value if how == "set" else [holder[last], holder[last]]
        except (KeyError, IndexError, TypeError):  # an earlier change has taken the place away
            continue
    try:
        made = Design.from_json(json.dumps(data))
    except ValueError as error:
        assert str(error)
    else:
        data["architecture"] = OPTIONAL | data["architecture"]
        assert (
            json.loads(made.to_json()) == data and vars(count(made.architecture, **made.task)).items() <= data.items()
        )


@fuzzed(100)
@given(st.binary(max_size=40), st.integers(0, len(DESIGN.to_json())), st.integers(0, 40))
def test_the_bytes_of_a_design_file_are_read_whole_or_refused(junk, at, dropped):
    text = DESIGN.to_json().encode()
    try:
        made = Design.from_json(text[:at] + junk + text[at + dropped :])
    except ValueError as error:
        assert str(error)
    else:
        assert vars(count(made.architecture, **made.task)).items() <= made.to_dict().items()


PIECES = st.sampled_from(
    [*"|+~0123 \n'\"", "none", "nor_conv_3x3", "skip_connect", "avg_pool_3x3", "|+|", "|nor_conv_1x1~0|"]
)


@fuzzed(100)
@given(
    st.one_of(
        st.lists(PIECES, max_size=20).map("".join), st.text(max_size=30), st.lists(st.integers(-1, 5), max_size=7), JSON
    )
)
def test_a_cell_string_is_an_architecture_or_refused(text):
    try:
        found = nats_operations(text)
    except InvalidCellError as error:
        assert "NATS-Bench" in str(error)
    else:
        assert len(found) == 6
        a, b, c, d, e, f = found
        assert nats_operations(f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|") == found
