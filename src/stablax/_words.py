"""What error messages are made of."""

import difflib
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def short(x: Any) -> str:
    """`repr(x)` on one line, of bounded length whatever a user has given."""
    return " ".join(_SHORT.repr(x).split())


def quoted(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def closest(name: str, known: Iterable[str]) -> str:
    """What may have been meant, as a sentence."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"Did you mean `{near[0]}`?"
    return f"Known are {', '.join(known)}." if known else "None is known."
