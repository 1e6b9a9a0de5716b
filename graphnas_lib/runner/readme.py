"""What is generated for readers of the repository: README's blocks, and the outputs that notebooks carry.

Every generated block of README stands between `<!-- generated: NAME -->` and `<!-- end: NAME -->` and comes from
committed files alone (manifest, `notebooks/runtimes.json`, `data/<scale>/results`), so that a test can tell whether it
is stale.
"""

from __future__ import annotations

import ast
import csv
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from graphnas_lib import store
from graphnas_lib.runner import notebook as runner
from graphnas_lib.runner.manifest import Notebook, Project, select

HEADLINE = "claims"  # the table of notebook 12 that README prints in full
ARTIFACT_SCALES = ("lite", "paper")  # scales whose results are committed


def update(project: Project) -> list[str]:
    """Bring notebooks/runtimes.json and README up to date; returns what was changed, in words."""
    told = []
    for path, text in ((_runtimes(project), _runtimes_text(project)), (project.root / "README.md", None)):
        text = render(project, path.read_text(encoding="utf-8")) if text is None else text
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            told.append(f"wrote {path.name}")
    return told


def render(project: Project, text: str) -> str:
    """README's text with every generated block written anew.

    Raises:
        ValueError: a block that we can make has no place in the text, or one in the text is unknown.
    """
    blocks: dict[str, Callable[[Project], str]] = {
        "notebooks": notebook_map,
        "results": results,
        "deviations": deviations,
    }
    marked = re.findall(r"<!-- generated: (\w+) -->", text)
    if sorted(marked) != sorted(blocks):
        raise ValueError(f"README must have the generated blocks {sorted(blocks)} once each; it has {sorted(marked)}.")
    for name, make in blocks.items():
        pattern = rf"(<!-- generated: {name} -->\n).*?(<!-- end: {name} -->)"
        text, found = re.subn(pattern, lambda m, make=make: m[1] + make(project) + "\n" + m[2], text, flags=re.DOTALL)
        if found != 1:
            raise ValueError(f"README's block '{name}' must end with '<!-- end: {name} -->'.")
    return text


# ---- README's blocks


def notebook_map(project: Project) -> str:
    """Which notebook makes what, by which command, in what time."""
    path = _runtimes(project)
    runtimes = json.loads(path.read_text()) if path.is_file() else {}
    rows = ["| notebook | rebuilds | command | smoke | lite |", "|---|---|---|--:|--:|"]
    for notebook in sorted(project.notebooks(), key=lambda n: n.name):
        title = f"[{notebook.number}](notebooks/{notebook.name}.ipynb) {notebook.title}"
        made = ", ".join([*notebook.paper, *(f"`{name}`" for name in (*notebook.figures, *notebook.tables))])
        times = [_time(runtimes.get(scale, {}).get(notebook.name)) for scale in ("smoke", "lite")]
        rows.append(f'| {title} | {made} | `make reproduce NOTEBOOKS="{notebook.number}"` | {" | ".join(times)} |')
    rows += ["", "Times are those of the last committed run on two CPU cores; a dash means that none is committed."]
    return "\n".join(rows)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{max(round(seconds), 1)} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def results(project: Project) -> str:
    """The paper against ours, from the result tables that are committed."""
    parts = []
    for scale in ARTIFACT_SCALES:
        folder = project.root / "data" / scale / "results"
        tables = [(n, table) for n in project.notebooks() for table in n.tables if (folder / f"{table}.csv").is_file()]
        if not tables:
            parts.append(f"**{scale}**: no results are committed at this scale yet.")
            continue
        headline = folder / f"{HEADLINE}.csv"
        parts.append(f"**{scale}**")
        if headline.is_file():
            parts.append(_markdown(headline))
        links = [f"[{table}](data/{scale}/results/{table}.md) (notebook {n.number})" for n, table in sorted_by(tables)]
        parts.append("Tables: " + ", ".join(links) + ".")
    return "\n\n".join(parts)


def sorted_by(tables: list[tuple[Notebook, str]]) -> list[tuple[Notebook, str]]:
    """By notebook, then by table."""
    return sorted(tables, key=lambda item: (item[0].name, item[1]))


