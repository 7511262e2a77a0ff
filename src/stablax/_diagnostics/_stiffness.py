"""How stiff a field is: the rates of its linear part."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Complex, Float

from .._fields import as_guarded, evaluate_ungated
from .._states import all_finite, as_args, as_state, state_dtype
from .._types import VF, Args, Explained, NumbersLike, ScalarLike, Y, YLike, typechecked


class Stiffness(eqx.Module):
    """The rates of a field around a state: the eigenvalues of its Jacobian.

    **Attributes:** rates are in 1/time; along a trajectory every array has a leading axis.

    - `eigenvalues`: of df/dy, by falling real part; nan where the Jacobian is not finite.
    - `fastest`: the rate of the fastest decay, the largest -Re; 0 if nothing decays.
    - `slowest`: the rate of the slowest decay, the smallest -Re above what rounding leaves of a
        zero (n eps of the largest eigenvalue); 0 if nothing decays.
    - `ratio`: `fastest / slowest`, the stiffness ratio; 1 if nothing decays. What matters for a
        solve is `fastest` times the time span: steps of an explicit solver are shorter than about
        3 / `fastest`, however smooth the solution.
    - `growth`: the largest real part; above 0 neighbouring solutions part.
    """

    eigenvalues: Complex[Array, "*times size"]
    fastest: Float[Array, "*times"]
    slowest: Float[Array, "*times"]
    ratio: Float[Array, "*times"]
    growth: Float[Array, "*times"]


@typechecked
def stiffness(field: VF, t: ScalarLike, y: YLike, args: Args = None) -> Stiffness:
    """How stiff a field is at one state. For a dense Jacobian of up to a few hundred components;
    works under `jit` and `vmap`.

    The start of a trajectory misleads (Robertson's stiffness ratio is 1 there, and later above
    1e6): look along it with [`stiffness_along`][].

    **Arguments:**

    - `field`: the vector field f(t, y, args), guarded or not.
    - `t`, `y`, `args`: where to look.

    **Returns:** a [`Stiffness`][].
    """
    y = as_state(y, "y")
    dtype = state_dtype(y)
    return _stiffness(field, jnp.asarray(t, dtype), y, as_args(args, dtype))


@typechecked
def stiffness_along(
    field: VF, ts: Explained[NumbersLike], ys: YLike, args: Args = None
) -> Stiffness:
    """How stiff a field is along a trajectory.

    ```python
    profile = sx.stiffness_along(model.field, simulation.ts, simulation.ys, args)
    print(profile.ratio.max())
    ```

    **Arguments:**

    - `field`: the vector field f(t, y, args), guarded or not.
    - `ts`: times, shape `(times,)`.
    - `ys`: the states there: a PyTree whose arrays have a leading axis `times`.
    - `args`: the condition, the same for all times.

    **Returns:** a [`Stiffness`][] in which every array has a leading axis `times`.
    """
    ys = as_state(ys, "ys")
    dtype = state_dtype(ys)
    ts = jnp.asarray(ts, dtype)
    for leaf in jax.tree.leaves(ys):
        if ts.ndim != 1 or leaf.shape[:1] != ts.shape:
            raise ValueError(
                f"`ts` has shape {ts.shape} and an array of `ys` {leaf.shape}; both need one "
                "leading axis of the same length, the times."
            )
    return _along(field, ts, ys, as_args(args, dtype))


@eqx.filter_jit
def _along(field, ts, ys, args) -> Stiffness:
    return jax.vmap(lambda t, y: _stiffness(field, t, y, args))(ts, ys)


def jacobian_at(field: VF, t: ScalarLike, y: Y, args: Args) -> Float[Array, "size size"]:
    """df/dy by automatic differentiation, as it is: non-finite where it is not finite."""
    guarded = as_guarded(field)
    flat, unravel = ravel_pytree(y)
    return jax.jacfwd(lambda x: ravel_pytree(evaluate_ungated(guarded, t, unravel(x), args))[0])(
        flat
    )


def _stiffness(field, t, y, args) -> Stiffness:
    jacobian = jacobian_at(field, t, y, args)
    finite = all_finite(jacobian)
    values = jnp.linalg.eigvals(jnp.where(finite, jacobian, 0))
    values = values[jnp.argsort(-jnp.real(values))]
    decay = -jnp.real(values)
    # An eigenvalue of zero (a conserved quantity) is computed as a few eps of the largest.
    size = jacobian.shape[0]
    rounding = 4 * size * jnp.finfo(decay.dtype).eps * jnp.max(jnp.abs(values))
    decays = decay > rounding
    fastest = jnp.max(jnp.where(decays, decay, 0))
    slowest = jnp.min(jnp.where(decays, decay, jnp.inf))
    slowest = jnp.where(jnp.isfinite(slowest), slowest, 0)
    ratio = jnp.where(slowest > 0, fastest / jnp.where(slowest > 0, slowest, 1), 1)

    def known(x):
        return jnp.where(finite, x, jnp.nan)

    return Stiffness(
        eigenvalues=known(values),
        fastest=known(fastest),
        slowest=known(slowest),
        ratio=known(ratio),
        growth=known(jnp.max(jnp.real(values))),
    )
