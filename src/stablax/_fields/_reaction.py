"""Reactions, and how they are read from text."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, final

Side = tuple[tuple[str, float], ...]


@final
@dataclass(frozen=True)
class Reaction:
    """One reaction: what it takes and what it makes.

    **Attributes:**

    - `reactants`, `products`: `(name, coefficient)` of each, coefficients above 0. A name is that
        of a species or of an input.
    """

    reactants: Side
    products: Side

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the reactants, each once."""
        return tuple(name for name, _ in self.reactants)

    def __str__(self) -> str:
        return f"{_side_text(self.reactants)} -> {_side_text(self.products)}"


def _side_text(side: Side) -> str:
    terms = [name if n == 1 else f"{n:.12g} {name}" for name, n in side]
    return " + ".join(terms) or "0"


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
    r"(?P<arrow><->|<=>|⇌|->|→)|(?P<plus>\+)|(?P<number>\d+(\.\d*)?|\.\d+)"
    r"|(?P<name>[^\W\d]\w*)|(?P<nothing>∅)"
)
_REVERSIBLE = ("<->", "<=>", "⇌")


def pointed(message: str, text: str, position: int) -> str:
    """`message`, and a caret below the place in `text`."""
    return f"{message}\n    {text}\n    {' ' * position}^"


def parse(text: str, where: str) -> Equation:
    """Reads `"A + 2 B -> C"`: coefficients before names, `0` or `∅` for nothing, `->` for one
    direction, `<->` or `<=>` for both.

    **Raises:** `ValueError` that begins with `where` and points at what is wrong.
    """
    if "\n" in text:
        raise ValueError(f"{where}: one text is one reaction, got several lines: {text!r}.")

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
                "`->` or `<->`; names are letters, digits and `_`.",
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
            raise wrong(f"expected `+` or an arrow after {terms[-1].name}.", tokens[position][2])
        position += 1


def closest(name: str, known: Iterable[str]) -> str:
    """What may have been meant, as a sentence."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"Did you mean `{near[0]}`?"
    return f"Known are {', '.join(known)}." if known else "None is known."
