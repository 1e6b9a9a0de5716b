"""What holds the repository together: layers of the library, pins, README, manifest, and what must not be in it."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from graphnas_lib.paper import CLAIMS, STAGES
from graphnas_lib.runner import Project, readme
from graphnas_lib.runner.manifest import read_manifest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "graphnas_lib"
MOST_ROOMS, MOST_FLOORS = 24, 8
# the redesign, and since then: evidence from public tables, spectra, searches that reach far, what users bring, GPUs,
# tables in the paper's layout and figures that say what they show, machines otherwise than most, panels, medoids, walks
# and paths in pictures, rules of selection that are trained, and of a road on GPUs: few launches, graphed steps, a GPU
# a worker, notebooks over a part of it
MOST_LINES = 16_500 + 5_600
LONGEST_MODULE, LONGEST_BODY, MOST_CALLED_ONCE = 400, 40, 125  # lines, lines, private functions


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file."""
    files = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        files[name.removesuffix(".__init__") if name != "__init__" else name] = path
    return files


MODULES = modules()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
ROOMS = sorted({name.split(".")[0] for name in MODULES} - {"__init__", "__main__"})


def imports(tree: ast.Module, name: str = "") -> set[str]:
    """What a file imports of the package, below its name: modules, and names of modules; lazily or not."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} must import by full name, not relatively (line {node.lineno})"
            if node.module.split(".")[0] == "graphnas_lib":
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "graphnas_lib"}
    return {item.removeprefix("graphnas_lib").lstrip(".") for item in found} - {"", "__version__"}


def arrows() -> dict[str, set[str]]:
    """Room -> rooms that it imports."""
    found = {room: set() for room in ROOMS}
    for name, tree in TREES.items():
        room = name.split(".")[0]
        if room in found:
            found[room] |= {item.split(".")[0] for item in imports(tree, name)} - {room}
    return found


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
    """Room -> 1 for those that import no other, else one above the highest that it imports; CycleError for a circle."""
    floor = {}
    for room in TopologicalSorter(graph).static_order():
        floor[room] = 1 + max((floor[other] for other in graph[room]), default=0)
    return floor


def offered(room: str) -> set[str]:
    """Names that a room offers: what a package's `__init__` imports from its own modules, a module's public names."""
    names = {name for name in defined(TREES[room]) if not name.startswith("_")}
    for node in TREES[room].body if MODULES[room].name == "__init__.py" else []:
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(f"graphnas_lib.{room}."):
            names |= {alias.name for alias in node.names}
    return names


def defined(tree: ast.Module) -> set[str]:
    """Top-level names that a module itself defines."""
    found = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {item.id for target in targets for item in ast.walk(target) if isinstance(item, ast.Name)}
    return found


def inside(tree: ast.Module, own: str = "") -> list[str]:
    """Imports that reach into a room from outside, or take what it does not offer."""
    wrong = []
    for item in sorted(imports(tree)):
        room, _, rest = item.partition(".")
        if room != own and rest and rest not in offered(room):
            wrong.append(item)
    return wrong


def test_rooms_and_floors_are_few():
    floor = floors(arrows())
    assert len(ROOMS) <= MOST_ROOMS and max(floor.values()) <= MOST_FLOORS - 1, floor  # the top floor is __main__'s


def test_a_circle_would_be_noticed():
    with pytest.raises(CycleError):
        floors({"a": {"b"}, "b": {"a"}})


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_imported_from_inside_another_room(module):
    room = module.split(".")[0]
    assert not inside(TREES[module], room), f"{module} must import from rooms what they offer"


def test_an_import_from_inside_would_be_noticed():
    assert inside(ast.parse("from graphnas_lib.space.cell import Cell")) == ["space.cell.Cell"]
    assert inside(ast.parse("from graphnas_lib.space import _binary")) == ["space._binary"]
    assert inside(ast.parse("from graphnas_lib.space import cell")) == ["space.cell"]
    assert inside(ast.parse("from graphnas_lib.space import Cell")) == []


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_import_rooms(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert not inside(ast.parse("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")))


def test_no_name_has_two_homes():
    """A room's `__init__` takes each name from the module that defines it; no other module passes a name on."""
    for module, tree in TREES.items():
        if MODULES[module].name == "__init__.py":
            for item in imports(tree) - {f"{module}.{other.split('.')[-1]}" for other in MODULES}:
                home, _, name = item.rpartition(".")
                assert name in defined(TREES[home]), f"{module} offers {name}, which {home} only imports"
        else:
            listed = [
                n for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"
            ]
            assert not listed, f"{module} has an __all__: what a room offers stands in its __init__"


