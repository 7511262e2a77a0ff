"""Pictures of simulations and reports. They need matplotlib: `pip install "stablax[plot]"`.

Each draws into the `ax` that it is given, or into a new figure, and returns it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from ._diagnostics import Diagnosis, GradientCheck, Stiffness
from ._fields import Guard
from ._fits import Fit
from ._models import Simulation
from ._results import Cause
from ._steady import SteadyState
from ._types import Explained, NumbersLike, typechecked
from ._words import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["gradient_check", "history", "spectrum", "steps", "stiffness", "trajectories"]

_COLOURS = {
    Cause.error: "tab:orange",
    Cause.not_finite: "tab:red",
    Cause.left_bounds: "tab:purple",
    Cause.stages_unsolved: "tab:brown",
}


def _axes(ax: "Axes | None") -> "Axes":
    if ax is not None:
        return ax
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError('The pictures need matplotlib: `pip install "stablax[plot]"`.') from None
    # Not `pyplot`: no global state, no window; notebooks show what a cell returns.
    return Figure(layout="constrained").add_subplot()


def _with_unit(name: str, unit: str | None) -> str:
    return name if unit is None else f"{name} [{unit}]"


def _flat(tree: PyTree, times: int) -> np.ndarray:
    leaves = [np.asarray(x).reshape(times, -1) for x in jtu.tree_leaves(tree)]
    return np.concatenate(leaves, axis=1)


def _time_scale(ax: "Axes", ts: np.ndarray) -> None:
    """A logarithmic axis where most of what happens is early."""
    positive = ts[ts > 0]
    if len(positive) > 2 and ts.min() >= 0 and positive.max() > 20 * np.median(positive):
        _symmetric_log(ax, "x", float(np.quantile(positive, 0.1)), 0.0, 1.5 * positive.max())


def _symmetric_log(ax: "Axes", axis: str, linear: float, low: float, high: float) -> None:
    """A logarithmic scale in both directions, with few enough labels to read."""
    getattr(ax, f"set_{axis}scale")("symlog", linthresh=linear)
    getattr(ax, f"set_{axis}lim")(low, high)
    ticks = [0.0]
    for sign, end in ((-1.0, -low), (1.0, high)):
        if end > 10 * linear:
            decades = np.arange(np.ceil(np.log10(linear)), np.floor(np.log10(end)) + 1)
            step = -(-len(decades) // 4)
            # From the end, so that the ones next to zero are those that are left out.
            ticks += [sign * 10.0**k for k in decades[::-1][::step] if 10.0**k > 3 * linear]
    getattr(ax, f"set_{axis}ticks")(sorted(ticks))
    getattr(ax, f"{axis}axis").minorticks_off()


def _one(simulation: Simulation) -> None:
    if np.ndim(simulation.ts) != 1:
        raise ValueError(
            "`simulation` is a batch; draw one sample, `jax.tree.map(lambda x: x[0], simulations)`."
        )


@typechecked
def trajectories(
    simulation: Simulation,
    *,
    guard: Guard | None = None,
    components: Sequence[str] | None = None,
    time_unit: str | None = None,
    unit: str | None = None,
    ax: Explained["Axes | None"] = None,
) -> Explained["Axes"]:
    """The saved states over time, with the guard's bounds, what is outside them in red, a cross
    where the guard was first active on an accepted step (for a simulation with
    `telemetry=True`), and a line where the solve stopped.

    **Arguments:**

    - `simulation`: one [`Simulation`][].
    - `guard`: whose bounds are drawn; by default none.
    - `components`: names of the components to draw; by default the first ten.
    - `time_unit`, `unit`: of the times and of the states, for the labels.
    - `ax`: where to draw; by default a new figure.

    **Returns:** the `ax`.
    """
    _one(simulation)
    names = simulation.about.names
    chosen = list(names[:10]) if components is None else list(components)
    for name in chosen:
        if name not in names:
            raise ValueError(f"`components` has {short(name)}; the names are {', '.join(names)}.")
    ax = _axes(ax)
    ts, seen = np.asarray(simulation.ts), np.asarray(simulation.reached)
    ys = _flat(simulation.ys, len(ts))
    bounds = None
    if guard is not None:
        one = jtu.tree_map(lambda x: x[0], simulation.ys)
        bounds = [
            np.concatenate([np.ravel(b) for b in jtu.tree_leaves(side)])
            for side in guard.bounds(one)
        ]
    counts = simulation.guard.accepted
    for name in chosen:
        i = names.index(name)
        (line,) = ax.plot(ts[seen], ys[seen, i], label=name, marker="." if seen.sum() < 30 else "")
        for side in bounds or ():
            if np.isfinite(side[i]):
                ax.axhline(side[i], color=line.get_color(), linestyle=":", linewidth=1)
        if bounds is not None:
            outside = seen & ((ys[:, i] < bounds[0][i]) | (ys[:, i] > bounds[1][i]))
            ax.plot(ts[outside], ys[outside, i], ".", color="tab:red", markersize=4)
        if counts is not None:
            first = _flat(jtu.tree_map(lambda x: x[None], counts.first_clipped), 1)[0, i]
            if np.isfinite(first):
                y = np.interp(first, ts[seen], ys[seen, i])
                ax.plot(first, y, "x", color=line.get_color(), markersize=9)
    if not seen.all():
        t = float(np.asarray(simulation.stats["t"]))
        ax.axvline(t, color="tab:red", linewidth=1)
        ax.annotate(
            "stopped", (t, 1), xycoords=("data", "axes fraction"), color="tab:red", va="bottom"
        )
    ax.set_xlabel(_with_unit("time", time_unit))
    ax.set_ylabel(_with_unit("state", unit))
    ax.legend(loc="best", fontsize="small", ncols=1 + len(chosen) // 6)
    return ax


@typechecked
def steps(
    simulation: Simulation,
    *,
    error: bool = False,
    time_unit: str | None = None,
    ax: Explained["Axes | None"] = None,
) -> Explained["Axes"]:
    """The size of every step over time, accepted and rejected (and why), or its error.

    **Arguments:**

    - `simulation`: one [`Simulation`][] of a model with `trace="record"`, such as that of a
        [`Diagnosis`][].
    - `error`: draw the estimated error, in units of the tolerance, and not the step size.
    - `time_unit`: of the times, for the labels.
    - `ax`: where to draw; by default a new figure.

    **Returns:** the `ax`.
    """
    _one(simulation)
    if simulation.steps is None:
        raise ValueError(
            "`simulation` has no record of its steps; make it with "
            '`stablax.with_options(model, trace="record")`.'
        )
    ax = _axes(ax)
    count = int(simulation.steps.count)
    t, dt, size, cause = (
        np.asarray(x)[:count]
        for x in (
            simulation.steps.t,
            simulation.steps.dt,
            simulation.steps.error,
            simulation.steps.cause,
        )
    )
    y = size if error else np.abs(dt)
    # A step that has no error to show (not finite, outside) is drawn at the top.
    top = 10 * np.max(y[np.isfinite(y) & (y > 0)], initial=1.0)
    y = np.where(np.isfinite(y), y, top)
    accepted = cause == Cause.none
    ax.plot(t[accepted], y[accepted], ".-", color="tab:blue", linewidth=0.8, label="accepted")
    for each, colour in _COLOURS.items():
        of_cause = cause == each
        if of_cause.any():
            label = f"rejected: {each.name.replace('_', ' ')}"
            ax.plot(t[of_cause], y[of_cause], "x", color=colour, label=label)
    if error:
        ax.axhline(1.0, color="grey", linestyle=":", linewidth=1)
    ax.set_yscale("log")
    _time_scale(ax, t)
    ax.set_xlabel(_with_unit("time", time_unit))
    ax.set_ylabel("error / tolerance" if error else _with_unit("step size", time_unit))
    ax.legend(loc="best", fontsize="small")
    return ax


@typechecked
def stiffness(
    profile: Stiffness | Diagnosis,
    ts: Explained[NumbersLike | None] = None,
    *,
    time_unit: str | None = None,
    ax: Explained["Axes | None"] = None,
) -> Explained["Axes"]:
    """The rates of the fastest and the slowest decay over time; between them lies the stiffness.

    **Arguments:**

    - `profile`: what [`stablax.stiffness_along`][] returns, or a [`Diagnosis`][].
    - `ts`: the times of a profile, shape `(times,)`; a diagnosis has its own.
    - `time_unit`: of the times, for the labels.
    - `ax`: where to draw; by default a new figure.

    **Returns:** the `ax`.
    """
    if isinstance(profile, Diagnosis):
        ts, rates = profile.stiffness.times, profile.stiffness
    elif ts is None:
        raise ValueError("`ts` is missing: the times at which the profile was taken.")
    else:
        rates = profile
    ts, fastest, slowest = (np.asarray(x) for x in (ts, rates.fastest, rates.slowest))
    if ts.shape != fastest.shape or ts.ndim != 1:
        raise ValueError(f"`ts` has shape {ts.shape}, but the profile {fastest.shape}.")
    ax = _axes(ax)
    ax.fill_between(ts, slowest, fastest, where=slowest > 0, alpha=0.15, color="tab:blue")
    ax.plot(ts, np.where(fastest > 0, fastest, np.nan), ".-", label="fastest decay")
    ax.plot(ts, np.where(slowest > 0, slowest, np.nan), ".-", label="slowest decay")
    growth = np.asarray(rates.growth)
    grows = growth > 1e-12 * fastest  # what is below is rounding
    if grows.any():
        label = "fastest growth"
        ax.plot(ts, np.where(grows, growth, np.nan), ".-", color="tab:red", label=label)
    ax.set_yscale("log")
    _time_scale(ax, ts)
    ax.set_xlabel(_with_unit("time", time_unit))
    ax.set_ylabel(_with_unit("rate", None if time_unit is None else f"1/{time_unit}"))
    ax.legend(loc="best", fontsize="small")
    return ax


def _smallest(x: np.ndarray) -> float:
    x = np.abs(x[x != 0])
    return float(x.min()) if x.size else np.inf


@typechecked
def spectrum(
    eigenvalues: Explained[NumbersLike | Stiffness | Diagnosis],
    *,
    time_unit: str | None = None,
    title: str | None = None,
    ax: Explained["Axes | None"] = None,
) -> Explained["Axes"]:
    """The eigenvalues of a Jacobian in the complex plane, on scales that show eleven orders of
    magnitude; the stable half is white.

    **Arguments:**

    - `eigenvalues`: an array of any shape; or a [`Stiffness`][], or a [`Diagnosis`][] of a model
        with a steady state (its Jacobian there).
    - `time_unit`: of the field's times, for the labels.
    - `title`: of the picture.
    - `ax`: where to draw; by default a new figure.

    **Returns:** the `ax`.
    """
    if isinstance(eigenvalues, Diagnosis):
        if eigenvalues.steady is None:
            raise ValueError("The diagnosed model has no steady state; give the eigenvalues.")
        eigenvalues = eigenvalues.steady.eigenvalues
    elif isinstance(eigenvalues, Stiffness):
        eigenvalues = eigenvalues.eigenvalues
    elif isinstance(eigenvalues, Simulation | SteadyState):
        raise TypeError("Give eigenvalues: `stablax.stiffness(field, t, y, args).eigenvalues`.")
    values = np.ravel(np.asarray(eigenvalues))
    values = values[np.isfinite(values)]
    if values.size == 0:
        raise ValueError("`eigenvalues` holds no finite number.")
    real, imaginary = np.real(values), np.imag(values)
    ax = _axes(ax)
    # An eigenvalue of zero is computed as a few eps of the largest.
    rounding = 4 * len(values) * np.finfo(float).eps * np.abs(values).max()
    real, imaginary = (np.where(np.abs(x) > rounding, x, 0) for x in (real, imaginary))
    smallest = min(_smallest(real), _smallest(imaginary))
    smallest = smallest if np.isfinite(smallest) else 1.0
    right = max(3 * smallest, 3 * real.max())
    left = min(-3 * smallest, 3 * real.min())
    height = max(3 * smallest, 3 * np.abs(imaginary).max())
    _symmetric_log(ax, "x", smallest, left, right)
    _symmetric_log(ax, "y", smallest, -height, height)
    ax.plot(real, imaginary, "o", markersize=5)
    ax.axvline(0, color="grey", linewidth=1)
    ax.axhline(0, color="grey", linewidth=0.5)
    ax.axvspan(0, right, color="tab:red", alpha=0.08, linewidth=0)
    unit = None if time_unit is None else f"1/{time_unit}"
    ax.set_xlabel(_with_unit("real part", unit))
    ax.set_ylabel(_with_unit("imaginary part", unit))
    if title is not None:
        ax.set_title(title)
    return ax


@typechecked
def gradient_check(
    check: GradientCheck, *, ax: Explained["Axes | None"] = None
) -> Explained["Axes"]:
    """How far central differences are from automatic differentiation, over the step: a V whose
    left arm is the noise of the function and whose right arm is curvature. A wrong gradient is a
    line that stays up.

    **Arguments:**

    - `check`: what [`stablax.check_gradient`][] returns.
    - `ax`: where to draw; by default a new figure.

    **Returns:** the `ax`.
    """
    ax = _axes(ax)
    for direction in check.directions:
        exact = direction.reverse if np.isfinite(direction.reverse) else direction.forward
        if not np.isfinite(exact):
            exact = direction.difference
        magnitude = max(abs(exact), abs(direction.difference), np.finfo(float).tiny)
        apart = np.maximum(np.abs(direction.central - exact) / magnitude, np.finfo(float).eps)
        right = direction.verdict == "right"
        label = direction.name + ("" if right else f" ({direction.verdict})")
        ax.plot(check.steps, apart, ".-" if right else "x-", label=label)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("step of the difference / size of the parameter")
    ax.set_ylabel("|difference - gradient| / |gradient|")
    ax.set_title(f"gradient: {check.verdict}")
    ax.legend(loc="best", fontsize="small")
    return ax


@typechecked
def history(fit: Fit, *, ax: "Explained[Axes | None]" = None) -> "Axes":
    """The values of a fit over its steps, and its validations.

    **Arguments:**

    - `fit`: what [`fit`][] has returned.
    - `ax`: matplotlib axes; by default those of a new figure.

    **Returns:** the axes; `ax.figure` is the figure.
    """
    ax = _axes(ax)
    values = np.asarray(fit.values)
    finite = np.isfinite(values)
    ax.plot(np.flatnonzero(finite), values[finite], label="value")
    if fit.validations.size:
        ax.plot(fit.validated, fit.validations, "o-", ms=3, label="validation")
        ax.legend(frameon=False)
    if not finite.all():
        ax.plot(
            np.flatnonzero(~finite), np.full((~finite).sum(), values[finite].max(initial=0)), "x"
        )
    low, high = values[finite].min(initial=np.inf), values[finite].max(initial=-np.inf)
    if 0 < 30 * low < high:
        ax.set_yscale("log")
    ax.set_xlabel("step")
    ax.set_ylabel("value")
    return ax
