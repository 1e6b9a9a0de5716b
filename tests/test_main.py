"""The command line: what it prints, and that a mistake ends in one line."""

import hashlib
import json
import math
import pickle
import re
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from simulated_cuda import simulated_cuda
from test_datasets import IMAGES, write_python

from graphnas_lib.cli import main
from graphnas_lib.cli.commands import number
from graphnas_lib.datasets import images
from graphnas_lib.design import Design
from graphnas_lib.macro import stack_cell
from graphnas_lib.network import count
from graphnas_lib.proxies import measures as proxies
from graphnas_lib.runner import notebook as runner
from graphnas_lib.space import NATS_REFERENCE, Cell
from graphnas_lib.store import artifacts

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with one notebook."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (folder / "manifest.toml").write_text('[[notebook]]\nname = "01_only"\ntitle = "One"\nmakes = ["cells"]\n')
    content = {"cells": [], "metadata": {"kernelspec": runner.KERNEL}, "nbformat": 4, "nbformat_minor": 5}
    (folder / "01_only.ipynb").write_text(json.dumps(content))
    return tmp_path


@pytest.fixture
def command(monkeypatch, capsys):
    """The command line in this process: exit status, standard output, standard error."""

    def call(*arguments: str, home: Path) -> tuple[int, str, str]:
        monkeypatch.setenv("GRAPHNAS_HOME", str(home))
        code = main(arguments)
        return (code, *capsys.readouterr())

    return call


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["reproduce", "--notebooks", "99"], "A notebook is one of 01_only"),
        (["reproduce", "--save-outputs", "--scale", "smoke"], "01_only has no executed copy at scale 'smoke'"),
        (["design"], "needs a budget"),
        (["design", "--params", "1M", "--scale", "paper"], "paper"),
        (["score", "no-such-file.json"], "What to score is your network as FILE.py:CLASS, a JSON file"),
        (["score", "no-such-file.py:Net"], "FILE.py:CLASS; no file 'no-such-file.py'"),
        (["score", "|nor_conv_3x3~0|+|broken"], "NATS"),
        (["run", "no-such-stage"], "A stage is one of cells"),
        (
            ["design", "--params", "1M", "--input", "1x5000", "--data", "digits"],
            "digits has images of shape (3, 32, 32)",
        ),
        (["run", "--all", "--scale", "smoke", "--plan", "--without", "tabel2"], "Stages to leave out are among cells"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_end_in_one_line(home, command, arguments, said):
    code, out, err = command(*arguments, home=home)
    assert code == 1 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and said in err


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (None, "own.npz"),
        ({"images": np.zeros((2, 3, 8, 8))}, "must have the arrays images and labels; it has ['images']"),
        ({"images": np.full((2, 3, 8, 8), np.nan), "labels": np.zeros(2, int)}, "images must be finite numbers"),
        ({"images": np.zeros((2, 3, 8, 8)), "labels": np.zeros(2)}, "labels must be integers; got float64"),
        ({"images": np.zeros((2, 3, 8, 8)), "labels": np.array([0, 10])}, "labels must be classes 0 to 9; got 0 to 10"),
        ({"images": np.zeros((2, 3, 4, 4)), "labels": np.zeros(2, int)}, "images must be (B, 3, 8, 8)"),
    ],
    ids=["missing", "no labels", "not finite", "float labels", "too many classes", "other shape"],
)
def test_own_images_that_do_not_fit_are_refused(home, command, tmp_path, arrays, said):
    path = tmp_path / "own.npz"
    if arrays is not None:
        np.savez(path, **arrays)
    code, out, err = command("design", "--params", "1M", "--input", "3x8x8", "--data", str(path), home=home)
    assert code == 1 and out == "" and err.count("\n") == 1 and said in err


def test_debug_shows_the_traceback(home, command):
    with pytest.raises(ValueError, match="A notebook is one of"):
        command("reproduce", "--debug", "--notebooks", "99", home=home)


def test_list_and_why(home, command):
    code, out, _ = command("reproduce", "--scale", "smoke", "--list", home=home)
    assert code == 0 and out.count("would run") == 1
    _, out, _ = command("reproduce", "--scale", "smoke", "--why", "01", home=home)
    assert out.startswith("01_only  would run: it has not run to its end yet; output cells.manifest.json is missing")


