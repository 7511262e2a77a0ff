"""What error messages are made of."""

import difflib
import reprlib
import textwrap
from collections.abc import Iterable, Sequence

import equinox as eqx
from jaxtyping import PyTree

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def clipped(text: str, most: int = 160) -> str:
    """`text`, or its beginning and end: an error is no place for all that a user has given."""
    end = most // 3
    return text if len(text) <= most else f"{text[: most - end - 5]} ... {text[-end:]}"


def short(x: object) -> str:
    """`repr(x)` on one line, of bounded length whatever a user has given."""
    try:
        text = _SHORT.repr(x)
    except ValueError:  # an integer of more digits than Python writes
        text = f"{type(x).__name__} of thousands of digits"
    return clipped(" ".join(text.split()))


def called(name: str, parts: Iterable[str], width: int = 100) -> str:
    """`name(part, part)`, on one line if it fits in `width`."""
    parts = list(parts)
    on_one_line = f"{name}({', '.join(parts)})"
    if len(on_one_line) <= width and "\n" not in on_one_line:
        return on_one_line
    return f"{name}(\n{textwrap.indent(f',{chr(10)}'.join(parts), '  ')}\n)"


def shown(x: PyTree) -> str:
    """An object as a part of the `repr` of another: arrays by their shapes, functions by their
    names."""
    return repr(x) if isinstance(x, eqx.Module) else eqx.tree_pformat(x)


def quoted(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def closest(name: str, known: Iterable[str]) -> str:
    """What may have been meant, as a sentence."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"Did you mean `{clipped(near[0])}`?"
    return f"Known are {clipped(', '.join(known))}." if known else "None is known."
