"""A user's own network for the command `score`: from a Python file to a module, its batch, and what the numbers mean.

`FILE.py:NAME` or `package.module:NAME` names a class, a function that returns a network, or a network; `NAME(10,
width=32)` gives it arguments, which are literals. The file is run as an import runs it, and its neighbours can be
imported as long as `reachable` holds. Whatever it raises comes back as one `ForeignError` that says where; nothing that
goes wrong becomes a number.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
import sys
import traceback
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from graphnas_lib import datasets
from graphnas_lib.macro import Architecture, stack_cell
from graphnas_lib.network import count
from graphnas_lib.proxies import MEANINGS, Chosen
from graphnas_lib.space import Cell

FILE = re.compile(r"(?P<place>.+\.py)(?::(?P<what>.*))?", re.DOTALL)
MODULE = re.compile(r"(?P<place>[^\W\d]\w*(?:\.[^\W\d]\w*)*):(?P<what>[^\W\d].*)", re.DOTALL)
COSTS = ("params", "macs", "flops")  # a price, neither good nor bad


class ForeignError(RuntimeError):
    """A user's file or network failed, or is not what it should be."""


def is_named(text: str) -> bool:
    """Whether `text` names a network of Python code (and not a JSON file or a cell)."""
    return (FILE.fullmatch(text) or MODULE.fullmatch(text)) is not None


def reachable(text: str):
    """While it is entered, what lies beside a named file, or in this folder for a named module, can be imported."""
    found = FILE.fullmatch(text)
    folder = Path(found["place"]).resolve().parent if found else Path.cwd()
    return patch.object(sys, "path", [str(folder), *sys.path])


def load(text: str, *, seed: int) -> nn.Module:
    """The network that `PLACE:NAME` or `PLACE:NAME(arguments)` names, initialised under `seed`.

    Raises:
        FileNotFoundError: no such file.
        ForeignError: the file or the constructor failed, the name is missing, or it makes no `nn.Module`.
    """
    file = FILE.fullmatch(text)
    found = file or MODULE.fullmatch(text)
    path = Path(found["place"]) if file else None
    place, what = path.name if path else found["place"], (found["what"] or "").strip()
    if path and not path.is_file():
        raise FileNotFoundError(f"A network of your own is FILE.py:CLASS; no file {str(path)!r}.")
    names = _defined(path) if path else []
    offered = f"it defines {', '.join(names)}" if names or not path else "it defines no class and no function"
    if not what:
        raise ForeignError(f"Say which network: {place}:CLASS; {offered}.")
    name, args, kwargs = _call(what, place)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module = _imported(path) if path else _module(place)
        torch.default_generator.manual_seed(seed)  # whatever the import has drawn
        if not hasattr(module, name):
            names = names or [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
            raise ForeignError(f"{place} must define {name!r}; it defines {', '.join(names)}.")
        made = getattr(module, name)
        if isinstance(made, nn.Module) and what != name:
            raise ForeignError(f"{name} of {place} is a network already and takes no arguments; got {what!r}.")
        if not isinstance(made, nn.Module) and callable(made):
            _check_arguments(made, args, kwargs, f"{place}:{name}")
            with _foreign(path, f"{name} of {place} cannot be made"):
                made = made(*args, **kwargs)
    if not isinstance(made, nn.Module):
        raise ForeignError(f"{name} of {place} must be or return a torch.nn.Module; got {type(made).__name__}.")
    return made


def check_forward(model: nn.Module, images: Tensor, text: str, *, seed: int, output: int | str | None = None) -> int:
    """Outputs a network has for these images; ForeignError when it fails on them or gives no class scores.

    It is the network's first forward, under `seed`: lazy layers make their weights in it.
    """
    found, shape = FILE.fullmatch(text), "x".join(map(str, images.shape[1:]))
    was, path = model.training, Path(found["place"]) if found else None
    failed = f"The network fails on inputs of {shape} (--input; a batch is {tuple(images.shape)})"
    chosen = model if output is None else Chosen(model, output)
    with _foreign(path, failed), torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        outputs = chosen.eval()(images[:2].clone())
    model.train(was)
    if not isinstance(outputs, Tensor):
        many = f" of {len(outputs)}" if isinstance(outputs, (tuple, list, dict)) else ""
        kind = f"a {type(outputs).__name__}{many}"
        raise ForeignError(
            f"A network must return one tensor of class scores (B, classes); got {kind}. Say which of them by --output."
        )
    if outputs.dim() != 2 or len(outputs) != len(images[:2]) or not outputs.is_floating_point():
        raise ForeignError(
            f"A network must return class scores, floating point (B, classes); for B = {len(images[:2])} it returned "
            f"{tuple(outputs.shape)} of {outputs.dtype}."
        )
    return outputs.shape[1]


def batch(
    name: str, shape: tuple[int, ...] | None, n: int, *, seed: int, classes: int | None = None, dense: bool = False
) -> tuple[Tensor, Tensor | None, int, str]:
    """n images to score on: images, labels (None for noise), classes, and what they are in words.

    Args:
        name: a data set, "noise", or "auto": real images where the shape is (3, H, H) and the labels fit, else noise.
        shape: (C, H, W), (C, L) or (L,); None takes the data set's own.
        n: how many.
        seed: of the noise.
        classes: outputs of the network, where they are known.
        dense: the network wants a label a position.
    """
    square = _square(shape)
    if name == "auto" and dense:
        name = "noise"
    if name == "noise" or (name == "auto" and shape is not None and not (square and shape[0] == 3)):
        if shape is None:
            raise ValueError("Noise needs a shape: give --input, for example 3x32x32.")
        images = torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))
        why = "" if name == "noise" else ", for want of real images of this shape"
        return images, None, 0, f"standard normal noise with random labels{why}"
    dataset = _first(name, shape, n)
    if name == "auto" and classes is not None and classes < dataset.classes:
        return batch("noise", shape or dataset.input_shape, n, seed=seed)
    images, labels = dataset.batch(n)
    if shape is not None and tuple(images.shape[1:]) != shape:
        raise ValueError(
            f"--data {name} has images of shape {tuple(images.shape[1:])}; got {shape}. Use --data noise, or omit it."
        )
    return images, labels, dataset.classes, f"real images: {dataset.source}"


