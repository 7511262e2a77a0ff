"""Reaction networks: dy/dt = N v(t, y, args)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .._linalg import as_jacobian, combination
from .._static import Frozen, Split, concrete_array, is_traced
from .._types import typechecked
from ._declared import conserved_by
from ._guard import Guard
from ._guarded import GuardedField
from ._kinetics import RateLaws
from ._rate_laws import AbstractRateLaw
from ._reaction import Equation, Reaction, closest, parse, pointed


@final
class ReactionField(GuardedField):
    """A reaction network: dy/dt = N v(t, y, args), for a state of shape `(species,)`.

    ```python
    field = sx.ReactionField(
        ["E + S <-> C", "C -> E + P", "0 -> S", "P -> 0"],
        [
            (sx.MassAction(2.0), sx.MassAction(0.5)),
            sx.MassAction(1.0),
            sx.MassAction("supply"),
            sx.MichaelisMenten(1.0, 0.3),
        ],
        inputs=("supply",),
    )
    y0 = field.state({"E": 1.0})
    sx.SteadyThenSimulate(field)(y0, ts, steady_args={"supply": 0.1}, args={"supply": 0.4})
    ```

    What the network conserves, the exact left null space of N, is handed to the steady-state
    engine without being asked. Printed, the field shows its reactions. Its leaves are the
    logarithms of the trained rate constants (and the weights of neural laws).

    **Arguments:**

    - `stoichiometry`: the reactions as text, one `"A + 2 B -> C"` each (`0` or `∅` for an empty
        side, `<->` or `<=>` for a reversible reaction), or N as a matrix of shape
        `(species, reactions)`, whose negative entries are reactants. What stands on both sides
        is a catalyst.
    - `rates`: a rate law for each reaction ([`MassAction`][], [`MichaelisMenten`][], [`Hill`][],
        [`NeuralRate`][], products of them, your own [`AbstractRateLaw`][]), a pair (forward,
        backward) for a reversible one, which is then two reactions; or one function
        `v(t, y, args)` that returns all rates, shape `(reactions,)`.
    - `species`: their names, in the order of the state; by default in that of their first
        appearance (for a matrix: `y0`, `y1`, ...).
    - `inputs`: quantities that drive reactions and are not used up: names, which are looked up in
        `args` (then a mapping), or a mapping of names to functions `f(t, y, args)`, where `y` maps
        the species to their values. An input can stand among the reactants, in place of a rate
        constant, and as `of=` of a rate law. A function that is a module is trained.
    - `guard`: a [`Guard`][]; by default `Guard(lower=0.0)`.
    - `jacobian`: as in [`GuardedField`][].

    **Raises:** `ValueError` for a text that is no reaction (it points at the place), a name that
    is neither species nor input, a law that does not fit its reaction.
    """

    stoichiometry: Frozen
    _kinetics: Split
    _inputs: Split
    reactions: tuple[Reaction, ...] = eqx.field(static=True)
    species: tuple[str, ...] = eqx.field(static=True)

    @typechecked
    def __init__(
        self,
        stoichiometry: Any,
        rates: Sequence[Any] | Callable,
        *,
        species: Sequence[str] | None = None,
        inputs: Sequence[str] | Mapping[str, Callable] = (),
        guard: Guard = Guard(lower=0.0),
        jacobian: Any = None,
    ):
        functions = _input_functions(inputs)
        if isinstance(stoichiometry, str):
            raise TypeError(
                f'`stoichiometry` must be a list of texts, such as `["{stoichiometry}"]`.'
            )
        if _is_text(stoichiometry):
            equations = [parse(text, f"Reaction {i + 1}") for i, text in enumerate(stoichiometry)]
            self.species = _species_of(equations, stoichiometry, species, tuple(functions))
            self.reactions = tuple(r for equation in equations for r in equation.reactions())
            laws = rates if callable(rates) else _one_each(equations, stoichiometry, rates)
            matrix = _matrix(self.reactions, self.species)
        else:
            matrix = _checked_matrix(stoichiometry)
            self.species = _names(species, len(matrix))
            self.reactions = tuple(_reaction(column, self.species) for column in matrix.T)
            laws = rates
        clash = set(self.species) & set(functions)
        if clash:
            raise ValueError(f"`{min(clash)}` is a species and an input.")
        self.stoichiometry = Frozen(matrix)
        self._inputs = Split(functions, "inputs")
        if callable(laws):
            kinetics = laws
        else:
            _check_laws(laws, len(self.reactions))
            kinetics = RateLaws(self.reactions, laws, (*self.species, *functions))
        self._kinetics = Split(kinetics, "rates")
        self.guard = guard
        self.jacobian = as_jacobian(jacobian)

    @property
    def kinetics(self) -> Any:
        """What computes the rates: the laws together, or the function that was given."""
        return self._kinetics.tree

    @property
    def inputs(self) -> dict[str, Callable]:
        """The inputs, by name."""
        return self._inputs.tree

    def rates(self, t: Any, y: Any, args: Any) -> Array:
        """The rate v of each reaction at `(t, y, args)`, shape `(reactions,)`."""
        if not isinstance(y, jax.Array) or y.shape != (len(self.species),):
            shown = getattr(y, "shape", type(y).__name__)
            raise ValueError(
                f"This `ReactionField` takes a state of shape ({len(self.species)},), got {shown}. "
                "`field.state({...})` makes one from names."
            )
        kinetics = self.kinetics
        if isinstance(kinetics, RateLaws):
            return kinetics(self._quantities(t, y, args))
        rates = kinetics(t, y, args)
        if jnp.shape(rates) != (len(self.reactions),):
            raise ValueError(
                f"`rates` must return one rate for each of the {len(self.reactions)} reactions, "
                f"got shape {jnp.shape(rates)}."
            )
        return rates

    def vector_field(self, t, y: Float[Array, " species"], args) -> Float[Array, " species"]:
        return jnp.asarray(self.stoichiometry.value, y.dtype) @ self.rates(t, y, args)

    def _quantities(self, t, y, args) -> Array:
        functions = self.inputs
        if not functions:
            return y
        named = dict(zip(self.species, y, strict=True))
        values = []
        for name, function in functions.items():
            value = jnp.asarray(function(t, named, args), y.dtype)
            if value.shape != ():
                raise ValueError(f"The input `{name}` must be a number, got shape {value.shape}.")
            values.append(value)
        return jnp.concatenate([y, jnp.stack(values)])

    @property
    def conserved(self) -> Frozen:
        """Rows L with L N = 0, shape `(quantities, species)`: whole numbers where N holds whole
        numbers or simple fractions."""
        return conserved_by(self.stoichiometry)

    @property
    def laws(self) -> tuple[AbstractRateLaw, ...] | None:
        """The rate law of each of `reactions`; None where `rates` is one function."""
        kinetics = self.kinetics
        if not isinstance(kinetics, RateLaws):
            return None
        return kinetics.laws((*self.species, *self.inputs))

    @typechecked
    def state(self, values: Mapping[str, ArrayLike], *, default: ArrayLike = 0.0) -> Array:
        """A state from values by name.

        **Arguments:**

        - `values`: of species, by name.
        - `default`: the value of those that are not named.

        **Returns:** an array of shape `(species,)`.

        **Raises:** `ValueError` for a name that is no species.
        """
        for name in values:
            self.index(name)
        all_values = [jnp.asarray(values.get(name, default), float) for name in self.species]
        return jnp.stack(all_values)

    @typechecked
    def index(self, name: str) -> int:
        """Where a species is in the state.

        **Arguments:**

        - `name`: of the species: `simulation.ys[:, field.index("A")]` is its course.

        **Raises:** `ValueError` for a name that is no species.
        """
        if name not in self.species:
            raise ValueError(f"`{name}` is no species. {closest(name, self.species)}")
        return self.species.index(name)

    @typechecked
    def by_name(self, ys: ArrayLike) -> dict[str, Any]:
        """The species of a state or a trajectory.

        **Arguments:**

        - `ys`: a state, shape `(species,)`, a trajectory, `(times, species)`, or a batch of them:
            the species are the last axis.

        **Returns:** a dict from names to arrays without that axis.
        """
        ys = jnp.asarray(ys)
        if jnp.ndim(ys) == 0 or jnp.shape(ys)[-1] != len(self.species):
            raise ValueError(
                f"`ys` must have {len(self.species)} components on its last axis, got shape "
                f"{jnp.shape(ys)}."
            )
        return {name: ys[..., i] for i, name in enumerate(self.species)}

    def __repr__(self) -> str:
        texts = [str(reaction) for reaction in self.reactions]
        laws = self.laws
        width = max(map(len, texts), default=0)
        lines = [
            f"ReactionField: {len(self.species)} species, {len(texts)} reactions",
            f"  species:   {', '.join(self.species)}",
        ]
        if self.inputs:
            lines.append(f"  inputs:    {', '.join(self.inputs)}")
        for row in self.conserved.value:
            lines.append(f"  conserved: {combination(row, self.species)}")
        if laws is None:
            return "\n".join([*lines, *(f"  {text}" for text in texts), f"  {self.kinetics!r}"])
        each = zip(texts, laws, strict=True)
        return "\n".join([*lines, *(f"  {text:{width}}  {law!r}" for text, law in each)])


# --- what the constructor is given ------------------------------------------------------------


def _is_text(stoichiometry: Any) -> bool:
    return (
        isinstance(stoichiometry, Sequence)
        and len(stoichiometry) > 0
        and all(isinstance(x, str) for x in stoichiometry)
    )


class _FromArgs(eqx.Module):
    """Looks an input up in `args`."""

    name: str = eqx.field(static=True)

    def __call__(self, t, y, args):
        try:
            return args[self.name]
        except (TypeError, KeyError, IndexError):
            known = f"has {', '.join(map(repr, args))}" if isinstance(args, Mapping) else repr(args)
            raise ValueError(
                f"The input `{self.name}` is looked up in `args`, which must be a mapping such as "
                f"`{{'{self.name}': 1.0}}`, and {'is ' if 'has' not in known else ''}{known}."
            ) from None


def _input_functions(inputs) -> dict[str, Callable]:
    if isinstance(inputs, str):
        raise TypeError(f'`inputs` must be a tuple of names, such as `("{inputs}",)`.')
    if not isinstance(inputs, Mapping):
        inputs = {name: _FromArgs(name) for name in inputs}
    for name in inputs:
        _check_name(name, "inputs")
    return dict(inputs)


def _check_name(name: Any, what: str) -> None:
    if not (isinstance(name, str) and name.isidentifier()):
        raise ValueError(f"`{what}` must be names of letters, digits and `_`, got {name!r}.")


def _names(species: Sequence[str] | None, size: int) -> tuple[str, ...]:
    names = tuple(f"y{i}" for i in range(size)) if species is None else tuple(species)
    for name in names:
        _check_name(name, "species")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"`species` names `{twice}` twice.")
    if len(names) != size:
        raise ValueError(f"`species` has {len(names)} names, but N has {size} rows.")
    return names


def _species_of(
    equations: Sequence[Equation], texts: Sequence[str], species, inputs: tuple[str, ...]
) -> tuple[str, ...]:
    """The names of the species, and a check of every name in the reactions."""
    if species is not None:
        species = _names(species, len(species))
    found: dict[str, None] = {}
    for i, (equation, text) in enumerate(zip(equations, texts, strict=True)):
        left = {term.name for term in equation.left}
        for term in (*equation.left, *equation.right):
            if term.name in inputs:
                if term.name not in left:
                    message = f"Reaction {i + 1}: the input `{term.name}` cannot be produced."
                    raise ValueError(pointed(message, text, term.position))
            elif species is None or term.name in species:
                found[term.name] = None
            else:
                message = (
                    f"Reaction {i + 1}: `{term.name}` is neither in `species` nor in `inputs`. "
                    + closest(term.name, (*species, *inputs))
                )
                raise ValueError(pointed(message, text, term.position))
    if not found and species is None:
        raise ValueError("The reactions have no species: every name in them is an input.")
    return tuple(found) if species is None else species


def _one_each(equations, texts, rates: Sequence[Any]) -> list[Any]:
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
            raise ValueError(f"Reaction {i + 1}, `{text}`, {wanted}, got {rate!r}.")
        laws.extend(rate if pair else [rate])
    return laws


def _check_laws(laws: Sequence[Any], count: int) -> None:
    if len(laws) != count:
        raise ValueError(f"`rates` has {len(laws)} rate laws for {count} reactions.")
    for i, law in enumerate(laws):
        if not isinstance(law, AbstractRateLaw):
            raise TypeError(
                f"`rates[{i}]` must be a rate law, such as `MassAction(1.0)`, got {law!r}."
            )


def _matrix(reactions: Sequence[Reaction], species: tuple[str, ...]) -> np.ndarray:
    matrix = np.zeros((len(species), len(reactions)))
    for column, reaction in enumerate(reactions):
        for sign, side in ((-1, reaction.reactants), (1, reaction.products)):
            for name, coefficient in side:
                if name in species:
                    matrix[species.index(name), column] += sign * coefficient
    return matrix


def _checked_matrix(stoichiometry: Any) -> np.ndarray:
    if is_traced(stoichiometry):
        return concrete_array(stoichiometry, "stoichiometry")  # raises
    try:
        matrix = np.asarray(concrete_array(stoichiometry, "stoichiometry"), float)
    except (TypeError, ValueError):
        matrix = np.zeros(())
    if matrix.ndim != 2 or 0 in matrix.shape or not np.isfinite(matrix).all():
        raise ValueError(
            "`stoichiometry` must be a list of reactions as text, or a finite matrix of shape "
            f"(species, reactions), got {stoichiometry!r}."
        )
    return matrix


def _reaction(column: np.ndarray, species: tuple[str, ...]) -> Reaction:
    side = lambda sign: tuple(
        (name, float(sign * n)) for name, n in zip(species, column, strict=True) if sign * n > 0
    )
    return Reaction(side(-1), side(1))
