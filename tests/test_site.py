"""The site: it builds without a warning, every link of it leads somewhere, and nothing of it is fetched."""

import html
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from graphnas_lib.runner import Project

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r'(?:href|src)="([^"]+)"')
FIGURES = [figure for notebook in Project(ROOT).notebooks() for figure in notebook.figures]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pages = tmp_path_factory.mktemp("site") / "pages"
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    command += ["-d", str(pages.parent / "doctrees"), "-c", "site", ".", str(pages)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert built.returncode == 0, built.stderr
    return pages


def links(page: Path) -> set[str]:
    return {html.unescape(link) for link in LINK.findall(page.read_text(encoding="utf-8"))}


def broken(pages: Path) -> list[str]:
    """Links within the site to a file or an anchor that is not there."""
    found, anchors = [], {}
    for page in pages.rglob("*.html"):
        for link in links(page):
            path, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:", link):
                continue
            path = unquote(path.partition("?")[0])
            target = (page.parent / path).resolve() if path else page
            if not target.exists():
                found.append(f"{page.name}: {link}")
            elif anchor and target.suffix == ".html":
                if target not in anchors:
                    anchors[target] = set(re.findall(r'\bid="([^"]+)"', target.read_text(encoding="utf-8")))
                if unquote(anchor) not in anchors[target]:
                    found.append(f"{page.name}: {link}")
    return found


def test_every_notebook_and_document_is_a_page(site):
    pages = {page.relative_to(site).with_suffix("").as_posix() for page in site.rglob("*.html")}
    assert {f"notebooks/{notebook.stem}" for notebook in (ROOT / "notebooks").glob("[0-9]*.ipynb")} <= pages
    assert {"index", "README", "REPORT", "CHANGELOG", "CONTRIBUTING", "site/gallery"} <= pages


def test_no_link_is_broken(site, tmp_path):
    assert not broken(site)
    shutil.copytree(site, tmp_path / "copy")
    (tmp_path / "copy" / "REPORT.html").unlink()
    assert any("REPORT.html" in link for link in broken(tmp_path / "copy"))


def test_nothing_is_fetched(site):
    """Pages are read offline: what they load lies beside them; only links that a reader follows lead away."""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)[^>]*\bsrc="([^"]+)"', text)
        loaded += re.findall(r'<link[^>]*rel="stylesheet"[^>]*href="([^"]+)"', text)
        assert not [link for link in loaded if re.match(r"(?:https?:)?//", link)], page.name


def test_every_figure_has_its_caption_and_alternative_text(site):
    gallery = (site / "site/gallery.html").read_text(encoding="utf-8")
    for name in FIGURES:
        if (ROOT / f"figures/lite/{name}.png").exists():
            assert re.search(rf'<img[^>]*alt="[^"]{{20,}}"[^>]*src="[^"]*{name}\d*\.png"', gallery), name
    for page in (site / "notebooks").glob("*.html"):
        pictures = re.findall(r"<img[^>]*>", page.read_text(encoding="utf-8"))
        assert all(re.search(r'alt="[^"]{20,}"', picture) for picture in pictures), page.name


def test_equations_are_drawn(site):
    for page in site.rglob("*.html"):
        text = re.sub(r"<(pre|code)\b.*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.search(r"\\(mathcal|frac|sum|text|alpha|hat)\b", re.sub(r"<[^>]+>", "", text)), page.name
    assert "<math" in (site / "notebooks/02_clusters.html").read_text(encoding="utf-8")


def test_it_is_small(site):
    assert sum(file.stat().st_size for file in site.rglob("*") if file.is_file()) < 25e6