def _square(shape: tuple[int, ...] | None) -> bool:
    return shape is not None and len(shape) == 3 and shape[1] == shape[2]


def _first(name: str, shape: tuple[int, ...] | None, n: int) -> datasets.Dataset:
    """The first n images of a data set, at the side of a square shape, else as they are."""
    return datasets.load(name, resolution=shape[-1] if _square(shape) else None, n_train=n, n_test=1)


def images(name: str, shape: tuple[int, ...], n: int) -> tuple[Tensor, Tensor]:
    """Images and labels for T-CET: the first n of a data set, or all of a user's own FILE.npz."""
    if name.endswith(".npz"):
        return _own_images(Path(name))
    dataset = _first(name, shape, n)
    if dataset.input_shape != tuple(shape):
        raise ValueError(f"--data {name} has images of shape {dataset.input_shape}; --input asks for {shape}.")
    return dataset.batch(n)


def _own_images(path: Path) -> tuple[Tensor, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(f"--data must be a data set or a readable .npz file; got {path.name}: {error}") from error
    if {"images", "labels"} - set(found):
        raise ValueError(f"{path.name} must have the arrays images and labels; it has {sorted(found) or 'none'}.")
    if found["images"].dtype.kind not in "fiu" or not np.isfinite(found["images"]).all():
        raise ValueError(
            f"{path.name}: images must be finite numbers; they are {found['images'].dtype}, or not finite."
        )
    if found["labels"].dtype.kind not in "iu":
        raise ValueError(f"{path.name}: labels must be integers; got {found['labels'].dtype}.")
    return torch.from_numpy(found["images"]).float(), torch.from_numpy(found["labels"]).long()


def architecture(text: str) -> tuple[Architecture, dict]:
    """An Architecture from a NATS-Bench cell (string or index; stacked by Eq. 1-2) or a JSON file, and its task.

    The task is empty, or of a design's file its `input_shape`, `classes` and `dense`, arguments of `network.build`.
    """
    if text.strip(" \t\r\n\"'").startswith("|"):
        return stack_cell(Cell.from_nats(text)), {}
    path = Path(text)
    if text.isdecimal() and not path.exists():
        from graphnas_lib.benchmarks import nats_string  # seconds, and for an index alone

        return stack_cell(Cell.from_nats(nats_string(int(text)))), {}
    if not path.is_file():
        raise FileNotFoundError(
            "What to score is your network as FILE.py:CLASS, a JSON file, or a NATS-Bench cell '|...~0|+...'; "
            f"no file {text!r}."
        )
    try:
        data = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name} must be JSON; line {error.lineno}: {error.msg}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path.name} must be JSON, in UTF-8 or UTF-16; byte {error.start}: {error.reason}."
        ) from error
    if not isinstance(data, dict):
        return Architecture.from_dict(data), {}
    task = {name: data[name] for name in ("input_shape", "classes", "dense") if "architecture" in data and name in data}
    if not isinstance(task.get("dense", False), bool) or not isinstance(task.get("input_shape", []), list):
        raise ValueError(f"{path.name} must have a list 'input_shape' and true or false as 'dense'; got {task}.")
    if "input_shape" in task:
        task["input_shape"] = tuple(task["input_shape"])
    named = {name: data[name] for name in ("hl", "architecture") if name in data}
    made = Architecture.from_dict(named if len(named) == 2 else named.get("architecture", data))
    count(made, **task)  # what it was designed for must be a shape and a number of classes
    return made, task


