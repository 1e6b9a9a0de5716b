"""Prose holds no result that is typed by hand: a cell renders such a number, or the sentence leads to a table.

A number in prose is a small count, a setting (it stands in the paper's files, in a named constant or in a default), or
one of the paper's: any in a sentence that speaks of the paper and not of us, and those of its tables and claims where a
sentence names a table, a figure or a section.
"""

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest

from graphnas_lib.runner import notebook as runner

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
LIBRARY = FOLDER.parent / "graphnas_lib"
NOTEBOOKS = {path.stem: runner.read(path) for path in sorted(FOLDER.glob("[0-9]*.ipynb"))}
SMALL = 12  # whole numbers up to here count things
NUMBER = re.compile(r"(?<![\w.])(?<![A-Za-z]-)\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
NO_PROSE = re.compile(  # code, targets of links, names of notebooks, deviations and protocols
    r"```.+?```|`[^`\n]*`|\]\([^)\n]*\)|^# \d\d|\[(?:← )?\d\d\b|\b[DP]\d\d?\b", re.DOTALL | re.MULTILINE
)
PLACE = re.compile(  # of the paper, or of a notebook: "Eq. 4-5", "Sec. 3.1", "App. E.1", "Table 1", "Question 2"
    r"\b(?:Eq|Fig|Sec|Tab|App|Figure|Table|Algorithm|Appendix)s?\.? (?:[A-Z]\.?)?[\d.]*\d?[a-z]?"
    r"(?:(?:-| to | and |, )\d+)*"
)
ELSEWHERE = re.compile(r"\b(?:Question|Lines?|lines|[Nn]otebook) \d+(?: to \d+)?")
OF_THE_PAPER = re.compile(r"\b(?:paper|paper's|Claim|published|print(?:s|ed)?|V100)\b")
OF_US = re.compile(r"\b(?:ours?|we|us|here)\b", re.IGNORECASE)


@cache
def in_files(*stems: str) -> set[float]:
    """Numbers that stand in files of the paper's room; "25%" is 0.25."""
    texts = [(LIBRARY / "paper" / f"{stem}.toml").read_text(encoding="utf-8") for stem in stems]
    found = [m for text in texts for m in re.findall(r"(?<![\w.])(\d[\d,_]*(?:\.\d+)?)(%?)", text)]
    return {round(float(re.sub("[,_]", "", n)) / (100 if percent else 1), 6) for n, percent in found}


@cache
def settings() -> set[float]:
    """Numbers that nobody measured: sizes of scales, rules of protocols, constants and defaults of the library."""
    found = set(in_files("scales", "stages", "evidence"))
    for path in LIBRARY.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "a").isupper()
            values = [node.value] if named or isinstance(node, ast.AnnAssign) else []
            if isinstance(node, ast.arguments):
                values = [*node.defaults, *node.kw_defaults]
            parts = [part for value in values if value for part in ast.walk(value)]
            inner = [part.value for part in parts if isinstance(part, ast.Constant)]
            found |= {float(n) for n in inner if isinstance(n, (int, float))}
    return found


def sentences(notebook: dict) -> list[str]:
    """Of all Markdown cells, answers included; places of the paper are marked by §."""
    text = "\n".join(runner.source_of(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    text = ELSEWHERE.sub(" ", PLACE.sub("§", NO_PROSE.sub(" ", text.replace("{,}", ","))))
    return [part for part in re.split(r"(?<=[.!?])\s+|\n+", text) if part.strip()]


def results_typed_by_hand(notebooks: dict[str, dict]) -> list[str]:
    """Notebook, sentence and number of everything in prose that has to come out of a cell."""
    found = []
    for name, notebook in notebooks.items():
        for sentence in sentences(notebook):
            known, of_the_paper = settings(), bool(OF_THE_PAPER.search(sentence))
            if "§" in sentence or (of_the_paper and OF_US.search(sentence)):
                known, of_the_paper = known | in_files("tables", "claims"), of_the_paper and not OF_US.search(sentence)
            for match in [] if of_the_paper else NUMBER.finditer(sentence):
                percent = sentence[match.end() :].lstrip(" \\")[:1] == "%"
                value = round(float(match[0].replace(",", "")) / (100 if percent else 1), 6)
                if value not in known and not (value.is_integer() and value <= SMALL and not percent):
                    found.append(f"{name}: {match[0]}{'%' * percent} in {sentence.strip()!r}")
    return found


def test_no_result_is_typed_by_hand():
    assert results_typed_by_hand(NOTEBOOKS) == []


TYPED = {  # a sentence -> the number that is found in it
    "Purity rises to 0.44 of a cell's neighbours.": "0.44",
    "Table 1 has cells of 43.21% here.": "43.21%",
    "The paper reaches 93.08, ours 61.37.": "61.37",
    "HL-Evo has 37.2% of the best.": "37.2%",
    "Of these 6,016 cells 1,207 lie outside.": "1,207",
    "Only $17.3\\\\%$ are new.": "17.3%",
    "Where 57% of them agree, the rest does not.": "57%",
}
SAID = (
    "The paper reaches 93.08% after 1,440 epochs.",
    "Six of 12 rows, and family 7.",
    "Widths are fitted to within 5%, and 32 families are used.",
    "See [05](05_table1_sampling.ipynb), [D49](../REPORT.md#deviations) and `call(0.123)`.",
    "Fig. 2b-c, Eq. 4-5 and App. E.2 say so on NAS-Bench-360.",
)


@pytest.mark.parametrize("sentence", TYPED)
def test_a_result_that_is_typed_is_found(sentence):
    copy = json.loads(json.dumps(NOTEBOOKS["02_clusters"]))
    copy["cells"][4]["source"] = runner.source_of(copy["cells"][4]) + f"\n\nIt is so. {sentence} It is."
    (found,) = results_typed_by_hand({"02_clusters": copy})
    assert found.replace("§", "Table 1") == f"02_clusters: {TYPED[sentence]} in {sentence!r}"


@pytest.mark.parametrize("sentence", SAID)
def test_settings_counts_and_the_papers_numbers_may_be_typed(sentence):
    cell = {"cell_type": "markdown", "source": sentence}
    assert results_typed_by_hand({"toy": {"cells": [cell]}}) == []