def test_no_import_hides_in_a_string():
    for module, tree in TREES.items():
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        if module != "cli.foreign":  # a user's own file is imported by its path
            assert not used & {"import_module", "__import__"}, f"{module} imports by name"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_is(room):
    told = ast.get_docstring(TREES[room])
    assert told and (MODULES[room].name != "__init__.py" or len(told.splitlines()) <= 10)


@pytest.mark.parametrize("module", MODULES)
def test_module_is_readable_alone(module):
    assert ast.get_docstring(TREES[module]), f"{module} needs a docstring"
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= LONGEST_MODULE
    assert module.split(".")[-1] not in ("utils", "util", "helpers", "common", "misc")
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            lines = node.end_lineno - body[0].lineno + 1
            assert lines <= LONGEST_BODY, f"{module}.{node.name} has {lines} lines"


def called_once(tree: ast.Module) -> list[str]:
    """Private functions that their module names once."""
    named = Counter()
    for node in ast.walk(tree):
        if isinstance(getattr(node, "ctx", None), ast.Load):
            named[getattr(node, "id", None) or getattr(node, "attr", None)] += 1
    private = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name[0] == "_"]
    return [name for name in private if name[:2] != "__" and named[name] == 1]


def test_the_library_stays_a_thin_one():
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES.values())
    once = [f"{module}.{name}" for module, tree in TREES.items() for name in called_once(tree)]
    assert lines <= MOST_LINES and len(once) <= MOST_CALLED_ONCE, (lines, len(once), once)


def test_looking_at_the_notebooks_imports_nothing_heavy():
    """A second `make reproduce` must take seconds, so that deciding what is fresh may not import PyTorch."""
    heavy = ("torch", "pandas", "papermill", "sklearn", "transformers", "matplotlib")
    code = f"import sys, graphnas_lib.__main__, graphnas_lib.runner; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- environments


def pins(text: str) -> dict[str, str]:
    found = re.findall(r"^\s*(?:- )?([A-Za-z0-9_.\-]+)==([^\s#]+)", text, re.MULTILINE)
    assert len({canonicalize_name(name) for name, _ in found}) == len(found), "a package is pinned twice"
    return {canonicalize_name(name): version for name, version in found}


def test_pins_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    constraints = pins((ROOT / "constraints.txt").read_text())
    environment = pins((ROOT / "environment.yml").read_text())
    assert {name: constraints.get(name) for name in environment} == environment
    for group in [project["dependencies"], *extras.values()]:
        for requirement in map(Requirement, group):
            pin = constraints.get(canonicalize_name(requirement.name))
            assert pin is not None, f"{requirement.name} has no pin in constraints.txt"
            assert requirement.specifier.contains(pin), f"{requirement} does not admit the pinned {pin}"
    for requirement in map(Requirement, [*project["dependencies"], *extras["dev"], *extras["lab"]]):
        assert canonicalize_name(requirement.name) in environment, f"{requirement.name} is not in environment.yml"


def test_every_import_is_declared():
    """A package that only another one brings along is gone when that one changes its mind (ipykernel was such)."""
    named = {"sklearn": "scikit-learn", "PIL": "pillow", "dateutil": "python-dateutil"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {canonicalize_name(Requirement(item).name) for group in groups for item in group}
    declared.add("distributed" if "dask" in declared else "dask")
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for top in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"graphnas_lib"}:
                assert canonicalize_name(named.get(top, top)) in declared, f"{module} imports {top}: declare it"


def test_ci_tests_every_python_that_is_promised():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11,<3.14"
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111, ".ci/run must be executable"


def test_citation_parses():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] and citation["title"] and citation["authors"]
    assert "Hierarchical Generative Modeling" in json.dumps(citation)


