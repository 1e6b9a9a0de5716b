"""Networks that leave: one Python file, ONNX, JSON; what comes back is what went out."""

import ast
import copy
import json
import random
import re
import runpy
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from graphnas_lib.cli import main
from graphnas_lib.design import Design
from graphnas_lib.macro import CHANNELS, Architecture, Triple
from graphnas_lib.network import Network, build, count, export
from graphnas_lib.space import OPERATIONS, Cell, sample_cells

CELLS = sample_cells(60, seed=3)
STRAIGHT = Cell.from_edges([(0, 1), (1, 7)], ["skip", *[None] * 5])  # canonical forms have no such cell; inputs may


def architecture(seed: int, *, strides: int = 2) -> Architecture:
    """Two to six random cells, sometimes a head."""
    rng = random.Random(seed)
    n = rng.randint(2, 6)
    strided = rng.sample(range(n), min(strides, n))
    rows = [Triple(rng.choice(CELLS), rng.choice(CHANNELS[:5]), 2 if i in strided else 1) for i in range(n)]
    return Architecture(tuple(rows), rng.choice([None, 24]), 1)


def settled(model, shape, seed=0):
    """The network with norms that know their inputs, in eval mode: outputs as those of a trained one."""
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    with torch.no_grad():
        model(torch.randn(16, *shape, generator=generator))
    return model.eval()


def from_file(model, path):
    """What the file of `to_code` makes, with a network's weights and mode."""
    sizes = {"input_shape": model.input_shape, "classes": model.classifier.out_features, "dense": model.dense}
    path.write_text(export.to_code(model.architecture, **sizes))
    twin = runpy.run_path(str(path))["Network"]()
    twin.load_state_dict(model.state_dict())
    return twin.train(model.training)


SIZES = [
    *({"input_shape": (3, 16, 16), "classes": classes} for classes in range(2, 20)),
    {"input_shape": (2, 48), "classes": 4},
    {"input_shape": (1, 8, 8), "classes": 3, "dense": True},
]


