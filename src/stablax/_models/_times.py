"""Times in the dtype of the state, and whether that still tells them apart."""

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from .._static import is_real, is_traced, refuse_masked
from .._types import NumbersLike
from .._words import short

# Times that lie closer than so many units of their relative tolerance, or of rounding, are one. To
# know the tolerance costs more than all the rest, and none is below a tenth of the second.
_IN_TOLERANCES, _IN_ULPS = 10, 100

# Decimals that differ by so much of their size are equal but for the rounding of double precision:
# 0.1 + 0.2 is a time of 0.3.
_EQUAL = 16 * float(np.finfo(np.float64).eps)
# A solve over fewer times than these that the dtype can tell apart is an accident.
_LEAST = 16


class Times(NamedTuple):
    """Times in the dtype of the state, and what that has taken off those that were given. Numpy
    arrays, where they are known."""

    rounded: Array | np.ndarray
    lost: Array | np.ndarray
    blur: float  # of the given ones, relative


@np.errstate(invalid="ignore", over="ignore")  # what is not finite has its own errors
def as_times(given: NumbersLike, dtype: np.dtype, name: str) -> Times:
    """`given` in `dtype`, or a `TypeError` that calls them `name`."""
    refuse_masked(given, name)
    if is_traced(given):
        given = jnp.asarray(given)
        rounded = given.astype(dtype)
        if _digits(given.dtype) <= _digits(dtype):
            return Times(rounded, np.zeros(rounded.shape), _EQUAL)
        lost = lax.stop_gradient(given - rounded.astype(given.dtype))
        return Times(rounded, lost.astype(dtype), _EQUAL)
    given = np.asarray(given)
    if given.dtype == object and all(isinstance(x, int) for x in given.flat):
        given = given.astype(float)
    if not is_real(given.dtype):
        raise TypeError(
            f"`{name}` must be numbers, in the unit of time of the field, got {short(given)} "
            f"of dtype {given.dtype}."
        )
    rounded = given.astype(dtype)
    near = rounded.astype(float)
    if np.issubdtype(given.dtype, np.integer):  # nanoseconds have more digits than float64
        pairs = zip(given.ravel().tolist(), near.ravel().tolist(), strict=True)
        lost = np.array([a - int(b) for a, b in pairs], float).reshape(given.shape)
        return Times(rounded, lost, 0.0)
    return Times(rounded, np.where(np.isfinite(near), given.astype(float) - near, 0.0), _EQUAL)


def last_asked(ts: Array | np.ndarray) -> Any:
    """The last of `ts`, shape `(..., times)`, that is finite: those behind it are not asked for."""
    xp = numpy_of(ts)
    count = xp.sum(xp.isfinite(ts), axis=-1, keepdims=True)
    return xp.take_along_axis(ts, xp.maximum(count - 1, 0), axis=-1)[..., 0]


def rows_are_ordered(t0: Array | np.ndarray, ts: Array | np.ndarray) -> Any:
    """As `times_are_ordered`, of times of which the last, but not all, may be nan or inf."""
    xp = numpy_of(ts)
    asked = xp.isfinite(ts)
    rows = xp.where(asked, ts, last_asked(ts))
    return times_are_ordered(t0, rows) & xp.all(asked[:-1] | ~asked[1:])


@np.errstate(invalid="ignore")  # inf - inf
def times_are_ordered(t0: Array | np.ndarray, ts: Array | np.ndarray) -> Any:
    """Whether the times are finite and go in one direction."""
    xp = numpy_of(ts)
    times = xp.concatenate([t0[None], ts])
    steps = xp.diff(times)
    return xp.all(xp.isfinite(times)) & (xp.all(steps >= 0) | xp.all(steps <= 0))


def numpy_of(arrays: PyTree) -> ModuleType:
    """jax's, or for arrays that are all numpy's their own, which is faster."""
    return jnp if any(isinstance(x, jax.Array) for x in jtu.tree_leaves(arrays)) else np


def _digits(dtype: DTypeLike) -> int:
    is_integer = jnp.issubdtype(dtype, jnp.integer)
    return jnp.iinfo(dtype).bits if is_integer else jnp.finfo(dtype).nmant + 1