def _markdown(path: Path) -> str:
    """A CSV file as a Markdown table."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in csv.reader(file)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def deviations(project: Project) -> str:
    """Every place where we depart from the paper or fill its silence."""
    from graphnas_lib.paper import DEVIATIONS

    rows = ["| | paper | here | why | measured effect |", "|---|---|---|---|---|"]
    for item in DEVIATIONS:
        cells = [item.id, item.paper, item.ours, item.why, item.effect or "not measured"]
        rows.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(rows)


# ---- run times


def _runtimes(project: Project) -> Path:
    return project.root / "notebooks" / "runtimes.json"


def _runtimes_text(project: Project) -> str:
    """Run times by scale and notebook: those committed, and over them those of this checkout's receipts."""
    path = _runtimes(project)
    known = json.loads(path.read_text()) if path.is_file() else {}
    for scale in store.SCALE_NAMES:
        for receipt in sorted(project.executed("x", scale).parent.glob("*.receipt.json")):
            content = json.loads(receipt.read_text())
            known.setdefault(scale, {})[content["notebook"]] = content["seconds"]
    return json.dumps(known, indent=1, sort_keys=True) + "\n"


# ---- outputs that the notebooks carry


def save_outputs(project: Project, scale: str, notebooks: Iterable[str] | None = None) -> list[str]:
    """Put the outputs of the executed copies of a scale into `notebooks/*.ipynb`; returns a line a notebook.

    Raises:
        FileNotFoundError: a chosen notebook has no executed copy at this scale.
        ValueError: a notebook's own parameters are not those of the scale, or it was edited after its run.
    """
    told = []
    for notebook in select(project.notebooks(), notebooks):
        source, executed = project.source(notebook.name), project.executed(notebook.name, scale)
        if not executed.is_file():
            raise FileNotFoundError(
                f"{notebook.name} has no executed copy at scale '{scale}'. "
                f"Run `python -m graphnas_lib reproduce --scale {scale} --notebooks {notebook.number}` first."
            )
        merged = with_outputs(_read(source), _read(executed), scale, notebook.name)
        text = json.dumps(merged, indent=1, ensure_ascii=False) + "\n"
        part = source.with_name(f".{source.name}.part")
        part.write_text(text, encoding="utf-8")
        part.replace(source)
        told.append(f"{notebook.name}  {len(text) / 1024:.0f} KB")
    return told


def with_outputs(source: dict, executed: dict, scale: str, name: str) -> dict:
    """The source notebook with the executed copy's outputs, in the form that is committed.

    No injected cell, no papermill metadata, kernel `python3`, execution counts 1 to n.
    """
    own, run = runner.code_cells(source), runner.code_cells(executed)
    if [runner.source_of(cell) for cell in own] != [runner.source_of(cell) for cell in run]:
        raise ValueError(f"{name} was edited after its run at scale '{scale}'. Run it again, then save its outputs.")
    stated = parameters_of(source).get("scale")
    if stated != scale:
        raise ValueError(f"{name} states scale = {stated!r} and can carry only that scale's outputs; got {scale!r}.")
    for count, (cell, done) in enumerate(zip(own, run, strict=True), 1):
        cell["execution_count"] = count
        cell["outputs"] = [_clean(output, count) for output in done["outputs"]]
        cell["metadata"] = {k: v for k, v in cell["metadata"].items() if k not in ("papermill", "execution")}
    source["metadata"] = {"kernelspec": dict(runner.KERNEL), "language_info": {"name": "python"}}
    return source


def parameters_of(notebook: dict) -> dict:
    """Literals that the cell tagged `parameters` assigns."""
    for cell in runner.code_cells(notebook):
        if "parameters" in runner.tags_of(cell):
            nodes = [node for node in ast.parse(runner.source_of(cell)).body if isinstance(node, ast.Assign)]
            return {node.targets[0].id: ast.literal_eval(node.value) for node in nodes}
    return {}


def _clean(output: dict, count: int) -> dict:
    output = {key: value for key, value in output.items() if key != "transient"}
    if "execution_count" in output:
        output["execution_count"] = count
    return output


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