@pytest.mark.parametrize("seed, sizes", list(enumerate(SIZES)))
def test_code_gives_the_networks_outputs(seed, sizes, tmp_path):
    made = architecture(seed)
    model = settled(build(made, **sizes, seed=seed), sizes["input_shape"])
    twin = from_file(model, tmp_path / "net.py")
    assert list(twin.state_dict()) == list(model.state_dict()) and not twin.training
    images = torch.randn(5, *sizes["input_shape"], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(twin(images), model(images), atol=1e-4, rtol=1e-4)
    assert sum(p.numel() for p in twin.parameters()) == count(made, **sizes).params


def test_every_operation_has_its_code(tmp_path):
    for name in OPERATIONS[1:]:
        cell = Cell.from_edges([(0, 1), (1, 2), (2, 7)], [name, name, *[None] * 4])
        made = Architecture((Triple(cell, 16, 1), Triple(cell, 24, 2)), None, 2)  # the second changes width and stride
        model = settled(build(made, seed=0), (3, 32, 32))
        images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            twin = from_file(model, tmp_path / "net.py")
            torch.testing.assert_close(twin(images), model(images), atol=1e-4, rtol=1e-4)


def test_cells_without_a_layer_of_their_own(tmp_path):
    made = Architecture((Triple(STRAIGHT, 16, 1), Triple(STRAIGHT, 24, 2)))
    model = settled(build(made, seed=0), (3, 32, 32))
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        twin = from_file(model, tmp_path / "net.py")
        torch.testing.assert_close(twin(images), model(images), atol=1e-4, rtol=1e-4)


def test_file_stands_alone(tmp_path):
    made = architecture(5)
    text = export.to_code(made, classes=7, title="A title.")
    imported = {node.names[0].name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import)}
    modules = {node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
    assert imported == modules == {"torch"} and "@" not in text and "graphnas_lib" in ast.get_docstring(ast.parse(text))
    assert max(map(len, text.splitlines())) <= 120
    (tmp_path / "net.py").write_text(text)
    done = subprocess.run([sys.executable, "net.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{count(made, classes=7).params:,} parameters, outputs (2, 7)"


def test_weights_return_from_the_file(tmp_path):
    model = build(architecture(2), seed=0)
    twin = from_file(model, tmp_path / "net.py")
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1)
    model.load_state_dict(twin.state_dict())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


# ---- ONNX


@pytest.fixture
def runtime():
    pytest.importorskip("onnxscript", reason="ONNX export needs the extra 'onnx'")
    return pytest.importorskip("onnxruntime", reason="ONNX export needs the extra 'onnx'")


def test_onnx_gives_the_networks_outputs(runtime, tmp_path):
    made = architecture(4)
    model = settled(build(made, classes=5, input_shape=(3, 16, 16), seed=0), (3, 16, 16))
    model.train()
    path = export.to_onnx(model, tmp_path / "sub" / "net.onnx")
    assert model.training and [p.name for p in path.parent.iterdir()] == ["net.onnx"]
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for n in (1, 7):
        images = torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(n))
        (found,) = session.run(None, {"images": images.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), model.eval()(images), atol=1e-4, rtol=1e-4)
            model.train()


def test_onnx_that_differs_is_refused(runtime, tmp_path, monkeypatch):
    model = build(architecture(4), input_shape=(3, 16, 16), seed=0)
    other = build(architecture(4), input_shape=(3, 16, 16), seed=1)
    monkeypatch.setattr(
        export, "_export", lambda _, example, path, true=export._export: true(other.eval(), example, path)
    )
    with pytest.raises(export.ExportError, match="the network's outputs"):
        export.to_onnx(model, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_onnx_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(export.ExportError, match="onnxruntime.*pip install"):
        export.to_onnx(build(architecture(0), seed=0), tmp_path / "net.onnx")
    with pytest.raises(ValueError, match=r"\.onnx"):
        export.to_onnx(build(architecture(0), seed=0), tmp_path / "net.pt")


def wrong_twins(model):
    """The network with one thing changed: cells that give zero, another activation, a stem of the other sign."""
    zero, smooth, negated = (copy.deepcopy(model) for _ in range(3))
    for cell in zero.cells:
        cell.register_forward_hook(lambda m, i, o: torch.zeros_like(o))
    for module in list(smooth.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.ReLU):
                setattr(module, name, torch.nn.SiLU())
    with torch.no_grad():
        negated.stem[0].weight.neg_()
    return {"zero": zero, "smooth": smooth, "negated": negated}


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 48)])
def test_the_check_of_an_export_finds_what_differs_in_an_untrained_network(shape):
    """Untrained, in eval mode, outputs hardly depend on the image; with the norms settled they do."""
    model = build(architecture(4), input_shape=shape, classes=5, seed=0).eval()
    example = torch.randn(8, *shape, generator=torch.Generator().manual_seed(0))
    known = export.settled(model, example)
    assert export.tells_apart(known, example)
    export.check_outputs(copy.deepcopy(known), known, example)
    export.check_outputs(lambda x: known.double()(x.double()).float(), copy.deepcopy(known), example)  # rounding passes
    known.float()
    for twin in wrong_twins(known).values():
        with pytest.raises(export.ExportError, match="the network's outputs within"):
            export.check_outputs(twin, known, example)


def test_onnx_of_another_function_is_refused_untrained(runtime, tmp_path, monkeypatch):
    model = build(architecture(4), input_shape=(3, 16, 16), seed=0)
    for name in ("zero", "smooth", "negated"):
        monkeypatch.setattr(
            export,
            "_export",
            lambda m, example, path, name=name, true=export._export: true(wrong_twins(m)[name], example, path),
        )
        with pytest.raises(export.ExportError, match="the network's outputs"):
            export.to_onnx(model, tmp_path / "net.onnx")
        monkeypatch.undo()
    assert not list(tmp_path.iterdir())


def small_design(seed=1, **task):
    made = architecture(seed)
    return Design(architecture=made, **vars(count(made, **task)), tcet=1.0, batch="noise", **task)


