"""Which files of this package a piece of code stands on: part of every freshness key, told without importing anything.

A name that a room offers stands on the module that defines it, not on the whole room.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def names_used(sources: Iterable[str], package: str = PACKAGE.name) -> set[str]:
    """What code takes of a package, as dotted names: "graphnas_lib.store.load" for `store.load(...)`.

    A piece that is no Python takes nothing: it will fail when it is run, with its own message.
    """
    nodes: list[ast.AST] = []
    for source in sources:
        with suppress(SyntaxError):
            nodes += ast.walk(ast.parse(source))
    local: dict[str, str] = {}  # name in the code -> dotted name
    for node in nodes:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            start = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            local |= {alias.asname or alias.name: start + alias.name for alias in node.names}
    taken = {
        (local[node.value.id], node.attr)
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in local
    }
    found = {f"{owner}.{name}" for owner, name in taken} | (set(local.values()) - {owner for owner, _ in taken})
    return {name for name in found if name.split(".")[0] == package}


def library_files(names: Iterable[str], *, without: Iterable[str] = ()) -> list[Path]:
    """Files that define the dotted names of this package, and all that these stand on, directly or not; sorted.

    Args:
        names: modules, rooms (then all of them), or names that rooms offer.
        without: dotted prefixes of modules to leave out, and what only they stand on.
    """
    hidden = tuple(f"{name}." for name in without)
    todo, known, seen = set(names), set(), set()
    while todo:
        known |= todo
        found = {_file(name) for name in todo} - seen
        shown = {path for path in found if not f"{_dotted(path)}.".startswith(hidden)}
        seen |= shown
        todo = {name for path in shown for name in _uses(path, path.stat().st_mtime_ns)} - known
    data = {path.with_name(name) for path in seen for name in re.findall(r'"(\w+\.toml)"', path.read_text("utf-8"))}
    return sorted(seen | {path for path in data if path.is_file()})


def _dotted(path: Path) -> str:
    """The dotted name of a module or a folder of the package."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


def library_hash(names: Iterable[str], *, without: Iterable[str] = ()) -> str:
    """One hash over `library_files`, for freshness keys."""
    digest = hashlib.sha256()
    for path in library_files(names, without=without):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _file(name: str) -> Path:
    """The file that defines a dotted name; a room's `__init__` where the name is the room's, or is not known."""
    folder = PACKAGE
    for part in name.split(".")[1:]:
        init = folder / "__init__.py"
        offered = {used.rpartition(".")[2]: used for used in _uses(init, init.stat().st_mtime_ns)}
        here = f"{_dotted(folder)}.{part}"
        if not f"{offered.get(part, here)}.".startswith(f"{here}."):  # else: the module itself, or its namesake in it
            return _file(offered[part])
        if (folder / f"{part}.py").is_file():
            return folder / f"{part}.py"
        if not (folder / part / "__init__.py").is_file():
            break
        folder /= part
    return folder / "__init__.py"


@lru_cache(maxsize=512)
def _uses(path: Path, _changed: int) -> tuple[str, ...]:
    return tuple(sorted(names_used([path.read_text(encoding="utf-8")])))
