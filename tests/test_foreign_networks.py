"""Networks of other people's making: what users of this field's tools report, tried on the proxies, costs and `score`.

Each network stands beside another that computes the same in the plain way, or beside a number by hand; and whatever is
scored is bit for bit what it was. A network that cannot be scored ends in one `ProxyError`.
"""

import math
import random
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from graphnas_lib import proxies
from graphnas_lib.proxies import ProxyError
from graphnas_lib.proxies.measures import NAMES, synflow, zen
from graphnas_lib.proxies.spectra import vkdnw_entropy

RAW = [name for name in NAMES if name not in ("zen", "naswot_relu")]  # Net has neither `features` nor ReLU modules
GRADIENTS = ("snip", "snip_ssnr", "grad_norm", "zico", "tcet", "tcet_none", "tcet_train", "tcet_log")


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    return torch.randn(16, 3, 16, 16, generator=g) * 2 + 1, torch.arange(16) % 10


def made(kind, *args, seed=1, **kwargs):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(*args, **kwargs)


def state(model):
    """All that a network holds: tensors by object and value, gradients, flags, attributes, modes, hooks."""
    rows = []
    for module in model.modules():
        kept = {n: v for n, v in vars(module).items() if n[0] != "_" or n == "_modules"}
        hooks = [len(v) for n, v in vars(module).items() if n.endswith("hooks")]
        tensors = {}
        for name, t in [*module._parameters.items(), *module._buffers.items()]:
            if t is not None:
                grad = None if t.grad is None else t.grad.clone()
                lazy = isinstance(t, nn.parameter.UninitializedTensorMixin)
                tensors[name] = (t, torch.empty(0) if lazy else t.detach().clone(), t.requires_grad, grad)
        rows.append((module, list(kept), hooks, tensors))
    return rows


def same(before, after):
    def equal(a, b):
        return torch.equal(a.nan_to_num(), b.nan_to_num())

    assert len(before) == len(after)
    for (module, kept, hooks, tensors), (module2, kept2, hooks2, tensors2) in zip(before, after):
        assert module is module2 and kept == kept2 and hooks == hooks2 and list(tensors) == list(tensors2)
        for name, (t, value, needs, grad) in tensors.items():
            t2, value2, needs2, grad2 = tensors2[name]
            assert t is t2 and needs == needs2 and equal(value, value2), name
            assert (grad is None) == (grad2 is None) and (grad is None or equal(grad, grad2)), name


def scored(model, images, labels, names, **options):
    """`score`, and that nothing of the caller's has changed."""
    before, given, rng = state(model), (images.clone(), labels.clone()), torch.get_rng_state()
    others = random.getstate(), np.random.get_state()[1].tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = proxies.score(model, images, labels, names, **options)
    same(before, state(model))
    assert torch.equal(images, given[0]) and torch.equal(labels, given[1]) and torch.equal(torch.get_rng_state(), rng)
    assert others == (random.getstate(), np.random.get_state()[1].tolist())
    return found


class Net(nn.Module):
    def __init__(self, conv=None):
        super().__init__()
        self.c, self.f = conv or nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 10)

    def forward(self, x):
        return self.f(self.c(x).relu().mean((2, 3)))


# ---- a score is taken on what the caller thinks


class Centred(Net):
    def forward(self, x):
        return super().forward((x - 0.5) / 0.25)


class CentredInPlace(Net):
    def forward(self, x):
        return super().forward(x.sub_(0.5).div_(0.25))


@pytest.mark.parametrize("name", RAW)
def test_a_network_that_writes_into_its_input_scores_as_one_that_does_not(batch, name):
    wanted = proxies.score(made(Centred), *batch, [name])
    assert scored(made(CentredInPlace), *batch, [name]) == pytest.approx(wanted, rel=1e-5)


def test_several_proxies_of_a_network_that_writes_into_its_input(batch):
    found = scored(made(CentredInPlace), *batch, ["tcet", "snip", "naswot"])
    assert found == pytest.approx(scored(made(Centred), *batch, ["naswot", "snip", "tcet"]), rel=1e-5)
    assert vkdnw_entropy(made(CentredInPlace), (4, 3, 8, 8)) == pytest.approx(
        vkdnw_entropy(made(Centred), (4, 3, 8, 8))
    )


