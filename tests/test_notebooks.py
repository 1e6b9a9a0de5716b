"""Lint of the notebooks: readable before anything is run, and safe to run headlessly. Each rule is seen to bite."""

import ast
import json
import re
from pathlib import Path

import pytest

from graphnas_lib.plots.tables import WORDS
from graphnas_lib.runner import Project
from graphnas_lib.runner import notebook as runner
from graphnas_lib.runner.manifest import read_manifest
from graphnas_lib.runner.readme import with_outputs

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9]*.ipynb"))
LARGEST = 1_000_000  # bytes; hosting sites stop rendering much larger notebooks
LONGEST = 12  # lines of a code cell
ENTRIES = {notebook.name: notebook for notebook in read_manifest(FOLDER / "manifest.toml")}
PARAMETERS = {"scale": "smoke", "seed": 0, "device": "auto"}  # a notebook may have more
MACHINE_PATH = re.compile(r"(?<![\w.:/\-])/(?:home|root|tmp|usr|opt|work|mnt|var|Users|private)/[\w.]")
FLOAT = re.compile(r"(?<![\w.])\d+\.\d+(?![\w.]*\d)")
CALLS = {
    "exit": "a notebook must not exit",
    "quit": "a notebook must not exit",
    "sys.exit": "a notebook must not exit",
    "plt.show": "the last expression shows the figure",
    "warnings.filterwarnings": "warnings are mended, not hidden",
    "get_ipython": "no magics",
}


def code_of(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def problems(notebook: dict, size: int = 0, scale: str = PARAMETERS["scale"]) -> list[str]:
    """Everything that is wrong with a notebook that should state `scale`, in words."""
    found = [f"larger than {LARGEST} bytes: {size}"] * (size > LARGEST)
    found += metadata_problems(notebook) + parameter_problems(notebook, PARAMETERS | {"scale": scale})
    for number, cell in enumerate(code_of(notebook), 1):
        found += [f"cell {number}: {problem}" for problem in code_problems(runner.source_of(cell))]
        found += [f"cell {number}: {problem}" for problem in output_problems(cell, number)]
    text = json.dumps(notebook, ensure_ascii=False).replace("\\n", " ").replace('\\"', " ")
    found += [f"names a path of a machine: {hit}" for hit in sorted(set(MACHINE_PATH.findall(text)))]
    return found + shape_problems(notebook)


def metadata_problems(notebook: dict) -> list[str]:
    found = []
    if notebook["metadata"].get("kernelspec") != runner.KERNEL:
        found.append(f"kernelspec must be {runner.KERNEL}")
    if "papermill" in notebook["metadata"]:
        found.append("papermill's metadata")
    for cell in notebook["cells"]:
        found += ["papermill's metadata in a cell"] * bool({"papermill", "execution"} & set(cell["metadata"]))
        tags = runner.tags_of(cell)
        found += [f"tag {t}" for t in ("injected-parameters", "raises-exception", "skip-execution") if t in tags]
    return found


def parameter_problems(notebook: dict, wanted: dict) -> list[str]:
    code = code_of(notebook)
    tagged = [cell for cell in code if "parameters" in runner.tags_of(cell)]
    if len(tagged) != 1 or tagged[0] is not code[0]:
        return ["the first code cell, and no other, is tagged parameters"]
    source = runner.source_of(tagged[0])
    try:
        values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(source).body}
    except (AttributeError, ValueError, SyntaxError):
        return ["the parameters cell holds literals only: what is derived is derived before papermill injects"]
    found = [] if wanted.items() <= values.items() else [f"parameters must include {wanted}, got {values}"]
    return found + ["each parameter needs a comment"] * any("#" not in line for line in source.splitlines() if line)


def code_problems(source: str) -> list[str]:
    found = [f"{len(source.splitlines())} lines, more than {LONGEST}"] * (len(source.splitlines()) > LONGEST)
    if re.search(r"^\s*[!%]", source, re.MULTILINE):
        return [*found, "a line starts with ! or %: a failing magic is no failure to papermill"]
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        return [*found, f"no Python: {error.msg}"]
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.append(f"defines {node.name}: logic belongs into the library, where it is tested")
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            found += [f"calls {name}: {CALLS[name]}"] if name in CALLS else []
            found += [f"calls {name}: report.save_figure saves"] * name.endswith(".savefig")
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            others = [n for n in names if n.split(".")[0] not in ("graphnas_lib", "matplotlib")]
            found += [f"imports {name}; notebooks import graphnas_lib and matplotlib" for name in others]
        if isinstance(node, ast.If) and "scale" in ast.unparse(node.test):
            found.append("branches on the scale: a smaller scale runs the same cells")
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "os.environ":
            found.append("touches os.environ")
    return found


