"""`Observable`: what is measured of a state."""

from collections.abc import Callable
from typing import Any, final

import equinox as eqx
import numpy as np

from .._parameters import Parameter
from .._static import Split
from .._types import Explained, ScalarLike, typechecked
from .._words import called, short
from ._noise import AbstractNoise, NormalNoise, as_shown
from ._solved import Solved

FactorLike = ScalarLike | Parameter | Solved


@final
class Observable(eqx.Module):
    """What is measured: offset + scale * value(t, y, args, parameters), with noise.

    ```python
    sx.Observable("C", noise=sx.NormalNoise(0.1))                       # a species
    sx.Observable(lambda t, y, args, p: y[1] / (y[0] + p["background"]), scale=sx.Solved())
    ```

    **Arguments:**

    - `value`: a function `value(t, y, args, parameters)` of one time, the state there, the
        condition (`args` of the call of the model; None, where there is none) and the values of
        all parameters by name, that returns a number; or the name or the place of a component.
    - `scale`, `offset`: a number, a [`Parameter`][], or [`Solved`][].
    - `noise`: an [`AbstractNoise`][]; by default normal with the `sigma` of the [`Series`][].
    """

    value: Split
    scale: Any
    offset: Any
    noise: AbstractNoise

    @typechecked
    def __init__(
        self,
        value: Explained[Callable | str | int],
        *,
        scale: Explained[FactorLike] = 1.0,
        offset: Explained[FactorLike] = 0.0,
        noise: Explained[AbstractNoise] = NormalNoise(),
    ):
        if isinstance(value, bool) or not (callable(value) or isinstance(value, str | int)):
            raise TypeError(
                "`value` must be a function value(t, y, args, parameters), or the name or the "
                f"place of a component of the state, got {short(value)}."
            )
        if not isinstance(noise, AbstractNoise):
            raise TypeError(
                f"`noise` must be a noise, such as `NormalNoise(0.1)`, got {short(noise)}."
            )
        self.value = Split(value, "value")
        self.scale, self.offset = _as_factor(scale, "scale"), _as_factor(offset, "offset")
        self.noise = noise

    def __repr__(self) -> str:
        parts = [as_shown(self.value.tree)]
        for name, x, usual in (("scale", self.scale, 1.0), ("offset", self.offset, 0.0)):
            parts += [] if isinstance(x, float) and x == usual else [f"{name}={as_shown(x)}"]
        return called("Observable", [*parts, f"noise={self.noise!r}"])


def _as_factor(x: object, name: str) -> Any:
    """A number is no leaf: what is trained is a `Parameter`."""
    if isinstance(x, Parameter | Solved):
        return x
    try:
        number = float(np.asarray(x))
    except (TypeError, ValueError):
        number = float("nan")
    if not np.isfinite(number):
        raise ValueError(
            f"`{name}` must be a finite number, a `Parameter` or `Solved()`, got {short(x)}."
        )
    return number
