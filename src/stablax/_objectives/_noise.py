"""How measurements scatter about what a model predicts."""

import abc
import math
from collections.abc import Callable
from typing import Any, ClassVar, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._parameters import Parameter
from .._static import Split
from .._types import ScalarLike
from .._words import short
from ._solved import Solved

SigmaLike = ScalarLike | Parameter | Solved | Callable | None


def as_sigma(sigma: SigmaLike | Split) -> Split | None:
    """As a noise holds it."""
    if sigma is None or isinstance(sigma, Split):
        return sigma
    if isinstance(sigma, Parameter | Solved) or callable(sigma):
        return Split(sigma, "sigma")
    try:
        number = np.asarray(sigma, float)
    except (TypeError, ValueError):
        number = np.array(math.nan)
    if number.shape != () or not (np.isfinite(number) and number > 0):
        raise ValueError(
            "`sigma` must be one number above 0, a `Parameter`, a function sigma(t, y, args, "
            f"parameters), `Solved()`, or None (that of the series), got {short(sigma)}."
        )
    return Split(float(number), "sigma")


class AbstractNoise(eqx.Module):
    """How measurements scatter about what a model predicts, with the standard deviation `sigma`.
    Abstract: subclass it and write `log_density` and `logarithmic`.

    **Arguments:**

    - `sigma`: a number above 0, a [`Parameter`][], a function `sigma(t, y, args, parameters)`,
        [`Solved`][]; or None: that which the [`Series`][] has for each measurement.

    **Attributes:**

    - `logarithmic`: of the class; whether it is the logarithms of measurement and prediction whose
        difference counts. Then both are positive.

    **Raises:** `ValueError` for a `sigma` that is none of these.
    """

    logarithmic: eqx.AbstractClassVar[bool]
    sigma: Any = eqx.field(default=None, converter=as_sigma)

    @abc.abstractmethod
    def log_density(self, residual: Array) -> Array:
        """The logarithm of the density of `residual`, the difference over `sigma`."""

    def residual(self, measured: Array, predicted: Array, sigma: Array) -> Array:
        """(predicted - measured) / sigma, of the logarithms if it is `logarithmic`."""
        if self.logarithmic:
            measured, predicted = jnp.log(measured), jnp.log(predicted)
        return (predicted - measured) / sigma

    def log_likelihood(self, measured: Array, predicted: Array, sigma: Array) -> Array:
        """The logarithm of the density of the measurement."""
        density = self.log_density(self.residual(measured, predicted, sigma)) - jnp.log(sigma)
        return density - jnp.log(measured) if self.logarithmic else density

    def solved_sigma(self, mean_square: Array, mean_size: Array) -> Array:
        """The `sigma` that makes the likelihood largest, of the mean squares and the mean sizes of
        the differences. By default there is no closed form."""
        raise ValueError(f"`{type(self).__name__}` has no closed form for `sigma=Solved()`.")

    @property
    def is_gaussian(self) -> bool:
        """Whether least squares are the largest likelihood: then a scale can be `Solved`."""
        return False

    def __repr__(self) -> str:
        given = "" if self.sigma is None else f"sigma={as_shown(self.sigma.tree)}"
        return f"{type(self).__name__}({given})"


def as_shown(x: object) -> str:
    """A number, a declaration, or the name of a function."""
    return getattr(x, "__name__", None) or (repr(x) if isinstance(x, eqx.Module) else short(x))


class AbstractGaussianNoise(AbstractNoise):
    """Of which least squares are the largest likelihood."""

    def log_density(self, residual):
        return -0.5 * residual**2 - 0.5 * math.log(2 * math.pi)

    def solved_sigma(self, mean_square, mean_size):
        return jnp.sqrt(mean_square)

    @property
    def is_gaussian(self):
        return True


@final
class NormalNoise(AbstractGaussianNoise):
    """Normal: measured = predicted + sigma * e.

    **Arguments:**

    - `sigma`: the standard deviation, in the unit of the observable, as [`AbstractNoise`][] has it.
    """

    logarithmic: ClassVar[bool] = False


@final
class LogNormalNoise(AbstractGaussianNoise):
    """Normal in the natural logarithm: log(measured) = log(predicted) + sigma * e.

    **Arguments:** `sigma` as [`NormalNoise`][], that of the logarithm: 0.1 is some 10 %.
    """

    logarithmic: ClassVar[bool] = True


@final
class LaplaceNoise(AbstractNoise):
    """Laplace's, for data with outliers: the density is exp(-|predicted - measured| / sigma) / (2
    sigma).

    **Arguments:** `sigma` as [`NormalNoise`][]: the mean deviation.
    """

    logarithmic: ClassVar[bool] = False

    def log_density(self, residual):
        return -jnp.abs(residual) - math.log(2)

    def solved_sigma(self, mean_square, mean_size):
        return mean_size
