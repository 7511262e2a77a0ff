"""Reactions, and how they are read from text."""

import math
import re
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np

from .._words import clipped, short

Side = tuple[tuple[str, float], ...]


@final
@dataclass(frozen=True)
class Reaction:
    """One reaction: what it takes and what it makes.

    **Attributes:**

    - `reactants`, `products`: `(name, coefficient)` of each, coefficients above 0. A name is that
        of a species or of an input.
    - `from_matrix`: whether it is a column of a matrix, which may hold more than coefficients:
        volumes, units.
    """

    reactants: Side
    products: Side
    from_matrix: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the reactants, each once."""
        return tuple(name for name, _ in self.reactants)

    def __str__(self) -> str:
        return f"{_side_text(self.reactants)} -> {_side_text(self.products)}"


def _side_text(side: Side) -> str:
    terms = [name if n == 1 else f"{decimal(n)} {name}" for name, n in side]
    return " + ".join(terms) or "0"


def decimal(n: float) -> str:
    """All digits of `n`, without an exponent, as `parse` reads them."""
    return np.format_float_positional(n, trim="-")


class Term(NamedTuple):
    """A species or an input on one side of a reaction, and where its name stands in the text."""

    coefficient: float
    name: str
    position: int


class Equation(NamedTuple):
    """A reaction as it was written."""

    left: tuple[Term, ...]
    right: tuple[Term, ...]
    reversible: bool

    def reactions(self) -> tuple[Reaction, ...]:
        """One reaction, or two in opposite directions."""
        left, right = _collect(self.left), _collect(self.right)
        forward = Reaction(left, right)
        return (forward, Reaction(right, left)) if self.reversible else (forward,)


def _collect(terms: tuple[Term, ...]) -> Side:
    """`A + A` is `2 A`."""
    total: dict[str, float] = {}
    for term in terms:
        total[term.name] = total.get(term.name, 0.0) + term.coefficient
    return tuple(total.items())


_TOKEN = re.compile(
    r"(?P<arrow><->|<=>|⇌|->|→)|(?P<plus>\+)|(?P<exponent>(\d+(\.\d*)?|\.\d+)[eE]\d)"
    r"|(?P<number>\d+(\.\d*)?|\.\d+)|(?P<name>[^\W\d]\w*)|(?P<nothing>∅)"
)
_REVERSIBLE = ("<->", "<=>", "⇌")


_WIDTH = 88  # of the text in an error


def pointed(message: str, text: str, position: int) -> str:
    """`message`, and a caret below the place in `text`, or in the part of a long one around it."""
    if len(text) > _WIDTH:
        start = max(0, min(position - _WIDTH // 2, len(text) - _WIDTH))
        before, after = "... " * (start > 0), " ..." * (start + _WIDTH < len(text))
        text = f"{before}{text[start : start + _WIDTH]}{after}"
        position += len(before) - start
    return f"{message}\n    {text}\n    {' ' * position}^"


def parse(text: str, where: str) -> Equation:
    """Reads `"A + 2 B -> C"`: coefficients before names, `0` or `∅` for nothing, `->` for one
    direction, `<->` or `<=>` for both.

    **Raises:** `ValueError` that begins with `where` and points at what is wrong.
    """
    if "\n" in text:
        raise ValueError(f"{where}: one text is one reaction, got several lines: {short(text)}.")

    def wrong(message: str, position: int) -> ValueError:
        return ValueError(pointed(f"{where}: {message}", text, position))

    tokens: list[tuple[str, str, int]] = []
    position = 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        match = _TOKEN.match(text, position)
        if match is None:
            raise wrong(
                f"{text[position]!r} has no place in a reaction. Write it as `A + 2 B -> C`, with "
                "`->` or `<->`; coefficients are decimals (0.5), names letters, digits and `_`.",
                position,
            )
        if match.lastgroup == "exponent":
            raise wrong(
                f"{match.group()!r} may begin a number or a name. Write coefficients as decimals, "
                "without an exponent, and a blank before a name that begins with `e`.",
                position,
            )
        tokens.append((str(match.lastgroup), match.group(), position))
        position = match.end()
    arrows = [i for i, (kind, _, _) in enumerate(tokens) if kind == "arrow"]
    if not arrows:
        raise wrong("there is no arrow, `->` or `<->`.", len(text.rstrip()))
    if len(arrows) > 1:
        raise wrong("there is a second arrow.", tokens[arrows[1]][2])
    (at,) = arrows
    left = _read_side(tokens[:at], tokens[at][2], wrong)
    right = _read_side(tokens[at + 1 :], len(text.rstrip()), wrong)
    for side in (left, right):
        totals = dict(_collect(side))
        for term in side:
            if math.isinf(totals[term.name]):
                raise wrong("the coefficient is too large for a number.", term.position)
    if dict(_collect(left)) == dict(_collect(right)):
        raise wrong("both sides are the same: nothing reacts.", tokens[at][2])
    return Equation(left, right, tokens[at][1] in _REVERSIBLE)


def _read_side(tokens, end: int, wrong) -> tuple[Term, ...]:
    if [kind for kind, _, _ in tokens] == ["nothing"] or [x for _, x, _ in tokens] == ["0"]:
        return ()
    terms, position = [], 0
    while True:
        coefficient, here = 1.0, tokens[position][2] if position < len(tokens) else end
        if position < len(tokens) and tokens[position][0] == "number":
            coefficient = float(tokens[position][1])
            if coefficient == 0:
                raise wrong("a coefficient of 0; `0` for nothing stands alone on its side.", here)
            position += 1
            here = tokens[position][2] if position < len(tokens) else end
        if position == len(tokens) or tokens[position][0] != "name":
            raise wrong("a species is missing here (`0` stands for nothing).", here)
        terms.append(Term(coefficient, tokens[position][1], here))
        position += 1
        if position == len(tokens):
            return tuple(terms)
        if tokens[position][0] != "plus":
            raise wrong(
                f"expected `+` or an arrow after {clipped(terms[-1].name)}.", tokens[position][2]
            )
        position += 1
