"""What all models are: a field, and how it is solved."""

import abc
import dataclasses
import inspect
from typing import Any, Unpack

import equinox as eqx

from .._fields import Guard, as_guarded
from .._static import Split, Static
from .._types import VF, NumbersLike, YLike, chosen, takes, typechecked
from ._options import ResolvedOptions, SolveArguments, SolveOptions, represent
from ._resolve import resolve
from ._simulation import Simulation


class AbstractModel(eqx.Module):
    """A field and the options of its solve, to be called with a state and times. Abstract: subclass
    it and write `__call__` and `arguments`.

    ```python
    class AfterBurnIn(sx.AbstractModel):
        burn_in: float = eqx.field(static=True)

        def __init__(self, field, burn_in, **options):
            super().__init__(field, **options)
            self.burn_in = burn_in

        def arguments(self):
            return dict(burn_in=self.burn_in, **self.options.arguments())

        def __call__(self, y0, ts, *, args=None, throw=True):
            model = sx.Simulate(self.field, **self.options.arguments())
            return model(y0, ts, t0=-self.burn_in, args=args, throw=throw)
    ```

    Its PyTree leaves are exactly the floating-point arrays of the field. [`simulate_batch`][],
    [`with_options`][] and [`diagnose`][] take any.

    A call takes by name `y0` (the state), `ts` (the times to save at) and `throw`: whether a failed
    solve raises an error, or returns the reason as the `result` of the simulation, as the two
    functions above ask for. What it takes besides is its own affair; where it takes `t0` (the time
    of `y0`, else 0), `args` (what is passed to the field) or `stepping` (a [`Stepping`][]), they
    mean what they do in [`Simulate`][].

    **Arguments:**

    - `field`: any callable `f(t, y, args)`, guarded or not.
    - `options`: those of [`Simulate`][], by name.
    """

    _field: Split
    _options: Static

    @typechecked
    @takes(SolveOptions)
    def __init__(self, field: VF, **options: Unpack[SolveArguments]):
        self._field, self._options = _held(field, chosen(SolveOptions, options))

    @property
    def field(self) -> Any:
        """The field, as it was given."""
        return self._field.tree

    @property
    def options(self) -> ResolvedOptions:
        """Solver, controller, adjoint and the rest, with their defaults."""
        return self._options.tree

    @abc.abstractmethod
    def __call__(self, y0: YLike, ts: NumbersLike, *args: Any, **keywords: Any) -> Simulation:
        """Solves and saves."""

    @abc.abstractmethod
    def arguments(self) -> dict[str, Any]:
        """What it was made of, besides the field, by name; `self.options.arguments()` are the
        options."""

    def __repr__(self) -> str:
        return represent(self, self.field, self.arguments())

    @property
    def guard(self) -> Guard:
        """That of the field."""
        return as_guarded(self.field).guard

    def replaced(self, **changes: Any) -> "AbstractModel":
        """With another `field`, or other options; see [`with_options`][]."""
        field = changes.pop("field", self.field)
        options = dataclasses.replace(self.options.given, **changes)
        return eqx.tree_at(
            lambda m: (m._field, m._options),
            self,
            _held(field, options),
            is_leaf=lambda x: isinstance(x, Static),
        )


def of_width(model: AbstractModel, width: int) -> AbstractModel:
    """`model`, of which at most `width` lanes of a batch step at once."""
    options = Static(dataclasses.replace(model.options, width=width), "options")
    is_leaf = lambda x: isinstance(x, Static)
    return eqx.tree_at(lambda m: m._options, model, options, is_leaf=is_leaf)


def signature_of(model: AbstractModel, asks: str) -> inspect.Signature:
    """What `model` is called with by the function `asks`, which says `throw`."""
    signature = inspect.signature(type(model).__call__)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    if "throw" not in signature.parameters and not takes_any:
        raise TypeError(
            f"`{asks}` looks at failures itself, but a call of `{type(model).__name__}` takes no "
            "`throw`: let it take `throw: bool = True`, and return the reason of a failure as "
            "`result` where that is False."
        )
    return signature


def _held(field: VF, options: SolveOptions) -> tuple[Split, Static]:
    """As a model holds them."""
    resolved = resolve(options, field)
    return Split(field, "field"), Static(resolved, "options")
