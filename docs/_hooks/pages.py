"""What the site adds to the files of `docs`, so that those read well where they are, too.

- Files that lie elsewhere become pages: `CONTRIBUTING.md`, `CHANGELOG.md` and others (`OUTSIDE`),
  and each script of `docs/examples`, with its docstring, its picture and its source.
- Links to such a file lead to its page. A link to another file outside of `docs` becomes text.
- A public name in code, such as `sx.Guard`, becomes a link to its reference.
"""

import ast
import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
OUTSIDE = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmark_scripts.md",
}
EXAMPLES = {
    f"docs/examples/{script.name}": f"examples/{script.stem}.md"
    for script in sorted((DOCS / "examples").glob("[!_]*.py"))
}
PLACES = {page: source for source, page in (OUTSIDE | EXAMPLES).items()}

_DIRECTIVE = re.compile(r"^::: stablax\.(\w+)$", flags=re.MULTILINE)
_AMBIGUOUS = {"stiffness"}  # the one of `stablax.plot`, too: linked as `sx.stiffness` only
_PART = re.compile(
    r"""
    (?P<kept> ^(?P<fence>\s*(?:```|~~~)).*?^(?P=fence)\s*$ | ^\#.*?$ )
    | \[(?P<label>[^\]]*)\]\((?P<target>[^)\s]+)\)
    | (?<![`\[]) `(?P<code>(?:sx\.)?(?P<name>\w+)(?:\([^`]*\))?)` (?![`\]])
    """,
    flags=re.MULTILINE | re.DOTALL | re.VERBOSE,
)


def on_files(files, config):
    from mkdocs.structure.files import File  # `tests/test_site.py` reads this file without it

    for source, page in OUTSIDE.items():
        text = (ROOT / source).read_text()
        files.append(File.generated(config, page, content=text))
    for source, page in EXAMPLES.items():
        files.append(File.generated(config, page, content=_example(ROOT / source)))
    return files


def on_page_markdown(markdown, page, config, files):
    here = page.file.src_uri
    if here == "index.md":
        page.meta["hide"] = ["navigation"]  # it is alone in its section
    if here == "reference/index.md":
        markdown = _with_names(markdown)
    names = set() if here.startswith("reference/") else set(_names())

    def changed(part):
        if part["target"]:
            target = _target(part["target"], here)
            return part["label"] if target is None else f"[{part['label']}]({target})"
        if part["name"] in names and part["code"] not in _AMBIGUOUS:
            return f"[`{part['code']}`][stablax.{part['name']}]"
        return part[0]

    return _PART.sub(changed, markdown)


def _example(script: Path) -> str:
    source = script.read_text()
    tree = ast.parse(source)
    title, _, rest = ast.get_docstring(tree).partition("\n")
    code = "\n".join(source.splitlines()[tree.body[0].end_lineno :]).strip()
    picture = f"images/{script.stem}.png"
    parts = [f"# {title.removesuffix('.')}", rest.strip("\n")]
    if (DOCS / picture).exists():
        parts.append(f"![{title}](../{picture})")
    parts.append(f"## Source\n\n```python\n{code}\n```\n")
    return "\n\n".join(parts)


def _target(link: str, here: str) -> str | None:
    """The link as the site has it; None: it leads to a file that is not part of it."""
    path, hash_, anchor = link.partition("#")
    if not path or "://" in path or path.startswith("mailto:"):
        return link
    place = posixpath.dirname(PLACES.get(here, f"docs/{here}"))
    file = posixpath.normpath(posixpath.join(place, path))
    page = (OUTSIDE | EXAMPLES).get(file) or file.removeprefix("docs/")
    if page == file and (ROOT / file).exists():
        return None
    return posixpath.relpath(page, posixpath.dirname(here) or ".") + hash_ + anchor


def _names(page: str = "*.md") -> list[str]:
    """The names of `stablax` that a page of the reference has, or all."""
    pages = sorted((DOCS / "reference").glob(page))
    return [name for each in pages for name in _DIRECTIVE.findall(each.read_text())]


def _with_names(markdown: str) -> str:
    """Each item of a list of pages, followed by the names on that page."""

    def item(line):
        names = ", ".join(f"[`{name}`][stablax.{name}]" for name in _names(line[1]))
        return f"{line[0]}\n\n    {names}\n" if names else line[0]

    return re.sub(r"^- \[[^\]]*\]\((\w+\.md)\).*(?:\n  .*)*", item, markdown, flags=re.MULTILINE)
