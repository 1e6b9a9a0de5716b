"""Sphinx configuration of the site (`make site`): README, report, glossary, gallery and the notebooks as committed.

Nothing is executed and nothing is fetched: equations become MathML, and pages open from a file without a server.
"""

import json
import re
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from graphnas_lib.plots.tables import WORDS
from graphnas_lib.runner import Project

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(Project(ROOT).notebooks(), key=lambda notebook: notebook.name)  # as readers take them
PAGES = [
    "README.md",
    "REPORT.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "site/*.md",
    "notebooks/*.md",
    "notebooks/[0-9]*.ipynb",
]
FIGURES = "figures/lite"

project = "graphnas_lib"
html_title = "graphnas_lib"
root_doc = "README"
extensions = ["myst_nb"]
include_patterns = PAGES
exclude_patterns = [
    ".*",
    "build",
    "data",
    "figures",
    "graphnas_lib",
    "tests",
    "checkpoints",
    "notebooks/executed",
    "*.egg-info",
]
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type", "misc.highlighting_failure"]
html_theme = "furo"
html_copy_source = False
html_show_copyright = False
html_math_renderer = "mathml"
html_static_path = ["static"]
html_css_files = ["site.css"]

CONTENTS = """

```{{toctree}}
:hidden:
:caption: Notebooks

{notebooks}
```

```{{toctree}}
:hidden:
:caption: More

{more}
```
"""
log = logging.getLogger(__name__)


def folders(_app, _name: str, source: list[str]) -> None:
    """A link to a room leads to its first file: a page cannot show a folder."""
    source[0] = re.sub(r"\]\(((?:\.\./)?graphnas_lib/\w+)\)", r"](\1/__init__.py)", source[0])


def contents(_app, name: str, source: list[str]) -> None:
    """The site's contents, added to README: it is the first page here and a plain file everywhere else."""
    if name == root_doc:
        source[0] = re.sub(r'href="(notebooks/\w+)\.ipynb"', r'href="\1.html"', source[0])
        more = [page for pattern in PAGES[1:-1] for page in sorted(ROOT.glob(pattern))]
        source[0] += CONTENTS.format(
            notebooks="\n".join(f"notebooks/{notebook.name}" for notebook in NOTEBOOKS),
            more="\n".join(page.relative_to(ROOT).with_suffix("").as_posix() for page in more),
        )


def described(app, name: str, source: list[str]) -> None:
    """Captions and alternative texts lie in an output's metadata; MyST-NB reads them from the cell's."""
    if Path(app.env.doc2path(name)).suffix != ".ipynb":
        return
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            for kind, about in output.get("metadata", {}).items():
                if kind.startswith("image/"):
                    cell["metadata"]["mystnb"] = {
                        "image": {"alt": about.get("alt", "")},
                        "figure": {"caption": about.get("caption", "")},
                    }
    source[0] = json.dumps(notebook)


class Gallery(SphinxDirective):
    """`{gallery}`: every figure of the manifest as a thumbnail, with its page and its files to download."""

    def run(self) -> list[nodes.Node]:
        lines = []
        for notebook in NOTEBOOKS:
            lines += [f"## {notebook.title}", ""]
            for name in notebook.figures:
                lines += self.figure(notebook.name, name)
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)

    def figure(self, notebook: str, name: str) -> list[str]:
        files = [f"{name}.{kind}" for kind in ("png", "pdf", "csv") if (ROOT / FIGURES / f"{name}.{kind}").exists()]
        if f"{name}.png" not in files:
            return [f"`{name}` is not drawn at this scale.", ""]
        self.env.note_dependency(ROOT / FIGURES / f"{name}.png")
        links = ", ".join(f"{{download}}`{file.rpartition('.')[2]} <../{FIGURES}/{file}>`" for file in files)
        about = WORDS[name]
        return [
            f"```{{figure}} ../{FIGURES}/{name}.png",
            f":target: ../notebooks/{notebook}.html",
            f":alt: {about['alt']}",
            ":class: thumbnail",
            "",
            f"{about['caption']} ({links})",
            "```",
            "",
        ]


def mathml(self, node: nodes.Element, *, block: bool) -> None:
    """One equation in MathML, which browsers draw by themselves; a `\\tag` becomes its number in the margin."""
    text, _, tag = node.astext().partition("\\tag{")
    number, _, after = tag.partition("}")
    try:
        drawn = convert(text + after, display="block" if block else "inline")
    except Exception as error:
        log.warning("This equation cannot be drawn (%s): %s", error, text, location=node)
        drawn = f"<code>{self.encode(text)}</code>"
    label = f'<span class="number">({number})</span>' if tag else ""
    self.body.append(f'<div class="math">{drawn}{label}</div>' if block else drawn)
    raise nodes.SkipNode


def first_page(app, error) -> None:
    """`index.html` leads to README's page."""
    if error is None:
        index = Path(app.outdir, "index.html")
        index.write_text(
            f'<!doctype html><meta http-equiv="refresh" content="0; url={root_doc}.html">', encoding="utf-8"
        )


def setup(app) -> None:
    app.connect("source-read", folders)
    app.connect("source-read", contents)
    app.connect("source-read", described)
    app.connect("build-finished", first_page)
    app.add_directive("gallery", Gallery)
    inline, block = (
        (lambda self, node: mathml(self, node, block=False)),
        (lambda self, node: mathml(self, node, block=True)),
    )
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