class Twice(nn.Module):
    """One convolution called twice, or two with one weight and bias."""

    def __init__(self, tie):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.c, self.f = nn.Conv2d(8, 8, 3, padding=1) if tie else self.b, nn.Linear(8, 10)
        if tie:
            self.c.weight, self.c.bias = self.b.weight, self.b.bias

    def forward(self, x):
        return self.f(self.c(self.b(self.a(x).relu()).relu()).mean((2, 3)))


@pytest.mark.parametrize("name", RAW)
def test_a_tied_weight_counts_once(batch, name):
    one, tied = made(Twice, False), made(Twice, True)
    tied.load_state_dict(one.state_dict(), strict=False)
    assert torch.equal(one(batch[0]), tied(batch[0]))
    assert scored(tied, *batch, [name]) == pytest.approx(scored(one, *batch, [name]), rel=1e-5)


class Alias(nn.Module):
    def __init__(self, alias):
        super().__init__()
        self.b, self.f = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 10)
        self.n = nn.BatchNorm2d(3)
        self.again, self.same_norm = (self.b, self.n) if alias else (None, None)

    def features(self, x):
        return self.b(self.n(self.b(x)).relu())

    def forward(self, x):
        return self.f(self.features(x).mean((2, 3)))


@pytest.mark.parametrize("name", [*RAW, "zen"])
def test_a_module_under_two_names_changes_nothing(batch, name):
    plain, alias = made(Alias, False), made(Alias, True)
    assert scored(alias, *batch, [name]) == scored(plain, *batch, [name])


class SharedStatistics(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.f = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.Linear(3, 10)
        self.b.running_mean, self.b.running_var = self.a.running_mean, self.a.running_var

    def forward(self, x):
        return self.f(self.b(self.a(x)).mean((2, 3)))


class Caching(Net):
    """It keeps what it saw, as an attribute and a buffer assigned anew."""

    def __init__(self):
        super().__init__()
        self.calls, self.seen = 0, None
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x):
        self.calls, self.seen, self.mean = self.calls + 1, x, 0.9 * self.mean + x.mean().detach()
        return super().forward(x)


class Drawing(Net):
    def forward(self, x):
        return super().forward(x * random.choice((0.5, 2.0)) + float(np.random.rand()))


class Listed(nn.Module):
    """Its parameters are in a list too, as those of an LSTM are; gradients must not arrive there."""

    def __init__(self):
        super().__init__()
        self.c, self.w = nn.Conv2d(3, 8, 3), nn.Parameter(torch.randn(8, 10))
        self.held = [self.w]

    def forward(self, x):
        return self.c(x).relu().mean((2, 3)) @ self.held[0]


class Recurrent(nn.Module):
    def __init__(self, kind=nn.LSTM, **options):
        super().__init__()
        self.l = kind(48, 64, batch_first=True, **options)
        self.f = nn.Linear(128 if options.get("bidirectional") else 64, 10)

    def forward(self, x):
        return self.f(self.l(x.permute(0, 2, 1, 3).flatten(2))[0][:, -1])


@pytest.mark.parametrize("kind", [SharedStatistics, Caching, Drawing, Listed, Recurrent])
@pytest.mark.parametrize("name", ["naswot", "tcet", "snip", "zico", "synflow", "params", "flops"])
def test_nothing_of_a_network_is_changed(batch, kind, name):
    model = made(kind)
    F.cross_entropy(model.eval()(batch[0]), batch[1]).backward()
    first = scored(model, *batch, [name])
    random.random(), np.random.rand()
    assert scored(model, *batch, [name]) == first


def test_lazy_layers_must_have_been_run(batch):
    model = Net(nn.LazyConv2d(8, 3))
    for name in NAMES:
        with pytest.raises(ProxyError, match="'c' does not. Run the network on a batch first"):
            proxies.score(model, *batch, [name])
    model(batch[0])
    assert all(map(math.isfinite, scored(model, *batch, ["tcet", "params"]).values()))


class Grows(Net):
    def forward(self, x):
        x = self.c(x).relu().mean((2, 3))
        if not hasattr(self, "g"):
            self.g = nn.Linear(8, 10)
        return self.g(x)


def test_a_forward_that_makes_layers_is_refused_and_undone(batch):
    model = Grows()
    before = state(model)
    for name in ("naswot", "tcet", "snip", "macs"):
        with pytest.raises(ProxyError, match="must not make layers"):
            proxies.score(model, *batch, [name])
    same(before, state(model))


# ---- costs of what nobody looked at