WRAPPED = {
    "parallel": torch.nn.DataParallel,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "compiled": torch.compile,
    "compiled and averaged": lambda model: torch.optim.swa_utils.AveragedModel(torch.compile(model)),
    "half": lambda model: model.half(),
    "double": lambda model: model.double(),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_wrapped_network_is_unwrapped(kind):
    design = small_design(classes=5)
    found = design._own(WRAPPED[kind](design.build(seed=0)))
    assert type(found) is Network and found.architecture == design.architecture


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_wrapped_network_is_exported(runtime, tmp_path, kind):
    design = small_design(input_shape=(3, 16, 16), classes=5)
    model = settled(design.build(seed=0), (3, 16, 16))
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = model(images)
    path = design.save(tmp_path / "net.onnx", model=WRAPPED[kind](model))
    found = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(
        None, {"images": images.numpy()}
    )
    torch.testing.assert_close(torch.from_numpy(found[0]), wanted, atol=1e-2, rtol=1e-2)


def test_weights_of_another_design_are_refused(tmp_path):
    design, other = small_design(1, classes=5), small_design(2, classes=5)
    more = replace(design, classes=6)
    wider = replace(design, input_shape=(3, 64, 64))
    for wrong in (other, more, wider):
        for model in (wrong.build(seed=0), torch.nn.DataParallel(wrong.build(seed=0))):
            with pytest.raises(ValueError, match="must be those of this design's network"):
                design.save(tmp_path / "net.onnx", model=model)
    twin = from_file(design.build(seed=0), tmp_path / "twin.py")
    assert design._own(twin) is twin
    headless = design.build(seed=0)
    headless.classifier = torch.nn.Sequential(headless.classifier)
    for model in (from_file(other.build(seed=0), tmp_path / "twin.py"), torch.nn.Linear(2, 2), headless):
        with pytest.raises(ValueError, match="must be those of this design's network"):
            design.save(tmp_path / "net.onnx", model=model)
    assert [path.name for path in tmp_path.iterdir()] == ["twin.py"]


def test_packages_are_looked_for_before_the_search(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    source = small_design().save(tmp_path / "d.json")
    for arguments in (
        ("design", "--params", "60K", "-n", "1", "-o", str(tmp_path / "o"), "--formats", "json", "onnx", "png"),
        ("export", str(source), "-o", str(tmp_path / "o"), "--formats", "py", "onnx", "png"),
    ):
        assert main(arguments) == 1
        assert capsys.readouterr().err.startswith("error: ONNX needs 'onnxruntime': pip install")
    assert not (tmp_path / "o").exists()


def test_what_was_found_is_written_before_what_may_fail(tmp_path, capsys):
    folder = tmp_path / "o"
    (folder / "design_00.png").mkdir(parents=True)  # in the way
    arguments = (
        "design",
        "--params",
        "60K",
        "--input",
        "3x8x8",
        "-n",
        "2",
        "-o",
        str(folder),
        "--formats",
        "png",
        "json",
        "py",
    )
    assert main(arguments) == 1 and "design_00.png" in capsys.readouterr().err
    written = sorted(path.name for path in folder.iterdir() if path.is_file())
    assert written == ["design_00.json", "design_00.py", "design_01.json", "design_01.py", "designs.csv"]


# ---- designs as files


def designed(seed: int = 0) -> Design:
    """A design of random parts."""
    made = architecture(seed)
    made = replace(made, triples=tuple(replace(t, family=0) for t in made.triples))
    return Design(architecture=made, **vars(count(made)), tcet=1.5, batch="two images")


@pytest.mark.parametrize("suffix", ["json", "py", "png", "pdf", "svg"])
def test_designs_are_written_by_the_ending(tmp_path, suffix):
    path = designed().save(tmp_path / "sub" / f"d.{suffix}")
    assert [p.name for p in path.parent.iterdir()] == [f"d.{suffix}"] and path.stat().st_size > 500
    if suffix == "json":
        assert Design.load(path) == designed()


def damage(change) -> str:
    data = designed().to_dict()
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    "text, said",
    [
        (designed().to_json()[:-20], "valid JSON; line 1, column"),
        ("[1, 2]", "exactly the fields"),
        (damage(lambda d: d.pop("tcet")), "exactly the fields"),
        (damage(lambda d: d["architecture"]["triples"][1].update(channels=13)), "triple 1.*multiple of 8.*13"),
        (damage(lambda d: d["architecture"]["triples"][0].update(channels=48)), "'params' must be what"),
        (damage(lambda d: d["architecture"]["triples"][0].pop("cell")), "triple 0: 'cell' is missing"),
        (damage(lambda d: d.update(params=d["params"] + 1)), "'params' must be what its architecture has"),
        (damage(lambda d: d.update(input_shape=[3, 32, "a"])), "input_shape must be"),
        (damage(lambda d: d.update(classes="ten")), "classes must be"),
        (damage(lambda d: d.update(tcet="high")), "'tcet' must be a float"),
        (damage(lambda d: d.update(hl={"triples": [[0, 8, 1]]})), "'hl' must have the channels and strides"),
    ],
)
def test_damaged_designs_are_refused_with_place_and_reason(tmp_path, text, said):
    path = tmp_path / "d.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"d.json: .*{said}"):
        Design.load(path)


def test_export_verb(tmp_path, capsys):
    source = designed().save(tmp_path / "d.json")
    assert main(["export", str(source), "--formats", "json", "py", "png"]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.json", "d.png", "d.py"]
    assert main(["export", str(source), "-o", str(tmp_path / "other")]) == 0
    assert Design.load(tmp_path / "other" / "d.json") == designed()
    source.write_text("{")
    assert main(["export", str(source)]) == 1
    told = capsys.readouterr().err
    assert re.fullmatch(r"error: d\.json: A design must be valid JSON; line 1.*\n", told)
