"""The notebooks as a graph: what each reads and makes, in which order they run, and when one is fresh.

`notebooks/manifest.toml` is the one declaration; order, freshness, README's map and the tests all read it. A notebook
is fresh when nothing that can change its result has changed since its last success: code cells and their tags,
parameters, the library files that it stands on, the artifacts that it reads.
"""

from __future__ import annotations

import ast
import hashlib
import heapq
import json
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graphnas_lib import store
from graphnas_lib.runner import notebook as runner


class ManifestError(ValueError):
    """`notebooks/manifest.toml` contradicts itself."""


@dataclass(frozen=True, kw_only=True)
class Notebook:
    """One entry of the manifest. Stages are named as in `graphnas_lib.stages`."""

    name: str
    title: str
    paper: tuple[str, ...] = ()  # tables, figures and sections of the paper that it rebuilds
    needs: tuple[str, ...] = ()  # stages whose artifacts it reads
    makes: tuple[str, ...] = ()  # stages it produces
    optional: tuple[str, ...] = ()  # those of `makes` that may stay absent: the notebook then says why
    figures: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    timeout: dict[str, int] = field(default_factory=dict)  # seconds a cell may take, by scale

    @property
    def number(self) -> str:
        """Leading digits of the name."""
        return self.name.split("_")[0]

    @property
    def default_scale(self) -> str:
        """What its parameters cell states: "lite" once all that it reads and makes ships at lite, else "smoke"."""
        return store.default_scale(*self.needs, *self.makes)


@dataclass(frozen=True)
class Project:
    """Where the notebooks lie, and which library they stand on; tests hand in a toy one."""

    root: Path
    package: str = "graphnas_lib"
    library_files: Callable[[list[str]], list[Path]] = store.library_files
    package_parent: Path = Path(__file__).resolve().parents[2]

    def source(self, name: str) -> Path:
        return self.root / "notebooks" / f"{name}.ipynb"

    def cells(self, name: str) -> list[dict]:
        """Code cells of a notebook."""
        path = self.source(name)
        if not path.is_file():
            raise FileNotFoundError(
                f"notebooks/{path.name} must be there: notebooks/manifest.toml names it. Restore it."
            )
        return runner.code_cells(json.loads(path.read_text(encoding="utf-8")))

    def executed(self, name: str, scale: str) -> Path:
        return self.root / "notebooks" / "executed" / scale / f"{name}.ipynb"

    def stage(self, stage: str, scale: str) -> Path:
        return self.root / "data" / scale / f"{stage}.manifest.json"

    def state(self, scale: str) -> Path:
        return self.root / "data" / scale / ".doit.json"

    def outputs(self, notebook: Notebook, scale: str) -> list[Path]:
        """Files that the notebook must have written, the executed copy aside."""
        figures = self.root / "figures" / scale
        tables = self.root / "data" / scale / "results"
        return [
            *(self.stage(stage, scale) for stage in notebook.makes if stage not in notebook.optional),
            *(figures / f"{name}{suffix}" for name in notebook.figures for suffix in (".pdf", ".png", ".csv", ".json")),
            *(tables / f"{name}{suffix}" for name in notebook.tables for suffix in (".csv", ".md")),
        ]

    def notebooks(self) -> list[Notebook]:
        """The manifest, in order of execution."""
        return in_order(read_manifest(self.root / "notebooks" / "manifest.toml"))

    def default_scale(self, chosen: Iterable[str] | None = None) -> str:
        """ "lite" where all that these notebooks (names or numbers; None for all) read and make ships, else "smoke"."""
        notebooks = select(self.notebooks(), chosen)
        return store.default_scale(*{stage for one in notebooks for stage in (*one.needs, *one.makes)})


