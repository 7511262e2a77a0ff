"""How a report is printed: as tables, with rich where it is installed."""

import dataclasses
import importlib.util
import io
import math
import textwrap
from collections.abc import Sequence
from typing import Any, SupportsFloat

import numpy as np

_WIDTH = 100


@dataclasses.dataclass(frozen=True)
class Table:
    """A titled table of strings; without a header, of names and values."""

    title: str
    rows: Sequence[Sequence[str]]
    header: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Advice:
    """What is wrong, why, and a line of code against it, if there is one."""

    title: str
    why: str
    code: str


def number(x: SupportsFloat, digits: int = 3) -> str:
    return f"{float(x):.{digits}g}"


def as_text(heading: str, advice: Sequence[Advice], tables: Sequence[Table]) -> str:
    if importlib.util.find_spec("rich") is None:
        return "\n".join([_words(heading, advice), *map(_plain, tables)])
    from rich.console import Console

    out = io.StringIO()
    console = Console(file=out, width=_WIDTH, color_system=None, highlight=False)
    for table in tables:
        console.print(_rich_table(table))
    lines = (line.rstrip() for line in out.getvalue().splitlines())
    return "\n".join([_words(heading, advice), *lines])


def as_rich(heading: str, advice: Sequence[Advice], tables: Sequence[Table]) -> Any:
    """What rich prints, with colours where the terminal has them."""
    from rich.console import Group
    from rich.text import Text

    # A line of code that is wrapped cannot be pasted.
    words = Text(_words(heading, advice), no_wrap=True, overflow="ignore")
    return Group(words, *map(_rich_table, tables))


def _words(heading: str, advice: Sequence[Advice]) -> str:
    lines = [textwrap.fill(heading, _WIDTH)]
    for place, each in enumerate(advice, 1):
        why = f"{place}. {each.title}: {each.why}"
        lines += ["", textwrap.fill(why, _WIDTH, subsequent_indent="   ")]
        lines += [f"     {each.code}"] if each.code else []
    return "\n".join([*lines, ""])


def _rich_table(table: Table) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    out = RichTable(
        box=SIMPLE_HEAD,
        show_header=bool(table.header),
        pad_edge=False,
    )
    for place in range(len(table.rows[0])):
        out.add_column(table.header[place] if table.header else "", overflow="fold")
    for row in table.rows:
        out.add_row(*(Text(cell) for cell in row))
    # A title of rich's own is wrapped to the width of the table.
    return Group(Text(table.title, style="bold"), out)


def _plain(table: Table) -> str:
    rows = [list(table.header), *table.rows] if table.header else list(table.rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [table.title]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join([*lines, ""])


def as_data(x: object) -> Any:
    """A report as dicts, lists, strings and numbers: what `json` takes. What is not finite
    becomes `None`."""
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return {f.name: as_data(getattr(x, f.name)) for f in dataclasses.fields(x)}
    if isinstance(x, dict):
        return {str(k): as_data(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [as_data(v) for v in x]
    if isinstance(x, np.ndarray | np.generic):
        return as_data(x.tolist())
    if isinstance(x, float):
        return x if math.isfinite(x) else None
    if isinstance(x, complex):
        return [as_data(x.real), as_data(x.imag)]
    return x
