"""What holds the repository together: layers of the library, pins, README, manifest, and what must not be in it."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from graphnas_lib.runner import Project, readme
from graphnas_lib.runner.manifest import read_manifest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "graphnas_lib"
LONGEST = 400  # lines of a module

# A module imports from a lower layer only (one paper concept a module). A new module gets its place here.
LAYERS = (
    "__init__ canonical checkpoints depthwise draw folding kernels pointwise workers",
    "artifacts augment bottleneck claims deviations diagrams distillation dynamics embedding latents metrics probe "
    "published recipes runner space zenblocks",
    "archives ccnf clusters codes macro manifest operations paper results search",
    "datasets losses mutations network proteins report vocabulary",
    "evolution export fitting gvae nats proxies sequence tasks zennet",
    "corpus designs nasbench360 roundtrip sgd synonyms validation",
    "datacard foreign kept training",
    "design scores",
    "stages",
    "ledger views",
    "doctor readme reproduce",
    "__main__",
)
LAYER = {module: number for number, layer in enumerate(LAYERS) for module in layer.split()}


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file."""
    files = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        files[name.removesuffix(".__init__") if name != "__init__" else name] = path
    return files


MODULES = modules()


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, lazily or not."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} must import by full name, not relatively (line {node.lineno})"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {n if n.removeprefix("graphnas_lib.") in MODULES else node.module for n in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    found.discard("graphnas_lib")
    return {name.removeprefix("graphnas_lib.") for name in found if name.startswith("graphnas_lib.")}


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_lower_layers_only(module):
    package = module.split(".")[0]
    assert package in LAYER, f"{package} has no layer; give it one in tests/test_structure.py"
    others = {name.split(".")[0] for name in imports(MODULES[module])} - {package}
    higher = [name for name in others if LAYER[name] >= LAYER[package]]
    assert not higher, f"{module} (layer {LAYER[package]}) imports {higher}, which are not below it"


def test_import_graph_has_no_circle():
    TopologicalSorter({name: imports(path) - {name} for name, path in MODULES.items()}).prepare()


@pytest.mark.parametrize("module", MODULES)
def test_module_is_readable_alone(module):
    text = MODULES[module].read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), f"{module} needs a docstring"
    assert len(text.splitlines()) <= LONGEST
    assert module.split(".")[-1] not in ("utils", "util", "helpers", "common", "misc")


def test_looking_at_the_notebooks_imports_nothing_heavy():
    """A second `make reproduce` must take seconds, so that deciding what is fresh may not import PyTorch."""
    heavy = ("torch", "pandas", "papermill", "sklearn", "transformers", "matplotlib")
    code = f"import sys, graphnas_lib.__main__, graphnas_lib.reproduce; print([m for m in {heavy} if m in sys.modules])"
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


def test_readme_names_both_commands_and_is_fresh():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "GraphNAS/GraphNAS" in text.splitlines()[0] and "graph neural networks" in text.splitlines()[0]
    assert "make reproduce" in text and "make test" in text and "not the authors' code" in text
    assert readme.render(Project(ROOT), text) == text, "README is stale: make readme"


def test_readme_promises_only_what_is_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z]+)|^make ([a-z]+)", text, re.MULTILINE)) != set()
    for found in re.findall(r"(?:`|^)make ([a-z]+)", text, re.MULTILINE):
        assert found in targets, f"README promises `make {found}`"
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (ROOT / link).exists(), f"README links {link}"


def test_stale_readme_is_noticed():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    edited = text.replace("make reproduce NOTEBOOKS=", "make reproduced NOTEBOOKS=")
    assert edited != text and readme.render(Project(ROOT), edited) != edited
    with pytest.raises(ValueError, match="generated blocks"):
        readme.render(Project(ROOT), text.replace("<!-- generated: results -->", ""))


def test_every_table_and_figure_of_the_paper_has_one_notebook():
    notebooks = read_manifest(ROOT / "notebooks" / "manifest.toml")
    named = [item for notebook in notebooks for item in notebook.paper]
    wanted = [f"Tab. {n}" for n in range(1, 7)] + ["Fig. 1", "Fig. 2a", "Fig. 2b", "Fig. 2c", "Fig. 3"]
    assert {item: named.count(item) for item in wanted} == dict.fromkeys(wanted, 1)
    assert [n.number for n in notebooks] == [f"{i:02d}" for i in range(13)]
    assert all(set(n.timeout) == {"smoke", "lite", "paper"} for n in notebooks)


def test_manifest_agrees_with_the_stages():
    from graphnas_lib.stages import NEEDS

    maker = {stage: n for n in read_manifest(ROOT / "notebooks" / "manifest.toml") for stage in n.makes}
    assert set(maker) == set(NEEDS)
    for stage, needs in NEEDS.items():
        lacking = set(needs) - set(maker[stage].needs) - set(maker[stage].makes)
        assert not lacking, f"{maker[stage].name} makes {stage}, which reads {lacking}: name them in `needs`"


def test_order_of_execution():
    order = [notebook.number for notebook in Project(ROOT).notebooks()]
    assert [number for number in order if number != "00"] == [f"{i:02d}" for i in range(1, 13)]
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