def output_problems(cell: dict, number: int) -> list[str]:
    found = []
    if cell["execution_count"] != number:
        found.append(f"execution count {cell['execution_count']}; run all cells from the top and save")
    for output in cell["outputs"]:
        found += ["an error in its output"] * (output["output_type"] == "error")
        found += ["something on stderr"] * (output.get("name") == "stderr")
    if "nbval-check-output" in runner.tags_of(cell):
        text = json.dumps([output.get("text", output.get("data", "")) for output in cell["outputs"]])
        found += ["checked, but prints nothing"] * (not cell["outputs"])
        found += [f"checked output has the float {hit}" for hit in FLOAT.findall(text)]
    return found


def shape_problems(notebook: dict) -> list[str]:
    cells = notebook["cells"]
    found = []
    if cells[0]["cell_type"] != "markdown" or not re.match(r"# \d\d · ", runner.source_of(cells[0])):
        found.append("starts with Markdown '# NN · Title'")
    if cells[-1]["cell_type"] != "markdown":
        found.append("ends with Markdown: what matches, what does not")
    if not any("nbval-check-output" in runner.tags_of(cell) for cell in code_of(notebook)):
        found.append("has no cell tagged nbval-check-output")
    return found


def saved_names(notebook: dict, function: str) -> set[str]:
    """String literals given to save_figure or save_table."""
    names = set()
    for cell in code_of(notebook):
        for node in ast.walk(ast.parse(runner.source_of(cell))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == function:
                names |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    return names


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_clean(path):
    notebook, scale = json.loads(path.read_text(encoding="utf-8")), Project(FOLDER.parent).default_scale([path.stem])
    assert problems(notebook, path.stat().st_size, scale) == []


def silent_pictures(notebook: dict) -> list[str]:
    """Pictures in a notebook's outputs that lack a caption or an alternative text, or are smaller than they say."""
    found = []
    for number, cell in enumerate(code_of(notebook), 1):
        for output in cell["outputs"]:
            if "image/png" in output.get("data", {}):
                words = output["metadata"].get("image/png", {})
                found += [f"cell {number}: no alternative text"] * (len(words.get("alt", "")) < 20)
                saves = "save_figure" in runner.source_of(cell)
                found += [f"cell {number}: no caption"] * (saves and not words.get("caption"))
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_picture_has_a_caption_and_an_alternative_text(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert silent_pictures(notebook) == []
    shown = sum("image/png" in output.get("data", {}) for cell in code_of(notebook) for output in cell["outputs"])
    assert shown >= len(ENTRIES[path.stem].figures)


def test_a_silent_picture_is_found():
    notebook = clean()
    picture = {"output_type": "execute_result", "data": {"image/png": "x"}, "metadata": {}}
    code_of(notebook)[1].update(outputs=[picture], source="plots.save_figure(fig)")
    assert silent_pictures(notebook) == ["cell 2: no alternative text", "cell 2: no caption"]


def test_every_figure_has_its_words_and_no_words_are_left_over():
    names = [name for entry in ENTRIES.values() for name in entry.figures]
    assert sorted(WORDS) == sorted(names)
    assert all(set(words) == {"caption", "alt"} and min(map(len, words.values())) > 20 for words in WORDS.values())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_table_shows_a_nan_or_a_bare_index(path):
    for cell in code_of(json.loads(path.read_text(encoding="utf-8"))):
        for output in cell["outputs"]:
            page = "".join(output.get("data", {}).get("text/html", ""))
            assert "NaN" not in page and "dataframe" not in page, runner.source_of(cell)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_manifest_declares_what_the_notebook_saves(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    entry = ENTRIES[path.stem]
    assert saved_names(notebook, "save_figure") == set(entry.figures)
    assert saved_names(notebook, "save_table") == set(entry.tables)
    assert runner.source_of(notebook["cells"][0]).startswith(f"# {entry.number} · ")


def test_every_notebook_is_in_the_manifest():
    assert {path.stem for path in NOTEBOOKS} == ENTRIES.keys()


# ---- the rules bite


def clean() -> dict:
    """A notebook without fault."""
    code = [
        f'scale = "{PARAMETERS["scale"]}"  # or another\nseed = 0  # of everything\ndevice = "auto"  # or cpu, cuda',
        "from graphnas_lib import space",
        'print("cells", 3)',
    ]
    tags = [["parameters"], [], ["nbval-check-output"]]
    cells = [{"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# 01 · Toy"}]
    for number, source in enumerate(code, 1):
        outputs = [{"output_type": "stream", "name": "stdout", "text": "cells 3\n"}] if number == 3 else []
        cell = {"cell_type": "code", "id": f"c{number}", "metadata": {"tags": tags[number - 1]}, "source": source}
        cells.append(cell | {"execution_count": number, "outputs": outputs})
    cells.append({"cell_type": "markdown", "id": "z", "metadata": {}, "source": "All matches."})
    return {"cells": cells, "metadata": {"kernelspec": dict(runner.KERNEL)}, "nbformat": 4, "nbformat_minor": 5}


def source(number: int, text: str):
    return lambda nb: code_of(nb)[number].update(source=text)


def output(number: int, **fields):
    return lambda nb: code_of(nb)[number].update(outputs=[fields])


FAULTS = {
    "def": (source(1, "def f():\n    pass"), "defines f"),
    "class": (source(1, "class A:\n    pass"), "defines A"),
    "shell": (source(1, "!pip install x"), "starts with !"),
    "magic": (source(1, "%cd .."), "starts with !"),
    "exit": (source(1, "import sys\nsys.exit(0)"), "must not exit"),
    "import": (source(1, "import torch"), "imports torch"),
    "branch": (source(1, 'if scale == "smoke":\n    pass'), "branches on the scale"),
    "savefig": (source(1, "fig.savefig('x.png')"), "save_figure saves"),
    "long": (source(1, "a = 1\n" * 13), "more than 12"),
    "machine path": (source(1, 'open("/ho" "me/me/x")'.replace('" "', "")), "path of a machine"),
    "derived parameter": (source(0, 'scale = "lite"  #\nseed = 0  #\ndevice = str(scale)  #'), "literals only"),
    "other parameter": (source(0, 'scale = "paper"  #\nseed = 0  #\ndevice = "auto"  #'), "parameters must include"),
    "uncommented": (source(0, 'scale = "lite"\nseed = 0\ndevice = "auto"'), "needs a comment"),
    "no tag": (lambda nb: code_of(nb)[0].update(metadata={}), "tagged parameters"),
    "injected": (lambda nb: code_of(nb)[1]["metadata"].update(tags=["injected-parameters"]), "injected"),
    "raises": (lambda nb: code_of(nb)[1]["metadata"].update(tags=["raises-exception"]), "raises-exception"),
    "papermill": (lambda nb: nb["metadata"].update(papermill={}), "papermill's metadata"),
    "papermill cell": (lambda nb: nb["cells"][0]["metadata"].update(papermill={}), "papermill's metadata in a cell"),
    "kernel": (lambda nb: nb["metadata"]["kernelspec"].update(name="my-env"), "kernelspec must be"),
    "stripped": (lambda nb: code_of(nb)[2].update(execution_count=None), "execution count None"),
    "gap": (lambda nb: code_of(nb)[2].update(execution_count=7), "execution count 7"),
    "error": (output(1, output_type="error", ename="E", evalue="", traceback=[]), "an error"),
    "stderr": (output(1, output_type="stream", name="stderr", text="w"), "stderr"),
    "unchecked": (lambda nb: code_of(nb)[2].update(metadata={}), "no cell tagged nbval"),
    "checks nothing": (lambda nb: code_of(nb)[2].update(outputs=[]), "prints nothing"),
    "checks a float": (output(2, output_type="stream", name="stdout", text="loss 0.123"), "float 0.123"),
    "no title": (lambda nb: nb["cells"][0].update(source="Toy"), "starts with Markdown"),
    "no end": (lambda nb: nb["cells"].pop(), "ends with Markdown"),
}


def test_clean_notebook_has_no_problems():
    assert problems(clean()) == []
    assert problems(clean(), LARGEST + 1) != []


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_found(fault):
    notebook = clean()
    spoil, wanted = FAULTS[fault]
    spoil(notebook)
    assert any(wanted in problem for problem in problems(notebook)), problems(notebook)


# ---- outputs of an executed copy back into the source


def executed(own: dict) -> dict:
    """What papermill leaves: an injected cell, its metadata, counts that start late, other kernel data."""
    copy = json.loads(json.dumps(own))
    injected = {
        "cell_type": "code",
        "id": "i",
        "metadata": {"tags": ["injected-parameters"]},
        "source": 'scale = "lite"',
    }
    copy["cells"].insert(2, injected | {"execution_count": 2, "outputs": []})
    result = {"output_type": "execute_result", "execution_count": 9, "data": {"text/plain": "42"}, "metadata": {}}
    for count, cell in enumerate(code_of(copy), 5):
        cell["execution_count"] = count
        cell["metadata"]["papermill"] = {"duration": 1.0}
    code_of(copy)[-1]["outputs"].append(result)
    copy["metadata"] |= {"papermill": {"duration": 9}, "language_info": {"version": "3.11.7"}}
    return copy


def test_saved_outputs_are_clean_and_complete():
    own = clean()
    for cell in code_of(own):
        cell |= {"execution_count": None}
    merged = with_outputs(own, executed(clean()), PARAMETERS["scale"], "01_toy")
    assert problems(merged) == []
    assert code_of(merged)[-1]["outputs"][-1]["execution_count"] == 3
    assert [cell["id"] for cell in merged["cells"]] == [cell["id"] for cell in clean()["cells"]]


def test_outputs_of_other_code_or_scale_are_refused():
    edited = clean()
    code_of(edited)[1]["source"] = "from graphnas_lib import macro"
    with pytest.raises(ValueError, match="was edited after its run"):
        with_outputs(edited, executed(clean()), PARAMETERS["scale"], "01_toy")
    with pytest.raises(ValueError, match="states scale = "):
        with_outputs(clean(), executed(clean()), "paper", "01_toy")
