"""The notebooks as a graph: what each reads and makes, in which order they run, and when one is fresh.

`notebooks/manifest.toml` says which stages a notebook makes and `paper.STAGES` what these read; inputs, order,
freshness and README's map follow. A notebook is fresh when nothing that can change its result has changed since its
last success: code cells and their tags, parameters, the library files that it stands on, the artifacts that it reads.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from graphnas_lib import store
from graphnas_lib.paper import STAGES
from graphnas_lib.runner import notebook as runner

ROAD = {name: stage.needs for name, stage in STAGES.items()}


class ManifestError(ValueError):
    """`notebooks/manifest.toml` contradicts itself."""


@dataclass(frozen=True, kw_only=True)
class Notebook:
    """One entry of the manifest, and what follows from it. Stages are those of `paper.STAGES`."""

    name: str
    title: str
    paper: tuple[str, ...] = ()  # tables, figures and sections of the paper that it rebuilds
    makes: tuple[str, ...] = ()  # stages it produces
    reads: tuple[str, ...] = ()  # stages it shows that none of `makes` reads
    optional: tuple[str, ...] = ()  # those of `makes`, at paper of `reads` too, that may be absent: it then says why
    figures: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    timeout: dict[str, int] = field(default_factory=dict)  # seconds a cell may take, by scale
    needs: tuple[str, ...] = ()  # derived: all stages whose artifacts it reads

    @property
    def number(self) -> str:
        """Leading digits of the name."""
        return self.name.split("_")[0]

    def required(self, scale: str) -> set[str]:
        """Stages that must be there before it runs; at paper it makes none itself, and does without the optional."""
        return {*self.needs, *self.makes}.difference(self.optional) if scale == "paper" else set(self.needs)


@dataclass(frozen=True)
class Project:
    """Where the notebooks lie, and which library they stand on; tests hand in a toy one."""

    root: Path
    package: str = "graphnas_lib"
    # the stages that a notebook makes are named one by one, not by way of the table of all
    library_files: Callable[[Iterable[str]], list[Path]] = partial(
        store.library_files, without=["graphnas_lib.stages.road"]
    )
    package_parent: Path = Path(__file__).resolve().parents[2]
    road: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: ROAD)

    def source(self, name: str) -> Path:
        return self.root / "notebooks" / f"{name}.ipynb"

    def cells(self, name: str) -> list[dict]:
        """Code cells of a notebook."""
        if not self.source(name).is_file():
            raise FileNotFoundError(
                f"notebooks/{name}.ipynb must be there: notebooks/manifest.toml names it. Restore it."
            )
        return runner.code_cells(runner.read(self.source(name)))

    def executed(self, name: str, scale: str) -> Path:
        return self.root / "notebooks" / "executed" / scale / f"{name}.ipynb"

    def stage(self, stage: str, scale: str) -> Path:
        return self.root / "data" / scale / f"{stage}.manifest.json"

    def artifact_key(self, stage: str, scale: str) -> str:
        """Its files: a stage that was run again with the same result (other seconds, other commit) changes nothing."""
        manifest = self.stage(stage, scale)
        if not manifest.is_file():
            return "missing"
        content = manifest.read_bytes()
        with suppress(ValueError, KeyError, TypeError):
            content = json.dumps(json.loads(content)["files"], sort_keys=True).encode()
        return _sha(content)

    def state(self, scale: str) -> Path:
        return self.root / "data" / scale / ".notebooks.json"

    def outputs(self, notebook: Notebook, scale: str) -> list[Path]:
        """Files that the notebook must have written, the executed copy aside; at paper only those of whole inputs."""
        if scale == "paper" and not all(self.stage(stage, scale).is_file() for stage in notebook.optional):
            return []
        figures = self.root / "figures" / scale
        tables = self.root / "data" / scale / "results"
        return [
            *(self.stage(stage, scale) for stage in notebook.makes if stage not in notebook.optional),
            *(figures / f"{name}{suffix}" for name in notebook.figures for suffix in (".pdf", ".png", ".csv", ".json")),
            *(tables / f"{name}{suffix}" for name in notebook.tables for suffix in (".csv", ".md")),
        ]

    def notebooks(self) -> list[Notebook]:
        """The manifest, in order of execution."""
        return in_order(read_manifest(self.root / "notebooks" / "manifest.toml", self.road))

    def default_scale(self, chosen: Iterable[str] | None = None) -> str:
        """ "lite" where all that these notebooks (names or numbers; None for all) read and make ships, else "smoke".

        It is the scale that the parameters cell of a committed notebook states.
        """
        notebooks = select(self.notebooks(), chosen)
        return store.default_scale(*{stage for one in notebooks for stage in (*one.needs, *one.makes)})


def read_manifest(path: Path, road: Mapping[str, tuple[str, ...]] = ROAD) -> list[Notebook]:
    """Entries of a manifest in their order, each with what it needs by `road`: stage -> stages that it reads.

    Raises:
        ManifestError: a name, made stage, figure or table occurs twice; an entry has an unknown key, names an unknown
            stage, or says again what follows from the road.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"notebooks/manifest.toml must be there; {path.parent} has none. Restore it; the notebooks come with the "
            "repository, not with an installed package."
        )
    known = set(Notebook.__dataclass_fields__) - {"needs"}
    notebooks = []
    for entry in tomllib.loads(path.read_text(encoding="utf-8")).get("notebook", []):
        if not {"name", "title"} <= set(entry) <= known:
            raise ManifestError(f"A manifest entry has name, title and some of {sorted(known)}; got {sorted(entry)}.")
        entry = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
        name, makes, reads = entry["name"], entry.get("makes", ()), entry.get("reads", ())
        if unknown := {*makes, *reads} - set(road):
            raise ManifestError(f"{name} names no stages: {', '.join(sorted(unknown))}. Mend the names.")
        implied = {need for stage in makes for need in road[stage]} | set(makes)
        if again := [stage for stage in reads if stage in implied]:
            raise ManifestError(f"{name} makes or needs {', '.join(again)} anyway. Leave them out of `reads`.")
        needs = tuple(stage for stage in road if stage in (implied | set(reads)) - set(makes))
        notebooks.append(Notebook(**entry, needs=needs))
    for what in ("name", "makes", "figures", "tables"):
        items = [item for one in notebooks for item in ([one.name] if what == "name" else getattr(one, what))]
        if twice := sorted({item for item in items if items.count(item) > 1}):
            raise ManifestError(f"Each of `{what}` belongs to one notebook; {', '.join(twice)} has several. Keep one.")
    return notebooks


