"""What a reaction network is given: names, inputs, text or a matrix, one law a reaction."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

import equinox as eqx
import numpy as np
from jaxtyping import Array

from .._fields import Input
from .._static import Frozen, concrete_array, is_traced
from .._types import NumbersLike, ScalarLike
from .._words import clipped, closest, quoted, short
from ._rate_laws import AbstractRateLaw
from ._reaction import Equation, Reaction, pointed


def is_text(stoichiometry: object) -> TypeGuard[Sequence[str]]:
    return (
        isinstance(stoichiometry, Sequence)
        and len(stoichiometry) > 0
        and all(isinstance(x, str) for x in stoichiometry)
    )


class ByName(Mapping[str, Any]):
    """A state by the names of its species."""

    def __init__(self, species: tuple[str, ...], y: Array):
        self.species = species
        self.y = y

    def __getitem__(self, name: str) -> Array:
        if name not in self.species:
            raise KeyError(f"`{clipped(name)}` is no species. {closest(name, self.species)}")
        return self.y[self.species.index(name)]

    def __iter__(self):
        return iter(self.species)

    def __len__(self) -> int:
        return len(self.species)


class _FromArgs(eqx.Module):
    """Looks an input up in `args`."""

    name: str = eqx.field(static=True)

    def __call__(self, t, y, args):
        try:
            given = args[self.name]
        except (TypeError, KeyError, IndexError):
            name = clipped(self.name)
            keys = ", ".join(map(repr, args)) if isinstance(args, Mapping) else None
            known = f"is {short(args)}" if keys is None else f"has {clipped(keys)}"
            raise ValueError(
                f"The input `{name}` is looked up in `args`, which must be a mapping such as "
                f"`{{'{name}': 1.0}}`, and {known}."
            ) from None
        return given(t) if isinstance(given, Input) else given


def input_functions(inputs) -> dict[str, Callable]:
    if isinstance(inputs, str):
        raise TypeError(f'`inputs` must be a tuple of names, such as `("{clipped(inputs)}",)`.')
    if not isinstance(inputs, Mapping):
        inputs = {name: _FromArgs(name) for name in inputs}
    for name in inputs:
        _check_name(name, "inputs")
    return dict(inputs)


def _check_name(name: object, what: str) -> None:
    if not (isinstance(name, str) and name.isidentifier()):
        raise ValueError(f"`{what}` must be names of letters, digits and `_`, got {short(name)}.")


def species_names(species: Sequence[str] | None, size: int) -> tuple[str, ...]:
    names = tuple(f"y{i}" for i in range(size)) if species is None else tuple(species)
    for name in names:
        _check_name(name, "species")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"`species` names `{clipped(twice)}` twice.")
    if len(names) != size:
        raise ValueError(f"`species` has {len(names)} names, but N has {size} rows.")
    return names


def species_of(
    equations: Sequence[Equation], texts: Sequence[str], species, inputs: tuple[str, ...]
) -> tuple[str, ...]:
    """The names of the species, and a check of every name in the reactions."""
    if species is not None:
        species = species_names(species, len(species))
    found: dict[str, None] = {}
    for i, (equation, text) in enumerate(zip(equations, texts, strict=True)):
        left = {term.name for term in equation.left}
        for term in (*equation.left, *equation.right):
            if term.name in inputs:
                if term.name not in left:
                    message = (
                        f"Reaction {i + 1}: the input `{clipped(term.name)}` cannot be produced."
                    )
                    raise ValueError(pointed(message, text, term.position))
            elif species is None or term.name in species:
                found[term.name] = None
            else:
                message = (
                    f"Reaction {i + 1}: `{clipped(term.name)}` is neither in `species` nor in "
                    "`inputs`. " + closest(term.name, (*species, *inputs))
                )
                raise ValueError(pointed(message, text, term.position))
    if not found and species is None:
        raise ValueError("The reactions have no species: every name in them is an input.")
    return tuple(found) if species is None else species


def one_each(
    equations, texts, rates: Sequence[AbstractRateLaw | Sequence[AbstractRateLaw]]
) -> list[Any]:
    """One law for each direction."""
    if len(rates) != len(equations):
        raise ValueError(
            f"`rates` has {len(rates)} rate laws for {len(equations)} reactions: one for each, "
            "and a pair (forward, backward) for a reversible one."
        )
    laws = []
    for i, (equation, text, rate) in enumerate(zip(equations, texts, rates, strict=True)):
        pair = isinstance(rate, tuple | list)
        if pair != equation.reversible or (pair and len(rate) != 2):
            wanted = (
                "is reversible: it needs a pair (forward, backward) of rate laws"
                if equation.reversible
                else "goes one way: it needs one rate law"
            )
            raise ValueError(f"Reaction {i + 1}, `{clipped(text)}`, {wanted}, got {short(rate)}.")
        laws.extend(rate if pair else [rate])
    return laws


def check_laws(laws: Sequence[object], count: int) -> None:
    if len(laws) != count:
        raise ValueError(f"`rates` has {len(laws)} rate laws for {count} reactions.")
    for i, law in enumerate(laws):
        if not isinstance(law, AbstractRateLaw):
            raise TypeError(
                f"`rates[{i}]` must be a rate law, such as `MassAction(1.0)`, got {short(law)}."
            )


def matrix_of(reactions: Sequence[Reaction], species: tuple[str, ...]) -> np.ndarray:
    matrix = np.zeros((len(species), len(reactions)))
    for column, reaction in enumerate(reactions):
        for sign, side in ((-1, reaction.reactants), (1, reaction.products)):
            for name, coefficient in side:
                if name in species:
                    matrix[species.index(name), column] += sign * coefficient
    return matrix


def _finite(x: object, name: str) -> np.ndarray:
    """`x` as finite numbers; of shape `()` if it is none."""
    if is_traced(x):
        return concrete_array(x, name)  # raises
    try:
        numbers = np.asarray(concrete_array(x, name), float)
    except (TypeError, ValueError, OverflowError):
        return np.zeros(())
    return numbers if np.isfinite(numbers).all() else np.zeros(())


def volumes_of(
    volumes: Mapping[str, ScalarLike] | NumbersLike | None, species: tuple[str, ...]
) -> Frozen | None:
    """The volume in which each species is, in their order."""
    if volumes is None:
        return None
    given = volumes
    if isinstance(volumes, Mapping):
        for name in volumes:
            if name not in species:
                raise ValueError(
                    f"`volumes`: {short(name)} is no species. {closest(str(name), species)}"
                )
        missing = [name for name in species if name not in volumes]
        if missing:
            raise ValueError(
                f"`volumes` must name every species, and lacks {clipped(quoted(missing))}."
            )
        given = [concrete_array(volumes[name], f"volumes[{short(name)}]") for name in species]
    numbers = _finite(given, "volumes")
    with np.errstate(divide="ignore", over="ignore"):
        if numbers.shape != (len(species),) or not (np.isfinite(1 / numbers) & (numbers > 0)).all():
            raise ValueError(
                f"`volumes` must be one positive and finite number for each of the {len(species)} "
                f"species, by name or as an array of shape ({len(species)},), got {short(volumes)}."
            )
    return Frozen(numbers)


def checked_matrix(stoichiometry: object) -> np.ndarray:
    matrix = _finite(stoichiometry, "stoichiometry")
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(
            "`stoichiometry` must be a list of reactions as text, or a finite matrix of shape "
            f"(species, reactions), got {short(stoichiometry)}."
        )
    return matrix


def reaction_of(column: np.ndarray, species: tuple[str, ...]) -> Reaction:
    side = lambda sign: tuple(
        (name, float(sign * n)) for name, n in zip(species, column, strict=True) if sign * n > 0
    )
    return Reaction(side(-1), side(1), from_matrix=True)
