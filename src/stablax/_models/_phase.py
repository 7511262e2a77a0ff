"""`Phase`: a stretch of time under one condition, and schedules of them."""

import functools
from collections.abc import Sequence
from typing import Any, TypedDict, Unpack, final

import diffrax
import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree

from .._states import as_args
from .._static import Static, is_traced
from .._types import Args, Explained, NumbersLike, ScalarLike, YLike, typechecked
from .._words import short
from ._dose import AbstractDose, AddDose, DoseLike, ScaleDose, as_dose, as_real_arrays
from ._stepping import Pace, joint_plan
from ._times import Times, as_times, numpy_of


class PhaseArguments(TypedDict, total=False):
    """`Overrides` for editors and type checkers."""

    solver: diffrax.AbstractSolver | None
    controller: diffrax.AbstractStepSizeController | None
    max_steps: int | None
    dt0: float | None


class Overrides(eqx.Module):
    """What a phase solves with instead of what its model has; `None`: what the model has."""

    solver: diffrax.AbstractSolver | None
    controller: diffrax.AbstractStepSizeController | None
    max_steps: int | None
    dt0: float | None

    @property
    def given(self) -> dict[str, Any]:
        """Those that are not None, by name."""
        named = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: x for name, x in named.items() if x is not None}


@final
class Phase(eqx.Module):
    """A stretch of time under one condition, which may begin with a dose. It starts where the
    phase before it ends, the first at `t0`.

    Phases are data of a call of [`SimulatePhases`][]: their arrays are traced, batched and
    differentiable, and no leaves of the model.

    ```python
    phases = [
        sx.Phase(4.0, args=low),                                 # without a dose
        sx.Phase(9.0, args=high, dose=jnp.array([10.0, 0.0])),   # 10 is added to y[0] at t = 4
    ]
    ```

    A phase whose `t1` is a vector is a *stack* of phases, one after the other, with all arrays of
    `args` and `dose` stacked in the same way; such are compiled once, however many there are. So
    are consecutive phases that differ in numbers only: of `args`, of doses and in who gets one of
    [`AddDose`][] or [`ScaleDose`][], of tolerances and budgets.
    [`Phase.repeat`][] makes one for repeated dosing, `jax.vmap` makes one of any kind:
    `jax.vmap(lambda t1, amount: sx.Phase(t1, dose=amount))(t1s, amounts)`.

    A phase of length zero takes no step: it is its dose alone, or nothing. So schedules of
    different length are padded with phases that end where the last one did.

    **Arguments:**

    - `t1`: the time at which it ends, shape `()`; or the ends of a stack of phases, shape
        `(phases,)`.
    - `args`: the condition, passed to the field.
    - `dose`: how the state jumps at the start: an array or PyTree of arrays is added
        ([`AddDose`][]), a function `fn(t, y, args) -> y` is applied ([`DoseFunction`][]); or
        [`ScaleDose`][], [`SetDose`][]; `None` for no jump. The step size starts anew in any case.
    - `inflow`: a constant rate that is added to dy/dt in this phase, in the units of the state per
        time: an infusion. With the structure of the state, and of each array the shape, or a number
        for all of its components; `None` in place of an array that gets nothing.
    - `solver`, `controller`, `max_steps`, `dt0`: as [`Simulate`][], for this phase; by default
        those of the model; if that has no controller of its own, the preset for this `solver`.

    **Raises:** `ValueError` or `TypeError` for a `t1` that is no time; when the model is called,
    for what does not fit the state or the other phases, with the number of the phase.
    """

    t1: Array
    args: Args
    dose: AbstractDose | None
    inflow: PyTree[Array] | None
    _lost: Array  # what the dtype of `t1` has taken off the time that was given
    _overrides: Static

    @typechecked
    def __init__(
        self,
        t1: Explained[NumbersLike],
        args: Args = None,
        dose: Explained[DoseLike] = None,
        inflow: Explained[YLike | None] = None,
        *,
        solver: Explained[diffrax.AbstractSolver | None] = None,
        controller: Explained[diffrax.AbstractStepSizeController | None] = None,
        max_steps: int | None = None,
        dt0: float | None = None,
    ):
        try:
            t1, lost = _as_end(t1)
        except (TypeError, ValueError):
            raise TypeError(f"`t1` must be a time, got {short(t1)}.") from None
        if t1.ndim > 1 or t1.size == 0:
            raise ValueError(
                f"`t1` must be one time, or a vector of the ends of one or more phases, got shape "
                f"{t1.shape}."
            )
        self.t1, self._lost = t1, lost
        self.args = args
        self.dose = as_dose(dose)
        self.inflow = None if inflow is None else as_real_arrays(inflow, "inflow")
        self._overrides = Static(Overrides(solver, controller, max_steps, dt0), "phase")

    @property
    def overrides(self) -> Overrides:
        """The options that were given for this phase."""
        return self._overrides.tree

    def overridden(self, **options: Unpack[PhaseArguments]) -> "Phase":
        """With some of its `overrides` changed."""
        named = {name: getattr(self.overrides, name) for name in Overrides.__dataclass_fields__}
        changed = Static(Overrides(**{**named, **options}), "phase")
        return eqx.tree_at(lambda p: p._overrides, self, changed, is_leaf=_is_static)

    @staticmethod
    @typechecked
    def repeat(
        n: int,
        period: ScalarLike,
        *,
        t0: ScalarLike = 0.0,
        args: Args = None,
        dose: Explained[DoseLike] = None,
        inflow: Explained[YLike | None] = None,
        **options: Unpack[PhaseArguments],
    ) -> "Phase":
        """`n` equal phases in a stack: the same dose under the same condition every `period`.

        **Arguments:**

        - `n`: how many; >= 1.
        - `period`: the length of each [time]; differentiable.
        - `t0`: when the first begins, at which its dose is given.
        - `args`, `dose`, `inflow`, `**options`: of every phase, as [`Phase`][].

        **Returns:** a `Phase` with `t1` of shape `(n,)`.
        """
        if n < 1:
            raise ValueError(f"`n` must be at least 1, got {n}.")
        one = Phase(t0, args, dose, inflow=inflow, **options)
        is_array = lambda x: eqx.is_array(x) or isinstance(x, np.ndarray | np.generic)
        stacked = jtu.tree_map(
            lambda x: jnp.repeat(jnp.asarray(x)[None], n, 0) if is_array(x) else x, one
        )
        steps = np.arange(1, n + 1)
        ends = _as_end(t0 + (period * jnp.asarray(steps) if is_traced(period) else period * steps))
        return eqx.tree_at(lambda p: (p.t1, p._lost), stacked, ends)