def test_score_prints_costs_and_proxies(tmp_path, command):
    cell = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_1x1~2|"
    stacked = stack_cell(Cell.from_nats(cell), width=8, repeats=1)
    path = tmp_path / "small.json"
    path.write_text(stacked.to_json())
    code, out, _ = command("score", str(path), "--data", "digits", "--input", "3x16x16", home=tmp_path)
    told = dict(line.split()[:2] for line in out.splitlines())
    expected = vars(count(stacked, input_shape=(3, 16, 16), classes=10))
    assert code == 0 and {name: int(told[name].replace(",", "")) for name in expected} == expected
    assert all(float(told[name]) > 0 for name in ("tcet", "naswot", "snip_ssnr"))


NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, channels=3, classes=10):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3)
        self.head = nn.Linear(4, classes)

    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))

class Sized(Net):
    def __init__(self, classes):
        super().__init__(3, classes)

class Fails(Net):
    def forward(self, x):
        return undefined

class Two(Net):
    def forward(self, x):
        return super().forward(x), x

class Plain:
    pass

class Bare(nn.Module):
    def forward(self, x):
        return x.flatten(1)

def line(classes=4):
    return nn.Sequential(nn.Conv1d(1, 4, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.LazyLinear(classes))

def maps():
    return nn.Conv2d(3, 8, 3)

def mlp():
    return nn.Sequential(nn.Linear(20, 100), nn.ReLU(), nn.Linear(100, 10))

ready = Net()
"""


@pytest.fixture
def nets(tmp_path: Path) -> str:
    """A user's file of networks."""
    path = tmp_path / "my_nets.py"
    path.write_text(NETS)
    return str(path)


@pytest.mark.parametrize(
    ("named", "size", "params", "source"),
    [
        ("Net", "3x16x16", 3 * 36 + 4 + 50, "real images: "),
        ("Net(classes=12)", "3x16x16", 3 * 36 + 4 + 60, "real images: "),
        ("Net(1, 2)", "1x9x9", 36 + 4 + 10, "standard normal noise with random labels, for want of real images"),
        ("ready", "3x16x16", 3 * 36 + 4 + 50, "real images: "),
        ("line", "1x50", 12 + 4 + 20, "standard normal noise with random labels, for want of real images"),
        ("mlp", "20", 2100 + 1010, "standard normal noise"),
    ],
)
def test_score_takes_a_users_own_network_and_says_what_the_numbers_mean(
    tmp_path, nets, command, named, size, params, source
):
    code, out, err = command("score", f"{nets}:{named}", "--input", size, home=tmp_path)
    told = {line.split()[0]: line.split(maxsplit=2)[1:] for line in out.splitlines()}
    assert code == 0, err
    assert told["params"] == [f"{params:,}", "parameters"]
    for name in ("tcet", "naswot", "snip_ssnr"):
        assert math.isfinite(float(told[name][0])) and told[name][1].startswith("higher is better; ")
    assert f"On 64 inputs of {size}, {source}" in out and "seed 0" in out
    assert "it is no accuracy" in out and "never across batch sizes" in out
    assert command("score", f"{nets}:{named}", "--input", size, home=tmp_path)[1] == out


@pytest.mark.parametrize(
    ("named", "options", "said"),
    [
        ("", [], r"Say which network: my_nets.py:CLASS; it defines Net, Sized, .*, mlp\."),
        (":Nett", [], r"my_nets.py must define 'Nett'; it defines Net, Sized"),
        (":Sized", [], r"my_nets.py:Sized\(classes\) does not take .*missing .*'classes'.* Give them as"),
        (":Sized(10", [], r"my_nets.py:NAME\(10, width=32\), arguments being literals; got 'Sized\(10'"),
        (":ready(3)", [], r"is a network already and takes no arguments; got 'ready\(3\)'"),
        (":Plain", [], r"Plain of my_nets.py must be or return a torch.nn.Module; got Plain"),
        (":Fails", [], r"fails on inputs of 3x32x32 .*: line 20: NameError: name 'undefined'"),
        (":Two", [], r"must return one tensor of class scores \(B, classes\); got a tuple of 2"),
        (":maps", [], r"must return class scores, .* it returned \(2, 8, 30, 30\)"),
        (":Bare", [], r"must have a Conv1d, Conv2d or Linear layer"),
        (":Net", ["--input", "1x28x28"], r"fails on inputs of 1x28x28 .*expected input.* to have 3 channels"),
        (":Net", ["--input", "784"], r"fails on inputs of 784 .*conv2d"),
        (":Net", ["--data", "digits", "--input", "1x28x28"], r"images of shape \(3, 28, 28\); .*Use --data noise"),
        (":Sized(2)", [], r"has 2 outputs and the data 10 classes; use --data noise"),
        (":Net", ["--proxies", "tcett"], r"names must be of .*'tcet'.*got \['tcett'\]"),
    ],
)
def test_score_of_a_users_network_that_cannot_be_says_why(tmp_path, nets, command, named, options, said):
    code, out, err = command("score", nets + named, *options, home=tmp_path)
    assert code == 1 and out == "" and err.count("\n") == 1
    assert re.search(said, err), err


SHOWN = """
from torch import nn
from my_nets import Net

class Lazy(Net):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.LazyConv2d(4, 3), nn.LazyLinear(10)

class InPlace(Net):
    def forward(self, x):
        return super().forward(x.sub_(0.5).div_(0.25))

class OutOfPlace(Net):
    def forward(self, x):
        return super().forward((x - 0.5) / 0.25)

class Beside(Net):
    def __init__(self):
        from beside import block
        super().__init__()
        self.conv = block()

class BesideLater(Net):
    def forward(self, x):
        import beside_later
        return super().forward(x)

class Auxiliary(Net):
    def forward(self, x):
        return {"aux": x, "out": super().forward(x)} if self.training else super().forward(x)

class Lstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.l, self.f = nn.LSTM(48, 64, batch_first=True), nn.Linear(64, 10)

    def forward(self, x):
        return self.f(self.l(x.permute(0, 2, 1, 3).flatten(2))[0][:, -1])

class Stops(Net):
    def forward(self, x):
        return next(iter(()))
"""


@pytest.fixture
def shown(nets, tmp_path) -> str:
    """A user's second file, its neighbours, and a package that imports within itself."""
    for name, text in {
        "shown.py": SHOWN,
        "beside.py": "from torch import nn\ndef block():\n    return nn.Conv2d(3, 4, 3)\n",
        "beside_later.py": "",
        "my_package/__init__.py": "",
        "my_package/inner/__init__.py": "",
        "my_package/inner/net.py": "from ..base import Net\n\nclass Ours(Net):\n    pass\n",
        "my_package/base.py": NETS,
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    yield str(tmp_path / "shown.py")
    for name in [n for n in sys.modules if n.startswith(("my_package", "beside", "my_nets", "shown"))]:
        del sys.modules[name]


def told(out: str) -> dict[str, str]:
    return {line.split()[0]: line.split()[1] for line in out.splitlines() if line.strip()}


def test_score_of_a_network_that_writes_into_its_input_or_is_lazy(tmp_path, shown, command):
    size = ("--input", "3x16x16", "--proxies", "tcet", "snip")
    first = command("score", f"{shown}:InPlace", *size, home=tmp_path)
    assert first[0] == 0 and first[1] == command("score", f"{shown}:OutOfPlace", *size, home=tmp_path)[1]
    lazy = [command("score", f"{shown}:Lazy", *size, home=tmp_path) for _ in range(2)]
    assert lazy[0][0] == 0 and lazy[0] == lazy[1] and told(lazy[0][1])["params"] == "162"


def test_score_says_what_it_leaves_out(tmp_path, shown, command):
    code, out, _ = command("score", f"{shown}:Lstm", "--input", "3x16x16", home=tmp_path)
    assert code == 0 and told(out)["macs"] == "459,392"
    assert out.splitlines()[-1].endswith("96% of this network's parameters lie elsewhere and are left out: "
        "l.weight_hh_l0, l.weight_ih_l0.")  # fmt: skip


def test_score_finds_a_networks_neighbours_and_packages(tmp_path, shown, command, monkeypatch):
    size = ("--input", "3x16x16")
    for name in ("Beside", "BesideLater"):
        code, out, err = command("score", f"{shown}:{name}", *size, home=tmp_path)
        assert code == 0 and told(out)["params"] == "162", err
    monkeypatch.chdir(tmp_path)
    code, out, err = command("score", "my_package.inner.net:Ours(classes=12)", *size, home=tmp_path)
    assert code == 0 and told(out)["params"] == "172", err
    for named, said in (
        ("my_package.inner.nothing:Ours", "cannot be imported; name a FILE.py:CLASS, or start in the folder"),
        ("my_package.inner.net:Hours", "my_package.inner.net must define 'Hours'; it defines Net, Ours"),
        ("my_package.inner.net:Ours(", "arguments being literals"),
    ):
        code, out, err = command("score", named, home=tmp_path)
        assert code == 1 and out == "" and err.count("\n") == 1 and said in err
    assert str(tmp_path) not in sys.path


def test_score_of_several_outputs(tmp_path, shown, nets, command):
    size = ("--input", "3x16x16", "--proxies", "tcet", "snip")
    code, _, err = command("score", f"{shown}:Auxiliary", *size, home=tmp_path)
    assert code == 1 and "it returns a dict with the keys ['aux', 'out']. Say which" in err and err.count("\n") == 1
    wanted = command("score", f"{nets}:Net", *size, home=tmp_path)[1]
    assert command("score", f"{shown}:Auxiliary", *size, "--output", "out", home=tmp_path)[1] == wanted
    assert command("score", f"{nets}:Two", *size, "--output", "0", home=tmp_path)[1] == wanted
    code, _, err = command("score", f"{nets}:Two", *size, "--output", "5", home=tmp_path)
    assert code == 1 and "must name one of what a network returns; it returns a tuple of 2" in err
    code, _, err = command("score", f"{shown}:Stops", *size, home=tmp_path)
    assert code == 1 and "StopIteration" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "task",
    [
        {"input_shape": (2, 40), "classes": 4},
        {"input_shape": (1, 12, 12), "classes": 7},
        {"input_shape": (3, 16, 16), "classes": 4},
        {"input_shape": (3, 8, 8), "classes": 2, "dense": True},
    ],
)
def test_a_designs_file_brings_its_own_task(tmp_path, command, task):
    cell = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_1x1~2|"
    architecture = stack_cell(Cell.from_nats(cell), width=8, repeats=1)
    costs = count(architecture, **task)
    made = Design(architecture=architecture, **vars(costs), tcet=1.0, batch="noise", **task)
    path, size = made.save(tmp_path / "d.json"), "x".join(map(str, task["input_shape"]))
    code, out, err = command("score", str(path), home=tmp_path)
    assert code == 0, err
    assert {name: int(told(out)[name].replace(",", "")) for name in vars(costs)} == vars(costs)
    assert f"64 inputs of {size}, standard normal noise with random labels" in out
    assert command("score", str(path), "--input", size, home=tmp_path)[1] == out
    for encoding in ("utf-8-sig", "utf-16"):  # as editors of another system write it
        path.write_bytes(path.read_text().replace("\n", "\r\n").encode(encoding))
        assert command("score", str(path), home=tmp_path)[1] == out and Design.load(path) == made
        made.save(path)
    code, out, err = command("score", str(path), "--input", "5x9", home=tmp_path)
    assert code == 1 and out == "" and err.count("\n") == 1 and "was designed for inputs of" in err
    for name, value in (("input_shape", 7), ("input_shape", [3, "x"]), ("classes", 0), ("dense", "no")):
        (tmp_path / "bad.json").write_text(json.dumps(made.to_dict() | {name: value}))
        code, out, err = command("score", str(tmp_path / "bad.json"), home=tmp_path)
        assert code == 1 and out == "" and err.count("\n") == 1 and name in err


def test_score_takes_a_nats_cell_however_it_is_written(tmp_path, command):
    options = ("--data", "noise", "--input", "3x8x8", "--proxies", "params")
    wanted = command("score", NATS_REFERENCE, *options, home=REPOSITORY)[1]
    for text in (f" {NATS_REFERENCE}\n", f"'{NATS_REFERENCE}'", NATS_REFERENCE.replace("+", " + "), "13714"):
        assert command("score", text, *options, home=REPOSITORY)[1] == wanted != ""
    code, _, err = command("score", "15625", *options, home=REPOSITORY)
    assert code == 1 and "must be one of the 15,625" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nothing_like_it", "own.py cannot be run: line 1: ModuleNotFoundError"),
        ("class (:", r"own.py cannot be read: SyntaxError: .*own.py, line 1"),
        ("raise SystemExit(0)", "own.py cannot be run: line 1: SystemExit"),
    ],
)
def test_score_of_a_file_that_fails_says_where(tmp_path, command, text, said):
    (tmp_path / "own.py").write_text(text)
    code, out, err = command("score", f"{tmp_path / 'own.py'}:Net", home=tmp_path)
    assert code == 1 and out == "" and re.search(said, err) and err.count("\n") == 1


