"""The constants of rate laws: trained through their logarithm, held, or given by an input."""

import abc
from collections.abc import Callable, Sequence
from typing import Any, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._parameters import Declares, Parameter
from .._static import Frozen, is_traced
from .._types import ScalarLike
from .._words import short


class AbstractConstant(eqx.Module):
    """A positive constant of one reaction, or of several: then its values have an axis."""

    @abc.abstractmethod
    def values(self, z: Float[Array, " quantities"]) -> Array:
        """The constant itself; `z` are the species and the inputs."""


@final
class Trained(AbstractConstant):
    """exp of a leaf."""

    log: Float[Array, "..."]

    def values(self, z):
        return jnp.exp(self.log)

    def __repr__(self) -> str:
        if is_traced(self.log) or not isinstance(self.log, jnp.ndarray) or self.log.shape:
            return f"{getattr(self.log, 'dtype', '')}{list(getattr(self.log, 'shape', ()))}"
        return f"{float(jnp.exp(self.log)):.6g}"


@final
class Held(AbstractConstant):
    """A number that is not trained."""

    value: Frozen

    def values(self, z):
        return jnp.asarray(self.value.value, z.dtype)

    def __repr__(self) -> str:
        return f"{self.value.value:.6g} (held)"


@final
class Named(AbstractConstant):
    """What an input, or a species, of that name is."""

    name: str = eqx.field(static=True)

    def values(self, z):
        raise TypeError(f"The constant `{self.name}` has a value only inside a `ReactionField`.")

    def __repr__(self) -> str:
        return repr(self.name)


@final
class Gathered(AbstractConstant):
    """`Named` constants, by their indices."""

    index: Frozen

    def values(self, z):
        return z[self.index.value]


@final
class Known(AbstractConstant):
    """A number that is known from outside."""

    value: Float[Array, "..."]

    def values(self, z):
        return self.value


@final
class Declared(AbstractConstant, Declares):
    """A [`Parameter`][], or several."""

    parameters: tuple[Parameter, ...]
    has_axis: bool = eqx.field(static=True)

    def declared(self):
        return list(self.parameters)

    def put(self, replace):
        return Declared(tuple(map(replace, self.parameters)), self.has_axis)

    def resolved(self, value):
        # Together: a number of its own for each reaction is a kernel for each in the loop.
        values = [value(parameter) for parameter in self.parameters]
        return Known(jnp.stack(values) if self.has_axis else values[0])

    def values(self, z):
        return self.resolved(lambda parameter: parameter.value).value

    def __repr__(self) -> str:
        return ", ".join(map(repr, self.parameters))


ConstantLike = AbstractConstant | Parameter | Frozen | str | ScalarLike
"""What a user may give as a constant of a rate law."""


def rate_constant(value: ConstantLike) -> Any:
    """Makes `value` a constant of a rate law: the converter of its fields.

    ```python
    class Inhibited(sx.AbstractRateLaw):
        vmax: Any = eqx.field(converter=sx.rate_constant)
        ki: Any = eqx.field(converter=sx.rate_constant)
    ```

    Inside `rate` the field is the positive number itself.

    **Arguments:**

    - `value`: a number > 0: it is trained, and the leaf is its logarithm; a [`Parameter`][]: it is
        that; a [`Frozen`][] number: it is held; or the name of an input (or of a species): it is
        what that is.

    **Raises:** `ValueError` for a number that is not positive and finite, or not a single one.
    """
    if isinstance(value, AbstractConstant):
        return value
    if isinstance(value, str):
        return Named(value)
    if isinstance(value, Parameter):
        given = value.value
        if given.shape != () or not (is_traced(given) or np.asarray(given) >= 0):
            raise ValueError(f"A rate constant must be one number >= 0, got {value!r}.")
        return Declared((value,), False)
    if isinstance(value, Frozen):
        if value.shape != () or not (np.isfinite(value.value) and value.value >= 0):
            raise ValueError(f"A rate constant that is held must be one number >= 0, got {value}.")
        return Held(Frozen(np.asarray(value.value, float)))
    try:
        array = jnp.asarray(value)
    except (OverflowError, ValueError):  # a Python integer beyond all floats
        array = jnp.array(jnp.inf)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(float)
    array = jnp.asarray(array, array.dtype)  # a Python float is a weak type
    if array.shape != ():
        raise ValueError(
            f"A rate constant must be one number, got shape {array.shape}: each reaction has a "
            "rate law of its own."
        )
    if not is_traced(array) and not (np.isfinite(array) and array > 0):
        raise ValueError(
            f"A rate constant that is trained must be positive and finite, got {short(value)}: "
            "the leaf is its logarithm. For a constant 0, `Frozen(0.0)`."
        )
    return Trained(jnp.log(array))


def is_constant(x: object) -> bool:
    return isinstance(x, AbstractConstant)


def stack_constants(constants: Sequence[Any], index: Callable[[str], int]) -> AbstractConstant:
    """Constants of one kind, one for each reaction, as one with an axis."""
    first = constants[0]
    if isinstance(first, Trained):
        return Trained(jnp.stack([c.log for c in constants]))
    if isinstance(first, Declared):
        return Declared(tuple(c.parameters[0] for c in constants), True)
    if isinstance(first, Held):
        return Held(Frozen(np.stack([c.value.value for c in constants])))
    return Gathered(Frozen(np.array([index(c.name) for c in constants])))


def take_constant(
    constant: Trained | Declared | Known | Held | Gathered, i: int, names: Sequence[str]
) -> AbstractConstant:
    """The constant of one reaction again."""
    if isinstance(constant, Trained):
        return Trained(constant.log[..., i])
    if isinstance(constant, Declared):
        return Declared((constant.parameters[i],), False)
    if isinstance(constant, Known):
        return Known(constant.value[..., i])
    if isinstance(constant, Held):
        return Held(Frozen(constant.value.value[i]))
    return Named(names[int(constant.index.value[i])])