class Attention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.p, self.f = nn.Conv2d(3, 32, 4, 4), nn.Linear(32, 10)
        self.t, self.options = nn.MultiheadAttention(32, 4, batch_first=True), options

    def forward(self, x):
        h = self.p(x).flatten(2).transpose(1, 2)
        return self.f(self.t(h, h, h, **self.options)[0].mean(1))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.p, self.f = nn.Conv2d(3, 32, 4, 4), nn.Linear(32, 10)
        self.t = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)

    def forward(self, x):
        return self.f(self.t(self.p(x).flatten(2).transpose(1, 2)).mean(1))


class Headed(nn.Module):
    """Any layer, its outputs averaged over positions, and a classifier."""

    def __init__(self, layer, width, before=lambda x: x):
        super().__init__()
        self.a, self.f, self.before = layer, nn.Linear(width, 10), before

    def forward(self, x):
        return self.f(self.a(self.before(x)).relu().flatten(2).mean(2))


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(768, 10)), nn.Parameter(torch.randn(10))
        self.f = nn.Linear(10, 10)

    def forward(self, x):
        h = x.flatten(1) @ self.w
        return self.f(h + (h @ self.v)[:, None])


class Functional(Net):
    def forward(self, x):
        x = F.conv2d(x, self.c.weight, self.c.bias, padding=1).relu()
        return F.linear(x.mean((2, 3)), self.f.weight, self.f.bias)