def test_every_proxy_has_a_meaning(capsys):
    assert tuple(proxies.MEANINGS) == proxies.NAMES
    assert all(text and "\n" not in text for text in proxies.MEANINGS.values())
    with pytest.raises(SystemExit):
        main(["score", "--help"])
    assert "FILE.py:CLASS" in capsys.readouterr().out


def test_doctor_finds_a_damaged_artifact(tmp_path, command, monkeypatch):
    monkeypatch.setenv("GRAPHNAS_HOME", str(tmp_path))
    artifacts.save("gvae", {"gvae.json": {"a": 1}}, scale="lite", seed=0, seconds=1.0)
    code, out, _ = command("doctor", home=tmp_path)
    assert code == 0 and "artifacts at lite: gvae" in out and "all as their SHA-256 says" in out
    (tmp_path / "data" / "lite" / "gvae.json").write_text('{"a": 2}')
    code, out, _ = command("doctor", home=tmp_path)
    assert code == 1 and "DAMAGED: gvae.json of stage gvae" in out
    artifacts.manifest_path("gvae", "lite").write_text("{")
    code, out, _ = command("doctor", home=tmp_path)
    assert code == 1 and "DAMAGED: manifest of stage gvae must be JSON" in out


def test_doctor_names_what_makes_artifacts_and_why_no_gpu_is_used(tmp_path, command):
    _, out, _ = command("doctor", home=tmp_path)
    assert "artifacts at paper: none (python -m graphnas_lib run --all --scale paper makes them)" in out
    assert "no cuda device" not in out.lower() and re.search(r"device: CPU, .*torch \S+ is a build ", out)


