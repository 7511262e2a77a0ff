"""`StiffPID`: a step size controller for stiff systems, without PyTree leaves."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, final

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import ArrayLike, PyTree

from .._fields import Guard
from .._solvers import family_of
from .._static import Static, is_traced, real_array, real_number
from .._types import Explained, NumbersLike, ScalarLike, typechecked
from .._words import short
from ._admissible import AdmissibleSteps, admissible
from ._presets import LAWS, PRESETS

# What a preset's tolerances are raised to in a dtype that cannot do better: about 1,000 eps for
# the relative one, so that an estimate of the error is more than rounding.
_FLOORS = {"float32": (1e-4, 1e-7), "float16": (1e-1, 1e-3), "bfloat16": (1e-1, 1e-3)}
_X64 = 'jax.config.update("jax_enable_x64", True)'


def _number(x: object, name: str, least: float = 0.0) -> float:
    value = real_number(x, name)
    if not least < value < np.inf:
        raise ValueError(f"`{name}` must be a number above {least:g} and finite, got {short(x)}.")
    return value


def refuse_traced_times(ts: object, name: str) -> None:
    if is_traced(ts):
        raise TypeError(
            f"`{name}` is traced, but the times that a controller steps to are static and have no "
            "derivative. A switch time that varies or is fitted is the end of a phase: "
            "`stablax.SimulatePhases` with `Phase(t1=...)`, which is traced and differentiable."
        )


def refuse_no_numbers(atol: PyTree) -> None:
    if not jax.tree_util.tree_leaves(atol):
        raise ValueError(
            f"`atol` holds no number, got {short(atol)}. Give one for all components, or an array "
            "(a PyTree of arrays like the state) with one for each."
        )


def _tolerance(atol: PyTree[ArrayLike] | Static) -> float | Static:
    """One tolerance for all components, or arrays of them."""
    if isinstance(atol, Static):
        return atol
    refuse_no_numbers(atol)

    def leaf(path, x):
        name = f"atol{jax.tree_util.keystr(path)}"
        value = real_array(x, name)
        if not (value.size and ((value > 0) & (value < np.inf)).all()):
            raise ValueError(f"`{name}` must be finite and above 0, got {short(x)}.")
        return value

    values = jax.tree_util.tree_map_with_path(leaf, atol)
    if isinstance(values, np.ndarray) and values.ndim == 0:
        return float(values)
    return Static(values, "atol")


def _shown(atol: float | Static) -> str:
    return short(atol.tree) if isinstance(atol, Static) else f"{atol:g}"


def _times(ts: NumbersLike | None, name: str) -> tuple[float, ...]:
    if ts is None:
        return ()
    refuse_traced_times(ts, name)
    values = np.atleast_1d(real_array(ts, name))
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError(f"`{name}` must be a sequence of finite times, got {short(ts)}.")
    return tuple(float(t) for t in np.unique(values))


def _cure(dtype: np.dtype) -> str:
    if dtype == np.float64:
        return "Ask for less"
    if jax.config.read("jax_enable_x64"):
        return "Start from `y0.astype(jnp.float64)`"
    return f"Switch to double precision with `{_X64}` at the top of the program"


def least_rtol(dtype: np.dtype) -> float:
    """The smallest relative tolerance that `dtype` can resolve."""
    return 10 * float(np.finfo(dtype).eps)


def check_reach(rtol: float, dtype: np.dtype, name: str = "rtol") -> None:
    least = least_rtol(dtype)
    if rtol < least:
        raise ValueError(
            f"`{name}={rtol:g}` is below what {dtype} can resolve (10 eps = {least:.2g}). "
            + _cure(dtype)
            + f", or use `{name}` of at least {least:.2g}."
        )


@final
class StiffPID(diffrax.AbstractAdaptiveStepSizeController):
    """A PID step size controller for stiff systems. Usually made by [`StiffPID.preset`][].

    The control law is diffrax's (`diffrax.PIDController`, and `diffrax.ClipStepSizeController`
    for `step_ts` and `jump_ts`). What it adds: it has no PyTree leaves, so a model that holds it
    is a valid optax parameter tree; a step whose candidate is not finite, or leaves the guard's
    box, is rejected and retried with a smaller step; a candidate of +-inf cannot lock it; and a
    step size that falls to the resolution of time ends the solve with `dt_min_reached` instead
    of using up `max_steps`. Works in plain `diffrax.diffeqsolve`.

    **Arguments:**

    - `rtol`, `atol`: relative and absolute tolerance; > 0, `rtol` at least 10 eps of the state's
        dtype. `atol` in the units of the state: one number for all components, or an array (a
        PyTree of arrays for such a state), one for each.
    - `pcoeff`, `icoeff`, `dcoeff`: gains.
    - `dtmin`, `dtmax`: limits of the step size [time]; with `force_dtmin=True` a step at `dtmin`
        is accepted whatever its error (if it is finite and inside the box).
    - `factormin`, `factormax`: limits of the change of step size in one step.
    - `factormax_after_rejection`: the limit of growth in the step after a rejected one, >= 1; by
        default `factormax`.
    - `safety`: factor on the predicted step size.
    - `norm`: from the scaled error to a number; by default the root mean square.
    - `error_order`: overrides the solver's.
    - `step_ts`, `jump_ts`: times to step to exactly; times at which the field jumps. Tuples or
        numpy arrays.
    - `guard`: whose box is the admissible domain, for plain `diffeqsolve`; stablax's models
        hand over the guard of their field.
    - `given`: whether `rtol` and `atol` are the user's own. Those of a preset are not, and are
        raised to what the dtype of the state can reach.

    **Raises:** `ValueError` for a value out of range, `TypeError` for a traced one.
    """

    rtol: float = eqx.field(static=True)
    atol: float | Static = eqx.field(static=True)
    pcoeff: float = eqx.field(static=True)
    icoeff: float = eqx.field(static=True)
    dcoeff: float = eqx.field(static=True)
    dtmin: float | None = eqx.field(static=True)
    dtmax: float | None = eqx.field(static=True)
    force_dtmin: bool = eqx.field(static=True)
    factormin: float = eqx.field(static=True)
    factormax: float = eqx.field(static=True)
    factormax_after_rejection: float | None = eqx.field(static=True)
    safety: float = eqx.field(static=True)
    norm: Callable = eqx.field(static=True)
    error_order: float | None = eqx.field(static=True)
    step_ts: tuple[float, ...] = eqx.field(static=True)
    jump_ts: tuple[float, ...] = eqx.field(static=True)
    guard: Guard
    given: tuple[bool, bool] = eqx.field(static=True)

    @typechecked
    def __init__(
        self,
        rtol: Explained[ScalarLike],
        atol: Explained[PyTree[ArrayLike] | Static],
        *,
        pcoeff: Explained[ScalarLike] = 0.0,
        icoeff: Explained[ScalarLike] = 1.0,
        dcoeff: Explained[ScalarLike] = 0.0,
        dtmin: Explained[ScalarLike | None] = None,
        dtmax: Explained[ScalarLike | None] = None,
        force_dtmin: bool = False,
        factormin: Explained[ScalarLike] = 0.2,
        factormax: Explained[ScalarLike] = 10.0,
        factormax_after_rejection: Explained[ScalarLike | None] = None,
        safety: Explained[ScalarLike] = 0.9,
        norm: Callable = optx.rms_norm,
        error_order: Explained[ScalarLike | None] = None,
        step_ts: Explained[NumbersLike | None] = None,
        jump_ts: Explained[NumbersLike | None] = None,
        guard: Guard = Guard(),
        given: tuple[bool, bool] = (True, True),
    ):
        self.rtol = _number(rtol, "rtol")
        self.atol = _tolerance(atol)
        if given[0]:
            # In a program that has no float64 the tolerance can be judged already here.
            finest = np.float64 if jax.config.read("jax_enable_x64") else np.float32
            check_reach(self.rtol, np.dtype(finest))
        for name, value in (("pcoeff", pcoeff), ("icoeff", icoeff), ("dcoeff", dcoeff)):
            setattr(self, name, real_number(value, name))
        self.dtmin = None if dtmin is None else _number(dtmin, "dtmin")
        self.dtmax = None if dtmax is None else _number(dtmax, "dtmax")
        if self.dtmin is not None and self.dtmax is not None and self.dtmin > self.dtmax:
            raise ValueError(f"`dtmin={dtmin}` must not be above `dtmax={dtmax}`.")
        if force_dtmin and dtmin is None:
            raise ValueError("`force_dtmin=True` needs `dtmin`.")
        self.force_dtmin = force_dtmin
        self.factormin = _number(factormin, "factormin")
        self.factormax = _number(factormax, "factormax", 1.0)
        if factormax_after_rejection is not None:
            limit = _number(factormax_after_rejection, "factormax_after_rejection")
            if limit < 1:
                raise ValueError(
                    "`factormax_after_rejection` must be at least 1 (below, the step size could "
                    f"never recover), or None; got {factormax_after_rejection}."
                )
            factormax_after_rejection = limit
        self.factormax_after_rejection = factormax_after_rejection
        self.safety = _number(safety, "safety")
        if not (self.factormin < 1 and self.safety < 1):
            raise ValueError(
                "`factormin` and `safety` must be below 1 (a rejected step has to shrink), got "
                f"{factormin} and {safety}."
            )
        self.norm = norm
        self.error_order = None if error_order is None else _number(error_order, "error_order")
        self.step_ts = _times(step_ts, "step_ts")
        self.jump_ts = _times(jump_ts, "jump_ts")
        self.guard = guard
        self.given = given

    def __repr__(self) -> str:
        """The tolerances, and what is not the default."""
        shown = [f"rtol={self.rtol:g}", f"atol={_shown(self.atol)}"]
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value = getattr(self, name)
            if name in ("rtol", "atol", "given") or value in (parameter.default, ()):
                continue
            shown.append(f"{name}={getattr(value, '__name__', repr(value))}")
        return f"StiffPID({', '.join(shown)})"

    @staticmethod
    @typechecked
    def preset(
        name: str = "balanced",
        *,
        rtol: Explained[ScalarLike | None] = None,
        atol: Explained[PyTree[ArrayLike] | None] = None,
        solver: diffrax.AbstractSolver | None = None,
        **overrides: Any,
    ) -> "StiffPID":
        """A controller by name; `StiffPID.presets()` says when to choose which.

        **Arguments:**

        - `name`: `"balanced"`, `"robust"`, `"precise"` or `"fast"`.
        - `rtol`, `atol`: instead of the preset's. The preset's own are raised to what the dtype
            can reach: at construction that of jax's default float, inside stablax's models that
            of `y0` (1e-4 and 1e-7 for float32). Given ones are never changed.
        - `solver`: the solver it is for, by default [`Rodas5P`][]. Gains are tuned for each
            family: Rosenbrock methods, ESDIRK methods, explicit methods.
        - `**overrides`: any other argument of `StiffPID`.

        **Returns:** a `StiffPID`.

        **Raises:** `ValueError` for an unknown name (the known ones are listed), or for a
        tolerance out of reach.
        """
        if name not in PRESETS:
            known = ", ".join(f'"{n}"' for n in PRESETS)
            raise ValueError(f'There is no preset "{name}"; the presets are {known}.')
        preset = PRESETS[name]
        family = "rosenbrock" if solver is None else family_of(solver)
        law = LAWS[family][preset.smooth]
        given = (rtol is not None, atol is not None)
        default = jnp.zeros(()).dtype
        low_rtol, low_atol = _FLOORS.get(str(default), (0.0, 0.0))
        return StiffPID(
            rtol=max(preset.rtol, low_rtol) if rtol is None else rtol,
            atol=max(preset.atol, low_atol) if atol is None else atol,
            **{**dataclasses.asdict(law), "given": given, **overrides},
        )

    @staticmethod
    def presets() -> dict[str, str]:
        """The names of the presets, each with one line on when to choose it."""
        return {name: preset.when for name, preset in PRESETS.items()}

    def for_dtype(self, dtype: np.dtype, uses_rtol: bool = True) -> "StiffPID":
        """This controller for a state of `dtype`: tolerances that were not given are raised to
        what it reaches, given ones are checked against it (`rtol` only if it is used)."""
        low_rtol, low_atol = _FLOORS.get(str(dtype), (0.0, 0.0))
        rtol, atol = self.rtol, self.atol
        if self.given[0]:
            if uses_rtol:
                check_reach(rtol, dtype)
        else:
            rtol = max(rtol, low_rtol)
        if not self.given[1]:
            atol = max(self.least_atol, low_atol)
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return StiffPID(**{**fields, "rtol": rtol, "atol": atol})

    @property
    def least_atol(self) -> float:
        """The smallest absolute tolerance of all components."""
        if isinstance(self.atol, Static):
            return min(float(x.min()) for x in jax.tree.leaves(self.atol.tree))
        return self.atol

    @property
    def atols(self) -> PyTree[np.ndarray] | None:
        """The absolute tolerances of the components, if they have their own."""
        return self.atol.tree if isinstance(self.atol, Static) else None

    def control_law(
        self, dtype: np.dtype | None = None
    ) -> diffrax.AbstractAdaptiveStepSizeController:
        """The diffrax controller that decides on the size of the steps, for times of `dtype`."""
        pid = diffrax.PIDController(
            rtol=self.rtol,
            atol=self.least_atol,
            pcoeff=self.pcoeff,
            icoeff=self.icoeff,
            dcoeff=self.dcoeff,
            dtmin=self.dtmin,
            dtmax=self.dtmax,
            force_dtmin=self.force_dtmin,
            factormin=self.factormin,
            factormax=self.factormax,
            safety=self.safety,
            norm=self.norm,
            error_order=self.error_order,
        )
        if not (self.step_ts or self.jump_ts):
            return pid
        return diffrax.ClipStepSizeController(
            pid,
            step_ts=jnp.asarray(self.step_ts, dtype) if self.step_ts else None,
            jump_ts=jnp.asarray(self.jump_ts, dtype) if self.jump_ts else None,
        )

    def _admissible(self) -> AdmissibleSteps:
        dtype = np.dtype(jnp.zeros(()).dtype)
        return admissible(
            self.control_law(),
            self.guard,
            dtype,
            factormax_after_rejection=self.factormax_after_rejection,
            atols=self.atols,
        )

    # diffrax wraps a controller before it uses it, so the one that runs is `AdmissibleSteps`.
    def wrap(self, direction) -> AdmissibleSteps:
        return self._admissible().wrap(direction)

    def init(self, *args, **kwargs):
        return self._admissible().init(*args, **kwargs)

    def adapt_step_size(self, *args, **kwargs):
        return self._admissible().adapt_step_size(*args, **kwargs)
