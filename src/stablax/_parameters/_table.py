"""The table of all parameters of a model: what an optimiser takes, and what a person reads."""

import csv
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from .._static import Split, is_traced
from .._types import Explained, NumbersLike, typechecked
from .._words import clipped, closest, quoted, short
from ._declares import Declares, declared, put, resolved
from ._parameter import Parameter, short_number

_T = TypeVar("_T")
Coordinates = Literal["natural", "estimated"]

# The columns of a parameter table of PEtab, and one more.
_COLUMNS = (
    "parameterId",
    "parameterScale",
    "lowerBound",
    "upperBound",
    "nominalValue",
    "estimate",
    "estimatedValue",
)
_SCALES = {"linear": "lin", "log": "log", "log10": "log10"}


@final
class Parameters(eqx.Module):
    """All parameters of a model, each once; made by [`parameters`][].

    It is a PyTree whose leaves are what is estimated: the coordinates of the parameters with a name
    (their logarithms, where their `scale` says so), and the arrays that are trained as they are
    (weights of networks). So an optimiser takes it as it is, and returns one that prints:

    ```python
    table = sx.parameters(model)
    updates, state = optimiser.update(jax.grad(loss)(table), state, table)
    table = optax.apply_updates(table, updates)
    table = optax.projections.projection_box(table, table.lower, table.upper)
    print(table)
    model = table.into(model)
    ```

    **Attributes:**

    - `named`: the [`Parameter`][]s by name.
    - `arrays`: the other arrays, by where they are, such as `field.network.layers[0].weight`.
    - `values`: of those with a name, in their own units.
    - `coordinates`: of those with a name that are estimated.
    """

    # Tuples, since a tree sorts the keys of a dict.
    _named: tuple[Parameter, ...]
    _arrays: tuple[Array, ...]
    _paths: tuple[str, ...] = eqx.field(static=True)

    def __init__(self, named: Iterable[Parameter], arrays: Mapping[str, Array]):
        self._named = tuple(named)
        self._paths, self._arrays = tuple(arrays), tuple(arrays.values())

    @property
    def named(self) -> dict[str, Parameter]:
        return {p.name: p for p in self._named}

    @property
    def arrays(self) -> dict[str, Array]:
        return dict(zip(self._paths, self._arrays, strict=True))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parameters, in the order in which they were found."""
        return tuple(self.named)

    @property
    def values(self) -> dict[str, Array]:
        return {name: p.value for name, p in self.named.items()}

    @property
    def coordinates(self) -> dict[str, Array]:
        return {name: x for name, p in self.named.items() if (x := p.coordinate) is not None}

    def __getitem__(self, name: str) -> Array:
        return self._parameter(name).value

    def _parameter(self, name: str) -> Parameter:
        if name not in self.named:
            hint = closest(name, self.named)
            raise KeyError(f"There is no parameter `{clipped(str(name))}`. {hint}")
        return self.named[name]

    def __contains__(self, name: object) -> bool:
        return name in self.named

    def __iter__(self) -> Iterator[str]:
        return iter(self.named)

    def __len__(self) -> int:
        return len(self.named)

    @typechecked
    def with_values(
        self,
        values: Explained[Mapping[str, NumbersLike]],
        *,
        coordinates: Coordinates = "natural",
    ) -> "Parameters":
        """With other values of some.

        **Arguments:**

        - `values`: by name.
        - `coordinates`: whether they are in the parameters' own units, or those in which they are
            `"estimated"`.

        **Raises:** `KeyError` for a name that is no parameter's; `ValueError` for a value outside
        the bounds.
        """
        changed = dict(self.named)
        for name, value in values.items():
            parameter = self._parameter(name)
            shape = jnp.shape(parameter.value)
            if np.shape(value) != shape:
                raise ValueError(
                    f"`{name}` has shape {shape}, but the value given has shape {np.shape(value)}."
                )
            if coordinates == "natural":
                changed[name] = parameter.with_value(value)
            else:
                if parameter.coordinate is None:
                    raise ValueError(f"`{name}` is held, so that it has no estimated coordinate.")
                coordinate = jnp.asarray(value, parameter.coordinate.dtype)
                changed[name] = parameter.with_coordinate(coordinate)
                if not is_traced(coordinate):
                    _inside(changed[name])
        return Parameters(changed.values(), self.arrays)

    @typechecked
    def to_dict(self, *, coordinates: Coordinates = "natural") -> dict[str, Any]:
        """The values by name, as Python's numbers (nested lists, for arrays).

        **Arguments:** `coordinates` as `with_values`; those that are held have only their own unit,
        and are left out of the others.
        """
        given = self.values if coordinates == "natural" else self.coordinates
        return {name: np.asarray(x).tolist() for name, x in given.items()}

    @typechecked
    def write(self, path: str | Path) -> None:
        """Writes the parameters with a name, as a table of PEtab's columns, separated by
        tabulators, and one more, `estimatedValue`: the coordinate. A parameter that is an array has
        a row for each of its numbers, `name[0]`. (Of arrays without a name
        `eqx.tree_serialise_leaves` makes a file.)

        **Arguments:**

        - `path`: of the file, which is replaced.
        """
        with open(path, "w", newline="") as file:
            table = csv.writer(file, delimiter="\t", lineterminator="\n")
            table.writerow(_COLUMNS)
            for parameter in self.named.values():
                table.writerows(_rows(parameter))

    @typechecked
    def read(self, path: str | Path, *, coordinates: Coordinates = "natural") -> "Parameters":
        """With the values of a file that `write` has made, or of a parameter table of PEtab.

        **Arguments:**

        - `path`: of the file.
        - `coordinates`: which column is read: `nominalValue`, or `estimatedValue` (which is exact
            to the last digit).

        **Raises:** `KeyError` for a parameter that is not here; `ValueError` for one of here that
        is not in the file, or a number that cannot be read.
        """
        column = "nominalValue" if coordinates == "natural" else "estimatedValue"
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        if not rows or not {"parameterId", column} <= set(rows[0]):
            raise ValueError(f"{path} has no columns `parameterId` and `{column}`.")
        found: dict[str, float] = {}
        for row in rows:
            name, text = row["parameterId"], row[column] or ""
            base = re.sub(r"\[[\d, ]*\]$", "", name)
            parameter = self._parameter(name if name in self.named else base)
            if coordinates == "estimated" and not parameter.estimate:
                continue
            try:
                found[name] = float(text)
            except ValueError:
                raise ValueError(
                    f"{path}: `{column}` of `{name}` is {short(text)}, which is no number."
                ) from None
        values = {}
        for name, parameter in self.named.items():
            if coordinates == "estimated" and not parameter.estimate:
                continue
            shape = jnp.shape(parameter.value)
            missing = [one for one in _entries(name, shape) if one not in found]
            if missing:
                raise ValueError(f"{path} has no row for {quoted(missing)}.")
            numbers = [found[one] for one in _entries(name, shape)]
            values[name] = np.reshape(np.array(numbers), shape)
        return self.with_values(values, coordinates=coordinates)

    def into(self, tree: _T) -> _T:
        """`tree` (the one that this table was made of, or another in which some of the parameters
        are) with these values: its [`Parameter`][]s, and its arrays."""
        return self._arrays_into(put(tree, self._put))

    def natural(self, tree: _T) -> _T:
        """As `into`, with numbers in the place of the [`Parameter`][]s: what a model evaluates."""
        return self._arrays_into(resolved(tree, lambda p: self._put(p).value))

    def _put(self, parameter: Parameter) -> Parameter:
        return self.named.get(parameter.name, parameter)  # of another tree, its own

    def _arrays_into(self, tree: _T) -> _T:
        def replace(path: str, x: Array) -> Array:
            return self.arrays.get(path, x)

        return _map_arrays(replace, tree, "") if self._arrays else tree

    @property
    def lower(self) -> "Parameters":
        """The lower bounds of the coordinates, -inf where there is none: as `optax.projections`
        takes them."""
        return self._bounds(0)

    @property
    def upper(self) -> "Parameters":
        """The upper bounds of the coordinates."""
        return self._bounds(1)

    def _bounds(self, side: int) -> "Parameters":
        def bound(parameter: Parameter) -> Parameter:
            x = parameter.coordinate
            if x is None:
                return parameter
            given = np.broadcast_to(parameter.bounds[side], jnp.shape(x))
            return parameter.with_coordinate(jnp.asarray(parameter.to_coordinate(given), x.dtype))

        infinite = (-math.inf, math.inf)[side]
        arrays = {path: jnp.full_like(x, infinite) for path, x in self.arrays.items()}
        return Parameters(map(bound, self._named), arrays)

    def clipped(self) -> "Parameters":
        """With coordinates beyond a bound at that bound."""
        return optax.projections.projection_box(self, self.lower, self.upper)

    def unbounded(self) -> "Parameters":
        """In coordinates that have no bounds, as an optimiser that knows none needs: the logit of
        the place between two bounds, the logarithm of the distance from one, and the coordinate
        itself where there is none.

        **Returns:** a table whose coordinates, and only they, mean something; `bounded` is the way
        back.

        **Raises:** `ValueError` for a parameter that is on a bound: that is infinitely far away.
        """
        lower, upper = self.lower, self.upper
        low, high = lower.coordinates, upper.coordinates
        for name, x in self.coordinates.items():
            if is_traced((x, lower, upper)):
                continue
            parameter, at = self.named[name], (x <= low[name]) | (x >= high[name])
            if np.any(np.asarray(at)):
                first, last = map(short_number, parameter.bounds)
                raise ValueError(
                    f"`{name}` = {short_number(parameter.value)} is on a bound, {first} to {last}: "
                    "that is infinitely far away in coordinates without bounds. Start inside."
                )
        return jtu.tree_map(_away, self, lower, upper)

    def bounded(self) -> "Parameters":
        """From the coordinates without bounds that `unbounded` gives, back."""
        return jtu.tree_map(_back, self, self.lower, self.upper)

    def log_prior(self) -> Float[Array, ""]:
        """The sum of the logarithms of all prior densities."""
        total = jnp.zeros(())
        for parameter in self.named.values():
            prior, x = parameter.prior, parameter.coordinate
            if prior is None or x is None:
                continue
            total += jnp.sum(prior.log_density(parameter.value if prior.of == "value" else x))
        return total

    def __repr__(self) -> str:
        known = all(p.estimate == eqx.is_array(p.coordinate) for p in self._named)
        if is_traced(self) or not known:
            return f"Parameters({quoted(list(self.named))}, {len(self.arrays)} arrays)"
        rows = [("name", "value", "scale", "bounds", "coordinate", "prior")]
        for name, p in self.named.items():
            lower, upper = (short_number(bound) for bound in p.bounds)
            held = "held" if p.coordinate is None else short_number(p.coordinate)
            prior = "" if p.prior is None else repr(p.prior)
            rows.append((name, short_number(p.value), p.scale, f"{lower} to {upper}", held, prior))
        for path, x in self.arrays.items():
            rows.append((path, f"{x.dtype}{list(x.shape)}", "", "", "", ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
        return "\n".join(lines)


@typechecked
def parameters(tree: PyTree) -> Parameters:
    """The table of all parameters of a tree: of its [`Parameter`][]s, each name once, and of its
    other arrays.

    **Arguments:**

    - `tree`: any PyTree: a model, a field, or several in a tuple.

    **Returns:** a [`Parameters`][].

    **Raises:** `ValueError` for one name with two declarations or two values.
    """
    return table_of(tree, tree)


def table_of(declaring: PyTree, trained: PyTree) -> Parameters:
    """Of the [`Parameter`][]s in `declaring`, and the other arrays of `trained`."""
    named: dict[str, Parameter] = {}
    for one in declared(declaring):
        first = named.setdefault(one.name, one)
        if not first.same_as(one):
            raise ValueError(
                f"The parameter `{one.name}` is declared twice and differently: {first!r} and "
                f"{one!r}. The same name is the same parameter: use one object in both places."
            )
        if first is not one and not is_traced((first, one)):
            if not np.array_equal(np.asarray(first.value), np.asarray(one.value)):
                raise ValueError(
                    f"The parameter `{one.name}` has two values, {short_number(first.value)} and "
                    f"{short_number(one.value)}. Use one object in both places; and to train a "
                    "model in which a name is twice, train its table, `parameters(model)`."
                )
    arrays: dict[str, Array] = {}

    def keep(path: str, x: Array) -> Array:
        arrays[path] = jnp.asarray(x)
        return x

    _map_arrays(keep, trained, "")
    return Parameters(named.values(), arrays)


def _map_arrays(fn: Callable[[str, Array], Array], tree: _T, prefix: str) -> _T:
    """With `fn(path, array)` for each floating-point array that is no part of a declaration."""

    def leaf(path, x):
        where = (prefix + _readable(path)).removeprefix(".")
        if isinstance(x, Split):
            inner = _map_arrays(fn, x.tree, where)
            return Split(inner, "field")
        if isinstance(x, Declares) or not eqx.is_inexact_array(x):
            return x
        return fn(where or "array", x)

    is_leaf = lambda x: isinstance(x, Declares | Split)
    return jtu.tree_map_with_path(leaf, tree, is_leaf=is_leaf)


def _readable(path: tuple) -> str:
    return jtu.keystr(path).replace("._", ".")


def _away(x: Array, lower: Array, upper: Array) -> Array:
    """From between the bounds to the real line."""
    has_lower, has_upper = jnp.isfinite(lower), jnp.isfinite(upper)
    low, high = jnp.where(has_lower, lower, 0), jnp.where(has_upper, upper, 1)
    both = has_lower & has_upper
    part = jnp.where(both, (x - low) / (high - low), 0.5)
    above = jnp.log(jnp.where(has_lower, x - low, 1))
    below = -jnp.log(jnp.where(has_upper, high - x, 1))
    one = jnp.where(has_lower, above, jnp.where(has_upper, below, x))
    return jnp.where(both, jnp.log(part) - jnp.log1p(-part), one)


def _back(z: Array, lower: Array, upper: Array) -> Array:
    has_lower, has_upper = jnp.isfinite(lower), jnp.isfinite(upper)
    low, high = jnp.where(has_lower, lower, 0), jnp.where(has_upper, upper, 1)
    both = has_lower & has_upper
    between = low + (high - low) * jax.nn.sigmoid(jnp.where(both, z, 0))
    one_sided = jnp.where(both | ~(has_lower | has_upper), 0, z)
    above, below = low + jnp.exp(one_sided), high - jnp.exp(-one_sided)
    one = jnp.where(has_lower, above, jnp.where(has_upper, below, z))
    return jnp.where(both, between, one)


def _inside(parameter: Parameter) -> None:
    """Raises unless the value is within the bounds, to rounding."""
    lower, upper = (parameter.to_coordinate(np.asarray(b)) for b in parameter.bounds)
    x = np.asarray(parameter.coordinate)
    if not (np.isfinite(x) & (lower <= x) & (x <= upper)).all():
        parameter.with_value(np.asarray(parameter.value))  # raises, in words


def _entries(name: str, shape: tuple[int, ...]) -> list[str]:
    if shape == ():
        return [name]
    return [f"{name}[{', '.join(map(str, index))}]" for index in np.ndindex(*shape)]


def _rows(parameter: Parameter) -> Iterator[tuple[str, ...]]:
    shape = jnp.shape(parameter.value)
    lower, upper = (np.broadcast_to(bound, shape).ravel() for bound in parameter.bounds)
    values = np.ravel(np.asarray(parameter.value))
    coordinate = parameter.coordinate
    estimated = [""] * values.size if coordinate is None else map(repr, _floats(coordinate))
    names = _entries(parameter.name, shape)
    for name, low, high, value, x in zip(names, lower, upper, values, estimated, strict=True):
        yield (
            name,
            _SCALES[parameter.scale],
            repr(float(low)),
            repr(float(high)),
            f"{value:.15g}",
            str(int(parameter.estimate)),
            x,
        )


def _floats(x: Array) -> list[float]:
    return [float(one) for one in np.ravel(np.asarray(x))]
