"""What is known of a parameter before there are data."""

import abc
import math
from typing import Literal, final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from .._types import typechecked

Of = Literal["value", "estimated"]


class AbstractPrior(eqx.Module):
    """A density of a parameter. Abstract: subclass it and write `log_density`; its numbers are
    static, and `of` says whether it is that of the value or of the estimated coordinate.

    As is usual in fitting (and in PEtab), a density of the value is a term of the objective as it
    is, without the determinant of a change of coordinates.
    """

    of: eqx.AbstractVar[Of]

    @abc.abstractmethod
    def log_density(self, x: Array) -> Array:
        """The logarithm of the density at `x`, of the shape of `x`."""


@final
class NormalPrior(AbstractPrior):
    """Normal.

    **Arguments:**

    - `mean`: in the unit of what it is a density of.
    - `standard_deviation`: > 0.
    - `of`: `"value"`, or `"estimated"`: the coordinate in which the parameter is estimated (its
        logarithm, with `scale="log"`).
    """

    mean: float = eqx.field(static=True)
    standard_deviation: float = eqx.field(static=True)
    of: Of = eqx.field(static=True)

    @typechecked
    def __init__(self, mean: float, standard_deviation: float, *, of: Of = "value"):
        self.mean, self.of = float(mean), of
        self.standard_deviation = _positive(standard_deviation, "standard_deviation")

    def log_density(self, x):
        z = (x - self.mean) / self.standard_deviation
        return -0.5 * z**2 - math.log(self.standard_deviation * math.sqrt(2 * math.pi))


@final
class LaplacePrior(AbstractPrior):
    """Laplace's: exp(-|x - mean| / width) / (2 width).

    **Arguments:** `mean`, `of` as [`NormalPrior`][]; `width` > 0.
    """

    mean: float = eqx.field(static=True)
    width: float = eqx.field(static=True)
    of: Of = eqx.field(static=True)

    @typechecked
    def __init__(self, mean: float, width: float, *, of: Of = "value"):
        self.mean, self.width, self.of = float(mean), _positive(width, "width"), of

    def log_density(self, x):
        return -jnp.abs(x - self.mean) / self.width - math.log(2 * self.width)


@final
class LogNormalPrior(AbstractPrior):
    """Normal in the natural logarithm, for what is positive.

    **Arguments:**

    - `median`: > 0, in the unit of the value.
    - `standard_deviation`: > 0, that of the logarithm.
    """

    median: float = eqx.field(static=True)
    standard_deviation: float = eqx.field(static=True)
    of: Of = eqx.field(static=True, default="value")

    @typechecked
    def __init__(self, median: float, standard_deviation: float):
        self.of = "value"
        self.median = _positive(median, "median")
        self.standard_deviation = _positive(standard_deviation, "standard_deviation")

    def log_density(self, x):
        inside = x > 0
        log_x = jnp.log(jnp.where(inside, x, 1))
        z = (log_x - math.log(self.median)) / self.standard_deviation
        density = -0.5 * z**2 - log_x - math.log(self.standard_deviation * math.sqrt(2 * math.pi))
        return jnp.where(inside, density, -jnp.inf)


@final
class UniformPrior(AbstractPrior):
    """The same everywhere between two numbers, and nothing outside.

    **Arguments:** `lower` < `upper`; `of` as [`NormalPrior`][].
    """

    lower: float = eqx.field(static=True)
    upper: float = eqx.field(static=True)
    of: Of = eqx.field(static=True)

    @typechecked
    def __init__(self, lower: float, upper: float, *, of: Of = "value"):
        if not (math.isfinite(lower) and math.isfinite(upper) and lower < upper):
            raise ValueError(
                f"`lower` must be below `upper`, and both finite, got {lower} and {upper}."
            )
        self.lower, self.upper, self.of = float(lower), float(upper), of

    def log_density(self, x):
        inside = (self.lower <= x) & (x <= self.upper)
        return jnp.where(inside, -math.log(self.upper - self.lower), -jnp.inf)


def _positive(x: float, name: str) -> float:
    if not (math.isfinite(x) and x > 0):
        raise ValueError(f"`{name}` must be finite and above 0, got {x}.")
    return float(x)