# ---- README and manifest


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_readme_is_one_screen():
    text = read("README.md")
    assert len(text.splitlines()) < 150 and len(text.encode()) < 8192
    assert "make reproduce" in text and "make test" in text
    assert len(read("CONTRIBUTING.md").splitlines()) < 80


@pytest.mark.parametrize("name", readme.BLOCKS)
def test_generated_blocks_are_fresh(name):
    text = read(name)
    assert readme.render(Project(ROOT), name, text) == text, f"{name} is stale: make readme"
    edited = text.replace("| lite |", "| lite, edited |", 1)
    assert edited != text and readme.render(Project(ROOT), name, edited) == text
    with pytest.raises(ValueError, match="generated blocks"):
        readme.render(Project(ROOT), name, text.replace("<!-- generated: scoreboard -->", ""))
    with pytest.raises(ValueError, match="must end with"):
        readme.render(Project(ROOT), name, text.replace("<!-- end: scoreboard -->", ""))


def test_stale_documents_are_written_once(tmp_path):
    for name in ("README.md", "REPORT.md", "notebooks/manifest.toml", "notebooks/runtimes.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("data", "figures"):
        (tmp_path / name).symlink_to(ROOT / name)
    stale = tmp_path / "REPORT.md"
    stale.write_text(read("REPORT.md").replace("D02-flops", "D02"), encoding="utf-8")
    assert readme.update(Project(tmp_path)) == ["wrote REPORT.md"]
    assert stale.read_text(encoding="utf-8") == read("REPORT.md") and readme.update(Project(tmp_path)) == []


def test_scoreboard_counts_every_claim():
    for found in readme.by_status(Project(ROOT)).values():
        assert sorted(row["id"] for rows in found.values() for row in rows) == sorted(claim.id for claim in CLAIMS)


@pytest.mark.parametrize("name", ["README.md", "REPORT.md", "CONTRIBUTING.md"])
def test_documents_promise_only_what_is_there(name):
    text = read(name)
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))
    promised = re.findall(r"(?:`|^)make ([a-z]+)", text, re.MULTILINE)
    assert promised and set(promised) <= targets, f"{name} promises {sorted(set(promised) - targets)}"
    links = re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text)
    links += [(link, "") for link in re.findall(r'(?:src|href)="([^"]+)"', text)]
    assert links and [link for link, _ in links if not (ROOT / link).exists()] == []
    anchors = [(link or name, anchor) for link, anchor in links if anchor]
    assert [(link, anchor) for link, anchor in anchors if anchor not in headings(read(link))] == []


def headings(text: str) -> set[str]:
    """Anchors of the headings of a Markdown file, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_gallery_links_each_figure_to_its_notebook():
    pictures = r'href="notebooks/(\w+)\.ipynb"><img src="figures/lite/(\w+)\.png"'
    shown = re.findall(pictures, read("README.md"))
    figures = {notebook.name: notebook.figures for notebook in Project(ROOT).notebooks()}
    assert len(shown) >= 5  # the picture at the top and four more
    assert [(notebook, figure) for notebook, figure in shown if figure not in figures[notebook]] == []


def test_map_of_concept_to_room_leads_there():
    """Each row's names are defined in its room, and the room's files name each of the row's equations."""
    rows = re.findall(r"^\| (.+) \| (.+) \| \[(\w+)\]\((graphnas_lib/[\w./]+)\) \|$", read("README.md"), re.MULTILINE)
    assert len(rows) >= 12
    equations = set()
    for concept, names, room, link in rows:
        files = [ROOT / link] if link.endswith(".py") else sorted((ROOT / link).rglob("*.py"))
        text = "\n".join(path.read_text(encoding="utf-8") for path in files)
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^\s*(?:def |class )?{name}\b(?: =|\(|:)", text, re.MULTILINE), (
                f"{room} defines no {name}"
            )
        for first, last in re.findall(r"Eq\. (\d+)(?:-(\d+))?", concept):
            equations |= set(range(int(first), int(last or first) + 1))
            assert re.search(rf"Eq\. (?:{first}\b|\d+-{first}\b)", text), f"{room} names no Eq. {first}"
    assert equations == set(range(1, 13))