def in_order(notebooks: list[Notebook]) -> list[Notebook]:
    """Topological order by `needs` and `makes`; of those that could run, the lowest name first."""
    maker = {stage: notebook.name for notebook in notebooks for stage in notebook.makes}
    by_name = {notebook.name: notebook for notebook in notebooks}
    graph = TopologicalSorter({n.name: {maker[s] for s in n.needs if s in maker} for n in notebooks})
    try:
        graph.prepare()
    except CycleError as error:
        stuck = ", ".join(sorted(set(error.args[1])))
        raise ManifestError(f"What notebooks read and make must not go in a circle; these do: {stuck}.") from error
    ready, ordered = [], []
    while graph.is_active():
        first, *ready = sorted([*ready, *graph.get_ready()])
        graph.done(first)
        ordered.append(by_name[first])
    return ordered


def select(notebooks: list[Notebook], wanted: Iterable[str] | None) -> list[Notebook]:
    """Notebooks by number, name or the start of a name; None selects all."""
    if not wanted:
        return notebooks
    chosen = set()
    for key in wanted:
        found = [n.name for n in notebooks if key in (n.name, n.number) or (len(key) > 2 and n.name.startswith(key))]
        if not found:
            raise ValueError(f"A notebook is one of {', '.join(n.name for n in notebooks)}; got {key!r}.")
        chosen.update(found)
    return [notebook for notebook in notebooks if notebook.name in chosen]


def freshness(project: Project, notebook: Notebook, parameters: dict[str, Any]) -> dict[str, str]:
    """What the result of a notebook depends on, part by part: code, parameters, library files, input artifacts.

    Prose, outputs and metadata other than tags are no part of it.
    """
    cells = project.cells(notebook.name)
    code = [[runner.source_of(cell), runner.tags_of(cell)] for cell in cells]
    key = {"code": _sha(json.dumps(code).encode())}
    key |= {f"parameter {name}": repr(value) for name, value in parameters.items()}
    key["data sets at hand"] = " ".join(store.data_at_hand())
    made = {f"{project.package}.stages.{stage}" for stage in notebook.makes}
    names = made | store.names_used([source for source, _ in code], project.package)
    for path in project.library_files(names):
        key[f"library {path.parent.name}/{path.name}"] = _sha(path.read_bytes())
    # at smoke the notebook makes its optional stages itself, as far as the data at hand allow
    inputs = notebook.needs if parameters["scale"] == "smoke" else (*notebook.needs, *notebook.optional)
    return key | {f"input {stage}": project.artifact_key(stage, parameters["scale"]) for stage in inputs}


def changes(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Differences between two freshness keys, in words."""
    if not before:
        return ["it has not run to its end yet"]
    told = [f"{part} {'changed' if part in before else 'is new'}" for part in now if before.get(part) != now[part]]
    return told + [f"{part} is gone" for part in before if part not in now]


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
