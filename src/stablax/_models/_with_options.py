"""`with_options`: the same model, solved in another way."""

from typing import TypeVar, Unpack

import jax.tree_util as jtu

from .._types import VF, typechecked
from .._words import short
from ._model import AbstractModel
from ._options import SolveArguments

_T = TypeVar("_T")


class Changes(SolveArguments, total=False):
    """What can be changed in a model."""

    field: VF


@typechecked
def with_options(model: _T, **changes: Unpack[Changes]) -> _T:
    """`model` with some of the options of its solve changed; all else is the same.

    ```python
    traced = sx.with_options(model, trace="record")
    forward = sx.with_options(model, adjoint=diffrax.ForwardMode())
    ```

    **Arguments:**

    - `model`: a model of stablax, or any PyTree (an `eqx.Module`) that holds some: all are changed.
    - `changes`: arguments of [`Simulate`][] by name: `solver`, `controller`, `adjoint`,
        `max_steps`, `dt0`, `event`, `progress_meter`, `telemetry`, `trace`, and `field`. What is
        not named stays as it was given, and what was not given stays the default, which can be
        another one: the controller's preset is the solver's, and the adjoint depends on the
        solver. `None` is the default.

    **Returns:** the changed copy.

    **Raises:** `TypeError` for an unknown name, or if there is no model in `model`; what
    [`Simulate`][] raises for a value that does not fit.
    """
    for name in changes:
        if name not in Changes.__annotations__:
            known = ", ".join(f"`{n}`" for n in Changes.__annotations__)
            raise TypeError(f"There is no option {short(name)}; the options are {known}.")
    found = False

    def change(part):
        nonlocal found
        if not isinstance(part, AbstractModel):
            return part
        found = True
        return part.replaced(**changes)

    changed = jtu.tree_map(change, model, is_leaf=lambda x: isinstance(x, AbstractModel))
    if not found:
        raise TypeError(f"`model` holds no model of stablax: {short(model)}.")
    return changed
