"""What error messages are made of."""

import difflib
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def clipped(text: str, most: int = 160) -> str:
    """`text`, or its beginning and end: an error is no place for all that a user has given."""
    end = most // 3
    return text if len(text) <= most else f"{text[: most - end - 5]} ... {text[-end:]}"


def short(x: Any) -> str:
    """`repr(x)` on one line, of bounded length whatever a user has given."""
    try:
        text = _SHORT.repr(x)
    except ValueError:  # an integer of more digits than Python writes
        text = f"{type(x).__name__} of thousands of digits"
    return clipped(" ".join(text.split()))


def quoted(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def closest(name: str, known: Iterable[str]) -> str:
    """What may have been meant, as a sentence."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"Did you mean `{clipped(near[0])}`?"
    return f"Known are {clipped(', '.join(known))}." if known else "None is known."
