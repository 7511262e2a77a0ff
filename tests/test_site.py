"""The site of `mkdocs.yml` is whole. That it builds, and that its links lead somewhere, is asked by
`mkdocs build --strict`; here is what that does not see, and needs no mkdocs."""

import pkgutil
import re
import runpy
from collections import Counter
from inspect import ismodule

import pytest
from helpers import ROOT

import stablax as sx
from stablax import problems

DOCS = ROOT / "docs"
MARKDOWN = sorted(path.relative_to(ROOT) for path in (*ROOT.glob("*.md"), *DOCS.rglob("*.md")))
EXAMPLES = sorted(path.stem for path in (DOCS / "examples").glob("[!_]*.py"))


def public_names() -> set[str]:
    names = {f"stablax.{n}" for n, x in vars(sx).items() if n[0] != "_" and not ismodule(x)}
    names |= {f"stablax.plot.{name}" for name in sx.plot.__all__}
    return names | {f"stablax.problems.{x}" for x in dir(problems) if not x.startswith("_")}


def directives() -> list[str]:
    pages = (path.read_text() for path in sorted((DOCS / "reference").glob("*.md")))
    return re.findall(r"^::: (\S+)$", "\n".join(pages), flags=re.MULTILINE)


def pages_of_the_nav() -> list[str]:
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    return re.findall(r"(\S+\.md)$", nav, flags=re.MULTILINE)


def pages_from_outside() -> dict[str, str]:
    """Which file outside of `docs` is which page."""
    return runpy.run_path(str(DOCS / "_hooks" / "pages.py"))["OUTSIDE"]


def test_every_public_name_is_on_one_page_of_the_reference():
    times = Counter(directives())
    assert public_names() - set(times) == set(), "add a line `::: stablax.Name` in docs/reference"
    assert [name for name, n in times.items() if n > 1] == []


@pytest.mark.parametrize("name", directives())
def test_what_the_reference_names_exists(name):
    assert pkgutil.resolve_name(name) is not None


def test_the_nav_has_every_page_once():
    here = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    made = {f"examples/{name}.md" for name in EXAMPLES} | set(pages_from_outside().values())
    assert sorted(pages_of_the_nav()) == sorted(here | made)


def test_the_gallery_has_every_example():
    gallery = (DOCS / "gallery.md").read_text()
    for name in EXAMPLES:
        assert f"(images/{name}.png)" in gallery
        assert f"(examples/{name}.py)" in gallery
        assert f"python docs/examples/{name}.py\n" in gallery


@pytest.mark.parametrize("document", MARKDOWN, ids=str)
def test_links_lead_to_files(document):
    """Where the file is, not only on the site."""
    text = re.sub(r"^```.*?^```", "", (ROOT / document).read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path = link.partition("#")[0]
        if path and "://" not in link:
            assert (ROOT / document.parent / path).exists(), f"{document} links {link}"


def test_files_from_outside_exist():
    for source in pages_from_outside():
        assert (ROOT / source).exists()