def _is_static(x: object) -> bool:
    return isinstance(x, Static)


def _as_end(t1: NumbersLike) -> tuple[Array, ...]:
    dtype = jnp.result_type(float)
    return tuple(jnp.asarray(x, dtype) for x in as_times(t1, dtype, "t1")[:2])


class Stack(eqx.Module):
    """Phases that are one program: their arrays with a leading axis, the phases; what is no array
    is the same in all of them. `first` counts the phases before them, `dosed` those before the
    first that was given a dose."""

    t1: Array
    arrays: PyTree[Array]
    rest: Static
    overrides: Static
    first: int = eqx.field(static=True)
    dosed: int = eqx.field(static=True)

    @property
    def size(self) -> int:
        return self.t1.shape[0]

    def one(self, arrays: PyTree[Array]) -> tuple[Args, AbstractDose | None, PyTree[Array] | None]:
        """`args`, `dose` and `inflow` of one of them, of which these are the arrays."""
        return eqx.combine(arrays, self.rest.tree)

    def given_as(self, other: "Stack") -> "Stack":
        """With a dose and an inflow as those of `other` that do nothing, where this has none."""
        args, dose, inflow = self.one(self.arrays)
        _, other_dose, other_inflow = other.one(other.arrays)
        full = lambda value, x: jnp.full((self.size, *x.shape[1:]), value, x.dtype)
        dosed = self.dosed
        if dose is None and isinstance(other_dose, AddDose | ScaleDose):
            nothing = 0 if isinstance(other_dose, AddDose) else 1
            dose = jtu.tree_map(functools.partial(full, nothing), other_dose)
            dosed = other.dosed
        if inflow is None:
            inflow = jtu.tree_map(functools.partial(full, 0), other_inflow)
        arrays, rest = eqx.partition((args, dose, inflow), eqx.is_array)
        rest = Static(rest, "phases")
        return Stack(self.t1, arrays, rest, self.overrides, self.first, dosed)