@np.errstate(invalid="ignore", over="ignore")
def told_apart(
    t0: Times, times: dict[str, Times], ends: Times | None, rtol: Callable[[], float]
) -> Any:
    """`t0`, if the dtype keeps the time that passes from there to each of the `times` (by name;
    with the `ends` of phases, from the start of its phase) and that of each phase, to ten times the
    tolerance. Otherwise a `ValueError`, or, where times are traced, nan, from which no solve
    starts."""
    everything = [t0, *times.values()] + ([] if ends is None else [ends])
    lossy = any(is_traced(x.lost) or x.lost.any() for x in everything)
    traced, dtype = is_traced(everything), t0.rounded.dtype
    if traced and not lossy:
        return t0.rounded
    number = (lambda x: jnp.asarray(x, dtype)) if traced else (lambda x: np.asarray(x, float))
    numbers = lambda x: Times(number(x.rounded), number(x.lost), x.blur)
    start, ends = numbers(t0), None if ends is None else numbers(ends)
    times = {name: numbers(x) for name, x in times.items()}
    if traced:
        spans = _spans(start, times, ends, _IN_TOLERANCES * rtol(), jnp)
        wrong = jnp.any(jnp.concatenate([span.wrong for span in spans]))
        return jnp.where(wrong, jnp.nan, t0.rounded)
    eps = float(jnp.finfo(dtype).eps)
    if lossy and any(span.wrong.any() for span in _spans(start, times, ends, _IN_ULPS * eps, np)):
        for span in _spans(start, times, ends, _IN_TOLERANCES * rtol(), np):
            if span.wrong.any():
                raise ValueError(_words(span, dtype))
    last = last_asked((times["ts"] if ends is None else ends).rounded)[..., None]
    length = np.abs(last - start.rounded)
    if ((length > 0) & (length < _LEAST * eps * np.abs(last))).any():
        raise ValueError(
            f"Between `t0` and the last time are fewer than {_LEAST} times that {dtype}, the dtype "
            f"of `y0` and of all times, can tell apart. {_remedy(dtype)}"
        )
    return t0.rounded


class _Span(NamedTuple):
    """Times that pass from `start` to `stop`: as given, in the dtype, and whether that is wrong."""

    name: str
    start: Array | np.ndarray
    given: Array | np.ndarray
    kept: Array | np.ndarray
    wrong: Array | np.ndarray


def _spans(
    t0: Times, times: dict[str, Times], ends: Times | None, most: float, xp: ModuleType
) -> Iterator[_Span]:
    last = last_asked((times["ts"] if ends is None else ends).rounded)[..., None]
    way = xp.sign(last - t0.rounded)

    def span(name: str, start: Times, stop: Times) -> _Span:
        kept, error = stop.rounded - start.rounded, stop.lost - start.lost
        given = kept + error
        blur = max(start.blur, stop.blur) * xp.abs(stop.rounded)
        apart = (way * kept >= 0) & (xp.abs(given) > blur)
        wrong = apart & (xp.abs(error) > most * xp.abs(given))
        return _Span(name, start.rounded + start.lost, given, kept, wrong)

    if ends is None:
        for name, stop in times.items():
            yield span(name, t0, stop)
        return
    join = lambda a, b: xp.concatenate([xp.reshape(a, (1,)), b[:-1]])
    starts = Times(join(t0.rounded, ends.rounded), join(t0.lost, ends.lost), t0.blur)
    yield span("the end of phase", starts, ends)
    for name, stop in times.items():
        begun = way[0] * starts.rounded[None] <= way[0] * stop.rounded[:, None]
        phase = xp.maximum(xp.sum(begun, axis=1) - 1, 0)
        yield span(name, Times(starts.rounded[phase], starts.lost[phase], t0.blur), stop)


def _words(span: _Span, dtype: np.dtype) -> str:
    place = tuple(int(i[0]) for i in np.nonzero(span.wrong))
    start, given, kept = (
        float(np.broadcast_to(x, span.wrong.shape)[place])
        for x in (span.start, span.given, span.kept)
    )
    index = ", ".join(map(str, place))
    name = f"`{span.name}[{index}]`" if span.name.isidentifier() else f"{span.name} {index}"
    return (
        f"From {start:.12g} to {name} pass {given:.6g}, but {kept:.6g} in {dtype}, the dtype of "
        f"`y0` and of all times. {_remedy(dtype)}"
    )


def _remedy(dtype: np.dtype) -> str:
    finer = "" if dtype == np.float64 else ", or use a float64 `y0`"
    return (
        "Count time from the start: `t0=0.0`, `ts - t0`, and so the ends of phases (a field that "
        f"depends on time gets the start in `args`){finer}."
    )
