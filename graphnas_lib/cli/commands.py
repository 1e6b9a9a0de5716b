"""The command line: `python -m graphnas_lib reproduce | run | design | export | score | doctor`, each with `--help`.

A user's mistake ends in one line that says what to do, and exit status 1; `--debug` shows the traceback. Heavy imports
wait until a verb needs them.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path

from graphnas_lib import store

DEFAULT_PROXIES = ("tcet", "naswot", "snip_ssnr")
IMAGES = 64  # deviation D18: the batch that T-CET is taken on


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):  # what a locale's encoding lacks is printed as "?"; a log has lines at once
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace", line_buffering=True)
    options = parser().parse_args(arguments)
    try:
        return options.verb(options)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, TypeError, RuntimeError, OSError, ImportError) as error:
        if options.debug:
            raise
        told = " ".join(f"{error} {store.remedy(str(error))}".split())
        print(f"error: {told} (--debug shows where)", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    top = argparse.ArgumentParser(prog="python -m graphnas_lib", description=__doc__.splitlines()[0])
    verbs = top.add_subparsers(required=True, metavar="VERB")
    for verb, options in VERBS.items():
        text = verb.__doc__.removesuffix(".")
        made = verbs.add_parser(verb.__name__, help=text[0].lower() + text[1:], description=verb.__doc__)
        made.add_argument("--debug", action="store_true", help="show the traceback of an error")
        made.set_defaults(verb=verb)
        for flags, settings in options:
            made.add_argument(*flags, **settings)
    return top


def number(text: str) -> float:
    """ "300M", "1.5G", "1e6" to a number; argparse turns the ValueError into its own message."""
    from graphnas_lib.design import quantity

    try:
        return quantity(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def shape(text: str) -> tuple[int, ...]:
    """ "3x32x32" to (3, 32, 32)."""
    if not re.fullmatch(r"0*[1-9]\d*(x0*[1-9]\d*){0,2}", text):
        raise argparse.ArgumentTypeError(f"a shape such as 3x32x32, 1x1000 or 784; got {text!r}")
    return tuple(int(side) for side in text.split("x"))


# ---- verbs


def reproduce(options: argparse.Namespace) -> int:
    """Run the notebooks: every table and figure."""
    from graphnas_lib import runner

    project = runner.Project(store.root())
    if options.readme:
        print("\n".join(runner.update(project)) or "README.md and REPORT.md are up to date")
        return 0
    scale = options.scale or project.default_scale([options.why] if options.why else options.notebooks)
    if options.save_outputs:
        print("\n".join(runner.save_outputs(project, scale, options.notebooks)))
        return 0
    if options.list or options.why:
        reasons = runner.status(project, scale, seed=options.seed, device=options.device)
        chosen = runner.select(project.notebooks(), [options.why] if options.why else options.notebooks)
        known = runner.past_seconds(project, scale)
        for notebook in chosen:
            why = reasons[notebook.name] if options.why else reasons[notebook.name][:2]
            took = f"  last run {runner.duration(known[notebook.name])}" if notebook.name in known else ""
            print(f"{notebook.name}  {'would run: ' + '; '.join(why) if why else 'fresh'}{took}")
        return 0
    two = scale == "lite" and (os.cpu_count() or 1) > 1  # its notebooks only open what ships: none waits for another
    given = {"seed": options.seed, "device": options.device, "jobs": 1 + two if options.jobs is None else options.jobs}
    return runner.reproduce(project, scale, notebooks=options.notebooks, force=options.force, **given)


def run(options: argparse.Namespace) -> int:
    """Run one stage, for example: run gvae --scale smoke; or --all of them, and the notebooks."""
    from graphnas_lib.paper import STAGES

    if options.all or options.plan:
        return _run_all(options)
    if options.resume and options.fresh:
        raise ValueError("--resume goes on from the last checkpoint and --fresh forgets it; give one of them.")
    if options.stage not in STAGES:
        raise ValueError(f"A stage is one of {', '.join(STAGES)}; got {options.stage!r}.")
    from graphnas_lib import stages

    given = {name: getattr(options, name) for name in ("seed", "device", "fresh", "dask", "digits")}
    found = stages.run(options.stage, options.scale, **given)
    files = ", ".join(found["files"])
    if not stages.together.is_first(options.stage):
        return 0
    print(f"{options.stage} at scale {options.scale}: {files} ({found['seconds']} s on {found['device']})")
    return 0


def _run_all(options: argparse.Namespace) -> int:
    """The plan; then, unless it is all that is asked for, every stage and every notebook that is not there."""
    if options.stage or options.fresh:
        raise ValueError(
            "--all and --plan take every stage as it is there; name no stage but after --without, and give no --fresh."
        )
    from graphnas_lib import runner, stages

    given = {"seed": options.seed, "device": options.device}
    if options.plan:
        print(stages.told(stages.plan(options.scale, without=options.without, **given)))
        return 0
    asked = {"dask": options.dask, "digits": options.digits, "without": options.without}
    became = stages.run_all(options.scale, tell=print, **asked, **given)
    status = runner.reproduce(runner.Project(store.root()), options.scale, **given)
    return max(status, int("failed" in became.values()))


def design(options: argparse.Namespace) -> int:
    """A budget in, networks out."""
    if options.params is None and options.flops is None:
        raise ValueError("A design needs a budget: give --params, --flops or both.")
    from graphnas_lib import network
    from graphnas_lib.cli import foreign
    from graphnas_lib.design import design as make

    if options.output and "onnx" in options.formats:
        network.need_onnx()  # before the search
    images, labels = foreign.images(options.data, options.input, IMAGES) if options.data else (None, None)
    as_named = ("params", "flops", "classes", "n", "seed", "scale", "tolerance", "candidates", "fresh")
    as_named += ("select", "device")
    given = {name: getattr(options, name) for name in as_named}
    designs = make(**given, input_shape=options.input, images=images, labels=labels, progress=True)
    print(designs)
    print(designs.scores())
    if options.output:
        store.write(options.output / "designs.csv", designs.table())
        for suffix in sorted(options.formats, key=store.DESIGN_FORMATS.index):  # what may fail comes last
            for rank, made in enumerate(designs):
                made.save(options.output / f"design_{rank:02d}.{suffix}")
        print(f"Wrote {len(designs)} designs to {options.output} as {', '.join(options.formats)}, and designs.csv.")
    return 0


def export(options: argparse.Namespace) -> int:
    """A design as Python code, ONNX or a drawing."""
    from graphnas_lib import network
    from graphnas_lib.design import Design

    if "onnx" in options.formats:
        network.need_onnx()
    made = Design.load(options.design)
    for suffix in options.formats:
        path = (options.output or options.design.parent) / f"{options.design.stem}.{suffix}"
        if path.resolve() != options.design.resolve():
            print(f"Wrote {made.save(path)}")
    return 0


def score(options: argparse.Namespace) -> int:
    """Costs and zero-cost proxies of one network, yours too: score FILE.py:CLASS."""
    from graphnas_lib.cli import foreign

    with foreign.reachable(options.architecture):
        return _score(options)


def _score(options: argparse.Namespace) -> int:
    import torch

    from graphnas_lib import network, proxies
    from graphnas_lib.cli import foreign

    text, seed, device = options.architecture, options.seed, store.pick_device(options.device)
    own = foreign.is_named(text)
    named, task = (foreign.load(text, seed=seed), {}) if own else foreign.architecture(text)
    shape = task.get("input_shape", options.input)
    if options.input not in (None, shape):
        raise ValueError(f"{text} was designed for inputs of {shape}; --input asks for {options.input}. Omit --input.")
    dense, wanted = task.get("dense", False), task.get("classes")
    images, labels, classes, source = foreign.batch(options.data, shape, IMAGES, seed=seed, classes=wanted, dense=dense)
    images, sizes = images.to(device), {"input_shape": tuple(images.shape[1:]), "classes": classes or 10, **task}
    if own:
        model, output = named.to(device), options.output
        sizes["classes"] = foreign.check_forward(model, images, text, seed=seed, output=output)
    else:
        model, output = network.build(named, **sizes, seed=seed).to(device), None
    if sizes["classes"] < classes:
        raise ValueError(
            f"The network has {sizes['classes']} outputs and the data {classes} classes; use --data noise."
        )
    if labels is None:
        places = (len(images), *sizes["input_shape"][1:]) if dense else (len(images),)
        labels = torch.randint(sizes["classes"], places, generator=torch.Generator().manual_seed(seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is left out is said below
        values = proxies.score(model, images, labels.to(device), options.proxies, output=output, seed=seed)
        costs = proxies.module_costs(model, sizes["input_shape"]) if own else network.count(named, **sizes)
    print(foreign.table({**vars(costs), **values}))
    print(foreign.explained(len(images), source, sizes["input_shape"], seed))
    if missed := proxies.left_out(model):
        print(missed)
    return 0


def doctor(options: argparse.Namespace) -> int:
    """Versions, device, data and artifacts of this installation; exit status 1 when an artifact is damaged."""
    from graphnas_lib.cli.doctor import download, lines

    if options.download:
        print("\n".join(download()))
    told, healthy = lines()
    print("\n".join(told))
    return 0 if healthy else 1


def _option(*flags: str, **settings) -> tuple[tuple[str, ...], dict]:
    return flags, settings


COMMON = (
    _option("--seed", type=int, default=0, help="default 0"),
    _option("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, ..."),
)
FORMATS = _option(
    "--formats",
    nargs="+",
    choices=store.DESIGN_FORMATS,
    default=("json", "py", "png"),
    help="json is read again by this package; py is the network as code that needs PyTorch alone; onnx has random "
    "weights and is checked; png, pdf, svg are drawings; default json py png",
)
REPRODUCE = (
    _option("--scale", choices=store.SCALE_NAMES, help="default lite if all that the notebooks need ships, else smoke"),
    _option("--notebooks", nargs="+", metavar="NN", help="numbers or names; default all"),
    _option("--force", action="store_true", help="run fresh notebooks too"),
    _option("--jobs", type=int, metavar="N", help="notebooks at a time; default two at lite on two cores, else one"),
    _option("--list", action="store_true", help="say which notebooks are fresh, run nothing"),
    _option("--why", metavar="NN", help="say why a notebook would run"),
    _option("--save-outputs", action="store_true", help="put the executed copies' outputs into notebooks/*.ipynb"),
    _option("--readme", action="store_true", help="write REPORT.md and README.md's generated blocks again"),
    *COMMON,
)
RUN = (
    _option("stage", nargs="?", help="name of a stage; an unknown one lists them all"),
    _option("--all", action="store_true", help="print the plan, make every stage that is not there, run the notebooks"),
    _option("--plan", action="store_true", help="print what --all would do, make nothing"),
    _option(
        "--without", nargs="+", metavar="STAGE", default=(), help="with --all: leave these out, for example table2"
    ),
    _option("--scale", choices=store.SCALE_NAMES, default="smoke", help="default smoke; lite takes hours"),
    _option("--resume", action="store_true", help="go on from the last checkpoint (the default)"),
    _option("--fresh", action="store_true", help="forget checkpoint and artifact, start anew"),
    _option("--digits", action="store_true", help="at paper: take scikit-learn's digits where CIFAR-10 is missing"),
    _option("--dask", metavar="ADDRESS", help="a dask scheduler, tcp://host:port, on whose workers jobs run"),
    *COMMON,
)
DESIGN = (
    _option("--params", type=number, help="wanted parameters, for example 1M"),
    _option("--flops", type=number, help="wanted FLOPs (2 x MACs) at the input's size, for example 300M"),
    _option("--input", type=shape, default=(3, 32, 32), metavar="CxHxW", help="default 3x32x32"),
    _option("--classes", type=int, default=10, help="default 10"),
    _option("-n", type=int, default=10, help="networks to return, default 10"),
    _option("-o", "--output", type=Path, metavar="FOLDER", help="write each design, and a table of all, there"),
    FORMATS,
    _option(
        "--data",
        help="what T-CET is taken on: auto, cifar10, cifar100, imagenet16-120, digits, or your own FILE.npz with the "
        "arrays images (B, *input), normalised, and labels (B,); default noise",
    ),
    _option("--scale", choices=store.SCALE_NAMES, help="whose generator; default: the one that ships"),
    _option("--tolerance", type=float, default=0.05, help="largest relative error of the costs, default 0.05"),
    _option(
        "--candidates", type=int, help="networks to score by T-CET, those that promise most; default 2 (shallow: 4 n)"
    ),
    _option(
        "--fresh", action="store_true", help="decode greedily and draw every cell anew; take nothing from the evolution"
    ),
    _option(
        "--select",
        choices=("tcet", "shallow"),
        default="tcet",
        help="tcet (default): highest T-CET, deep and narrow; shallow: few cells, highest T-CET a layer, trains soon",
    ),
    *COMMON,
)
EXPORT = (
    _option("design", type=Path, help="a .json file that `design -o` wrote"),
    _option("-o", "--output", type=Path, metavar="FOLDER", help="default: beside the design"),
    FORMATS,
)
SCORE = (
    _option(
        "architecture",
        help="your own network, FILE.py:CLASS, package.module:CLASS or 'FILE.py:CLASS(10, width=32)' (a class, or a "
        "function that returns a network; the file is run as an import runs it); or a JSON file of an Architecture or "
        "a Design, which brings its own input and classes; or a NATS-Bench cell, its string or index",
    ),
    _option(
        "--data",
        default="auto",
        help="what the proxies are taken on: cifar10, cifar100, imagenet16-120, digits, noise; auto (default): real "
        "images where there are some of the input's shape, else noise",
    ),
    _option(
        "--input", type=shape, metavar="CxHxW", help="count and score at this size; default the design's or data's"
    ),
    _option(
        "--output",
        type=lambda text: int(text) if re.fullmatch(r"-?\d+", text) else text,
        metavar="NAME",
        help="which output of your own network is the scores, where it returns several: an index, a key, an attribute",
    ),
    _option(
        "--proxies",
        nargs="+",
        default=DEFAULT_PROXIES,
        help=f"default {' '.join(DEFAULT_PROXIES)}; a wrong one lists all",
    ),
    *COMMON,
)
DOCTOR = (
    _option("--download", action="store_true", help="fetch CIFAR-10 and CIFAR-100 first, 330 MB, SHA-256 checked"),
)
VERBS = {reproduce: REPRODUCE, run: RUN, design: DESIGN, export: EXPORT, score: SCORE, doctor: DOCTOR}
