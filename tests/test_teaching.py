"""What makes the notebooks a course: equations shown once and led to code, links, a glossary, exercises that run."""

import ast
import contextlib
import io
import json
import re
from functools import cache
from pathlib import Path

import pytest
from test_notebooks import code_problems
from test_structure import headings, inside

from graphnas_lib.paper import DEVIATIONS
from graphnas_lib.runner import Project
from graphnas_lib.runner import notebook as runner

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = {path.stem: runner.read(path) for path in sorted(FOLDER.glob("[0-9]*.ipynb"))}
NAMES, GLOSSARY = list(NOTEBOOKS), "GLOSSARY.md"
ENTRIES = {notebook.name: notebook for notebook in Project(FOLDER.parent).notebooks()}
EQUATIONS = range(1, 13)
EXERCISES = {name: 0 if name[:2] == "12" else 2 if name < "08" else 1 for name in NAMES}
AT_MOST_IN_A_ROW = 2  # code cells between two pieces of prose: call, look
SHORTENED = re.compile(r"\b(?:Eq|Fig|Sec|Tab|App)\. ")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)")
NAMED_IN_CODE = re.compile(r"\[`(\w+)`\]\((\.\./graphnas_lib/[\w/]+\.py)\)")
ANSWER = re.compile(r"<details><summary>Answer</summary>\n\n```python\n(.+?)\n```\n\n(.+?)\n\n</details>", re.DOTALL)


