"""Reaction networks: dy/dt = N v(t, y, args)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .._fields import Guard, GuardedField, conserved_by
from .._linalg import JacobianLike, as_jacobian, combination
from .._static import Frozen, Split
from .._types import Args, Explained, NumbersLike, ScalarLike, typechecked
from .._words import clipped, closest
from ._kinetics import RateLaws
from ._rate_laws import AbstractRateLaw
from ._reaction import Reaction, parse
from ._reaction_input import (
    ByName,
    check_laws,
    checked_matrix,
    input_functions,
    is_text,
    matrix_of,
    one_each,
    reaction_of,
    species_names,
    species_of,
    volumes_of,
)


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
        `args` (then a mapping; there an [`Input`][] is one that changes with time), or a mapping of
        names to functions `f(t, y, args)`, where `y` maps the species to their values (an
        [`Input`][] is one). An input can stand among the reactants, in place of a rate constant,
        and as `of=` of a rate law. A function that is a module is trained.
    - `volumes`: the volume of the compartment in which each species is [volume], by name (all of
        them), or as an array of shape `(species,)`; static. Then the state holds concentrations
        [amount/volume], the rates are amounts per time, and dy_i/dt = (N v)_i / volumes_i: a
        reaction moves the same amount everywhere. Without them one unit does for all.
    - `guard`: a [`Guard`][]; by default `Guard(lower=0.0)`.
    - `jacobian`: as in [`GuardedField`][].

    **Attributes:** `stoichiometry`, `reactions` (a [`Reaction`][] for each column of N), `species`
    and `inputs` (names), `volumes` (a [`Frozen`][] array, or None), `conserved` and `laws`.

    **Raises:** `ValueError` for a text that is no reaction (it points at the place), a name that
    is neither species nor input, a law that does not fit its reaction, and volumes that are not
    positive, finite and one for each species.
    """

    _amounts: Frozen  # N
    volumes: Frozen | None
    _kinetics: Split
    _functions: Split  # of the inputs
    reactions: tuple[Reaction, ...] = eqx.field(static=True)
    species: tuple[str, ...] = eqx.field(static=True)
    inputs: tuple[str, ...] = eqx.field(static=True)

    @typechecked
    def __init__(
        self,
        stoichiometry: Explained[Sequence[str] | NumbersLike],
        rates: Sequence[Any] | Callable,
        *,
        species: Sequence[str] | None = None,
        inputs: Sequence[str] | Mapping[str, Callable] = (),
        volumes: Explained[Mapping[str, ScalarLike] | NumbersLike | None] = None,
        guard: Guard = Guard(lower=0.0),
        jacobian: Explained[JacobianLike] = None,
    ):
        functions = input_functions(inputs)
        if isinstance(stoichiometry, str):
            raise TypeError(
                f'`stoichiometry` must be a list of texts, such as `["{clipped(stoichiometry)}"]`.'
            )
        if is_text(stoichiometry):
            equations = [parse(text, f"Reaction {i + 1}") for i, text in enumerate(stoichiometry)]
            self.species = species_of(equations, stoichiometry, species, tuple(functions))
            self.reactions = tuple(r for equation in equations for r in equation.reactions())
            laws = rates if callable(rates) else one_each(equations, stoichiometry, rates)
            matrix = matrix_of(self.reactions, self.species)
        else:
            matrix = checked_matrix(stoichiometry)
            self.species = species_names(species, len(matrix))
            self.reactions = tuple(reaction_of(column, self.species) for column in matrix.T)
            laws = rates
        clash = set(self.species) & set(functions)
        if clash:
            raise ValueError(f"`{clipped(min(clash))}` is a species and an input.")
        self._amounts = Frozen(matrix)
        self.volumes = volumes_of(volumes, self.species)
        self.inputs = tuple(functions)
        self._functions = Split(tuple(functions.values()), "inputs")
        if callable(laws):
            kinetics = laws
        else:
            check_laws(laws, len(self.reactions))
            kinetics = RateLaws(self.reactions, laws, (*self.species, *self.inputs))
        self._kinetics = Split(kinetics, "rates")
        self.guard = guard
        self.jacobian = as_jacobian(jacobian)

    @property
    def stoichiometry(self) -> Frozen:
        """What makes dy/dt of the rates, shape `(species, reactions)`: N, and with `volumes` each
        row of it divided by the volume of its species."""
        if self.volumes is None:
            return self._amounts
        return Frozen(self._amounts.value / self.volumes.value[:, None])

    @property
    def kinetics(self) -> Any:
        """What computes the rates: the laws together, or the function that was given."""
        return self._kinetics.tree

    def rates(self, t: ScalarLike, y: ArrayLike, args: Args) -> Array:
        """The rate v of each reaction: [state/time], or with `volumes` [amount/time].

        **Arguments:**

        - `t`, `y`, `args`: time, state and condition, as for a call of the field; unguarded.

        **Returns:** an array of shape `(reactions,)`, in the order of `reactions`.
        """
        shown = getattr(y, "shape", type(y).__name__)
        if shown != (len(self.species),):
            raise ValueError(
                f"This `ReactionField` takes a state of shape ({len(self.species)},), got {shown}. "
                "`field.state({...})` makes one from names."
            )
        y = jnp.asarray(y)
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
        rates = self.rates(t, y, args)  # which looks at what `y` is
        return jnp.asarray(self.stoichiometry.value, y.dtype) @ rates

    def _quantities(self, t, y, args) -> Array:
        """The species and the inputs."""
        if not self.inputs:
            return y
        named = ByName(self.species, y)
        values = []
        for name, function in zip(self.inputs, self._functions.tree, strict=True):
            value = jnp.asarray(function(t, named, args), y.dtype)
            if value.shape != ():
                raise ValueError(
                    f"The input `{clipped(name)}` must be a number, got shape {value.shape}."
                )
            values.append(value)
        return jnp.concatenate([y, jnp.stack(values)])

    @property
    def conserved(self) -> Frozen:
        """Rows L with L f = 0, shape `(quantities, species)`, of the left null space of N: whole
        numbers where N holds whole numbers or simple fractions. With `volumes` each column is
        multiplied by the volume of its species: L y are amounts."""
        rows = conserved_by(self._amounts)
        return rows if self.volumes is None else Frozen(rows.value * self.volumes.value)

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
            raise ValueError(f"`{clipped(name)}` is no species. {closest(name, self.species)}")
        return self.species.index(name)

    @typechecked
    def by_name(self, ys: ArrayLike) -> dict[str, Array]:
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
        if self.volumes is not None:
            each = zip(self.species, self.volumes.value, strict=True)
            lines.append(f"  volumes:   {', '.join(f'{name} {v:.6g}' for name, v in each)}")
        for row in self.conserved.value:
            lines.append(f"  conserved: {combination(row, self.species)}")
        if laws is None:
            return "\n".join([*lines, *(f"  {text}" for text in texts), f"  {self.kinetics!r}"])
        each = zip(texts, laws, strict=True)
        return "\n".join([*lines, *(f"  {text:{width}}  {law!r}" for text, law in each)])