def table(values: dict[str, float]) -> str:
    """One line a number: name, value, what it is."""
    lines = []
    for name, value in values.items():
        shown = f"{int(value):,}" if name in COSTS else f"{value:.6g}"
        lines.append(f"{name:<12}{shown:>16}  {'' if name in COSTS else 'higher is better; '}{MEANINGS[name]}")
    return "\n".join(lines)


def explained(n: int, source: str, shape: tuple[int, ...], seed: int) -> str:
    """What the numbers were taken on, and what they may be compared with."""
    size = "x".join(map(str, shape))
    return (
        f"On {n} inputs of {size}, {source}; untrained weights, seed {seed}.\n"
        "A proxy ranks networks before training; it is no accuracy and has no unit. Compare it between networks that "
        f"were scored on the same batch only: never across batch sizes, input sizes or data (here {n} of {size})."
    )


@dataclass(frozen=True)
class _foreign(AbstractContextManager):  # noqa: N801 - a context manager; a generator's would let a StopIteration through
    """Run a user's code; whatever it raises becomes one error that names the line of his file."""

    path: Path | None
    what: str

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, (Exception, SystemExit)):  # foreign code may raise anything; it stays an error
            own = self.path and self.path.resolve()
            where = [frame.lineno for frame in traceback.extract_tb(trace) if Path(frame.filename) == own]
            line = f"line {where[-1]}: " if where else ""
            raise ForeignError(f"{self.what}: {line}{type(error).__name__}: {error}") from error


def _defined(path: Path) -> list[str]:
    """Classes and functions of a file, in order."""
    with _foreign(path, f"{path.name} cannot be read"):
        body = ast.parse(path.read_bytes(), path.name).body
    return [node.name for node in body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]


def _module(name: str) -> ModuleType:
    """The module of a package, imported."""
    with _foreign(
        None, f"{name} cannot be imported; name a FILE.py:CLASS, or start in the folder that holds the package"
    ):
        return importlib.import_module(name)


def _imported(path: Path) -> ModuleType:
    """The file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    module = importlib.util.module_from_spec(spec)
    known = sys.modules.get(path.stem)
    sys.modules[path.stem] = module  # dataclasses look their module up
    try:
        with _foreign(path, f"{path.name} cannot be run"):
            spec.loader.exec_module(module)
    finally:
        sys.modules[path.stem] = known or module
    return module


def _call(what: str, place: str) -> tuple[str, list, dict]:
    """Name, positional and keyword arguments of "NAME" or "NAME(10, width=32)"."""
    try:
        node = ast.parse(what, mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, [], {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            kwargs = {word.arg: ast.literal_eval(word.value) for word in node.keywords if word.arg}
            return node.func.id, [ast.literal_eval(arg) for arg in node.args], kwargs
    except (SyntaxError, ValueError):
        pass
    raise ForeignError(
        f"A network of your own is {place}:NAME or {place}:NAME(10, width=32), arguments being literals; got {what!r}."
    )


def _check_arguments(make, args: list, kwargs: dict, named: str) -> None:
    """Refuse arguments that do not fit, before anything is made."""
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):  # a class of C code tells none
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ForeignError(
            f"{named}{signature} does not take these arguments: {error}. Give them as '{named}(10, width=32)'."
        ) from error