def prose(notebook: dict) -> list[str]:
    return [runner.source_of(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]


def pages(notebooks: dict[str, dict]) -> dict[str, str]:
    """Each notebook's prose as one text."""
    return {name: "\n\n".join(prose(notebook)) for name, notebook in notebooks.items()}


def answers(notebook: dict) -> list[str]:
    """Code of the folded answers."""
    return [code for text in prose(notebook) for code, _ in ANSWER.findall(text)]


@cache
def anchors(path: Path) -> set[str]:
    return headings(path.read_text(encoding="utf-8"))


@cache
def defined(path: Path) -> set[str]:
    """Functions, methods and classes of a file."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


# ---- the rules, each a function of all notebooks to what is wrong, in words


def equations_shown_otherwise_than_once(notebooks: dict[str, dict]) -> list[str]:
    """Eq. 1 to 12 in a display of their own, Algorithm 1 as a listing of 34 lines; nothing else has a number."""
    whole = "\n".join(pages(notebooks).values())
    displays = re.findall(r"^\$\$(.+?)\$\$$", whole, re.MULTILINE | re.DOTALL)
    tags = [int(tag) for display in displays for tag in re.findall(r"\\tag\{(\d+)\}", display)]
    found = [f"Eq. {n} is shown {tags.count(n)} times" for n in EQUATIONS if tags.count(n) != 1]
    found += [f"a tag that the paper lacks: {n}" for n in sorted(set(tags) - set(EQUATIONS))]
    found += ["a tag outside a display"] * (whole.count(r"\tag") - len(tags))
    listings = [text for text in re.findall(r"```text\n(.+?)```", whole, re.DOTALL) if "function Mutate" in text]
    found += [f"Algorithm 1 is shown {len(listings)} times"] * (len(listings) != 1)
    numbers = [int(n) for n in re.findall(r"^ ?(\d+)  ", "".join(listings), re.MULTILINE)]
    return found + [f"Algorithm 1 has the lines {numbers}"] * (numbers != list(range(1, 35)))


def equations_without_words_or_code(notebooks: dict[str, dict]) -> list[str]:
    """A cell that shows an equation says it in words, names the function, and stands where the manifest says."""
    found = []
    for name, notebook in notebooks.items():
        declared = set()
        for first, last in re.findall(r"Eq\. (\d+)(?:-(\d+))?", " ".join(ENTRIES[name].paper)):
            declared |= set(range(int(first), int(last or first) + 1))
        shown = {int(n) for text in prose(notebook) for n in re.findall(r"\\tag\{(\d+)\}", text)}
        found += [f"{name} shows Eq. {sorted(shown)}, the manifest says {sorted(declared)}"] * (shown != declared)
        for text in prose(notebook):
            if r"\tag" in text and not ("In words:" in text and LINK.search(text.split(r"\tag")[-1])):
                found.append(f"{name}: an equation without words or without its function: {text[:40]!r}")
    return found


def broken_links(notebooks: dict[str, dict]) -> list[str]:
    """Relative links lead to files and headings that exist, and functions to the file that defines them."""
    found = []
    for name, text in pages(notebooks).items():
        for target, anchor in LINK.findall(text):
            path = FOLDER / target
            if not path.exists():
                found.append(f"{name}: {target} does not exist")
            elif anchor and anchor not in anchors(path):
                found.append(f"{name}: {target} has no heading {anchor}")
        for function, target in NAMED_IN_CODE.findall(text):
            found += [f"{name}: {target} defines no {function}"] * (function not in defined(FOLDER / target))
    return found


def deviations_without_a_link(notebooks: dict[str, dict]) -> list[str]:
    """D and a number is always a link to the list, and the list has it."""
    known, found = {item.id[:3] for item in DEVIATIONS}, []
    for name, text in pages(notebooks).items():
        text = re.sub(r"```.+?```", "", text, flags=re.DOTALL)
        linked = re.findall(r"\[(D\d\d)\]\(\.\./REPORT\.md#deviations\)", text)
        named = re.findall(r"\bD\d\d\b", text)
        found += [f"{name}: a deviation is named without a link"] * (sorted(linked) != sorted(named))
        found += [f"{name}: there is no {item}" for item in sorted(set(named) - known)]
    return found


def first_cells_without_their_links(notebooks: dict[str, dict]) -> list[str]:
    """The first cell leads to neighbours, glossary and to the notebooks that make what this one reads."""
    maker = {stage: entry.name for entry in ENTRIES.values() for stage in entry.makes}
    found = []
    for name, notebook in notebooks.items():
        place, first = NAMES.index(name), prose(notebook)[0]
        wanted = [GLOSSARY, *(f"{other}.ipynb" for other in NAMES[max(0, place - 1) : place + 2] if other != name)]
        wanted += [f"{maker[stage]}.ipynb" for stage in ENTRIES[name].needs]
        targets = {target for target, _ in LINK.findall(first)}
        found += [f"{name}: its first cell has no link to {other}" for other in wanted if other not in targets]
        said = [word for word in ("*Needs*", "*Reads*", "*Writes*", "*Time*") if word not in first]
        found += [f"{name}: its first cell lacks {', '.join(said)}"] * bool(said)
        last = prose(notebook)[-1]
        ends = last.startswith("## Where next") and any(f"{other}.ipynb" in last for other in NAMES if other != name)
        found += [f"{name}: it must end with '## Where next' and links"] * (not ends)
    return found


def code_without_prose(notebooks: dict[str, dict]) -> list[str]:
    """After the banner code comes with three sentences before it, and at most two cells of it stand in a row."""
    found = []
    for name, notebook in notebooks.items():
        row, text = 0, ""
        for cell in notebook["cells"][4:]:  # title, parameters, imports, banner
            if cell["cell_type"] == "markdown":
                row, text = 0, runner.source_of(cell)
                continue
            row += 1
            found += [f"{name}: more than two code cells in a row, at {cell['id']}"] * (row > AT_MOST_IN_A_ROW)
            said = len(re.findall(r"[.?!:](?:\s|$)", SHORTENED.sub("", text)))
            found += [f"{name}: {said} sentences before {cell['id']}"] * (row == 1 and said < 3)
    return found


def exercises_missing(notebooks: dict[str, dict]) -> list[str]:
    """The number of exercises, each with a question, code of a few lines and what to look at."""
    found = []
    for name, notebook in notebooks.items():
        codes = answers(notebook)
        questions = re.findall(r"^\*\*Question \d\.\*\* .+\?", "\n".join(prose(notebook)), re.MULTILINE)
        if not len(codes) == len(questions) == EXERCISES[name]:
            found.append(f"{name}: {len(questions)} questions and {len(codes)} answers, not {EXERCISES[name]}")
        for code in codes:
            found += [f"{name}: an answer: {problem}" for problem in code_problems(code) if "more than" not in problem]
            found += [f"{name}: an answer imports {item} from inside a room" for item in inside(ast.parse(code))]
    return found


RULES = [
    equations_shown_otherwise_than_once,
    equations_without_words_or_code,
    broken_links,
    deviations_without_a_link,
    first_cells_without_their_links,
    code_without_prose,
    exercises_missing,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_notebooks_teach(rule):
    assert rule(NOTEBOOKS) == []


def changed(name: str, old: str, new: str) -> dict[str, dict]:
    """The notebooks with one piece of prose written otherwise."""
    copy = json.loads(json.dumps(NOTEBOOKS))
    cells = [c for c in copy[name]["cells"] if c["cell_type"] == "markdown" and old in runner.source_of(c)]
    assert cells, f"{name} has no {old!r}"
    cells[0]["source"] = runner.source_of(cells[0]).replace(old, new)
    return copy


FAULTS = {
    "an equation twice": (0, "02_clusters", r"\tag{3}", "\\tag{3}$$\n\n$$x \\tag{3}", "Eq. 3 is shown 2 times"),
    "an equation of nobody": (0, "02_clusters", r"\tag{3}", r"\tag{13}", "a tag that the paper lacks: 13"),
    "a number in the text": (0, "02_clusters", "In words", r"$\tag{3}$ In words", "a tag outside a display"),
    "no algorithm": (0, "06_hl_evo", "function Mutate", "function Change", "Algorithm 1 is shown 0 times"),
    "a line less": (0, "06_hl_evo", "20  H = {α₀}\n", "", "Algorithm 1 has the lines"),
    "no words": (1, "04_ccnf", "In words:", "That is:", "without words"),
    "another place": (1, "02_clusters", r"\tag{3}", r"\tag{4}", "the manifest says [3]"),
    "no file": (2, "01_search_space", "(02_clusters.ipynb)", "(02_cluster.ipynb)", "does not exist"),
    "no heading": (2, "01_search_space", "REPORT.md#deviations", "REPORT.md#deviation", "has no heading"),
    "no function": (2, "01_search_space", "[`stack_cell`]", "[`stacked`]", "defines no stacked"),
    "no link": (3, "01_search_space", "[D29](../REPORT.md#deviations)", "D29", "without a link"),
    "no deviation": (3, "01_search_space", "[D29](", "[D99](", "there is no D99"),
    "no neighbour": (4, "05_table1_sampling", "06_hl_evo.ipynb", "07_sequence_generator.ipynb", "no link to 06_hl_evo"),
    "no glossary": (4, "05_table1_sampling", "GLOSSARY.md", "05_table1_sampling.ipynb", "no link to GLOSSARY.md"),
    "no input": (4, "05_table1_sampling", "*Reads*", "Reads", "lacks *Reads*"),
    "no end": (4, "05_table1_sampling", "## Where next", "## More", "must end with"),
    "no answer": (6, "03_gvae_latent", "<summary>Answer", "<summary>Reply", "not 2"),
    "an import": (6, "03_gvae_latent", "from graphnas_lib.gvae import GVAE\n", "import torch\n", "imports torch"),
    "from inside": (6, "03_gvae_latent", "lib.gvae import", "lib.gvae.model import", "from inside a room"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault):
    rule, name, old, new, wanted = FAULTS[fault]
    notebooks = changed(name, old, new)
    assert any(wanted in problem for problem in RULES[rule](notebooks)), RULES[rule](notebooks)


def test_bare_code_is_found():
    copy = json.loads(json.dumps(NOTEBOOKS["02_clusters"]))
    pieces = [c for c in copy["cells"] if runner.source_of(c).startswith(("Figure 2a of", "How many families"))]
    assert len(pieces) == 2
    pieces[0]["source"] = "Figure 2a (Sec. 3.1) comes next. Look."
    assert any("2 sentences before" in problem for problem in code_without_prose({"02_clusters": copy}))
    copy["cells"] = [cell for cell in copy["cells"] if cell not in pieces]
    assert any("more than two code cells" in problem for problem in code_without_prose({"02_clusters": copy}))


def test_glossary_is_short_sorted_and_leads_to_notebooks():
    text = (FOLDER / GLOSSARY).read_text(encoding="utf-8")
    terms = re.findall(r"^- \*\*(.+?)\*\*.*?: \S.+\.$", text, re.MULTILINE)
    assert 20 <= len(terms) <= 30 and len(terms) == len(re.findall("^- ", text, re.MULTILINE))
    assert terms == sorted(terms, key=str.casefold)
    targets = [target for target, _ in LINK.findall(text)]
    assert len(targets) >= len(terms) and [target for target in targets if not (FOLDER / target).exists()] == []


@pytest.mark.parametrize("name", [name for name in NAMES if EXERCISES[name]])
def test_answers_run(name, monkeypatch):
    """Each answer alone, on the artifacts that ship; it prints something, and its own assertions hold."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    for code in answers(NOTEBOOKS[name]):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, f"answer of {name}", "exec"), {"__name__": "answer"})
        assert printed.getvalue().strip()
