"""What is generated for readers: the blocks of README.md and REPORT.md, and the outputs that notebooks carry.

A generated block stands between `<!-- generated: NAME -->` and `<!-- end: NAME -->`. It comes from committed files
alone (the manifest of the notebooks, `notebooks/runtimes.json`, `data/<scale>/`, `graphnas_lib.paper`), so that a test
can tell whether it is stale.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path

from graphnas_lib import store
from graphnas_lib.paper import DEVIATIONS, SCALES
from graphnas_lib.runner import notebook as runner
from graphnas_lib.runner.headless import duration, past_seconds
from graphnas_lib.runner.manifest import Notebook, Project, select

ARTIFACT_SCALES = ("lite", "paper")  # scales whose results are committed
KEPT = "process_seconds"  # of scores that a stage kept from earlier runs, a fact of its manifest
STATUSES = {  # of a claim, in the order of the scoreboard; "not run" is followed by the reason in brackets
    "reproduced": "at the paper's own scale, or exact",
    "reduced scale": "the direction holds at a smaller scale",
    "differs": "the direction does not hold, or the paper's own numbers contradict the claim",
    "not decided": "these numbers give no verdict",
    "not run": "what the claim needs was not trained or not at hand",
}


def update(project: Project) -> list[str]:
    """Bring notebooks/runtimes.json, README.md and REPORT.md up to date; returns what was changed, in words."""
    known = {scale: took for scale in store.SCALE_NAMES if (took := past_seconds(project, scale))}
    times, told = json.dumps(known, indent=1, sort_keys=True) + "\n", []
    for path in (project.root / "notebooks" / "runtimes.json", *(project.root / name for name in BLOCKS)):
        old = path.read_text(encoding="utf-8") if path.is_file() else ""
        new = render(project, path.name, old) if path.name in BLOCKS else times
        if new != old:
            path.write_text(new, encoding="utf-8")
            told.append(f"wrote {path.name}")
    return told


def render(project: Project, name: str, text: str) -> str:
    """The text of `name`, one of `BLOCKS`, with every generated block written anew.

    Raises:
        ValueError: a block that we can make has no place in the text, or one in the text is unknown.
    """
    blocks = {make.__name__: make for make in BLOCKS[name]}
    marked = re.findall(r"<!-- generated: (\w+) -->", text)
    if sorted(marked) != sorted(blocks):
        raise ValueError(f"{name} must have the generated blocks {sorted(blocks)} once each; it has {sorted(marked)}.")
    for block, make in blocks.items():
        pattern = rf"(<!-- generated: {block} -->\n).*?(<!-- end: {block} -->)"
        text, found = re.subn(pattern, lambda m, make=make: f"{m[1]}{make(project)}\n{m[2]}", text, flags=re.DOTALL)
        if found != 1:
            raise ValueError(f"The block '{block}' of {name} must end with '<!-- end: {block} -->'.")
    return text


def _table(header: Sequence[str], rows: Iterable[Iterable]) -> str:
    """A Markdown table; a column whose name ends in ":" is set to the right."""
    lines = [[name.rstrip(":") for name in header], ["--:" if name.endswith(":") else "---" for name in header]]
    lines += [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _by_name(project: Project) -> list[Notebook]:
    return sorted(project.notebooks(), key=lambda notebook: notebook.name)


# ---- the blocks


def by_status(project: Project) -> dict[str, dict[str, list[dict[str, str]]]]:
    """Notebook 12's table of claims: scale -> status -> rows. Scales without committed claims are left out."""
    found = {}
    for scale in ARTIFACT_SCALES:
        if (path := project.root / "data" / scale / "results" / "claims.csv").is_file():
            rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
            found[scale] = {status: [row for row in rows if row["status"].startswith(status)] for status in STATUSES}
    return found


def scoreboard(project: Project) -> str:
    """How many claims of the paper have which status."""
    found = by_status(project)
    shown = [status for status in STATUSES if any(rows[status] for rows in found.values())]
    counts = [(scale, *(len(rows[status]) for status in shown)) for scale, rows in found.items()]
    return _table(["scale", *(f"{status}:" for status in shown)], counts)


def claims(project: Project) -> str:
    """Every claim beside what we found, by status."""
    parts = []
    for scale, found in by_status(project).items():
        for status, rows in found.items():
            columns = ("id", "claim", "where", "paper", "ours", "n", "tables", "notebook", "note")
            text = _table(columns, [[row[name] for name in columns] for row in rows])
            text = re.sub(r"\^\{(\w+)\}", r"^\1", text.replace(r"\times", "×"))  # the LaTeX of printed numbers
            parts += [f"### {scale}: {status} ({len(rows)})", f"{STATUSES[status].capitalize()}.", text] if rows else []
    return "\n\n".join(parts)


