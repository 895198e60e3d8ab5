"""The documentation holds together: links lead somewhere, and every page can be found."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.__main__ import programs
from tools import architecture

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ROOT / "benchmarks" / "README.md",
    ROOT / "export" / "embedded" / "weights" / "README.md",
    *DOCS,
]
SOURCES = ("sdxl_bento", "export", "benchmarks", "deploy", "examples", "tests", "tools")

_FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2\s*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"\]\(\s*<?([^()\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_HEADING = re.compile(r"^#{1,6} +(.+?)\s*#*$", re.MULTILINE)
_SOURCE = re.compile(rf"`((?:{'|'.join(SOURCES)})/[\w./-]+)`")
_PLANNED = (
    "sdxl_bento/jobs",
    "sdxl_bento/access",
    "sdxl_bento/training",
    "sdxl_bento/diffusion/control",
    "sdxl_bento/protocols/jobs",
)
_PATH = re.compile(r"\bdocs/[\w./-]+\.(?:md|png|svg)\b")


def links(text: str) -> Iterator[str]:
    """The targets of the inline links and images of a page, those in code left out."""
    yield from _LINK.findall(_CODE.sub("", _FENCE.sub("", text)))


def anchors(text: str) -> set[str]:
    """The fragments that GitHub gives the headings of a page."""
    seen: dict[str, int] = {}
    slugs = set()
    for heading in _HEADING.findall(_FENCE.sub("", text)):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        slugs.add(f"{slug}-{seen[slug]}" if slug in seen else slug)
        seen[slug] = seen.get(slug, 0) + 1
    return slugs


def broken_links(page: Path, text: str) -> list[str]:
    """The relative links of a page that lead to no file or to no heading."""
    broken = []
    for link in links(text):
        if re.match(r"[a-z][a-z+.-]*:", link):
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (fragment and fragment not in anchors(target.read_text("utf-8"))):
            broken.append(link)
    return broken


def pages_of(page: Path) -> set[Path]:
    """The pages that a page links to."""
    paths = (link.partition("#")[0] for link in links(page.read_text("utf-8")))
    targets = {(page.parent / path).resolve() for path in paths if path and "://" not in path}
    return {target for target in targets if target.suffix == ".md" and target.is_file()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    assert broken_links(page, page.read_text("utf-8")) == []


def test_links_of_the_notebook_lead_somewhere() -> None:
    notebook = ROOT / "examples" / "clients.ipynb"
    for cell in json.loads(notebook.read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "markdown":
            assert broken_links(notebook, "".join(cell["source"])) == []


def test_every_page_is_two_clicks_from_the_readme() -> None:
    first = pages_of(ROOT / "README.md")
    second = set().union(*(pages_of(page) for page in first))
    far = [str(page.relative_to(ROOT)) for page in PAGES[1:] if page not in first | second]
    assert far == []


def test_the_index_lists_every_page() -> None:
    """The decisions and the lab log have indexes of their own, in their folders."""
    index = ROOT / "docs" / "README.md"
    listed = pages_of(index)
    for folder in ("adr", "lab-log"):
        own = ROOT / "docs" / folder / "README.md"
        assert own in listed
        listed |= pages_of(own)
    assert [str(page.relative_to(ROOT)) for page in DOCS if page not in listed | {index}] == []


def test_every_image_is_shown() -> None:
    shown = {link.rpartition("/")[2] for page in PAGES for link in links(page.read_text("utf-8"))}
    for image in (ROOT / "docs" / "images").iterdir():
        assert image.name in shown


def test_the_picture_of_the_architecture_is_up_to_date() -> None:
    """Whoever changes `tools/architecture.py` draws the picture again."""
    assert architecture.IMAGE.read_text("utf-8") == architecture.picture()


def test_code_names_pages_that_exist() -> None:
    """Docstrings, messages and comments send their readers to pages by path."""
    files = [path for folder in SOURCES for path in (ROOT / folder).rglob("*.py")]
    files += [ROOT / name for name in ("service.py", "pyproject.toml", "Makefile")]
    for file in files:
        for path in _PATH.findall(file.read_text("utf-8")):
            assert (ROOT / path).is_file(), f"{file.relative_to(ROOT)} names {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_name_sources_that_exist(page: Path) -> None:
    for path in _SOURCE.findall(page.read_text("utf-8")):
        assert path in _PLANNED or (ROOT / path).exists(), path


def test_every_benchmark_is_listed() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text("utf-8")
    listed = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert listed == sorted(programs())
