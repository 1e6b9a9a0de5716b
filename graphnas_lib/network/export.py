"""A network without this package: one Python file that imports PyTorch alone, and ONNX (peers' users ask for both).

The file's modules carry the names of `network.Network`'s, so that weights go from one to the other by
`load_state_dict`; `export.toml` holds its fixed parts. ONNX is checked against the original before it is kept.
"""

from __future__ import annotations

import copy
import logging
import textwrap
import tomllib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from graphnas_lib import store
from graphnas_lib.macro import Architecture
from graphnas_lib.network.modules import count, ends, plan, steps
from graphnas_lib.network.operations import Layer
from graphnas_lib.space import INPUT, OUTPUT, Cell

WRAPPED_AS = ("module", "_orig_mod")  # names under which PyTorch's wrappers hold a network
TOLERANCE = 1e-4  # largest difference of outputs, relative to the largest output


class ExportError(RuntimeError):
    """An exported network does not compute what the original does, or an optional package is missing."""


_PARTS = tomllib.loads(Path(__file__).with_name("export.toml").read_text(encoding="utf-8"))


def to_code(
    architecture: Architecture, *, input_shape=(3, 32, 32), classes: int = 10, dense: bool = False, title: str = ""
) -> str:
    """Text of a Python file whose `Network()` is the network, with the same modules under the same names.

    Args:
        architecture: cells, widths, strides.
        input_shape: (C, H, W), or (C, L).
        classes: outputs.
        dense: one prediction a position.
        title: first line of its docstring.
    """
    costs = count(architecture, input_shape=input_shape, classes=classes, dense=dense)
    names: dict[str, str] = {}  # body of a class -> its name
    calls = []
    for step in steps(architecture, dense):
        body = _cell(*step)
        names.setdefault(body, f"Cell{len(names) + 1}")
        calls.append(f"{names[body]}()")
    classes_text = "".join(f"\n\nclass {name}(nn.Module):\n{body}" for body, name in names.items())
    body = classes_text + _network(architecture, tuple(input_shape), classes, dense, calls)
    helpers = "".join("\n" + text for name, text in _PARTS["helpers"].items() if f" {name}(" in body)
    shape = " x ".join(map(str, input_shape))
    numbers = {"params": costs.params, "flops": costs.flops, "shape": shape, "classes": classes}
    header = _PARTS["header"].format(title=title or f"A network of {len(calls)} cells.", **numbers)
    footer = _PARTS["footer"].format(sizes=", ".join(map(str, input_shape)))
    return header + (helpers + body + footer).replace("@", f"{len(input_shape) - 1}d")


def _cell(cell: Cell, inputs: int, channels: int, stride: int) -> str:
    """Body of a cell's class."""
    planned = plan(cell, inputs, channels, stride)
    told = f"{inputs} -> {channels} channels" + (f", stride {stride}" if stride != 1 else "")
    lines = [f'"""{told}."""', "", "def __init__(self):", "    super().__init__()"]
    value, before = {INPUT: "x"}, []
    if planned.projection:
        lines.append(f"    self.projection = conv({inputs}, {channels}, 1{_stride(stride)})")
        value[INPUT], before = "projected", ["    projected = self.projection(x)"]
    lines += ["    self.nodes = nn.ModuleDict(", "        {"]
    for node in planned.nodes:
        if node.layers:
            sizes = (inputs, channels, stride) if node.raw else (channels, channels, 1)
            call = _operation(cell.operations[node.node - 1], node.layers, *sizes)
            lines.append(f'            "{node.node}": {call},')
    lines += ["        }", "    )", "", "def forward(self, x):", *before]
    for node in planned.nodes:
        total = "x" if node.raw else " + ".join(value[source] for source in node.sources)
        value[node.node] = name = f"x{node.node}"
        if node.node == OUTPUT:
            lines.append(f"    return {total}")
        elif node.layers:
            lines.append(f'    {name} = self.nodes["{node.node}"]({total})')
        elif len(node.sources) > 1:
            lines.append(f"    {name} = {total}")
        else:  # a skip of one node is that node
            value[node.node] = total
    return textwrap.indent("\n".join(lines) + "\n", "    ", lambda line: line.strip() != "")


def _operation(name: str, layers: Sequence[Layer], inputs: int, outputs: int, stride: int) -> str:
    """The call that makes an operation (App. B), whose layers these are."""
    kind, _, kernel = name.rpartition("_")
    if kind in ("conv", "avg_pool"):
        return f"{'conv' if kind == 'conv' else 'pool'}({inputs}, {outputs}, {kernel}{_stride(stride)})"
    if kind in ("sep_conv", "dil_conv"):
        dilated = ", dilation=2" if kind == "dil_conv" else ""
        return f"separable({inputs}, {outputs}, {kernel}{_stride(stride)}{dilated})"
    return f"bottleneck({inputs}, {layers[1].outputs}, {outputs}, {kernel}{_stride(stride)})"


def _stride(stride: int) -> str:
    return f", stride={stride}" if stride != 1 else ""