def test_doctor_tells_a_build_without_kernels_for_a_gpu(tmp_path, command, monkeypatch):
    card = SimpleNamespace(name="Tesla V100", major=7, minor=0)
    with simulated_cuda():
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90a", "compute_90"])
        _, out, _ = command("doctor", home=tmp_path)
    assert "device: cuda:0 Tesla V100, 80 of 80 GiB free, compute capability 7.0" in out
    assert "This build has no kernels for it (they begin at 7.5): install one for an older CUDA" in out


def test_doctor_fetches_cifar(tmp_path, command, monkeypatch):
    source = write_python(tmp_path / "source")
    (fine := source / "cifar-100-python").mkdir()
    for split in ("train", "test"):
        (fine / split).write_bytes(pickle.dumps({"data": IMAGES[:10], "fine_labels": list(range(10))}, protocol=2))
    for name, folder in (("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")):
        path = tmp_path / f"{name}.tar.gz"
        with tarfile.open(path, "w:gz") as tar:
            tar.add(source / folder, folder)
        monkeypatch.setitem(images._OFFICIAL[name], "url", path.as_uri())
        monkeypatch.setitem(images._OFFICIAL[name], "sha256", hashlib.sha256(path.read_bytes()).hexdigest())
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("GRAPHNAS_DATA", str(tmp_path / "data"))
    code, out, said = command("doctor", "--download", home=tmp_path)
    assert code == 0, (out, said)
    assert re.search(r"cifar10: CIFAR-10 .*a subset.*\ncifar100: CIFAR-100 ", out)
    assert (tmp_path / "data" / "cifar-100-python").is_dir() and "  cifar10: 20 + " in out


@pytest.mark.parametrize(("text", "value"), [("1M", 1e6), ("300M", 3e8), ("1.5G", 1.5e9), ("1e6", 1e6), ("2e3K", 2e6)])
def test_numbers_with_units(text, value):
    assert number(text) == value