def test_contributing_has_every_room_on_its_floor():
    rows = re.findall(r"^\| (\d) \| (.+) \|$", read("CONTRIBUTING.md"), re.MULTILINE)
    listed = [(room, int(floor)) for floor, rooms in rows for room in re.findall(r"`(\w+)`", rooms)]
    assert sorted(room for room, _ in listed) == ROOMS
    floor = dict(listed)
    assert [(room, other) for room, others in arrows().items() for other in others if floor[other] >= floor[room]] == []


@pytest.mark.slow
def test_quick_start_prints_what_readme_shows():
    code, output = re.search(r"```python\n(.+?)```\n\n```text\n(.+?)```", read("README.md"), re.DOTALL).groups()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    shown, printed = ([line.split() for line in text.splitlines()] for text in (output, done.stdout))
    assert [row[:3] + row[4:] for row in printed[1:]] == [row[:3] + row[4:] for row in shown[1:]]
    tcet = [[float(row[3]) for row in rows[1:]] for rows in (printed, shown)]
    assert tcet[0] == pytest.approx(tcet[1], rel=1e-3)  # last digits follow the machine and its number of threads


def test_line_endings_are_left_alone():
    """A checksum is of bytes, so that git may convert no line ending."""
    for name in ("data/lite/results/claims.csv", "data/lite/families.json", "README.md", "figures/lite/any.pdf"):
        done = subprocess.run(["git", "check-attr", "text", name], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            pytest.skip("not a git checkout")
        assert done.stdout.strip().endswith("text: unset")


def test_every_table_and_figure_of_the_paper_has_one_notebook():
    notebooks = read_manifest(ROOT / "notebooks" / "manifest.toml")
    named = [item for notebook in notebooks for item in notebook.paper]
    wanted = [f"Tab. {n}" for n in range(1, 7)] + ["Fig. 1", "Fig. 2a", "Fig. 2b", "Fig. 2c", "Fig. 3"]
    assert {item: named.count(item) for item in wanted} == dict.fromkeys(wanted, 1)
    assert [n.number for n in notebooks] == [f"{i:02d}" for i in range(14)]
    assert all(set(n.timeout) == {"smoke", "lite", "paper"} for n in notebooks)


UNSHOWN = ["selection"]  # nothing of them ships yet


def test_every_stage_has_one_notebook():
    made = [stage for notebook in read_manifest(ROOT / "notebooks" / "manifest.toml") for stage in notebook.makes]
    assert sorted([*made, *UNSHOWN]) == sorted(STAGES)


def test_order_of_execution():
    order = [notebook.number for notebook in Project(ROOT).notebooks()]
    assert [number for number in order if number not in ("00", "13")] == [f"{i:02d}" for i in range(1, 13)]
    assert order.index("13") < order.index("12"), "the report shows what the tables say"
    assert order.index("00") > order.index("07"), "the quick start uses the trained generator"


# ---- what must not be in the repository


def tracked() -> list[Path]:
    """Files that are, or would be, committed."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / line for line in listed if (ROOT / line).is_file()]


def test_no_machine_path_is_committed():
    folders = ("work", "root", "opt", "home/[a-z]+", "Users/[A-Za-z]+", "mnt", "tmp/[a-z]+")
    pattern = re.compile(rf"(?<![\w.\-/:*$}})])/(?:{'|'.join(folders)})/\w")
    found = []
    for path in tracked():
        if path.suffix in (".pdf", ".png", ".safetensors", ".parquet", ".gz", ".xz"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if hit := pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {hit[0]}")
    assert not found


def test_large_files_and_data_sets_are_not_committed():
    sizes = {path: path.stat().st_size for path in tracked()}
    assert {path.name: size for path, size in sizes.items() if size > 10 * 2**20} == {}
    assert sum(sizes.values()) < 90 * 2**20


@pytest.mark.parametrize("scale", ["smoke", "lite"])
def test_only_shipped_scales_are_tracked(scale):
    ignored = subprocess.run(["git", "check-ignore", "-q", f"data/{scale}/gvae.safetensors"], cwd=ROOT)
    if ignored.returncode == 128:
        pytest.skip("not a git checkout")
    assert (ignored.returncode == 0) == (scale == "smoke")
