"""A user's own network for the command `score`: from a Python file to a module, its batch, and what the numbers mean.

`FILE.py:NAME` names a class, a function that returns a network, or a network; `FILE.py:NAME(10, width=32)` gives it
arguments, which are literals. The file is run as an import runs it. Whatever it raises comes back as one
`ForeignError` that says where; nothing that goes wrong becomes a number.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
import sys
import traceback
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from graphnas_lib import datasets
from graphnas_lib.macro import Architecture, stack_cell
from graphnas_lib.proxies import MEANINGS
from graphnas_lib.space import Cell

SPECIFIED = re.compile(r"(?P<file>.+\.py)(?::(?P<what>.*))?", re.DOTALL)
COSTS = ("params", "macs", "flops")  # a price, neither good nor bad


class ForeignError(RuntimeError):
    """A user's file or network failed, or is not what it should be."""


def is_named(text: str) -> bool:
    """Whether `text` names a Python file (and not a JSON file or a cell)."""
    return SPECIFIED.fullmatch(text) is not None


def load(text: str, *, seed: int) -> nn.Module:
    """The network that `FILE.py:NAME` or `FILE.py:NAME(arguments)` names, initialised under `seed`.

    Raises:
        FileNotFoundError: no such file.
        ForeignError: the file or the constructor failed, the name is missing, or it makes no `nn.Module`.
    """
    found = SPECIFIED.fullmatch(text)
    path, what = Path(found["file"]), (found["what"] or "").strip()
    if not path.is_file():
        raise FileNotFoundError(f"A network of your own is FILE.py:CLASS; no file {str(path)!r}.")
    with _foreign(path, f"{path.name} cannot be read"):
        body = ast.parse(path.read_bytes(), path.name).body
    names = [node.name for node in body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    offered = f"it defines {', '.join(names)}" if names else "it defines no class and no function"
    if not what:
        raise ForeignError(f"Say which network: {path.name}:CLASS; {offered}.")
    name, args, kwargs = _call(what, path)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module = _imported(path)
        if not hasattr(module, name):
            raise ForeignError(f"{path.name} must define {name!r}; {offered}.")
        made = getattr(module, name)
        if isinstance(made, nn.Module) and what != name:
            raise ForeignError(f"{name} of {path.name} is a network already and takes no arguments; got {what!r}.")
        if not isinstance(made, nn.Module) and callable(made):
            _check_arguments(made, args, kwargs, f"{path.name}:{name}")
            with _foreign(path, f"{name} of {path.name} cannot be made"):
                made = made(*args, **kwargs)
    if not isinstance(made, nn.Module):
        raise ForeignError(f"{name} of {path.name} must be or return a torch.nn.Module; got {type(made).__name__}.")
    return made


def check_forward(model: nn.Module, images: Tensor, text: str) -> int:
    """Outputs a network has for these images; ForeignError when it fails on them or gives no class scores."""
    path, shape = Path(SPECIFIED.fullmatch(text)["file"]), "x".join(map(str, images.shape[1:]))
    was = model.training
    failed = f"The network fails on inputs of {shape} (--input; a batch is {tuple(images.shape)})"
    with _foreign(path, failed), torch.no_grad(), torch.random.fork_rng(devices=[]):
        outputs = model.eval()(images[:2])
    model.train(was)
    if not isinstance(outputs, Tensor):
        many = f" of {len(outputs)}" if isinstance(outputs, (tuple, list, dict)) else ""
        kind = f"a {type(outputs).__name__}{many}"
        raise ForeignError(f"A network must return one tensor of class scores (B, classes); got {kind}.")
    if outputs.dim() != 2 or len(outputs) != len(images[:2]) or not outputs.is_floating_point():
        raise ForeignError(
            f"A network must return class scores, floating point (B, classes); for B = {len(images[:2])} it returned "
            f"{tuple(outputs.shape)} of {outputs.dtype}."
        )
    return outputs.shape[1]


def batch(name: str, shape: tuple[int, ...] | None, n: int, *, seed: int) -> tuple[Tensor, Tensor | None, int, str]:
    """n images to score on: images, labels (None for noise), classes, and what they are in words.

    Args:
        name: a data set, "noise", or "auto": real images where the shape is (3, H, H), else noise.
        shape: (C, H, W), (C, L) or (L,); None takes the data set's own.
        n: how many.
        seed: of the noise.
    """
    square = shape is not None and len(shape) == 3 and shape[1] == shape[2]
    if name == "noise" or (name == "auto" and shape is not None and not (square and shape[0] == 3)):
        if shape is None:
            raise ValueError("Noise needs a shape: give --input, for example 3x32x32.")
        images = torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))
        why = "" if name == "noise" else ", for want of real images of this shape"
        return images, None, 0, f"standard normal noise with random labels{why}"
    dataset = datasets.load(name, resolution=shape[-1] if square else None)
    images, labels = dataset.batch(n)
    if shape is not None and tuple(images.shape[1:]) != shape:
        raise ValueError(
            f"--data {name} has images of shape {tuple(images.shape[1:])}; got {shape}. Use --data noise, or omit it."
        )
    return images, labels, dataset.classes, f"real images: {dataset.source}"


def images(name: str, shape: tuple[int, ...], n: int) -> tuple[Tensor, Tensor]:
    """Images and labels for T-CET: the first n of a data set, or all of a user's own FILE.npz."""
    if name.endswith(".npz"):
        return _own_images(Path(name))
    dataset = datasets.load(name, resolution=shape[-1])
    if dataset.input_shape != tuple(shape):
        raise ValueError(f"--data {name} has images of shape {dataset.input_shape}; --input asks for {shape}.")
    return dataset.batch(n)


def _own_images(path: Path) -> tuple[Tensor, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
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


def architecture(text: str) -> Architecture:
    """An Architecture from a NATS-Bench cell (stacked by Eq. 1-2) or a JSON file."""
    if text.strip().startswith("|"):
        return stack_cell(Cell.from_nats(text.strip()))
    path = Path(text)
    if not path.is_file():
        raise FileNotFoundError(
            "What to score is your network as FILE.py:CLASS, a JSON file, or a NATS-Bench cell '|...~0|+...'; "
            f"no file {text!r}."
        )
    content = path.read_text()
    try:
        data = json.loads(content)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name} must be JSON; line {error.lineno}: {error.msg}.") from error
    return Architecture.from_dict(data.get("architecture", data) if isinstance(data, dict) else data)


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


# ---- running what others wrote


@contextmanager
def _foreign(path: Path, what: str) -> Iterator[None]:
    """Run a user's code; whatever it raises becomes one error that names the line of his file."""
    try:
        yield
    except (Exception, SystemExit) as error:  # foreign code may raise anything; it stays an error
        where = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path.resolve()]
        line = f"line {where[-1]}: " if where else ""
        raise ForeignError(f"{what}: {line}{type(error).__name__}: {error}") from error


def _imported(path: Path):
    """The file as a module; its folder comes first on the path, so that it finds its neighbours."""
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    module = importlib.util.module_from_spec(spec)
    known = sys.modules.get(path.stem)
    sys.modules[path.stem] = module  # dataclasses look their module up
    try:
        with (
            patch.object(sys, "path", [str(path.resolve().parent), *sys.path]),
            _foreign(path, f"{path.name} cannot be run"),
        ):
            spec.loader.exec_module(module)
    finally:
        sys.modules[path.stem] = known or module
    return module


def _call(what: str, path: Path) -> tuple[str, list, dict]:
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
        f"A network of your own is {path.name}:NAME or {path.name}:NAME(10, width=32), arguments being literals; "
        f"got {what!r}."
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