def _network(architecture: Architecture, shape: tuple[int, ...], classes: int, dense: bool, calls: list[str]) -> str:
    """The class `Network`."""
    (first, _), (norm, _, *wide) = ends(architecture, shape[0], dense)
    stem = (
        f"nn.Conv@({first.inputs}, {first.outputs}, 3, {first.stride}, 1, bias=False), nn.BatchNorm@({first.outputs})"
    )
    head, width = f"nn.BatchNorm@({norm.outputs}), nn.ReLU()", norm.outputs
    if wide:
        width = wide[0].outputs
        head += f", nn.Conv@({norm.outputs}, {width}, 1, bias=False), nn.BatchNorm@({width})"
    if dense:
        forward = "self.classifier(x.movedim(1, -1)).movedim(-1, 1)  # one prediction a position"
    else:
        forward = f"self.classifier(x.mean(dim={(-1,) if len(shape) == 2 else (-2, -1)}))"
    cells = "".join(f"            {call},\n" for call in calls)
    return f'''

class Network(nn.Module):
    """(B, {", ".join(map(str, shape))}) -> (B, {classes}{", ..." if dense else ""})."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential({stem})
        self.cells = nn.ModuleList([
{cells}        ])
        self.head = nn.Sequential({head})
        self.classifier = nn.Linear({width}, {classes})

    def forward(self, x):
        x = self.stem(x)
        for cell in self.cells:
            x = cell(x)
        x = self.head(x)
        return {forward}
'''


def need_onnx() -> None:
    """ExportError unless the packages of the extra `onnx` are there: to be asked before a long search."""
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError as error:
        raise ExportError(f"ONNX needs '{error.name}': pip install -e '.[onnx]'.") from error


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside DataParallel, an averaged or a compiled one, and whatever wraps these."""
    while inner := [part for name, part in vars(model)["_modules"].items() if part is not None and name in WRAPPED_AS]:
        model = inner[0]
    return model


def to_onnx(model: nn.Module, path: Path | str, *, input_shape: Sequence[int] | None = None) -> Path:
    """Write a network with its weights, in eval mode and float32, as ONNX with any batch size; checked before kept.

    Where the outputs hardly depend on the image, as those of an untrained network do, ONNX Runtime and PyTorch are
    compared on the same network with the norms' statistics of the example too.

    Args:
        model: a network of `network.build`, trained or not, wrapped (`unwrapped`) or not; it is left as it was.
        path: ends in .onnx.
        input_shape: of one input, where the network is another than `network.build`'s.

    Raises:
        ValueError: the path does not end in .onnx, or the input's shape is not known.
        ExportError: a package of the extra `onnx` is missing; or the outputs differ by more than `TOLERANCE`.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"An ONNX file's path must end in .onnx; got {path.name!r}.")
    need_onnx()
    model = unwrapped(model)
    shape = input_shape or getattr(model, "input_shape", None)
    if shape is None:
        raise ValueError(f"A network of another make needs input_shape= to be exported; got {type(model).__name__}.")
    twin = copy.deepcopy(model).cpu().float().eval()  # the caller keeps mode, type and device
    example = torch.randn(8, *shape, generator=torch.Generator().manual_seed(0))
    with store.replaced(path) as part:
        for network in (twin,) if tells_apart(twin, example) else (settled(twin, example), twin):
            _export(network, example, part)
            check_outputs(_session(part), network, example)
    return path


def _session(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _spread(outputs: Tensor) -> float:
    """How far the outputs of different images lie from their mean."""
    return (outputs - outputs.mean(0)).abs().max().item()


def tells_apart(network: nn.Module, example: Tensor) -> bool:
    """Whether a network's outputs depend on the image by more than `TOLERANCE` of their size."""
    with torch.no_grad():
        outputs = network(example)
    return _spread(outputs) > TOLERANCE * max(1.0, outputs.abs().max().item())


def settled(network: nn.Module, example: Tensor) -> nn.Module:
    """A copy in eval mode whose norms have the statistics of `example`, as a trained network's know their inputs."""
    copied = copy.deepcopy(network).train()
    for module in copied.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        copied(example)
    return copied.eval()


def check_outputs(found: Callable[[Tensor], Tensor], network: nn.Module, example: Tensor) -> None:
    """ExportError unless a function gives a network's outputs.

    Within `TOLERANCE` of their size, and within ten times that of what distinguishes images, if anything does.
    """
    for batch in (example, torch.cat([example, -example[:1]])):
        with torch.no_grad():
            wanted = network(batch)
        size = max(1.0, wanted.abs().max().item())
        size = min(size, 10 * _spread(wanted)) if tells_apart(network, example) else size
        error = (found(batch) - wanted).abs().max().item() / size
        if not error <= TOLERANCE:
            raise ExportError(f"ONNX must give the network's outputs within {TOLERANCE:g}; off {error:g}.")


def _export(twin: nn.Module, example: Tensor, path: Path) -> None:
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it tells that torchvision is missing, which nothing here needs
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                twin,
                (example,),
                str(path),
                input_names=["images"],
                output_names=["scores"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    finally:
        log.setLevel(level)