TOKENS = 16  # of Attention and Encoder: 16x16 pixels in patches of 4x4
ATTENTION = 4 * TOKENS * 32 * 32 + 2 * TOKENS * TOKENS * 32
PATCHES = TOKENS * 48 * 32
BY_HAND = {
    "lstm": (lambda: Recurrent(), 16 * 4 * 64 * (48 + 64) + 640),
    "two lstms, both ways": (
        lambda: Recurrent(num_layers=2, bidirectional=True),
        16 * 2 * 4 * 64 * (48 + 64) + 16 * 2 * 4 * 64 * (128 + 64) + 1280,
    ),
    "gru": (lambda: Recurrent(nn.GRU), 16 * 3 * 64 * (48 + 64) + 640),
    "rnn": (lambda: Recurrent(nn.RNN), 16 * 64 * (48 + 64) + 640),
    "attention": (Attention, PATCHES + ATTENTION + 320),
    "attention without weights": (lambda: Attention(need_weights=False), PATCHES + ATTENTION + 320),
    "encoder": (Encoder, PATCHES + ATTENTION + 2 * TOKENS * 32 * 64 + 320),
    "transposed": (lambda: Headed(nn.ConvTranspose2d(3, 16, 2, 2), 16), 3 * 256 * 4 * 16 + 160),
    "3-d": (lambda: Headed(nn.Conv3d(1, 4, 3), 4, lambda x: x[:, None]), 14 * 14 * 27 * 4 + 40),
    "bare": (Bare, 768 * 10 + 10 + 100),
    "functional": (Functional, 256 * 27 * 8 + 80),
    "grouped": (lambda: Headed(nn.Conv2d(3, 6, 3, groups=3, padding=1), 6), 256 * 9 * 6 + 60),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_multiply_adds_of_every_layer_are_those_by_hand(batch, name):
    kind, wanted = BY_HAND[name]
    model = made(kind)
    found = scored(model, *batch, ["params", "macs", "flops"])
    assert found["macs"] == wanted and found["params"] == sum(p.numel() for p in model.parameters())
    assert found["flops"] >= 2 * wanted
    assert proxies.module_costs(model, (3, 16, 16)).macs == wanted


def test_a_network_without_parameters_costs_nothing(batch):
    assert scored(nn.Flatten(), *batch, ["params", "macs"]) == {"params": 0, "macs": 0}


@pytest.mark.parametrize(
    ("kind", "share", "named"),
    [
        (Recurrent, "96%", "l.weight_hh_l0, l.weight_ih_l0"),
        (Attention, "50%", "t.in_proj_weight"),
        (lambda: Headed(nn.ConvTranspose2d(3, 16, 2, 2), 16), "51%", "a.weight"),
        (Bare, "98%", "w"),
    ],
)
def test_a_score_says_which_parameters_it_leaves_out(batch, kind, share, named):
    model = made(kind)
    with pytest.warns(
        UserWarning, match=f"{share} of this network's parameters lie elsewhere and are left out: {named}"
    ):
        proxies.score(model, *batch, ["tcet"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        proxies.score(model, *batch, ["params", "macs", "flops"])  # these leave nothing out
        proxies.score(made(Net), *batch, ["tcet", "naswot"])


# ---- what goes wrong in a network is told in one line


@dataclass
class Answer:
    scores: torch.Tensor
    features: torch.Tensor


class Returning(Net):
    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(super().forward(x), x)


ODD = {
    "dict": (lambda y, x: {"logits": y, "x": x}, "logits", r"a dict with the keys \['logits', 'x'\]"),
    "ordered": (lambda y, x: OrderedDict(out=y), "out", r"a OrderedDict with the keys \['out'\]"),
    "pair": (lambda y, x: (x, y), 1, "a tuple of 2"),
    "list": (lambda y, x: [x, y], -1, "a list of 2"),
    "dataclass": (lambda y, x: Answer(y, x), "scores", "a Answer"),
    "object": (lambda y, x: SimpleNamespace(logits=y), "logits", "a SimpleNamespace"),
}


@pytest.mark.parametrize("name", ["naswot", "tcet", "snip", "zico", "synflow"])
@pytest.mark.parametrize("kind", ODD)
def test_outputs_that_are_not_one_tensor_are_named_and_can_be_chosen(batch, kind, name):
    wrap, output, told = ODD[kind]
    model = made(Returning, wrap)
    with pytest.raises(ProxyError, match=f"must return one tensor of scores; it returns {told}. Say which"):
        proxies.score(model, *batch, [name])
    assert scored(model, *batch, [name], output=output) == proxies.score(made(Net), *batch, [name])
    for wrong in ("nothing", 7):
        with pytest.raises(ProxyError, match="must name one of what a network returns"):
            proxies.score(model, *batch, [name], output=wrong)


class InTraining(Net):
    """As networks with auxiliary classifiers are: several outputs in train mode alone."""

    def forward(self, x):
        return (super().forward(x), x) if self.training else super().forward(x)


@pytest.mark.parametrize("name", ["naswot", "tcet", "snip", "zico", "macs"])
def test_outputs_of_the_train_mode_alone(batch, name):
    model, wanted = made(InTraining), proxies.score(made(Net), *batch, [name])
    assert scored(model, *batch, [name], output=0) == wanted
    if name in ("snip", "zico"):
        with pytest.raises(ProxyError, match="a tuple of 2"):
            proxies.score(model, *batch, [name])
    else:
        assert scored(model, *batch, [name]) == wanted


class Keywords(Net):
    def forward(self, x):
        return self.f(input=self.c(input=x).relu().mean((2, 3)))


class Subclassed(nn.Linear):
    def forward(self, x):
        return super().forward(x), x


class PairInside(Net):
    def __init__(self):
        super().__init__()
        self.f.__class__ = Subclassed

    def forward(self, x):
        return self.f(self.c(x).relu().mean((2, 3)))[0]


@pytest.mark.parametrize("kind", [Keywords, PairInside])
@pytest.mark.parametrize("name", RAW)
def test_however_layers_are_called_and_answer(batch, kind, name):
    assert scored(made(kind), *batch, [name]) == proxies.score(made(Net), *batch, [name])


class Autocast(Net):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


@pytest.mark.parametrize("name", RAW)
def test_half_types_are_scored_near_the_whole(batch, name):
    wanted = proxies.score(made(Net), *batch, [name])[name]
    for model in (made(Net).bfloat16(), made(Autocast)):
        images = batch[0].to(model.c.weight.dtype)
        assert scored(model, images, batch[1], [name])[name] == pytest.approx(wanted, rel=0.1, abs=0.5)


WEIGHTS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old weight_norm": nn.utils.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WEIGHTS)
def test_computed_weights_are_refused_where_their_gradient_is_asked(batch, name):
    model = made(lambda: Net(WEIGHTS[name](nn.Conv2d(3, 8, 3))))
    for proxy in (*GRADIENTS, "synflow"):
        before = state(model)
        with pytest.raises(ProxyError, match="that of 'c' is computed"):
            proxies.score(model, *batch, [proxy])
        same(before, state(model))
    assert math.isfinite(scored(model, *batch, ["naswot"])["naswot"])


def test_torchscript_says_that_it_is(batch):
    scripted = torch.jit.script(made(Net))
    mixed = nn.Sequential(scripted, nn.Linear(10, 10))
    for model in (scripted, mixed, torch.jit.trace(made(Net), batch[0])):
        for name in NAMES:
            with pytest.raises(ProxyError, match="must not be TorchScript"):
                proxies.score(model, *batch, [name])


class Raises(Net):
    def __init__(self, error, when="always"):
        super().__init__()
        self.error, self.when = error, when

    def forward(self, x):
        if self.when == "always" or (self.when == "train") == self.training:
            raise self.error
        return super().forward(x)

    def __deepcopy__(self, memo):
        return made(Raises, self.error, self.when)


@pytest.mark.parametrize(
    "error", [KeyError("k"), IndexError("i"), StopIteration(), AssertionError("a\nb"), OSError("o")]
)
def test_whatever_a_network_raises_is_one_line(batch, error):
    model = made(Raises, error)
    before = state(model)
    for name in RAW:
        if name == "params":
            continue
        with pytest.raises(ProxyError, match=f"fails in .*{type(error).__name__}") as told:
            proxies.score(model, *batch, [name])
        assert "\n" not in str(told.value)
    same(before, state(model))
    with pytest.raises(ProxyError, match="fails in train mode: "):
        proxies.score(made(Raises, error, "train"), *batch, ["snip"])


def test_what_else_fails_is_one_line(batch):
    class Uncopied(Net):
        features = Net.forward

        def __deepcopy__(self, memo):
            raise RuntimeError("no copies")

    for call in (
        lambda m: synflow(m, (3, 8, 8)),
        lambda m: zen(m, (2, 3, 8, 8)),
        lambda m: vkdnw_entropy(m, (2, 3, 8, 8)),
    ):
        with pytest.raises(ProxyError, match="no copies"):
            call(made(Uncopied))
    few = made(lambda: Headed(nn.Conv2d(3, 4, 3), 4))
    with pytest.raises(ProxyError, match=r"The loss fails on outputs \(16, 10\)"):
        proxies.score(few, batch[0], batch[1] + 5, ["snip"])
    with pytest.raises(ProxyError, match="fails in eval mode: RuntimeError: .*3 channels"):
        proxies.score(made(Net), batch[0][:, :2], batch[1], ["naswot"])
    with pytest.raises(ProxyError, match="floating-point scores; it returns torch.int64"):
        proxies.score(made(Returning, lambda y, x: y.argmax(1)), *batch, ["naswot"])
    with pytest.raises(TypeError, match="must be a torch.nn.Module; got function"):
        proxies.score(lambda x: x, *batch, ["params"])


# ---- arguments


def test_arrays_bytes_and_doubles_are_images(batch):
    images, labels = batch
    model, names = made(Net), ["tcet", "snip", "params", "macs"]
    wanted = proxies.score(model, images, labels, names)
    for x in (images.numpy(), images.double(), images.double().numpy(), images.numpy().astype(">f4"), images.tolist()):
        for y in (labels, labels.numpy(), labels.numpy().astype(np.uint8), labels.int(), labels.tolist()):
            assert proxies.score(model, x, y, names) == wanted
    pixels = (torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 255).to(torch.uint8)
    wanted = proxies.score(model, pixels.float(), labels[:8], names)
    assert (
        proxies.score(model, pixels, labels[:8], names)
        == proxies.score(model, pixels.numpy(), labels[:8], names)
        == wanted
    )
    double = made(Net).double()
    assert proxies.naswot(double, images.numpy().astype(float)) == proxies.naswot(double, images.double())


def test_batches_that_are_none_are_refused_in_words(batch):
    images, labels = batch
    model = made(Net)
    with pytest.raises(ValueError, match=r"batch \(B, ...\) of at least one; got shape \(0, 3, 16, 16\)"):
        proxies.naswot(model, images[:0])
    with pytest.raises(ValueError, match="a label for each of 16 images; got shape \\(5,\\)"):
        proxies.tcet(model, images, labels[:5])
    with pytest.raises(TypeError, match="images must be a tensor or an array of numbers; got str"):
        proxies.naswot(model, "images.npy")
    with pytest.raises(TypeError, match="labels must be a tensor or an array of numbers; got list"):
        proxies.score(model, images, ["cat"] * 16, ["snip"])
    with pytest.raises(ValueError, match="names must be of"):
        proxies.score(model, images, labels, "accuracy")
    assert proxies.score(model, images, labels, "params") == {"params": 314}
