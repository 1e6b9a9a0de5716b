"""Notebooks over a part of the stages: what stands on a missing one reads "not run (why)", the rest is shown."""

import ast
import json
import shutil

import pytest

from graphnas_lib import paper, runner, store
from graphnas_lib.stages.absent import Tolerant
from graphnas_lib.store import MissingArtifactError


def missing():
    raise MissingArtifactError("No artifact of stage 'b'.")


def run(cells: list[str]) -> tuple[dict, list]:
    """Names after the cells, and the value of each cell's last expression."""
    names, values = {"missing": missing, "json": json}, []
    tolerant = Tolerant(names)
    for cell in cells:
        tree = tolerant.visit(ast.parse(cell))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "cell", "exec"), names)
        values.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last else None)
    return names, values


def test_what_stands_on_a_missing_stage_is_left_out(capsys):
    names, values = run(
        ["a, fig = 3, 'old'\na", "b = missing()\nfig = [b]\nfig", "c = a + 1\nfor i in range(2):\n    b\nc", "a"]
    )
    assert values == [3, None, 4, 3] and names["c"] == 4
    assert "fig" not in names and "b" not in names  # a figure of an earlier cell is not taken for this one's
    assert capsys.readouterr().out == "not run (No artifact of stage 'b'.)\n" * 2  # once a cell


@pytest.mark.parametrize(
    ("cell", "error"), [("misspelt", NameError), ("json.no", AttributeError), ("1 / 0", Exception)]
)
def test_other_errors_are_errors(cell, error):
    for statement in (cell, f"x = {cell}"):
        with pytest.raises(error):
            run(["b = missing()", statement])


@pytest.fixture
def partial_home(tmp_path, repository, monkeypatch):
    """A home whose paper scale has some stages: those of lite under its name."""
    monkeypatch.setenv("GRAPHNAS_HOME", str(tmp_path))
    shutil.copytree(repository / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns("executed"))

    def lay(*stages: str) -> None:
        (tmp_path / "data" / "paper").mkdir(parents=True, exist_ok=True)
        lite = repository / "data" / "lite"
        for stage in stages:
            for name in (f"{stage}.manifest.json", *store.read(lite / f"{stage}.manifest.json")["files"]):
                shutil.copy(lite / name, tmp_path / "data" / "paper" / name)

    return lay


def shown(home, name: str) -> list[str]:
    """What each code cell of an executed notebook printed and showed, as text."""
    notebook = json.loads((home / "notebooks" / "executed" / "paper" / f"{name}.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [json.dumps(cell["outputs"]) for cell in cells]


def reproduced(home, *numbers: str) -> int:
    return runner.reproduce(runner.Project(home), "paper", notebooks=numbers, device="cpu")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_part_of_the_stages_is_a_report(partial_home, tmp_path, capsys):
    partial_home("cells", "labels", "families")
    assert reproduced(tmp_path, "06", "12") == 1  # without its own stage there is no notebook
    assert "06_hl_evo reads the stages gvae, ccnf, evolution, which data/paper lacks" in capsys.readouterr().out
    assert "not run (No artifact of stage" in "".join(shown(tmp_path, "12_report"))
    claims = store.read(tmp_path / "data" / "paper" / "results" / "claims.csv")
    assert len(claims) == len(paper.CLAIMS) and claims["status"].str.startswith("not run").mean() > 0.5
    partial_home("evolution", "gvae", "ccnf", "sequence", "designed")
    assert reproduced(tmp_path, "06", "07") == 0, capsys.readouterr().out
    for name, figures in (("06_hl_evo", "evo_history"), ("07_sequence_generator", "sg_requests")):
        assert "not run (No artifact of stage 'comparison'" in "".join(shown(tmp_path, name))
        assert (tmp_path / "figures" / "paper" / f"{figures}.png").exists()
    assert not (tmp_path / "figures" / "paper" / "evo_search.png").exists()
    stale = runner.status(runner.Project(tmp_path), "paper", device="cpu")
    assert not stale["06_hl_evo"] and stale["12_report"]  # more stages are there than it has shown
