"""The command line: `python -m graphnas_lib reproduce | run | design | export | score | doctor`, each with `--help`.

A user's mistake ends in one line that says what to do, and exit status 1; `--debug` shows the traceback. Heavy imports
wait until a verb needs them.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from graphnas_lib import store

UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}
DEFAULT_PROXIES = ("tcet", "naswot", "snip_ssnr")
IMAGES = 64  # deviation D18: the batch that T-CET is taken on


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    options = parser().parse_args(arguments)
    try:
        return options.verb(options)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        if options.debug:
            raise
        print(f"error: {' '.join(str(error).split())} (--debug shows where)", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    top = argparse.ArgumentParser(prog="python -m graphnas_lib", description=__doc__.splitlines()[0])
    verbs = top.add_subparsers(required=True, metavar="VERB")
    _reproduce_options(_verb(verbs, "reproduce", reproduce, "run the notebooks: every table and figure"))
    _run_options(_verb(verbs, "run", run, "run one stage, for example: run gvae --scale smoke"))
    _design_options(_verb(verbs, "design", design, "a budget in, networks out"))
    _export_options(_verb(verbs, "export", export, "a design as Python code, ONNX or a drawing"))
    _score_options(
        _verb(verbs, "score", score, "costs and zero-cost proxies of one network, yours too: score FILE.py:CLASS")
    )
    _verb(verbs, "doctor", doctor, "versions, device, data and artifacts of this installation")
    return top


def _verb(verbs, name: str, function, text: str) -> argparse.ArgumentParser:
    made = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    made.set_defaults(verb=function)
    return made


def _common(to: argparse.ArgumentParser) -> None:
    to.add_argument("--seed", type=int, default=0, help="default 0")
    to.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, ...")


# ---- reproduce


def _reproduce_options(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "--scale",
        choices=store.SCALE_NAMES,
        help="default lite if all that the notebooks need ships, else smoke",
    )
    to.add_argument("--notebooks", nargs="+", metavar="NN", help="numbers or names; default all")
    to.add_argument("--force", action="store_true", help="run fresh notebooks too")
    to.add_argument("--list", action="store_true", help="say which notebooks are fresh, run nothing")
    to.add_argument("--why", metavar="NN", help="say why a notebook would run")
    to.add_argument(
        "--save-outputs", action="store_true", help="put the executed copies' outputs into notebooks/*.ipynb"
    )
    to.add_argument("--readme", action="store_true", help="write README's generated blocks again")
    _common(to)


def reproduce(options: argparse.Namespace) -> int:
    """The verb `reproduce`."""
    from graphnas_lib import runner
    from graphnas_lib import runner as headless
    from graphnas_lib.runner import Project, select

    project = Project(store.root())
    if options.readme:
        print("\n".join(runner.update(project)) or "README.md is up to date")
        return 0
    scale = options.scale or project.default_scale([options.why] if options.why else options.notebooks)
    if options.save_outputs:
        print("\n".join(runner.save_outputs(project, scale, options.notebooks)))
        return 0
    if options.list or options.why:
        reasons = headless.status(project, scale, seed=options.seed, device=options.device)
        chosen = select(project.notebooks(), [options.why] if options.why else options.notebooks)
        known = headless.past_seconds(project, scale)
        for notebook in chosen:
            why = reasons[notebook.name] if options.why else reasons[notebook.name][:2]
            took = f"  last run {headless.duration(known[notebook.name])}" if notebook.name in known else ""
            print(f"{notebook.name}  {'would run: ' + '; '.join(why) if why else 'fresh'}{took}")
        return 0
    return headless.reproduce(
        project,
        scale,
        notebooks=options.notebooks,
        force=options.force,
        seed=options.seed,
        device=options.device,
    )


# ---- run


def _run_options(to: argparse.ArgumentParser) -> None:
    to.add_argument("stage", help="name of a stage; an unknown one lists them all")
    to.add_argument("--scale", choices=store.SCALE_NAMES, default="smoke", help="default smoke; lite takes hours")
    how = to.add_mutually_exclusive_group()
    how.add_argument("--resume", action="store_true", help="go on from the last checkpoint (the default)")
    how.add_argument("--fresh", action="store_true", help="forget checkpoint and artifact, start anew")
    _common(to)


def run(options: argparse.Namespace) -> int:
    """The verb `run`."""
    from graphnas_lib.paper import STAGES

    if options.stage not in STAGES:
        raise ValueError(f"A stage is one of {', '.join(STAGES)}; got {options.stage!r}.")
    from graphnas_lib import stages

    stages.run(options.stage, options.scale, seed=options.seed, device=options.device, fresh=options.fresh)
    found = store.load_manifest(options.stage, options.scale)
    files = ", ".join(found["files"])
    print(f"{options.stage} at scale {options.scale}: {files} ({found['seconds']} s on {found['device']})")
    return 0


# ---- design


def number(text: str) -> float:
    """ "300M", "1.5G", "1e6" to a number; argparse turns the ValueError into its own message."""
    found = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?\d+)?)\s*([KMGB]?)\s*", text, re.IGNORECASE)
    if not found:
        raise argparse.ArgumentTypeError(f"a number such as 300M, 1.5G or 1e6; got {text!r}")
    return float(found[1]) * UNITS[found[2].upper()]


def shape(text: str) -> tuple[int, ...]:
    """ "3x32x32" to (3, 32, 32)."""
    if not re.fullmatch(r"0*[1-9]\d*(x0*[1-9]\d*){0,2}", text):
        raise argparse.ArgumentTypeError(f"a shape such as 3x32x32, 1x1000 or 784; got {text!r}")
    return tuple(int(side) for side in text.split("x"))


def _design_options(to: argparse.ArgumentParser) -> None:
    to.add_argument("--params", type=number, help="wanted parameters, for example 1M")
    to.add_argument("--flops", type=number, help="wanted FLOPs (2 x MACs) at the input's size, for example 300M")
    to.add_argument("--input", type=shape, default=(3, 32, 32), metavar="CxHxW", help="default 3x32x32")
    to.add_argument("--classes", type=int, default=10, help="default 10")
    to.add_argument("-n", type=int, default=10, help="networks to return, default 10")
    to.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="write each design, and a table of all, there")
    _formats(to)
    to.add_argument(
        "--data",
        help="what T-CET is taken on: auto, cifar10, cifar100, imagenet16-120, digits, or your own FILE.npz with the "
        "arrays images (B, *input), normalised, and labels (B,); default noise",
    )
    to.add_argument("--scale", choices=store.SCALE_NAMES, help="whose generator; default: the one that ships")
    to.add_argument("--tolerance", type=float, default=0.05, help="largest relative error of the costs, default 0.05")
    to.add_argument("--candidates", type=int, help="networks to score by T-CET, of which the best -n are kept")
    to.add_argument(
        "--fresh", action="store_true", help="decode greedily and draw every cell anew; take nothing from the evolution"
    )
    _common(to)


def design(options: argparse.Namespace) -> int:
    """The verb `design`."""
    if options.params is None and options.flops is None:
        raise ValueError("A design needs a budget: give --params, --flops or both.")
    from graphnas_lib.design import design as make

    images = labels = None
    if options.data:
        images, labels = _images(options.data, options.input)
    designs = make(
        options.params,
        options.flops,
        input_shape=options.input,
        classes=options.classes,
        n=options.n,
        seed=options.seed,
        scale=options.scale,
        images=images,
        labels=labels,
        tolerance=options.tolerance,
        candidates=options.candidates,
        fresh=options.fresh,
        device=options.device,
        progress=True,
    )
    print(designs.table().to_string(index=False))
    print(f"T-CET on {designs[0].batch}.")
    if options.output:
        for rank, made in enumerate(designs):
            for suffix in options.formats:
                made.save(options.output / f"design_{rank:02d}.{suffix}")
        store.write(options.output / "designs.csv", designs.table())
        print(f"Wrote {len(designs)} designs to {options.output} as {', '.join(options.formats)}, and designs.csv.")
    return 0


def _formats(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "--formats",
        nargs="+",
        choices=store.DESIGN_FORMATS,
        default=("json", "py", "png"),
        help="json is read again by this package; py is the network as code that needs PyTorch alone; onnx has random "
        "weights and is checked; png, pdf, svg are drawings; default json py png",
    )


def _export_options(to: argparse.ArgumentParser) -> None:
    to.add_argument("design", type=Path, help="a .json file that `design -o` wrote")
    to.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="default: beside the design")
    _formats(to)


def export(options: argparse.Namespace) -> int:
    """The verb `export`."""
    from graphnas_lib.design import Design

    made = Design.load(options.design)
    for suffix in options.formats:
        path = (options.output or options.design.parent) / f"{options.design.stem}.{suffix}"
        if path.resolve() != options.design.resolve():
            print(f"Wrote {made.save(path)}")
    return 0


def _images(name: str, input_shape: tuple[int, ...]):
    from graphnas_lib import datasets

    if name.endswith(".npz"):
        return _own_images(Path(name))
    dataset = datasets.load(name, resolution=input_shape[-1])
    if dataset.input_shape != tuple(input_shape):
        raise ValueError(f"--data {name} has images of shape {dataset.input_shape}; --input asks for {input_shape}.")
    return dataset.batch(IMAGES)


def _own_images(path: Path):
    import numpy as np
    import torch

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


# ---- score


def _score_options(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "architecture",
        help="your own network, FILE.py:CLASS or 'FILE.py:CLASS(10, width=32)' (a class, or a function that returns a "
        "network; the file is run as an import runs it); or a JSON file of an Architecture or a Design; or a "
        "NATS-Bench cell string",
    )
    to.add_argument(
        "--data",
        default="auto",
        help="what the proxies are taken on: cifar10, cifar100, imagenet16-120, digits, noise; auto (default): real "
        "images where there are some of the input's shape, else noise",
    )
    to.add_argument("--input", type=shape, metavar="CxHxW", help="count and score at this size; default the data's")
    to.add_argument(
        "--proxies",
        nargs="+",
        default=DEFAULT_PROXIES,
        help=f"default {' '.join(DEFAULT_PROXIES)}; a wrong one lists all",
    )
    _common(to)


def score(options: argparse.Namespace) -> int:
    """The verb `score`."""
    from graphnas_lib import network, proxies
    from graphnas_lib.cli import foreign

    own, seed, device = foreign.is_named(options.architecture), options.seed, store.pick_device(options.device)
    if own:
        model = foreign.load(options.architecture, seed=seed)
    else:
        architecture = _architecture(options.architecture)
    images, labels, classes, source = foreign.batch(options.data, options.input, IMAGES, seed=seed)
    sizes = {"input_shape": tuple(images.shape[1:]), "classes": classes or 10}
    if own:
        model = model.to(device)
        outputs = foreign.check_forward(model, images.to(device), options.architecture)
        if outputs < classes:
            raise ValueError(f"The network has {outputs} outputs and the data {classes} classes; use --data noise.")
        sizes["classes"] = outputs
    else:
        costs = vars(network.count(architecture, **sizes))
        model = network.build(architecture, **sizes, seed=seed)
    if labels is None:
        labels = foreign.random_labels(len(images), sizes["classes"], seed=seed)
    model, images, labels = model.to(device), images.to(device), labels.to(device)
    values = proxies.score(model, images, labels, options.proxies)
    if own:
        costs = vars(proxies.module_costs(model, sizes["input_shape"]))
    print(foreign.table({**costs, **values}))
    print(foreign.explained(len(images), source, sizes["input_shape"], seed))
    return 0


def _architecture(text: str):
    """An Architecture from a NATS-Bench cell (stacked by Eq. 1-2) or a JSON file."""
    import json

    from graphnas_lib.macro import Architecture, stack_cell
    from graphnas_lib.space import Cell

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
    nested = data.get("architecture") if isinstance(data, dict) else None
    return Architecture.from_dict(nested if nested is not None else data)


# ---- doctor


def doctor(options: argparse.Namespace) -> int:
    """The verb `doctor`: exit status 1 when an artifact is damaged."""
    from graphnas_lib.cli.doctor import lines

    told, healthy = lines()
    print("\n".join(told))
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main())