def as_stacks(phases: Phase | Sequence[Phase], dtype: np.dtype) -> tuple[Stack, ...]:
    """The schedule, a stack for each entry."""
    if isinstance(phases, Phase):
        phases = [phases]
    if not isinstance(phases, Sequence) or not phases:
        raise TypeError(
            f"`phases` must be a `Phase` or a sequence of one or more, got {short(phases)}."
        )
    stacks: list[Stack] = []
    first = 0
    for k, phase in enumerate(phases):
        if not isinstance(phase, Phase):
            raise TypeError(f"`phases[{k}]` is a {type(phase).__name__}, not a `Phase`.")
        stacks.append(_stack(phase, f"phases[{k}]", dtype, first))
        first += stacks[-1].size
    return tuple(stacks)


# A stack, the plan of its program, and with the leading axis of the stack the numbers of its pace.
Leg = tuple[Stack, Static, Pace]


def joined(stacks: Sequence[Stack], how: Sequence[tuple[Static, Pace]]) -> tuple[Leg, ...]:
    """The schedule as few programs: consecutive stacks that differ only in numbers are one. (And
    in who gets a dose, if that is one which can be nothing.)"""
    legs: list[list[Leg]] = []
    for stack, (plan, pace) in zip(stacks, how, strict=True):
        many = jtu.tree_map(
            lambda x, n=stack.size: numpy_of(x).broadcast_to(x, (n, *x.shape)), pace
        )
        leg = (stack, plan, many)
        alike = _alike(legs[-1], leg) if legs else None
        if alike is None:
            legs.append([leg])
        else:
            legs[-1] = alike
    return tuple(map(_join, legs))


def _alike(legs: list[Leg], leg: Leg) -> list[Leg] | None:
    """`legs` and `leg`, if they can be one program."""
    now = leg[0]
    leg = (now.given_as(legs[-1][0]), leg[1], leg[2])
    legs = [(stack.given_as(now), plan, pace) for stack, plan, pace in legs]
    plan = joint_plan(legs[-1][1], leg[1])
    if plan is None or _kind(legs[-1]) != _kind(leg):
        return None
    if plan != legs[-1][1]:
        legs = [(stack, plan, pace) for stack, _, pace in legs]
    return [*legs, (leg[0], plan, leg[2])]


def _kind(leg: Leg) -> Any:
    """Equal for those that can be one."""
    stack, _, pace = leg
    leaves, treedef = jtu.tree_flatten((stack.arrays, pace))
    return treedef, [(x.shape[1:], x.dtype) for x in leaves], stack.rest


def _join(legs: list[Leg]) -> Leg:
    if len(legs) == 1:
        return legs[0]
    first, plan, _ = legs[0]
    t1, arrays, pace = jtu.tree_map(
        lambda *xs: numpy_of(xs).concatenate(xs),
        *((stack.t1, stack.arrays, pace) for stack, _, pace in legs),
    )
    return Stack(t1, arrays, first.rest, first.overrides, first.first, first.dosed), plan, pace


def ends_given(phases: Phase | Sequence[Phase], dtype: np.dtype) -> Times:
    """When the phases end, in the dtype of the state; of phases that [`as_stacks`][] has seen."""
    phases = [phases] if isinstance(phases, Phase) else phases
    given = [(phase.t1, phase._lost) for phase in phases]
    xp = jnp if is_traced(given) else np
    t1, lost = (xp.concatenate([xp.atleast_1d(x) for x in xs]) for xs in zip(*given, strict=True))
    rounded, more, blur = as_times(t1, dtype, "t1")
    return Times(rounded, lost.astype(more.dtype) + more, blur)


def _stack(phase: Phase, name: str, dtype: np.dtype, first: int) -> Stack:
    t1 = phase.t1.astype(dtype)
    n = t1.shape[0] if t1.ndim else None

    def number(x):  # the same in all phases of a stack
        is_number = isinstance(x, int | float) and not isinstance(x, bool)
        return np.full(n, x) if is_number and n is not None else x

    def leaf(path, x):
        if n is None:
            return x[None]
        if x.ndim == 0 or x.shape[0] != n:
            where = ("args", "dose", "inflow")[path[0].idx] + jtu.keystr(path[1:])
            raise ValueError(
                f"`{name}` is a stack of {n} phases, but its `{where}` has shape {x.shape}: every "
                "array of a stack has a leading axis, the phases."
            )
        return x

    args = as_args(jtu.tree_map(number, phase.args), dtype)
    arrays, rest = eqx.partition((args, phase.dose, phase.inflow), eqx.is_array)
    arrays = jtu.tree_map_with_path(leaf, arrays)
    t1 = jnp.atleast_1d(t1)
    return Stack(t1, arrays, Static(rest, name), phase._overrides, first, first)