def read_manifest(path: Path) -> list[Notebook]:
    """Entries of a manifest as they stand there.

    Raises:
        ManifestError: a name, stage, figure or table occurs twice, or an entry has an unknown key.
    """
    if not path.is_file():
        raise FileNotFoundError(f"notebooks/manifest.toml must be there; {path.parent} has none. Restore it.")
    entries = tomllib.loads(path.read_text(encoding="utf-8")).get("notebook", [])
    known = set(Notebook.__dataclass_fields__)
    notebooks = []
    for entry in entries:
        if not {"name", "title"} <= set(entry) <= known:
            raise ManifestError(f"A manifest entry has name, title and some of {sorted(known)}; got {sorted(entry)}.")
        notebooks.append(Notebook(**{k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}))
    for what in ("makes", "figures", "tables"):
        _unique(what, [item for notebook in notebooks for item in getattr(notebook, what)])
    _unique("name", [notebook.name for notebook in notebooks])
    return notebooks


def _unique(what: str, items: list[str]) -> None:
    twice = sorted({item for item in items if items.count(item) > 1})
    if twice:
        raise ManifestError(f"Each item of `{what}` belongs to one notebook; {', '.join(twice)} has several. Keep one.")


def in_order(notebooks: list[Notebook]) -> list[Notebook]:
    """Topological order by `needs` and `makes`; of those that could run, the lowest name first."""
    maker = {stage: notebook.name for notebook in notebooks for stage in notebook.makes}
    by_name = {notebook.name: notebook for notebook in notebooks}
    waits = {n.name: {maker[s] for s in n.needs if s in maker} - {n.name} for n in notebooks}
    ready = [name for name, on in waits.items() if not on]
    heapq.heapify(ready)
    ordered: list[Notebook] = []
    while ready:
        name = heapq.heappop(ready)
        ordered.append(by_name[name])
        for other, on in waits.items():
            if name in on:
                on.discard(name)
                if not on:
                    heapq.heappush(ready, other)
    if len(ordered) < len(notebooks):
        stuck = sorted(set(by_name) - {notebook.name for notebook in ordered})
        raise ManifestError(f"`needs` and `makes` must not go in a circle; these do: {', '.join(stuck)}.")
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


# ---- freshness


def freshness(project: Project, notebook: Notebook, parameters: dict[str, Any]) -> dict[str, str]:
    """What the result of a notebook depends on, part by part: code, parameters, library files, input artifacts.

    Prose, outputs and metadata other than tags are no part of it.
    """
    cells = project.cells(notebook.name)
    code = [[runner.source_of(cell), runner.tags_of(cell)] for cell in cells]
    key = {"code": _sha(json.dumps(code).encode())}
    key |= {f"parameter {name}": repr(value) for name, value in parameters.items()}
    key["data sets at hand"] = " ".join(store.data_at_hand())
    modules = imported([runner.source_of(cell) for cell in cells], project.package)
    modules += [f"{project.package}.stages.{stage}" for stage in notebook.makes]
    key |= {f"library {path.name}": _sha(path.read_bytes()) for path in project.library_files(modules)}
    for stage in notebook.needs:
        key[f"input {stage}"] = _input_key(project.stage(stage, parameters["scale"]))
    if parameters["scale"] != "smoke":  # there the notebook makes it itself, as far as the data at hand allow
        for stage in notebook.optional:
            key[f"input {stage}"] = _input_key(project.stage(stage, parameters["scale"]))
    return key


def imported(sources: list[str], package: str) -> list[str]:
    """Modules of `package` that the code imports."""
    found: set[str] = set()
    for source in sources:
        try:
            tree = ast.parse(source)
        except SyntaxError:
            continue  # the cell will fail when it is run, with its own message
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return sorted(name for name in found if name.split(".")[0] == package)


def changes(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Differences between two freshness keys, in words."""
    if not before:
        return ["it has not run to its end yet"]
    told = [f"{part} changed" for part in now if part in before and before[part] != now[part]]
    told += [f"{part} is new" for part in now if part not in before]
    return told + [f"{part} is gone" for part in before if part not in now]


def _input_key(manifest: Path) -> str:
    """An input is its files: a stage run again with the same result (other seconds, other commit) changes nothing."""
    if not manifest.is_file():
        return "missing"
    content = manifest.read_bytes()
    try:
        files = json.loads(content)["files"]
    except (ValueError, KeyError, TypeError):
        return _sha(content)
    return _sha(json.dumps(files, sort_keys=True).encode())


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