def notebooks(project: Project) -> str:
    """Which notebook rebuilds what, by which command, in what time."""
    times = store.read(project.root / "notebooks" / "runtimes.json")
    rows = []
    for notebook in _by_name(project):
        seconds = [times.get(scale, {}).get(notebook.name) for scale in ("smoke", "lite")]
        link = f"[{notebook.number}](notebooks/{notebook.name}.ipynb) {notebook.title}"
        command = f'`make reproduce NOTEBOOKS="{notebook.number}"`'
        rows.append((link, ", ".join(notebook.paper), command, *("-" if s is None else duration(s) for s in seconds)))
    return _table(["notebook", "rebuilds", "command", "smoke:", "lite:"], rows)


def costs(project: Project) -> str:
    """Time and device of every stage whose artifacts are committed."""
    rows = [
        (scale, stage, notebook.number, duration(max(made["seconds"], made["config"].get(KEPT, 0))), made["device"])
        for scale, notebook in product(ARTIFACT_SCALES, _by_name(project))
        for stage in notebook.makes
        if (path := project.stage(stage, scale)).is_file() and (made := store.read(path))
    ]
    return _table(["scale", "stage", "notebook", "time:", "device"], rows)


def scales(_project: Project) -> str:
    """Every size of every scale."""

    def plain(value) -> str:
        if isinstance(value, tuple):
            return ", ".join(map(plain, value))
        if value is None:
            return "all"
        return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)

    sizes = zip(*(vars(scale).items() for scale in SCALES.values()), strict=True)
    rows = [(f"`{same[0][0]}`", *(plain(value) for _, value in same)) for same in sizes]
    return _table(["size", *(f"{name}:" for name in SCALES)], rows[1:])  # the first is the name


def deviations(_project: Project) -> str:
    """Every place where we depart from the paper or fill its silence."""
    rows = [(item.id, item.paper, item.ours, item.why, item.effect or "not measured") for item in DEVIATIONS]
    return _table(["", "paper", "here", "why", "measured effect"], rows)


def tables(project: Project) -> str:
    """Every committed table of results, folded, and links to the figures, notebook by notebook."""
    parts = []
    for scale, notebook in product(ARTIFACT_SCALES, _by_name(project)):
        paths = [project.root / "data" / scale / "results" / f"{name}.md" for name in notebook.tables]
        shown = [path for path in paths if path.is_file() and path.stem not in ("claims", "deviations")]
        figures = [f"figures/{scale}/{name}.png" for name in notebook.figures]
        links = [f"[{Path(name).stem}]({name})" for name in figures if (project.root / name).is_file()]
        parts += [f"### {scale}: {notebook.number} {notebook.title}"] if shown or links else []
        parts += [f"Figures: {', '.join(links)}."] if links else []
        for path in shown:
            text = path.read_text(encoding="utf-8").strip()
            parts.append(f"<details><summary>{path.stem}</summary>\n\n{text}\n\n</details>")
    return "\n\n".join(parts)


BLOCKS = {  # file -> what makes its generated blocks, each named as its function
    "README.md": (scoreboard,),
    "REPORT.md": (scoreboard, claims, notebooks, costs, scales, deviations, tables),
}


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
        merged = with_outputs(runner.read(source), runner.read(executed), scale, notebook.name)
        text = json.dumps(merged, indent=1, ensure_ascii=False) + "\n"
        store.write(source, text)
        told.append(f"{notebook.name}  {len(text) / 1024:.0f} KB")
    return told


def with_outputs(source: dict, executed: dict, scale: str, name: str) -> dict:
    """The source notebook with the executed copy's outputs, in the form that is committed.

    No injected cell, no papermill metadata, kernel `python3`, execution counts 1 to n.
    """
    own, run = runner.code_cells(source), runner.code_cells(executed)
    if [runner.source_of(cell) for cell in own] != [runner.source_of(cell) for cell in run]:
        raise ValueError(f"{name} was edited after its run at scale '{scale}'. Run it again, then save its outputs.")
    stated = runner.parameters_of(source).get("scale")
    if stated != scale:
        raise ValueError(f"{name} states scale = {stated!r} and can carry only that scale's outputs; got {scale!r}.")
    for count, (cell, done) in enumerate(zip(own, run, strict=True), 1):
        cell["execution_count"] = count
        outputs = [{k: v for k, v in output.items() if k != "transient"} for output in done["outputs"]]
        outputs = [o | {"data": without_widgets(o["data"])} if "data" in o else o for o in outputs]
        cell["outputs"] = [o | {"execution_count": count} if "execution_count" in o else o for o in outputs]
        cell["metadata"] = {k: v for k, v in cell["metadata"].items() if k not in ("papermill", "execution")}
    source["metadata"] = {"kernelspec": dict(runner.KERNEL), "language_info": {"name": "python"}}
    return source


def without_widgets(data: dict) -> dict:
    """An output without the panel that only its own kernel could show; its picture stays."""
    return {kind: content for kind, content in data.items() if kind != "application/vnd.jupyter.widget-view+json"}
